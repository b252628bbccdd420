"""To the Hub and back with the real clients, each in a process of its own that talks to a Hub on loopback."""

import hashlib
import io
import json
import os
import subprocess
import sys

import datasets
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from huggingface_hub import DatasetCard, ModelCard

from hf_neuracrypt import store
from hf_neuracrypt.keys import SecretKey
from tests.conftest import ROOT, SMALL_FLAGS, TINY_VIT, assert_one_line_error, command, make_dataset, make_images
from tests.loopback_hub import LoopbackHub


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two owners: their keys, one source, two encrypted folders of several shards; a config of a tiny ViT."""
    folder = tmp_path_factory.mktemp("hub")
    plain = DatasetDict({"train": make_dataset(300), "test": make_dataset(30, seed=1)})
    plain.save_to_disk(str(folder / "plain"))
    for owner in ("one", "two"):
        SecretKey.generate().save(folder / f"{owner}.key")
        encrypt = command(
            "encrypt", "--dataset", folder / "plain", "--key-file", folder / f"{owner}.key", "--output", folder / owner,
            "--shard-size", 1, *SMALL_FLAGS,
        )  # fmt: skip
        assert encrypt.returncode == 0, encrypt.stderr
    (folder / "vit").mkdir()
    (folder / "vit" / "config.json").write_text(json.dumps(TINY_VIT))
    return folder


@pytest.fixture(scope="module")
def published(work):
    """A Hub that holds the first owner's images as owner/photos."""
    with LoopbackHub() as hub:
        result = push(hub, work, "one", "owner/photos", "--key-file", work / "one.key")
        assert result.returncode == 0, result.stderr
        yield hub


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


def push(hub, work, folder, repo, *words, token="hf_owner"):
    return command("push", work / folder, repo, *words, **hub.environment(work / "home", token))


def python(hub, code, home, token="hf_owner"):
    """Run code that a user might write; returns what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | hub.environment(home, token)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def key_id(path):
    return SecretKey.load(path).id


# ------------------------------------------------------------------------------------------------------ datasets


def test_what_is_published(published, work):
    files = published.files("dataset", "owner/photos")
    shards = sorted(name for name in files if name.startswith("data/"))
    assert shards[-1].startswith("data/train-") and len(shards) > 2
    assert set(files) == {*shards, "README.md", "neuracrypt.json", ".gitattributes"}
    assert published.repos["dataset", "owner/photos"].private
    manifest = store.parse_manifest(files["neuracrypt.json"].decode(), "it")
    assert manifest["key_id"] == key_id(work / "one.key") and manifest["rows"] == {"train": 300, "test": 30}
    assert set(manifest["files"]) == set(shards)
    for name in shards:
        table = pq.read_table(io.BytesIO(files[name]))
        assert table.column_names == ["image", "label"] and len(table) == manifest["files"][name]["rows"]
        assert not any(row["path"] for row in table["image"].to_pylist())
    card = DatasetCard(files["README.md"].decode())
    assert manifest["key_id"] in card.text and card.data.to_dict()["configs"][0]["data_files"]


def test_stock_datasets_loads_and_streams_it(published, work):
    code = """
