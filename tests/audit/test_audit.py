"""The audit's controls: what hides nothing leaks everywhere, noise leaks nowhere, planted accidents are found."""

import json
import shutil
import zlib

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_neuracrypt.publish.cards import dataset_card
from hf_neuracrypt.data.manifest import checksum, read_manifest
from hf_neuracrypt.audit import deep
from hf_neuracrypt.audit.attacks import attack, run_audit
from hf_neuracrypt.audit.pairs import Pairs, cut, join
from hf_neuracrypt.audit.results import GRADES, ROWS, read_audit
from hf_neuracrypt.schemes import EncoderConfig
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.errors import KeyMismatchError, NeuraCryptError
from hf_neuracrypt.images import to_png
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.schemes import SCHEMES, make_config
from tests.helpers import ROOT, SMALL_FLAGS, assert_one_line_error, command
from tests.loopback_hub import LoopbackHub


pytest.importorskip("skimage")
CONFIG = EncoderConfig(image_size=64, patch_size=8, depth=2, width=64)
TINY = {"image_size": 64, "patch_size": 8}


def rows_of(plain, encrypted, key, config=CONFIG):
    rows, _ = attack(Pairs(config, plain, encrypted), load_encoder(config, key))
    assert all(row.grade in GRADES for row in rows)
    return {row.name: row for row in rows}


def linear(images: np.ndarray) -> np.ndarray:
    """A random linear map of patches, in bytes."""
    patches = cut(images, 8).astype(np.float32) - 128
    mixing = np.random.default_rng(1).standard_normal((192, 192), np.float32) / 192**0.5
    return join((patches @ mixing + 128).clip(0, 255).astype(np.uint8), 64)


@pytest.mark.parametrize("cipher", [lambda images: images, linear], ids=["identity", "linear map"])
def test_what_hides_nothing_leaks_in_every_row(cipher, photos, insecure_key):
    rows = rows_of(photos, cipher(photos), insecure_key)
    assert rows["thumbnail"].grade == "leaks" and rows["thumbnail"].figures["correlation"] > 0.8
    assert rows["matching"].figures["accuracy"] > 0.95 and rows["matching"].grade == "leaks"
    assert rows["known"].grade == "leaks" and rows["known"].figures["pairs_for_3_db"] <= 16
    assert rows["duplicates"].figures["silhouette_iou"] > (0.7 if cipher is linear else 0.99)
    if cipher is not linear:
        assert rows["folding"].figures["correlation"] > 0.999 and rows["known"].figures["psnr_16"] > 25


def test_noise_leaks_nothing(photos, insecure_key):
    noise = np.random.default_rng(2).integers(0, 256, photos.shape, np.uint8)
    rows = rows_of(photos, noise, insecure_key)
    for name in ("thumbnail", "matching", "known", "duplicates", "folding", "link"):
        assert rows[name].grade == "near chance", rows[name]
    assert rows["known"].figures["pairs_for_3_db"] is None and rows["values"].figures["entropy_bits"] > 7.99


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_goes_through(scheme, photos, insecure_key):
    options = {} if scheme in ("le", "pe", "etc", "ele") else TINY
    options = options | ({"depth": 2, "width": 64} if "neuracrypt" in scheme else {})
    config = make_config(scheme, options)
    plain = photos if config.image_size == 64 else photos[:, :, ::2, ::2].copy()
    encoder = load_encoder(config, insecure_key)
    batch = torch.from_numpy(plain)
    encrypted = (encoder.represent(batch) if config.representation else encoder.encrypt(batch)).numpy()
    rows = rows_of(plain, encrypted, insecure_key, config)
    assert rows["known"].grade == "leaks" and rows["matching"].grade != "near chance"
    if scheme in ("le", "pe", "etc", "ele", "vit-blockwise"):
        assert rows["chosen"].figures["recovered"] == 1
    else:
        assert rows["chosen"].grade == "not applicable"
    assert (rows["folding"].grade == "not applicable") == (scheme == "neuracrypt")
    assert (rows["candidates"].grade == "leaks") == (scheme == "pe")
    assert (rows["jigsaw"].grade == "leaks") == (scheme in ("etc", "ele", "vit-blockwise"))
    assert (rows["shuffle"].grade == "not applicable") == (scheme != "neuracrypt")


# ------------------------------------------------------------------------------------------------ folder and command


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    from datasets import DatasetDict

    from tests.helpers import make_dataset

    folder = tmp_path_factory.mktemp("audit")
    DatasetDict({"train": make_dataset(24), "test": make_dataset(9, seed=1)}).save_to_disk(str(folder / "plain"))
    for name in ("one", "two"):
        SecretKey.generate().save(folder / f"{name}.key")
    encrypt = command(
        "encrypt", "--dataset", folder / "plain", "--key-file", folder / "one.key", "--output", folder / "encrypted",
        *SMALL_FLAGS,
    )  # fmt: skip
    assert encrypt.returncode == 0, encrypt.stderr
    return folder


def audit(work, encrypted, output, *words, key="one.key"):
    return command(
        "audit", encrypted, "--source", work / "plain", "--key-file", work / key, "--output", output, *words
    )  # fmt: skip


def report(work, encrypted, output):
    result = audit(work, encrypted, output)
    assert result.returncode == 0, result.stderr
    return json.loads((output / "audit.json").read_text())


@pytest.fixture(scope="module")
def reported(work):
    report(work, work / "encrypted", work / "report")
    return work / "report"


