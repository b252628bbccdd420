"""What strangers put on the Hub is read with bounds, and refused in one line."""

import json

import pytest

from hf_neuracrypt import Classifier, SecretKey, load_encoder
from hf_neuracrypt.data.manifest import MAX_MANIFEST_BYTES, checksum, read_manifest, to_text
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.training.data import load_splits
from tests.commands import started_with
from tests.helpers import KEY_ID, SMALL, TINY_VIT
from tests.loopback_hub import Repo


def test_hostile_manifests(published, owners, tmp_path):
    good = json.loads(published.files("dataset", "owner/photos")["neuracrypt.json"])
    good.pop("sha256")

    def signed(**changes):
        content = good | changes
        return to_text(content | {"sha256": checksum(content)}).encode()

    hostile = {
        "huge": (b" " * (MAX_MANIFEST_BYTES + 1), "is larger than"),
        "nested": (b"[" * 100_000, "is damaged"),
        "binary": (b"\xff\xfe\x00", "is not text"),
        "a list": (b"[]\n", "is damaged"),
        "wrong types": (signed(key_id=5), "is damaged"),
        "absurd size": (signed(config=good["config"] | {"image_size": 10**9}), "is damaged"),
        "absurd depth": (signed(config=good["config"] | {"depth": 10**9}), "is damaged"),
        "rows": (signed(rows={"train": -1}), "how many rows"),
        "traversal": (signed(files={"../../.bashrc": {"sha256": "0"}}), "not inside its folder"),
        "absolute": (signed(files={"/etc/passwd": {"sha256": "0"}}), "not inside its folder"),
        "another key": (signed(key_id=KEY_ID), "contradicts itself"),
        "missing shards": (None, "cannot load the dataset|neither a"),
    }
    for index, (content, _) in enumerate(hostile.values()):
        files = dict(published.files("dataset", "owner/photos")) | ({"neuracrypt.json": content} if content else {})
        if content is None:
            files = {name: data for name, data in files.items() if not name.startswith("data/")}
        repo = published.repos["dataset", f"owner/hostile-{index}"] = type(next(iter(published.repos.values())))(True)
        repo.add("hostile", files)
    with started_with(published.environment(tmp_path / "home")):
        for index, (_, reason) in enumerate(hostile.values()):
            with pytest.raises(NeuraCryptError, match=reason) as refused:
                load_splits(f"owner/hostile-{index}")
            assert "\n" not in str(refused.value)


def test_hostile_models(published, owners, tmp_path):
    config = TINY_VIT | {"neuracrypt": [read_manifest(owners / "one") | {"rows": 0}], "num_labels": 3}
    marker = tmp_path / "code-ran"
    code = f"open(r'{marker}', 'w')\n".encode()
    as_bytes = lambda **changes: json.dumps(config | changes).encode()  # noqa: E731
    auto_map = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    pickled = b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    hostile = {
        "huge": ({"config.json": b" " * 10_000_001}, "larger than"),
        "not json": ({"config.json": b"{"}, "cannot load the model"),
        "nested": ({"config.json": b'{"a":' * 100_000}, "cannot load the model"),
        "own code": ({"config.json": as_bytes(model_type="mine", auto_map=auto_map), "code.py": code}, "cannot load"),
        "record types": ({"config.json": as_bytes(neuracrypt={"a": 1})}, "something else than a list"),
        "record size": (
            {"config.json": as_bytes(neuracrypt=[{"neuracrypt": 1, "key_id": KEY_ID, "config": 10**9}])},
            "config",
        ),
        "another size": ({"config.json": as_bytes(image_size=10**6)}, "contradicts itself"),
        "pickled weights": ({"config.json": as_bytes(), "pytorch_model.bin": pickled}, "cannot load"),
        "broken weights": ({"config.json": as_bytes(), "model.safetensors": b"\xff" * 64}, "cannot load"),
        "nothing": ({"README.md": b""}, "no config.json"),
    }
    for index, (files, _) in enumerate(hostile.values()):
        repo = published.repos["model", f"owner/model-{index}"] = type(next(iter(published.repos.values())))(True)
        repo.add("hostile", files)
    encoder = load_encoder(SMALL, SecretKey.load(owners / "one.key"))
    with started_with(published.environment(tmp_path / "home")):
        for index, (_, reason) in enumerate(hostile.values()):
            with pytest.raises(NeuraCryptError, match=reason) as refused:
                Classifier.from_pretrained(f"owner/model-{index}", encoder)
            assert "\n" not in str(refused.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "place", ["{secret}", "../../../../../../../..{secret}", "file://{secret}", "{elsewhere}/a.csv"]
)
def test_hostile_cards_load_nothing_from_elsewhere(place, hub, tmp_path):
    """A card may name the files of its repository, not those of the reader's machine or of other servers."""
    (tmp_path / "secret.csv").write_text("image,label\nsecret,1\n")
    path = place.format(secret=tmp_path / "secret.csv", elsewhere=f"{hub.url}/datasets/other/tables/resolve/main")
    card = f"---\nconfigs:\n- config_name: default\n  data_files: '{path}'\n---\n"
    hub.repos["dataset", "evil/cards"], hub.repos["dataset", "other/tables"] = Repo(False), Repo(False)
    hub.repos["dataset", "other/tables"].add("a table", {"a.csv": (tmp_path / "secret.csv").read_bytes()})
    hub.repos["dataset", "evil/cards"].add("hostile", {"README.md": card.encode(), "other.txt": b"x"})
    with started_with(hub.environment(tmp_path / "home")):
        for streaming in (False, True):
            with pytest.raises(NeuraCryptError) as refused:
                list(load_source("evil/cards", streaming)["train"])
            assert "\n" not in str(refused.value)