import datasets, hashlib, json
loaded = datasets.load_dataset("owner/photos")
stream = datasets.load_dataset("owner/photos", streaming=True)
pixels = lambda rows: hashlib.sha256(b"".join(row["image"].tobytes() for row in rows)).hexdigest()
images = [pixels(loaded["train"]), pixels(stream["train"])]
print(json.dumps([*images, loaded["test"]["label"][:], loaded["train"].info.description]))
"""
    downloaded, streamed, labels, description = json.loads(python(published, code, work / "home").splitlines()[-1])
    local = datasets.load_from_disk(str(work / "one"))
    expected = hashlib.sha256(b"".join(row["image"].tobytes() for row in local["train"])).hexdigest()
    assert downloaded == streamed == expected and labels == local["test"]["label"][:]
    assert description == local["train"].info.description  # the record travels with the data


def test_a_failed_upload_resumes_without_sending_again(hub, work):
    hub.faults.append([r"PUT /storage", 1, 400])
    assert_one_line_error(push(hub, work, "one", "owner/photos"), "the Hub", "owner/photos")
    assert list(hub.files("dataset", "owner/photos")) == [".gitattributes"] and hub.done("PUT", "/storage") == 1
    assert push(hub, work, "one", "owner/photos").returncode == 0
    shards = [name for name in hub.files("dataset", "owner/photos") if name.startswith("data/")]
    assert hub.done("PUT", "/storage") == len(shards)


def test_a_lost_answer_to_the_commit_is_no_failure(hub, work):
    hub.faults.append([r"POST .*/commit/", 0, "lost"])
    result = push(hub, work, "one", "owner/photos")
    assert result.returncode == 0, result.stderr
    commits = hub.repos["dataset", "owner/photos"].commits
    assert len(commits) == 2 and commits[-1][0] in result.stdout


def test_of_two_that_push_at_once_one_is_told(hub, work):
    hub.faults.append([r"POST .*/commit/", 0, "race"])
    assert_one_line_error(push(hub, work, "one", "owner/photos"), "somebody else published to owner/photos")
    assert "neuracrypt.json" not in hub.files("dataset", "owner/photos")


def test_a_new_revision_replaces_the_old_shards(hub, work, tmp_path):
    assert push(hub, work, "one", "owner/photos").returncode == 0
    rotate = command(
        "rotate", work / "one", "--dataset", work / "plain", "--new-key-file", tmp_path / "new.key", "--output",
        tmp_path / "new", "--repo", "owner/photos", **hub.environment(work / "home"),
    )  # fmt: skip
    assert rotate.returncode == 0 and "stays readable to whoever has it" in rotate.stderr, rotate.stderr
    files = hub.files("dataset", "owner/photos")
    manifest = store.parse_manifest(files["neuracrypt.json"].decode(), "it")
    assert manifest["key_id"] == key_id(tmp_path / "new.key")
    assert {name for name in files if name.startswith("data/")} == set(manifest["files"])
    assert manifest["config"] == store.read_manifest(work / "one")["config"]
    assert len(hub.repos["dataset", "owner/photos"].commits) == 3
    refused = push(hub, work, "one", "owner/photos")
    assert_one_line_error(refused, "holds images of the key", key_id(work / "one.key"), "rotate")


def test_where_nobody_meant_to_write(hub, work):
    environment = hub.environment(work / "home")
    code = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("owner/open", repo_type="dataset", private=False)
api.create_repo("owner/taken", repo_type="dataset", private=True)
api.upload_file(path_or_fileobj=b"a,b", path_in_repo="table.csv", repo_id="owner/taken", repo_type="dataset")
"""
    python(hub, code, work / "home")
    assert_one_line_error(push(hub, work, "one", "owner/open"), "owner/open is public: give --public")
    assert_one_line_error(push(hub, work, "one", "owner/taken"), "holds something else than an encrypted dataset")
    assert_one_line_error(push(hub, work, "one", "other/photos"), "your token may not write to other/photos")
    assert_one_line_error(push(hub, work, "one", "a/b/c"), "'a/b/c' is no name of a repository")
    offline = command("push", work / "one", "owner/photos", **environment | {"HF_HUB_OFFLINE": "1"})
    assert_one_line_error(offline, "HF_HUB_OFFLINE is set")
    wrong = push(hub, work, "one", "owner/photos", "--key-file", work / "two.key")
    assert_one_line_error(wrong, "this key is", key_id(work / "two.key"))
    assert ("dataset", "owner/photos") not in hub.repos
    public = push(hub, work, "one", "owner/open", "--public", "--gated")
    assert public.returncode == 0 and hub.repos["dataset", "owner/open"].gated == "manual"


