"""The parts of the ablation that could mislead: what is mixed, what is moved, what is drawn; and a row that runs."""

import json
import sys

import pytest
import torch
from datasets import DatasetDict
from transformers import ViTConfig, ViTForImageClassification

from tests.conftest import ROOT, TINY_VIT, command, make_dataset


@pytest.fixture(scope="module")
def ablate():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import ablate
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return ablate


def test_cutmix_moves_whole_patches_and_says_how_many(ablate):
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 56, 56).contiguous()
    mixed, order, share = ablate.cutmix(images, 8, torch.Generator().manual_seed(0))
    cells = mixed[:, 0].reshape(4, 7, 8, 7, 8).transpose(2, 3).flatten(3)
    assert (cells == cells[..., :1]).all()
    for index in range(4):
        if order[index] != index:
            assert (cells[index, ..., 0] == index).float().mean() == pytest.approx(share)
            assert set(cells[index, ..., 0].unique().tolist()) == {float(index), float(order[index])}


def test_a_view_is_the_image_moved(ablate):
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    for image, view in zip(images, ablate.shifted(images, torch.Generator().manual_seed(1))):
        padded = [
            torch.nn.functional.pad(each[None].float(), (2,) * 4, mode="reflect")[0] for each in (image, image.flip(-1))
        ]
        assert any(
            torch.equal(each[:, y : y + 16, x : x + 16].byte(), view)
            for each in padded
            for y in range(5)
            for x in range(5)
        )


def test_a_row_runs_once_and_is_drawn(tmp_path):
    size = {"train": make_dataset(40, size=32), "test": make_dataset(10, size=32, seed=1)}
    DatasetDict(size).save_to_disk(str(tmp_path / "plain"))
    shape = TINY_VIT | {"image_size": 48, "patch_size": 16}
    ViTForImageClassification(ViTConfig(**shape)).save_pretrained(tmp_path / "vit")
    words = ["scripts/ablate.py", "--dataset", tmp_path / "plain", "--model", tmp_path / "vit", "--seeds", 1]
    words += ["--output", tmp_path / "a.json", "--train", 40, "--test", 10, "--image_size", 48, "--epochs", 1]
    words += ["--rows", "plain images", "labels alone"]
    for _ in range(2):  # the second time, nothing is left to do
        result = command(*words)
        assert result.returncode == 0, result.stderr
        results = json.loads((tmp_path / "a.json").read_text())
        assert [entry["row"] for entry in results] == ["plain images", "labels alone"]
    assert (tmp_path / "a.png").stat().st_size > 1000
