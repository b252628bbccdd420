"""The audit's controls: what hides nothing leaks everywhere, noise leaks nowhere, planted accidents are found."""

import json
import shutil
import zlib

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_neuracrypt import cards, store
from hf_neuracrypt.audit import deep
from hf_neuracrypt.audit.attacks import attack, run_audit
from hf_neuracrypt.audit.ciphertext import duplicates, repeated, thumbnail
from hf_neuracrypt.audit.deep import inverse_network
from hf_neuracrypt.audit.known import quality
from hf_neuracrypt.audit.matching import matching, shuffle
from hf_neuracrypt.audit.pairs import Pairs, cut, join
from hf_neuracrypt.audit.puzzles import candidates, jigsaw
from hf_neuracrypt.audit.redraw import redraw
from hf_neuracrypt.audit.rows import GRADES, ROWS, read_audit
from hf_neuracrypt.configuration import EncoderConfig
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.errors import KeyMismatchError, NeuraCryptError
from hf_neuracrypt.images import to_png
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.record import Record
from hf_neuracrypt.schemes import SCHEMES, make_config
from tests.conftest import ROOT, SMALL_FLAGS, assert_one_line_error, command
from tests.loopback_hub import LoopbackHub


data = pytest.importorskip("skimage.data")
CONFIG = EncoderConfig(image_size=64, patch_size=8, depth=2, width=64)
TINY = {"image_size": 64, "patch_size": 8}


def crops(names: tuple[str, ...], count: int, size: int, seed: int = 0) -> np.ndarray:
    """Crops of scikit-image's photos at native resolution: uint8 (count, 3, size, size)."""
    generator, photos = np.random.default_rng(seed), [getattr(data, name)() for name in names]
    images = []
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = (generator.integers(0, side - size + 1) for side in photo.shape[:2])
        images.append(photo[top : top + size, left : left + size].transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(images))


@pytest.fixture(scope="module")
def photos():
    return crops(("astronaut", "coffee", "chelsea"), 60, 128)[:, :, ::2, ::2].copy()


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


def test_an_image_that_is_there_twice_is_found(photos, insecure_key):
    encoder = load_encoder(CONFIG, insecure_key)
    found = []
    for plain in (photos, np.concatenate([photos, photos[:1]])):
        encrypted = encoder.encrypt(torch.from_numpy(plain)).numpy()
        found.append(duplicates(Pairs(CONFIG, plain, encrypted), 0))
    assert found[0].figures["equal_images"] == 0
    assert found[1].figures["equal_images"] == pytest.approx(2 / 61) and found[1].grade == "leaks"


def test_patches_that_are_nearly_the_same_are_found(photos, insecure_key):
    """A photo that is there again with a jitter of one grey level; noise has no more than chance."""
    plain = photos.copy()
    plain[1] = (plain[0].astype(int) + np.random.default_rng(0).integers(-1, 2, plain[0].shape)).clip(0, 255)
    pairs = Pairs(CONFIG, plain, load_encoder(CONFIG, insecure_key).encrypt(torch.from_numpy(plain)).numpy())
    equal, near, _ = repeated(pairs.encrypted_centred, 0)
    assert near[:2].all() and not equal[:2].all() and near[2:].mean() < 0.3
    noise = Pairs(CONFIG, plain, np.random.default_rng(0).integers(0, 256, plain.shape, np.uint8))
    assert duplicates(noise, 0).figures["nearly_equal"] < 0.005


def test_a_surrogate_finds_the_partners_that_cosines_alone_miss(insecure_key):
    """Depth 16 at CIFAR's size."""
    config = EncoderConfig(image_size=32, patch_size=8, depth=16, width=192)
    plain = crops(("astronaut", "coffee", "chelsea"), 256, 64)[:, :, ::2, ::2].copy()
    encrypted = load_encoder(config, insecure_key).encrypt(torch.from_numpy(plain)).numpy()
    pairs = Pairs(config, plain, encrypted)
    row = matching(pairs, thumbnail(pairs, 0)[1], 0)
    assert row.figures["before_refinement"] < 0.8 and row.figures["surrogate"] > 0.95, row
    noise = Pairs(config, plain, np.random.default_rng(0).integers(0, 256, plain.shape, np.uint8))
    assert matching(noise, thumbnail(noise, 0)[1], 0).figures["surrogate"] < 0.05


