"""The parts of the ablation that could mislead: what is mixed, what is moved, what is drawn; and a row that runs."""

import json

import pytest
import torch
from datasets import DatasetDict
from transformers import ViTConfig, ViTForImageClassification

from tests.helpers import TINY_VIT, command, load_script, make_dataset


@pytest.fixture(scope="module")
def ablate():
    return load_script("ablate")


def test_cutmix_moves_whole_patches_and_says_how_many(ablate):
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 56, 56).contiguous()
    mixed, order, share = ablate.cutmix(images, 8, torch.Generator().manual_seed(0))
    cells = mixed[:, 0].reshape(4, 7, 8, 7, 8).transpose(2, 3).flatten(3)
    assert (cells == cells[..., :1]).all()
    for index in range(4):
        if order[index] != index:
            assert (cells[index, ..., 0] == index).float().mean() == pytest.approx(share)
            assert set(cells[index, ..., 0].unique().tolist()) == {float(index), float(order[index])}


def test_what_learns_and_how_fast(ablate):
    model = ViTForImageClassification(ViTConfig(**(TINY_VIT | {"num_hidden_layers": 2})))
    everything = {id(parameter) for parameter in model.parameters()}

    def rates(**switches: object) -> dict[str, float]:
        groups = ablate.groups_of(model, ablate.Row("row", **switches))
        assert {id(parameter) for group in groups for parameter in group["params"]} <= everything
        by_id = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        return {name: by_id[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in by_id}

    plain, decayed = rates(), rates(layer_decay=0.5)
    patch, positions = "vit.embeddings.patch_embeddings.projection.weight", "vit.embeddings.position_embeddings"
    assert len(plain) == len(everything) and set(plain.values()) == {ablate.RATE, 5 * ablate.RATE}
    assert plain[patch] == decayed[patch] == decayed["classifier.weight"] == 5 * ablate.RATE
    assert decayed[positions] == ablate.RATE
    lower, upper = (decayed[f"vit.layers.{layer}.mlp.fc1.weight"] for layer in (0, 1))
    assert [lower, upper] == [ablate.RATE / 4, ablate.RATE / 2]


@pytest.mark.parametrize("kind", ["trained", "frozen"])
def test_lora_freezes_the_backbone(ablate, kind):
    pytest.importorskip("peft")
    model = ablate.with_lora(ViTForImageClassification(ViTConfig(**TINY_VIT)), kind)
    groups = ablate.groups_of(model, ablate.Row("row"))
    learning = {id(parameter) for group in groups for parameter in group["params"]}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in learning]
    assert any("patch_embeddings" in name for name in names) == (kind == "trained")
    assert any("position_embeddings" in name for name in names) and any("classifier" in name for name in names)
    assert all("lora" in name for name in names if ".layers." in name) and any(".layers." in name for name in names)


def test_a_row_runs_once_and_is_drawn(tmp_path):
    size = {"train": make_dataset(80, size=32), "test": make_dataset(10, size=32, seed=1)}
    DatasetDict(size).save_to_disk(str(tmp_path / "plain"))
    shape = TINY_VIT | {"image_size": 48, "patch_size": 16}
    ViTForImageClassification(ViTConfig(**shape)).save_pretrained(tmp_path / "vit")
    words = ["scripts/ablate.py", "--dataset", tmp_path / "plain", "--model", tmp_path / "vit", "--seeds", 1]
    words += ["--output", tmp_path / "a.json", "--train", 40, "--test", 10, "--image_size", 48, "--epochs", 1]
    titles = ["plain images", "labels alone", "aligned start, embeddings first"]
    for _ in range(2):  # the second time, nothing is left to do
        result = command(*words, "--rows", *titles)
        assert result.returncode == 0, result.stderr
        results = json.loads((tmp_path / "a.json").read_text())
        assert [entry["row"] for entry in results] == titles
        assert all(0 <= entry["probe"] <= 1 for entry in results) and results[2]["explained"] < 1
    assert (tmp_path / "a.png").stat().st_size > 1000