@pytest.mark.parametrize(
    "plant, reason",
    [
        (lambda folder: (folder / ".env").write_text("x"), "hidden file"),
        (lambda folder: (folder / "before-after.png").write_bytes(b"x"), "none of the files that are published"),
        (lambda folder: SecretKey.generate().save(folder / "train" / "notes.txt"), "text of a secret key file"),
    ],
)
def test_a_folder_with_something_else_is_refused(plant, reason, hub, work, tmp_path):
    subprocess.run(["cp", "-r", str(work / "one"), str(tmp_path / "copy")], check=True)
    plant(tmp_path / "copy")
    assert_one_line_error(push(hub, tmp_path, "copy", "owner/photos"), reason)
    assert not hub.log


def test_kept_columns_are_published_only_when_named(hub, work, tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"]), "age": datasets.Value("int64")})
    rows = Dataset.from_dict({"image": list(make_images(2, 20)), "label": [0, 1], "age": [50, 60]}, features=features)
    rows.save_to_disk(str(tmp_path / "plain"))
    encrypt = command(
        "encrypt", "--dataset", tmp_path / "plain", "--key-file", work / "one.key", "--output", tmp_path / "kept",
        "--keep-column", "age", *SMALL_FLAGS,
    )  # fmt: skip
    assert encrypt.returncode == 0, encrypt.stderr
    refused = push(hub, tmp_path, "kept", "owner/photos")
    assert_one_line_error(refused, "column 'age', stored in clear", "--keep-column age")
    assert push(hub, tmp_path, "kept", "owner/photos", "--keep-column", "age").returncode == 0
    assert "publish `age` in clear" in hub.files("dataset", "owner/photos")["README.md"].decode()


@pytest.mark.parametrize("scheme", ["pe", "neuracrypt"])
def test_other_schemes_are_published_alike(scheme, hub, work, tmp_path):
    small = ("--image-size", 32, *(("--patch-size", 8, "--width", 64, "--depth", 1) if scheme == "neuracrypt" else ()))
    encrypt = command(
        "encrypt", "--dataset", work / "plain", "--key-file", work / "one.key", "--output", tmp_path / "other",
        "--scheme", scheme, "--max-rows", 3, *small,
    )  # fmt: skip
    assert encrypt.returncode == 0, encrypt.stderr
    result = push(hub, tmp_path, "other", "owner/other", "--key-file", work / "one.key")
    assert result.returncode == 0, result.stderr
    code = """
import numpy as np
from datasets import load_dataset
from hf_neuracrypt.record import records_of
loaded = load_dataset("owner/other")
print(np.asarray(loaded["train"][0]["image"]).shape, records_of(loaded)[0].config.scheme)
"""
    shape = {"pe": "(32, 32, 3)", "neuracrypt": "(16, 64)"}[scheme]
    assert python(hub, code, tmp_path / "home").splitlines()[-1] == f"{shape} {scheme}"


# ------------------------------------------------------------------------------------------------------ models

TRAIN = """
import sys
sys.path.insert(0, "scripts")
import train
from hf_neuracrypt.errors import NeuraCryptError

def run(*words):
    flags = "--num_train_epochs 2 --save_strategy epoch --eval_strategy epoch --max_train_samples 24"
    try:
        train.main(*train.parse([*words, *flags.split(), "--use_cpu", "--disable_tqdm", "1"]))
    except NeuraCryptError as error:
        print("refused:", error)
"""


def test_training_publishes_with_our_card_at_every_push(published, work, tmp_path):
    strategies = {"end": None, "every_save": None, "checkpoint": "last-checkpoint/", "all_checkpoints": "checkpoint-"}
    data = f'"--dataset_name", "owner/photos", "--config_name", r"{work / "vit"}", "--push_to_hub"'
    calls = [
        f'run({data}, "--output_dir", r"{tmp_path / name}", "--hub_model_id", "owner/{name}", '
        f'"--hub_strategy", "{name}")'
        for name in strategies
    ]
    output = python(published, f"import os\nos.chdir(r'{ROOT}')\n" + TRAIN + "\n".join(calls), work / "home")
    assert "refused" not in output
    for strategy, folder in strategies.items():
        repo = published.repos["model", f"owner/{strategy}"]
        assert repo.private and len(repo.commits) > 2
        for _, title, files in repo.commits[1:]:
            assert "stock Vision Transformer that learned from **encrypted** images" in files["README.md"].decode(), (
                title
            )
        files = repo.commits[-1][2]
        assert bool(folder) == any(name.startswith(folder or "checkpoint-") for name in files)
        card = ModelCard(files["README.md"].decode())
        assert {result.metric_type for result in card.data.eval_results} == {"accuracy", "loss"}
        assert card.data.datasets == ["owner/photos"] and key_id(work / "one.key") in card.text
        assert str(work) not in card.content
        config = json.loads(files["config.json"])
        assert config["neuracrypt"][0]["key_id"] == key_id(work / "one.key") and "auto_map" not in config


def test_the_model_answers_without_our_package(published, work, tmp_path):
    call = (
        f'run("--dataset_name", "owner/photos", "--config_name", r"{work / "vit"}", "--push_to_hub", '
        f'"--output_dir", r"{tmp_path / "model"}", "--hub_model_id", "owner/vit")'
    )
    trained = python(published, f"import os\nos.chdir(r'{ROOT}')\n{TRAIN}\n{call}", work / "home")
    assert "refused" not in trained
    code = """
import sys
from datasets import load_dataset
from transformers import pipeline
answer = pipeline("image-classification", model="owner/vit")(load_dataset("owner/photos", split="test")[0]["image"])
assert not any(name.startswith("hf_neuracrypt") for name in sys.modules)
print(sorted(entry["label"] for entry in answer))
"""
    assert python(published, code, tmp_path / "home").splitlines()[-1] == "['cat', 'dog', 'horse']"
    photo = tmp_path / "photo.png"
    make_dataset(1)[0]["img"].save(photo)
    environment = published.environment(tmp_path / "home")
    asked = ("predict", "--model", "owner/vit", photo, "--key-file")
    assert command(*asked, work / "one.key", **environment).returncode == 0
    assert_one_line_error(command(*asked, work / "two.key", **environment), "this key is", key_id(work / "two.key"))
    stranger = published.environment(tmp_path / "empty", token="hf_other")
    assert_one_line_error(command(*asked, work / "one.key", **stranger), "not on the Hub, or it is private", "HF_TOKEN")
    evaluate = ("scripts/evaluate.py", "--model", "owner/vit", "--dataset", "owner/photos")
    assert_one_line_error(command(*evaluate, **stranger), "not on the Hub, or it is private")
    assert json.loads(command(*evaluate, **environment).stdout)["samples"] == 30


def test_several_owners(published, work, tmp_path):
    assert push(published, work, "two", "owner/photos-two").returncode == 0
    both = f'"--dataset_name", "owner/photos", "owner/photos-two", "--config_name", r"{work / "vit"}"'
    code = f"""
import os
os.chdir(r'{ROOT}')
{TRAIN}
run({both}, "--output_dir", r"{tmp_path / "refused"}")
run({both}, "--output_dir", r"{tmp_path / "model"}", "--allow_mixed_keys")
"""
    output = python(published, code, work / "home")
    ids = [key_id(work / "one.key"), key_id(work / "two.key")]
    assert output.count("refused:") == 1 and "--allow_mixed_keys" in output and all(each in output for each in ids)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert [record["key_id"] for record in config["neuracrypt"]] == ids
    photo = tmp_path / "photo.png"
    make_dataset(1)[0]["img"].save(photo)
    SecretKey.generate().save(tmp_path / "third.key")
    asked = ("predict", "--model", tmp_path / "model", photo, "--key-file")
    assert command(*asked, work / "one.key").returncode == command(*asked, work / "two.key").returncode == 0
    assert_one_line_error(command(*asked, tmp_path / "third.key"), *ids)


def test_nothing_is_uploaded_beside_what_does_not_belong(published, work, tmp_path):
    for name in ("key", "notes"):
        (tmp_path / name).mkdir()
    SecretKey.generate().save(tmp_path / "key" / "owner.key")
    (tmp_path / "notes" / "photo.png").write_bytes(b"a plain image")
    words = f'"--dataset_name", "owner/photos", "--config_name", r"{work / "vit"}", "--push_to_hub"'
    code = f"""
import os
os.chdir(r'{ROOT}')
{TRAIN}
run({words}, "--output_dir", r"{tmp_path / "key"}", "--hub_model_id", "owner/key")
run({words}, "--output_dir", r"{tmp_path / "notes"}", "--hub_model_id", "owner/notes")
run({words}, "--output_dir", r"{tmp_path / "token"}", "--hub_model_id", "owner/token", "--hub_token", "hf_owner")
"""
    refused = [line for line in python(published, code, work / "home").splitlines() if line.startswith("refused:")]
    assert "key file inside the output" in refused[0] and "owner.key" in refused[0]
    assert "photo.png is none of the files that are published" in refused[1]
    assert "--hub_token would be published" in refused[2]
    assert ("model", "owner/key") not in published.repos and ("model", "owner/token") not in published.repos
    assert list(published.files("model", "owner/notes")) == [".gitattributes"]


# ------------------------------------------------------------------------------------------------------ strangers


def test_hostile_manifests(published, work, tmp_path):
    good = json.loads(published.files("dataset", "owner/photos")["neuracrypt.json"])
    good.pop("sha256")

    def signed(**changes):
        content = good | changes
        return store.to_text(content | {"sha256": store.checksum(content)}).encode()

    hostile = {
        "huge": (b" " * (store.MAX_MANIFEST_BYTES + 1), "is larger than"),
        "nested": (b"[" * 100_000, "is damaged"),
        "binary": (b"\xff\xfe\x00", "is not text"),
        "a list": (b"[]\n", "is damaged"),
        "wrong types": (signed(key_id=5), "is damaged"),
        "absurd size": (signed(config=good["config"] | {"image_size": 10**9}), "is damaged"),
        "absurd depth": (signed(config=good["config"] | {"depth": 10**9}), "is damaged"),
        "rows": (signed(rows={"train": -1}), "how many rows"),
        "traversal": (signed(files={"../../.bashrc": {"sha256": "0"}}), "not inside its folder"),
        "absolute": (signed(files={"/etc/passwd": {"sha256": "0"}}), "not inside its folder"),
        "another key": (signed(key_id="nck1-0000"), "contradicts itself"),
        "missing shards": (None, "cannot load the dataset|neither a"),
    }
    for index, (content, _) in enumerate(hostile.values()):
        files = dict(published.files("dataset", "owner/photos")) | ({"neuracrypt.json": content} if content else {})
        if content is None:
            files = {name: data for name, data in files.items() if not name.startswith("data/")}
        repo = published.repos["dataset", f"owner/hostile-{index}"] = type(next(iter(published.repos.values())))(True)
        repo.add("hostile", files)
    code = f"""
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.training import load_splits
for index in range({len(hostile)}):
    try:
        print(load_splits(f"owner/hostile-{{index}}"))
    except NeuraCryptError as error:
        print("refused:", " ".join(str(error).split()))
"""
    lines = python(published, code, tmp_path / "home").splitlines()
    assert len(lines) == len(hostile)
    for line, (name, (_, reason)) in zip(lines, hostile.items()):
        assert line.startswith("refused:") and any(each in line for each in reason.split("|")), (name, line)


def test_hostile_models(published, work, tmp_path):
    config = TINY_VIT | {"neuracrypt": [store.read_manifest(work / "one") | {"rows": 0}], "num_labels": 3}
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
            {"config.json": as_bytes(neuracrypt=[{"neuracrypt": 1, "key_id": "x", "config": 10**9}])},
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
    code = f"""
import PIL.Image
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.prediction import predict
key = SecretKey.load(r"{work / "one.key"}")
for index in range({len(hostile)}):
    try:
        print(predict(f"owner/model-{{index}}", key, [PIL.Image.new("RGB", (32, 32))], ["it"]))
    except NeuraCryptError as error:
        print("refused:", " ".join(str(error).split()))
"""
    lines = python(published, code, tmp_path / "home").splitlines()
    assert len(lines) == len(hostile)
    for line, (name, (_, reason)) in zip(lines, hostile.items()):
        assert line.startswith("refused:") and reason in line, (name, line)
    assert not marker.exists()