def test_a_shuffle_of_patches_is_undone_by_their_positions():
    generator = np.random.default_rng(0)
    orders = np.stack([generator.permutation(49) for _ in range(40)])
    noise, places = generator.standard_normal((40, 49, 32), np.float32), generator.standard_normal((49, 32), np.float32)
    noise[..., :4] *= 12  # one image differs from another much more than two places do, but in few directions
    shuffled = np.take_along_axis(places + noise / 4, orders[..., None], 1)
    assert shuffle(shuffled, orders).figures["put_back"] > 0.95
    assert shuffle(noise, orders).grade == "near chance"


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


def test_sixteen_pairs_redraw_photos_that_nobody_knew(insecure_key):
    """Color-NeuraCrypt as published: 224 px, depth 4; about 22 dB, against 12.4 for the mean image."""
    encoder = load_encoder(EncoderConfig(), insecure_key)
    known, other = crops(("astronaut", "coffee"), 16, 224), crops(("chelsea", "rocket"), 96, 224, seed=1)
    both = np.concatenate([known, other])  # the attacker has all ciphertexts, and the originals of the first 16
    pairs = Pairs(encoder.config, both, encoder.encrypt(torch.from_numpy(both)).numpy())
    redrawn = redraw(pairs.take(range(16)), pairs.encrypted_centred[16:24], 0)
    psnr = {method: quality(other[:8], images)[0] for method, images in redrawn.items()}
    mean, _ = quality(other[:8], known.mean(0, keepdims=True).astype(np.uint8).repeat(8, 0))
    assert psnr["ridge"] > 20 and min(psnr.values()) > mean + 6, (psnr, mean)
    assert matching(pairs, thumbnail(pairs, 0)[1], 0).figures["accuracy"] > 0.9


# ------------------------------------------------------------------------------------------------ permutation ciphers


@pytest.fixture(scope="module")
def small():
    return crops(("astronaut", "coffee", "chelsea", "rocket"), 200, 64)[:, :, ::2, ::2].copy()


def test_colours_of_pixels_are_told_by_their_neighbours(small, insecure_key):
    """Sixteen ciphertexts and no pair are enough for all bytes; one alone is not."""
    config = make_config("pe", {})
    encrypted = load_encoder(config, insecure_key).encrypt(torch.from_numpy(small)).numpy()
    row, redrawn = candidates(Pairs(config, small[:32], encrypted[:32]))
    assert row.figures["recovered"] > 0.99 > 0.6 > row.figures["recovered_alone"]
    assert (redrawn == small[:32]).mean() == row.figures["recovered"]
    assert candidates(Pairs(config, small, small))[0].figures["recovered"] == 1
    noise = np.random.default_rng(0).integers(0, 256, small.shape, np.uint8)
    assert candidates(Pairs(config, small, noise))[0].grade == "near chance"


@pytest.mark.parametrize("scheme", ["etc", "ele", "vit-blockwise"])
def test_blocks_are_put_back(scheme, small, insecure_key):
    config = make_config(scheme, {"image_size": 32} | ({"patch_size": 4} if scheme == "vit-blockwise" else {}))
    encoder = load_encoder(config, insecure_key)
    encrypted = encoder.encrypt(torch.from_numpy(small)).numpy()
    order = encoder.block_order(4)
    assert sorted(order) == list(range(64)) and jigsaw(Pairs(config, small, encrypted), order, 0).grade == "leaks"
    assert jigsaw(Pairs(config, small, small), np.arange(64), 0).figures["neighbours"] > 0.9
    noise = np.random.default_rng(0).integers(0, 256, small.shape, np.uint8)
    assert jigsaw(Pairs(config, small, noise), order, 0).grade == "near chance"


