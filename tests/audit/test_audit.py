"""The audit's controls: what hides nothing leaks everywhere, noise leaks nowhere, planted accidents are found."""

import json
import shutil
import sys
import zlib

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image

import hf_neuracrypt
from hf_neuracrypt.audit import deep
from hf_neuracrypt.audit.attacks import attack, run_audit
from hf_neuracrypt.audit.ciphertext import compressed
from hf_neuracrypt.audit.matching import named_classes
from hf_neuracrypt.audit.pairs import Pairs, cut, join
from hf_neuracrypt.audit.results import GRADES, ROWS, read_audit
from hf_neuracrypt.data.batches import encrypt_all
from hf_neuracrypt.data.manifest import checksum, read_manifest
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.errors import KeyMismatchError, NeuraCryptError
from hf_neuracrypt.images import to_png
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.publish.cards import dataset_card
from hf_neuracrypt.schemes import SCHEMES, EncoderConfig, make_config
from tests.commands import assert_one_line_error, command, encrypt, notes
from tests.helpers import make_dataset, make_images
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


def test_hidden_labels_fall_to_similar_labelled_pictures():
    """Eight classes of pictures alike; under noise, or with labels at random, no more than chance are named."""
    labels, generator = np.arange(96) % 8, np.random.default_rng(3)
    plain = make_images(8, 64)[labels].transpose(0, 3, 1, 2) // 2 + generator.integers(0, 90, (96, 3, 64, 64), np.uint8)
    noise = generator.integers(0, 256, plain.shape, np.uint8)
    assert named_classes(Pairs(CONFIG, plain, linear(plain), labels=labels), 0) > 0.95
    assert named_classes(Pairs(CONFIG, plain, noise, labels=labels), 0) < 0.35
    assert named_classes(Pairs(CONFIG, plain, linear(plain), labels=generator.permutation(labels)), 0) < 0.35
    assert named_classes(Pairs(CONFIG, plain, noise), 0) is None
    assert named_classes(Pairs(CONFIG, plain, noise, labels=np.arange(96)), 0) is None  # one image each tells nothing


def test_how_far_it_compresses(photos):
    noise = np.random.default_rng(2).integers(0, 256, photos.shape, np.uint8)
    assert compressed(np.zeros_like(photos)) < 0.01 < compressed(photos) < 0.99 < compressed(noise) < 1.01


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_goes_through(scheme, photos, insecure_key):
    options = {} if scheme in ("le", "pe", "etc", "ele") else TINY
    options = options | ({"depth": 2, "width": 64} if "neuracrypt" in scheme else {})
    config = make_config(scheme, options)
    plain = photos if config.image_size == 64 else photos[:, :, ::2, ::2].copy()
    encrypted = encrypt_all(load_encoder(config, insecure_key).encrypt_in_place, plain)
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
    folder = tmp_path_factory.mktemp("audit")
    DatasetDict({"train": make_dataset(24), "test": make_dataset(9, seed=1)}).save_to_disk(str(folder / "plain"))
    for name in ("one", "two"):
        SecretKey.generate().save(folder / f"{name}.key")
    result = encrypt(folder / "plain", folder / "one.key", folder / "encrypted")
    assert result.returncode == 0, result.stderr
    return folder


def audit(work, encrypted, output, key="one.key"):
    words = ("--source", work / "plain", "--key-file", work / key, "--output", output)
    return command("audit", encrypted, *words)


def report(work, encrypted, output):
    result = audit(work, encrypted, output)
    assert result.returncode == 0, result.stderr
    return json.loads((output / "audit.json").read_text())


@pytest.fixture(scope="module")
def reported(work):
    """The folder of a report; what was said of it is looked at here, so that it is made once."""
    output = work / "report"
    result = audit(work, work / "encrypted", output)
    assert result.returncode == 0, result.stderr
    before, images, written, following = notes(result)
    assert before.startswith(f"Attacking up to 512 images of {work / 'encrypted'}. With 512 of 224 pixels")
    assert images.startswith("33 images were looked at. These are attacks tried") and str(output) in written
    assert following.split()[:3] == ["hf-neuracrypt", "push", str(work / "encrypted")]
    assert following.endswith(f"--audit {output / 'audit.json'}")
    header, *table, skipped = result.stdout.splitlines()
    attack, attacker = header.index("attack"), header.index("what the attacker has")
    shown = [(line[:attack].rstrip(), line[attack:attacker].rstrip(), line[attacker:]) for line in table]
    rows = read_audit(output / "audit.json").rows
    tried = [(row.grade, row.title, row.attacker) for row in rows if row.grade != "not applicable"]
    assert shown == sorted(tried, key=lambda row: GRADES.index(row[0])) and len(shown) > 8
    assert skipped == "not applicable: " + ", ".join(row.title for row in rows if row.grade == "not applicable")
    return output


