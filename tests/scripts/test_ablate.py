"""The parts of the ablation that could mislead: patches that are mixed, rates, frozen layers; and rows that run."""

import json
from argparse import Namespace

import pytest
import torch
from datasets import DatasetDict
from transformers import ViTConfig, ViTForImageClassification

from tests.commands import command, load_script
from tests.helpers import TINY_VIT, make_dataset


@pytest.fixture(scope="module")
def loop():
    """scripts/experiments/fine_tune.py as a module."""
    return load_script("fine_tune")


def test_cutmix_moves_whole_patches_and_says_how_many(loop):
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 56, 56).contiguous()
    mixed, order, share = loop.cutmix(images, 8, torch.Generator().manual_seed(0))
    cells = mixed[:, 0].reshape(4, 7, 8, 7, 8).transpose(2, 3).flatten(3)
    assert (cells == cells[..., :1]).all()
    for index in range(4):
        if order[index] != index:
            assert (cells[index, ..., 0] == index).float().mean() == pytest.approx(share)
            assert set(cells[index, ..., 0].unique().tolist()) == {float(index), float(order[index])}


def test_what_learns_and_how_fast(loop):
    model = ViTForImageClassification(ViTConfig(**(TINY_VIT | {"num_hidden_layers": 2})))
    everything = {id(parameter) for parameter in model.parameters()}

    def rates(**switches: object) -> dict[str, float]:
        groups = loop.groups_of(model, loop.Row("row", **switches))
        assert {id(parameter) for group in groups for parameter in group["params"]} <= everything
        by_id = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        return {name: by_id[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in by_id}

    plain, decayed = rates(), rates(layer_decay=0.5)
    patch, positions = "vit.embeddings.patch_embeddings.projection.weight", "vit.embeddings.position_embeddings"
    assert len(plain) == len(everything) and set(plain.values()) == {loop.RATE, 5 * loop.RATE}
    assert plain[patch] == decayed[patch] == decayed["classifier.weight"] == 5 * loop.RATE
    assert decayed[positions] == loop.RATE
    lower, upper = (decayed[f"vit.layers.{layer}.mlp.fc1.weight"] for layer in (0, 1))
    assert [lower, upper] == [loop.RATE / 4, loop.RATE / 2]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_what_training_changes(loop, lora, frozen):
    """The patch embedding unless it is frozen, head and positions always, of the backbone only LoRA's part."""
    if lora:
        pytest.importorskip("peft")
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**TINY_VIT, num_labels=2))
    model = loop.with_lora(model) if lora else model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    images = torch.randint(0, 256, (2 * loop.BATCH, 3, 32, 32), dtype=torch.uint8)
    row = loop.Row("row", frozen_embedding=frozen, frozen_epochs=1)
    learning = loop.FineTuning(model, [images], torch.arange(len(images)) % 2, epochs=2, row=row, seed=0)
    for _ in range(2):
        learning.run_epoch()
    learned = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("patch_embeddings" in name for name in learned) != frozen
    assert any("position_embeddings" in name for name in learned) and any("classifier" in name for name in learned)
    layers = [name for name in learned if ".layers." in name]
    assert layers and all("lora" in name for name in layers) == lora