def test_a_block_comes_from_where_the_cipher_takes_it(insecure_key):
    encoder = load_encoder(make_config("etc", {}), insecure_key)
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    for block in range(64):
        images[block, :, block // 8 * 4 : block // 8 * 4 + 4, block % 8 * 4 : block % 8 * 4 + 4] = 9
    changed = encoder.encrypt(images) != encoder.encrypt(torch.zeros_like(images))
    places = changed[:, 0, ::4, ::4].reshape(64, 64)
    assert (places.int().argmax(0).numpy() == encoder.block_order(4)).all() and (places.sum(0) == 1).all()


# ------------------------------------------------------------------------------------------------ --deep


@pytest.mark.parametrize("scheme", ["le", "color-neuracrypt"])
def test_a_network_learns_what_is_the_same_under_all_keys(scheme, small, monkeypatch):
    """A scheme without a key is undone; noise and another key's ciphertexts give the mean image and no more."""
    config = make_config(scheme, {"image_size": 32} | ({"patch_size": 8, "width": 64} if scheme != "le" else {}))
    noise = np.random.default_rng(0).integers(0, 256, small.shape, np.uint8)
    row, redrawn = inverse_network(Pairs(config, small, noise), np.arange(8), 0, keys=6)
    assert row.grade == "near chance" and redrawn.shape == (8, 3, 32, 32)
    monkeypatch.setattr(deep, "encrypt_in_place", lambda encoder, images: images)
    row, redrawn = inverse_network(Pairs(config, small, small), np.arange(8), 0, keys=30)
    assert row.grade == "leaks" and quality(small[:8], redrawn)[0] == row.figures["psnr"], row


# ------------------------------------------------------------------------------------------------ folder and command


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    from datasets import DatasetDict

    from tests.conftest import make_dataset

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
    assert {row["name"] for row in one["rows"]} == set(ROWS) - {"deep"}
    grades = {row["name"]: row["grade"] for row in one["rows"]}
    assert grades["metadata"] == grades["key"] == "near chance" and grades["labels"] == grades["order"] == "leaks"
    page = (reported / "audit.html").read_text()
    assert "attacks tried" in " ".join(page.split()) or "attacks\npossible" in page
    assert page.count("<img") >= 8 and "http" not in page and len(page) < 1_000_000
    manifest = store.read_manifest(work / "encrypted")
    record = Record.from_dict(manifest)
    shown = read_audit(reported / "audit.json", record, store.checksum(manifest))
    card = cards.dataset_card(record, manifest["rows"], ["image", "label"], "ward/photos", {}, audit=shown)
    assert "## Audit" in card and "| Re-identification |" in card and "No audit" not in card
    assert str(work) not in card and str(tmp_path) not in card
    with pytest.raises(KeyMismatchError, match="another encrypted folder"):
        read_audit(reported / "audit.json", record, "0" * 64)
    for change in ({"rows": [{"name": "<script>"}]}, {"neuracrypt_audit": 2}, {"version": "1 <b>"}):
        (tmp_path / "bad.json").write_text(json.dumps(one | change))
        with pytest.raises(NeuraCryptError):
            read_audit(tmp_path / "bad.json", record, store.checksum(manifest))


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


def test_deep_adds_a_row_and_a_picture(work, monkeypatch):
    monkeypatch.setattr(deep, "KEYS", 2)
    key = SecretKey.load(work / "one.key")
    audit = run_audit(work / "encrypted", str(work / "plain"), key, train=True)
    assert audit.rows[-1].name == "deep" and audit.rows[-1].figures["keys"] == 2
    assert audit.pictures.redrawn["network, other keys"].shape == (len(audit.pictures.shown), 3, 32, 32)


def test_wrong_keys_and_places_are_one_line(work, tmp_path):
    assert_one_line_error(
        audit(work, work / "encrypted", tmp_path / "out", key="two.key"), "was encrypted with the key"
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