def test_two_runs_say_the_same_and_a_card_shows_it(work, reported, tmp_path):
    one, two = json.loads((reported / "audit.json").read_text()), report(work, work / "encrypted", tmp_path / "two")
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert [row["name"] for row in one["rows"]][:2] == ["metadata", "key"]
    assert {row["name"] for row in one["rows"]} == set(ROWS) - {"deep", "unpaired"}
    grades = {row["name"]: row["grade"] for row in one["rows"]}
    assert grades["metadata"] == grades["key"] == "nothing found" and grades["labels"] == grades["order"] == "leaks"
    assert [path.stat().st_mode & 0o777 for path in (reported, reported / "audit.html", reported / "audit.json")] == [
        0o700, 0o600, 0o600,
    ]  # fmt: skip
    page = (reported / "audit.html").read_text()
    assert "attacks tried" in " ".join(page.split()) or "attacks\npossible" in page
    assert page.count("<img") >= 8 and "http" not in page and len(page) < 1_000_000
    manifest = read_manifest(work / "encrypted")
    record = Record.from_dict(manifest)
    shown = read_audit(reported / "audit.json")
    shown.check(record, checksum(manifest))
    card = dataset_card(record, manifest["rows"], ["image", "label"], "ward/photos", {}, audit=shown)
    assert "## Audit" in card and "| Re-identification |" in card and "No audit" not in card
    assert str(work) not in card and str(tmp_path) not in card
    earlier = [row | {"grade": "near chance"} if row["grade"] == "nothing found" else row for row in one["rows"]]
    (tmp_path / "earlier.json").write_text(json.dumps(one | {"rows": earlier}))
    assert [row.grade for row in read_audit(tmp_path / "earlier.json").rows[:2]] == ["near chance"] * 2
    with pytest.raises(KeyMismatchError, match="another encrypted folder"):
        shown.check(record, "0" * 64)
    for change in (
        {"rows": [{"name": "<script>"}]}, {"neuracrypt_audit": 2}, {"version": "1 <b>"}, {"images": True},
        {"config": None}, {"key_id": 1}, {"manifest_sha256": None},
    ):  # fmt: skip
        (tmp_path / "bad.json").write_text(json.dumps(one | change))
        with pytest.raises(NeuraCryptError, match="again"):
            read_audit(tmp_path / "bad.json")


@pytest.mark.parametrize("missing", ["skimage", "scipy"])
def test_without_its_libraries_the_audit_says_what_to_install(missing, work, tmp_path, monkeypatch):
    """A package that cannot be imported, as where `pip install hf-neuracrypt` left the extra out."""
    monkeypatch.setattr(hf_neuracrypt, "audit", hf_neuracrypt.audit)  # put back, as the modules are, when it was tested
    for name in [name for name in sys.modules if name.startswith((f"{missing}.", "hf_neuracrypt.audit"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert_one_line_error(audit(work, work / "encrypted", tmp_path / "out"), "pip install 'hf-neuracrypt[audit]'")
    assert not (tmp_path / "out").exists()


def test_deep_adds_rows_and_a_picture(work, monkeypatch):
    monkeypatch.setattr(deep, "KEYS", 2)
    key = SecretKey.load(work / "one.key")
    audit = run_audit(work / "encrypted", str(work / "plain"), key, train=True)
    assert [row.name for row in audit.rows[-2:]] == ["unpaired", "deep"] and audit.rows[-1].figures["keys"] == 2
    assert audit.pictures.reconstructed["network, other keys"].shape == (len(audit.pictures.shown), 3, 32, 32)


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
    table[7]["image"] = {"bytes": to_png(np.full((3, 32, 32), 9, np.uint8)), "path": None}
    changed = Dataset.from_list(table, features=split.features)
    changed.save_to_disk(str(tmp_path / "changed"))
    shutil.copy(next((tmp_path / "changed").glob("*.arrow")), shard)
    rows = {row["name"]: row for row in report(work, planted, tmp_path / "out")["rows"]}
    assert rows["key"]["grade"] == rows["metadata"]["grade"] == "leaks"
    assert "notes.txt" in rows["key"]["finding"] and "sha256" in rows["metadata"]["finding"]
    assert "not what the key makes" in rows["metadata"]["finding"]


def test_rows_in_a_keyed_order_are_found_in_the_source(work, tmp_path):
    """Of several views each, with one row left out: the owner's key gives the order, and nobody else has it."""
    entries = make_dataset(24).cast_column("img", Image(decode=False)).to_list()
    entries[5]["img"] = {"bytes": b"", "path": None}
    plain = Dataset.from_list(entries, features=make_dataset(1).features)
    DatasetDict({"train": plain, "test": make_dataset(9, seed=1)}).save_to_disk(str(tmp_path / "plain"))
    shutil.copy(work / "one.key", tmp_path / "one.key")
    options = ("--hide-labels", "--views", 2, "--max-bad-fraction", 0.1)
    encrypted = encrypt(tmp_path / "plain", tmp_path / "one.key", tmp_path / "encrypted", *options)
    assert encrypted.returncode == 3, encrypted.stderr  # a row was left out
    written = report(tmp_path, tmp_path / "encrypted", tmp_path / "out")
    grades = {row["name"]: row["grade"] for row in written["rows"]}
    assert grades["order"] == grades["metadata"] == "nothing found" and written["images"] == 32
    figures = next(row["figures"] for row in written["rows"] if row["name"] == "labels")
    assert figures["classes"] == 3 and figures["chance"] == pytest.approx(1 / 3, abs=1e-3) and figures["named"] > 0


def test_push_puts_the_figures_into_the_card(work, reported, tmp_path):
    with LoopbackHub() as hub:
        environment = hub.environment(tmp_path / "home", "hf_owner")
        words = ("push", work / "encrypted", "owner/photos", "--key-file", work / "one.key", "--audit")
        assert_one_line_error(command(*words, tmp_path / "none.json", **environment), "there is no file")
        result = command(*words, reported / "audit.json", **environment)
        assert result.returncode == 0, result.stderr
        files = hub.files("dataset", "owner/photos")
    assert "## Audit" in files["README.md"].decode() and not any("audit" in name for name in files)
