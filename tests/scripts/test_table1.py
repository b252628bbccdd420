"""The table script: rows of every kind of model end to end at a tiny size, resumed, and reported."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from hf_neuracrypt.alignment import adversary, moments, rehearsal
from hf_neuracrypt.errors import NeuraCryptError
from tests.commands import load_script
from tests.helpers import batch, make_images


RUN = {
    "accuracy": 50.0,
    "best_on_test": 55.0,
    "wrong_key": 10.0,
    "neighbours": 0.0,
    "parameters": 1,
    "seconds": 3,
    "processor": "a CPU",
}


@pytest.fixture
def table(monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    module = load_script("table1")
    recipe = module.Recipe(2, 8, "sgd", 0.1, 1)
    tiny = {"train": 16, "test": 8, "pyramid": {"depth": 8, "widening": 6}, "eval_steps": 1, "shakedrop_recipe": recipe}
    recipe = dataclasses.replace(recipe, optimizer="adamw")
    monkeypatch.setitem(
        module.BUDGETS, "smoke", dataclasses.replace(module.BUDGETS["smoke"], **tiny, vit_recipe=recipe)
    )
    return module


def call(table, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["table1.py", *map(str, words)])
    table.main()


def test_rows_resume_and_report(table, monkeypatch, tmp_path, capsys):
    output = tmp_path / "new" / "table.json"
    rows = ("--output", output, "--rows", "plain-vit", "features-at-home", "neuracrypt", "etc", "vit-blockwise-adapted")
    rows += ("color-neuracrypt-adapted", "color-neuracrypt-soft")
    call(table, monkeypatch, *rows)
    held = json.loads(output.read_text())
    results = {name: runs["1"] for name, runs in held["rows"].items()}
    assert set(results) == set(rows[3:]) and all(result["processor"] for result in results.values())
    assert results["plain-vit"]["wrong_key"] is None and results["etc"]["neighbours"] == 0
    assert results["neuracrypt"]["neighbours"] > 0.01, "as published, a ciphertext depends on its neighbours"
    for result in results.values():
        assert 0 <= result["accuracy"] <= result["best_on_test"] <= 100

    held["rows"]["etc"]["1"]["accuracy"] = 12.5
    output.write_text(json.dumps(held))
    capsys.readouterr()
    monkeypatch.setattr(table, "run", None)  # nothing is done again
    call(table, monkeypatch, *rows)
    assert "| etc | ELE-AdaptNet, ShakeDrop-8 | 12.5 |" in capsys.readouterr().out
    assert "| 12.5 |" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").stat().st_size > 1000
    with pytest.raises(NeuraCryptError, match="another dataset, model or budget"):
        call(table, monkeypatch, *rows, "--dataset", "mnist")


def test_an_aligned_row_learns_from_no_public_image(table, monkeypatch, tmp_path):
    """Neither where a budget leaves images over nor where it trains on all; then the last are left out."""
    seen: dict[str, int] = {}
    smoke, align_start = table.BUDGETS["smoke"], table.align_start
    steps = (adversary, "HEATS", ((5, 2), (5, 1))), (adversary, "STEPS", 5), (rehearsal, "STEPS", 5)
    for module, name, few in (*steps, (moments, "STARTS", 2), (rehearsal, "KEYS", 1)):
        monkeypatch.setattr(module, name, few)

    def recorded(model, encoder, images, public, seed):
        seen["learned"], seen["public"] = len(images), len(public)
        if not seen.get("aligned"):
            before = model.get_parameter("vit.embeddings.patch_embeddings.projection.weight").clone()
            align_start(model, encoder, images.select(range(40)), public.select(range(40)), seed)
            after = model.get_parameter("vit.embeddings.patch_embeddings.projection.weight")
            seen["aligned"] = not torch.equal(before, after)

    monkeypatch.setattr(table, "align_start", recorded)
    monkeypatch.setattr(sys.modules["table1_data"], "PUBLIC", 1_000)
    for train, expected in ((100, (100, 1_000)), (1_000, (1_000, 437)), (None, (437, 1_000))):
        monkeypatch.setitem(table.BUDGETS, "smoke", dataclasses.replace(smoke, train=train))
        output = tmp_path / f"{train}.json"
        call(table, monkeypatch, "--output", output, "--rows", "color-neuracrypt-aligned")
        assert seen == {"learned": expected[0], "public": expected[1], "aligned": True}
        assert "| color-neuracrypt-aligned | ViT, aligned start |" in output.with_suffix(".md").read_text()


def test_a_pretrained_vit_and_the_original_settings(table, vit_config, tmp_path):
    """The layers of the model that is named are fine-tuned; `paper` has dropout, epsilon and head of the original."""
    from transformers import ViTConfig, ViTForImageClassification

    body = ViTForImageClassification(ViTConfig.from_pretrained(vit_config))
    body.save_pretrained(tmp_path / "body")
    budget = dataclasses.replace(table.BUDGETS["smoke"], original_vit=True)
    name, labels = str(tmp_path / "body"), ["a", "b"]
    model = table.new_model(table.ROWS["plain-vit"], budget, name, labels, None)
    torch.testing.assert_close(model.base_model.layernorm.weight, body.base_model.layernorm.weight)
    query = "layers.0.attention.q_proj.weight"
    torch.testing.assert_close(model.base_model.get_parameter(query), body.base_model.get_parameter(query))
    assert model.config.hidden_dropout_prob == 0.1 and model.config.layer_norm_eps == 1e-6
    assert not model.classifier.weight.any()
    usual = table.new_model(table.ROWS["plain-vit"], table.BUDGETS["smoke"], name, labels, None)
    assert usual.config.hidden_dropout_prob == 0 and usual.classifier.weight.any()


def test_augmentation_is_before_encryption_and_of_the_published_kind():
    data = load_script("table1_data")
    gradient = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))  # rows grow downwards
    image = PILImage.fromarray(np.ascontiguousarray(gradient))
    torch.manual_seed(0)
    areas = []
    for _ in range(200):
        width, height = data.resized_crop(image).size
        areas.append(width * height / 64**2)
        assert 0.7 < width / height < 1.43 or width * height < 500  # small sides are rounded
    assert min(areas) < 0.15 and max(areas) > 0.85 and 0.04 < min(areas)
    ramp = PILImage.fromarray(np.ascontiguousarray(gradient.transpose(1, 0, 2) + 64))  # grows to the right
    seen = [np.asarray(data.shift_and_flip(ramp)) for _ in range(50)]
    assert {array.shape for array in seen} == {(64, 64, 3)}
    assert {bool(array[32, 40, 0] > array[32, 24, 0]) for array in seen} == {True, False}, "mirrored or not"
    assert len({array.tobytes() for array in seen}) > 20, "moved"


def test_published_figures_and_their_order(table, tmp_path):
    settings = json.loads(json.dumps(table.new_table("cifar10", "smoke", None)["settings"]))

    def text(dataset: str, **accuracies: float) -> str:
        rows = {
            name: {"1": RUN | {"accuracy": value}, "2": RUN | {"accuracy": value + 2}}
            for name, value in accuracies.items()
        }
        held = {"settings": settings | {"dataset": dataset}, "environment": {"python": "3"}, "rows": rows}
        return table.report(tmp_path / "t.json", held)

    shown = text("cifar10", ele=50, le=40)
    assert "| ele | ELE-AdaptNet, ShakeDrop-8 | 51.0 ± 1.4 | 55.0 ± 0.0 | 10.0 ± 0.0 | 0.000 ± 0.000 | 83.06 |" in shown
    assert "1 pair; in that order here: 0. Not so: ele 51.0 is above le 41.0." in shown
    assert "in that order here: 1.\n" in text("cifar10", ele=30, le=40)
    assert "83.06" not in text("mnist", ele=50)


def test_ciphertexts_do_not_depend_on_the_precision_of_training(table, insecure_key):
    row = table.ROWS["color-neuracrypt-float"]
    encoder = table.encoder_of(row, table.BUDGETS["smoke"], insecure_key, 64)

    class Seen(torch.nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=pixel_values)

    images, labels = batch(make_images(4, 32)), torch.zeros(4, 32, 32, dtype=torch.int64)
    expected = encoder.encrypt(images).float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(table.OnCiphertexts(Seen(), encoder)(images, labels)["logits"], expected)


def test_soft_labels_are_probabilities_and_the_images_stay(table):
    data = load_script("table1_data")
    rows = data.load_data("digits", None, table.BUDGETS["smoke"])["train"]
    torch.manual_seed(0)
    found = table.softened(rows, table.BUDGETS["smoke"], None)
    probabilities = torch.tensor(found["label"])
    assert probabilities.shape == (16, 10) and probabilities.sum(1).allclose(torch.ones(16))
    assert torch.equal(data.stacked(found, 32), data.stacked(rows, 32))