def test_two_runs_say_the_same_and_a_card_shows_it(work, reported, tmp_path):
    one, two = json.loads((reported / "audit.json").read_text()), report(work, work / "encrypted", tmp_path / "two")
    assert {**one, "seconds": 0} == {**two, "seconds": 0} and [row["name"] for row in one["rows"]][:2] == [
        "metadata",
        "key",
    ]
    assert {row["name"] for row in one["rows"]} == set(ROWS) - {"deep", "unpaired"}
    grades = {row["name"]: row["grade"] for row in one["rows"]}
    assert grades["metadata"] == grades["key"] == "nothing found" and grades["labels"] == grades["order"] == "leaks"
    page = (reported / "audit.html").read_text()
    assert "attacks tried" in " ".join(page.split()) or "attacks\npossible" in page
    assert page.count("<img") >= 8 and "http" not in page and len(page) < 1_000_000
    manifest = read_manifest(work / "encrypted")
    record = Record.from_dict(manifest)
    shown = read_audit(reported / "audit.json", record, checksum(manifest))
    card = dataset_card(record, manifest["rows"], ["image", "label"], "ward/photos", {}, audit=shown)
    assert "## Audit" in card and "| Re-identification |" in card and "No audit" not in card
    assert str(work) not in card and str(tmp_path) not in card
    earlier = [row | {"grade": "near chance"} if row["grade"] == "nothing found" else row for row in one["rows"]]
    (tmp_path / "earlier.json").write_text(json.dumps(one | {"rows": earlier}))
    shown = read_audit(tmp_path / "earlier.json", record, checksum(manifest))
    assert [row.grade for row in shown["rows"][:2]] == ["near chance"] * 2
    with pytest.raises(KeyMismatchError, match="another encrypted folder"):
        read_audit(reported / "audit.json", record, "0" * 64)
    for change in ({"rows": [{"name": "<script>"}]}, {"neuracrypt_audit": 2}, {"version": "1 <b>"}):
        (tmp_path / "bad.json").write_text(json.dumps(one | change))
        with pytest.raises(NeuraCryptError):
            read_audit(tmp_path / "bad.json", record, checksum(manifest))


def test_without_its_libraries_the_audit_says_what_to_install(work, tmp_path):
    """A module that cannot be imported, as where `pip install hf-neuracrypt` left the extra out."""
    for name in ("skimage", "scipy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ModuleNotFoundError('none', name={name!r})")
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        words = ("audit", work / "encrypted", "--source", work / "plain", "--key-file", work / "one.key", "--output")
        result = command(*words, tmp_path / "out", **environment)
        assert_one_line_error(result, "pip install 'hf-neuracrypt[audit]'")
        shutil.rmtree(tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_deep_adds_rows_and_a_picture(work, monkeypatch):
    monkeypatch.setattr(deep, "KEYS", 2)
    key = SecretKey.load(work / "one.key")
    audit = run_audit(work / "encrypted", str(work / "plain"), key, train=True)
    assert [row.name for row in audit.rows[-2:]] == ["unpaired", "deep"] and audit.rows[-1].figures["keys"] == 2
    assert audit.pictures.redrawn["network, other keys"].shape == (len(audit.pictures.shown), 3, 32, 32)


def test_wrong_keys_and_places_are_one_line(work, tmp_path):
    assert_one_line_error(
        audit(work, work / "encrypted", tmp_path / "out", key="two.key"), "was encrypted under the key"
    )
    inside = work / "encrypted" / "report"
    assert_one_line_error(audit(work, work / "encrypted", inside), "gets published")
    assert not inside.exists()


def test_planted_accidents_are_found(work, tmp_path):
    planted = tmp_path / "encrypted"
    shutil.copytree(work / "encrypted", planted)
    (planted / "notes.txt").write_text(SecretKey.load(work / "one.key")._secret.hex())
    shard = next(planted.glob("train/*.arrow"))
    split = Dataset.from_file(str(shard))
    table = split.data.table.to_pylist()
    png = table[3]["image"]["bytes"]
    text = b"tEXtGPS\x0052.5N"
    table[3]["image"]["bytes"] = png[:33] + len(text[4:]).to_bytes(4) + text + zlib.crc32(text).to_bytes(4) + png[33:]
    table[7]["image"] = {"bytes": to_png(np.full((32, 32, 3), 9, np.uint8)), "path": None}
    changed = Dataset.from_list(table, features=split.features)
    changed.save_to_disk(str(tmp_path / "changed"))
    shutil.copy(next((tmp_path / "changed").glob("*.arrow")), shard)
    rows = {row["name"]: row for row in report(work, planted, tmp_path / "out")["rows"]}
    assert rows["key"]["grade"] == rows["metadata"]["grade"] == "leaks"
    assert "notes.txt" in rows["key"]["finding"] and "sha256" in rows["metadata"]["finding"]
    assert "not what the key makes" in rows["metadata"]["finding"]


def test_push_puts_the_figures_into_the_card(work, reported, tmp_path):
    with LoopbackHub() as hub:
        environment = hub.environment(tmp_path / "home", "hf_owner")
        words = ("push", work / "encrypted", "owner/photos", "--key-file", work / "one.key", "--audit")
        assert_one_line_error(command(*words, tmp_path / "none.json", **environment), "there is no file")
        result = command(*words, reported / "audit.json", **environment)
        assert result.returncode == 0, result.stderr
        files = hub.files("dataset", "owner/photos")
    assert "## Audit" in files["README.md"].decode() and not any("audit" in name for name in files)
