"""The frontier: what is done around the encoder is what it says, an attacker undoes what can be undone, a row runs."""

import json

import numpy as np
import pytest
from datasets import DatasetDict
from transformers import ViTConfig, ViTForImageClassification

from hf_neuracrypt.audit.pairs import Pairs, cut, join
from tests.commands import command, load_script
from tests.helpers import TINY_VIT, make_dataset


pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def frontier():
    return load_script("frontier")


def variant(frontier, title):
    return next(variant for variant in frontier.VARIANTS if variant.title == title)


@pytest.mark.parametrize("title", ["blocks", "positions", "noise 16", "NeuraCrypt", "plain images"])
def test_an_option_is_one_key_for_all_images(frontier, title):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 48, 48), np.uint8)
    images[2] = images[0]
    config, encrypt, order = frontier.make_encrypt(variant(frontier, title), 48)
    found = encrypt(images)
    assert len(found) == 3 and (config.patch_shape is not None) == (title == "NeuraCrypt")
    # NeuraCrypt's float32 values may differ in their last digits.
    alike = [np.allclose(found[0].astype(np.float32), each, atol=1e-3) for each in found[1:]]
    assert alike == [False, title != "noise 16"]
    assert (order is not None) == (title == "blocks") and np.array_equal(found, images) == (title == "plain images")
    if title == "noise 16":
        assert (found[0].astype(int) - found[2]).std() == pytest.approx(16 * 2**0.5, rel=0.2)


@pytest.mark.parametrize("title", ["blocks", "EtC", "ELE", "ViT block-wise"])
def test_blocks_come_from_where_the_order_says(frontier, title):
    _, encrypt, order = frontier.make_encrypt(variant(frontier, title), 48)
    plain = np.zeros((9, 3, 48, 48), np.uint8)
    for block in range(9):
        plain[block, :, block // 3 * 16 : block // 3 * 16 + 16, block % 3 * 16 : block % 3 * 16 + 16] = 200
    changed = cut(encrypt(plain) != encrypt(np.zeros_like(plain)), 16).any(-1)
    assert (changed.argmax(0) == order).all() and (changed.sum(0) == 1).all()


def test_an_attacker_turns_the_puzzle_until_it_is_upright(frontier):
    config, encrypt, order = frontier.make_encrypt(variant(frontier, "blocks"), 64)
    plain = np.zeros((4, 3, 64, 64), np.uint8)
    pairs = Pairs(config, plain, encrypt(plain))
    solved = np.argsort(order).reshape(4, 4)
    upright = [frontier.upright(pairs, p.reshape(-1), order).encrypted for p in (solved, np.rot90(solved), solved.T)]
    expected = join(cut(pairs.encrypted, 16)[:, solved.reshape(-1)], 64)
    assert all(np.array_equal(each, expected) for each in upright)


def test_a_row_runs_once_and_is_drawn(tmp_path):
    splits = {"train": make_dataset(40, size=32), "test": make_dataset(24, size=32, seed=1)}
    DatasetDict(splits).save_to_disk(str(tmp_path / "plain"))
    shape = TINY_VIT | {"image_size": 48, "patch_size": 16}
    ViTForImageClassification(ViTConfig(**shape)).save_pretrained(tmp_path / "vit")
    words = ["scripts/experiments/frontier.py", "--dataset", tmp_path / "plain", "--model", tmp_path / "vit"]
    words += ["--output", tmp_path / "f.json", "--images", 24, "--train", 40, "--test", 10, "--image_size", 48]
    words += ["--epochs", 1, "--rows", "blocks", "soft labels"]
    for _ in range(2):  # the second time, nothing is left to do
        result = command(*words)
        assert result.returncode == 0, result.stderr
        results = json.loads((tmp_path / "f.json").read_text())
        assert [entry["what"] for entry in results] == 2 * ["test images", "photos"] + 2 * ["accuracy"]
    assert results[0]["psnr_16"] > 0 and all(0 <= entry["accuracy"] <= 1 for entry in results[4:])
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_the_table_of_photos_is_made_by_its_command(tmp_path):
    words = ["scripts/experiments/audit_photos.py", "--output", tmp_path / "out", "--images", 8, "--image_size", 64]
    result = command(*words)
    assert result.returncode == 0, result.stderr
    assert "| matching with candidate originals |" in result.stdout and (tmp_path / "out/report/audit.html").exists()
    assert "there already" in command(*words).stderr