def test_one_loop_sees_each_version_in_turn_and_trains(loop):
    """One batch an epoch; the second half of the run sees other images; the loss of a constant label falls."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**TINY_VIT, num_labels=2))
    versions = [torch.full((loop.BATCH, 3, 32, 32), value, dtype=torch.uint8) for value in (0, 255)]
    labels, seen = torch.zeros(loop.BATCH, dtype=torch.int64), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(float(kwargs["pixel_values"].mean())), with_kwargs=True
    )
    learning = loop.FineTuning(model, versions, labels, epochs=4, row=loop.Row("row"), seed=0)
    losses = [learning.run_epoch() for _ in range(4)]
    assert seen == [-1, 1, -1, 1] and losses[2] < losses[0]


def test_a_row_that_was_stopped_goes_on_after_its_last_epoch(tmp_path, monkeypatch):
    """As if nothing had happened: the same images, key, order, rates, averages and accuracies."""
    ablate, size = load_script("ablate"), {"image_size": 48, "patch_size": 16}
    rows = {"train": make_dataset(80, size=32), "test": make_dataset(40, size=32, seed=1)}
    DatasetDict(rows).save_to_disk(str(tmp_path / "plain"))
    ViTForImageClassification(ViTConfig(**TINY_VIT | size)).save_pretrained(tmp_path / "vit")
    given = {"dataset": str(tmp_path / "plain"), "model": str(tmp_path / "vit"), "train": 80, "test": 40}
    args = Namespace(**given, image_size=48, epochs=4)
    row, saved, whole = ablate.Row("row", average=0.5, cutmix=0.5, views=2), tmp_path / "row.pt", tmp_path / "whole.pt"
    expected = ablate.train(row, ablate.Data(args, 0, 768, 4), 0, whole)
    one_epoch = ablate.FineTuning.run_epoch

    def stop_in_the_third(learning) -> float:
        if learning.epoch == 2:
            raise KeyboardInterrupt
        return one_epoch(learning)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ablate.FineTuning, "run_epoch", stop_in_the_third)
        ablate.train(row, ablate.Data(args, 0, 768, 4), 0, saved)
    assert len(torch.load(saved)["result"]["accuracy"]) == 2
    with monkeypatch.context() as patch:  # the start is not looked for again
        patch.delattr(ablate, "start")
        assert ablate.train(row, ablate.Data(args, 0, 768, 4), 0, saved) == expected
    weights, wanted = (torch.load(path)["learning"]["model"] for path in (saved, whole))
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_rows_run_once_and_are_drawn(tmp_path):
    size = {"train": make_dataset(80, size=32), "test": make_dataset(10, size=32, seed=1)}
    DatasetDict(size).save_to_disk(str(tmp_path / "plain"))
    shape = TINY_VIT | {"image_size": 48, "patch_size": 16}
    ViTForImageClassification(ViTConfig(**shape)).save_pretrained(tmp_path / "vit")
    words = ["scripts/experiments/ablate.py", "--dataset", tmp_path / "plain", "--model", tmp_path / "vit"]
    words += ["--seeds", 1, "--output", tmp_path / "a.json", "--train", 40, "--test", 10, "--image_size", 48]
    titles = ["plain images", "features at home", "labels alone", "aligned start, five encrypted views"]
    titles += ["map fitted on true pairs", "adapted with 4 known pairs", "labels alone, soft"]
    titles += ["labels alone, random patch embedding"]
    for _ in range(2):  # the second time, nothing is left to do
        result = command(*words, "--epochs", 2, "--rows", *titles)
        assert result.returncode == 0, result.stderr
        results = json.loads((tmp_path / "a.json").read_text())
        assert [entry["row"] for entry in results] == titles
        plain, home, alone, views, pairs, adapted, soft, random = results
        assert all(0 <= entry["probe"] <= 1 and len(entry["accuracy"]) == 2 for entry in (plain, alone, views))
        assert len({entry["loss"] for entry in (alone, adapted, soft, random)}) == 4
        assert all(entry["processor"] for entry in results)
        assert views["explained"] < pairs["explained"] < 1 and "wrong_key" not in plain and "wrong_key" in alone
        assert 0 <= home["neighbours"] <= 1 and len(home["accuracy"]) == 1 and "wrong_key" not in home
    assert (tmp_path / "a.png").stat().st_size > 1000 and not list(tmp_path.glob("*.pt*"))


def test_features_at_home_are_of_the_frozen_model_and_tell_plain_images_apart(loop):
    """Dark against bright, in a model of random weights: both heads are right, and no weight has moved."""
    features = load_script("features")
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**TINY_VIT, num_labels=2))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    labels = torch.arange(60) % 2
    images = (torch.randint(0, 100, (60, 3, 32, 32)) + 150 * labels[:, None, None, None]).to(torch.uint8)
    found = features.at_home(model, images[:40], labels[:40], images[40:], labels[40:])
    assert found == {"linear": 1, "neighbours": 1}
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())

    labels[0] = 1 - labels[0]  # what one image is called says nothing of itself, as others decide
    soft = features.soft_labels(model, images, labels)
    torch.testing.assert_close(soft.sum(1), torch.ones(60))
    assert torch.equal(soft.argmax(1), torch.arange(60) % 2)
