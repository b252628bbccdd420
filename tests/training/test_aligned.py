"""The aligned start inside training: what decides on it, what it learns before it learns, what it leaves alone."""

import copy
import logging

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_neuracrypt.alignment import Alignment
from hf_neuracrypt.alignment.rehearsal import Corrected, Corrector
from hf_neuracrypt.training import aligned
from hf_neuracrypt.training.data import load_splits, undecoded
from tests.helpers import TINY_VIT, make_dataset, scenes


pytestmark = pytest.mark.usefixtures("align_once")


def test_a_map_that_does_not_help_is_dropped(folder, monkeypatch, caplog):
    """What decides is the labels' word, before and after."""
    caplog.set_level(logging.INFO)
    splits = load_splits(str(folder / "encrypted"))
    split, public = undecoded(splits.data["train"], splits.columns), str(folder / "public")
    for probed, kept in (([0.5, 0.4], False), ([0.5, 0.6], True)):
        model = ViTForImageClassification.from_pretrained(folder / "pretrained")
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        monkeypatch.setattr(aligned, "probe", lambda *_, answers=probed: answers.pop(0))
        assert aligned.aligned_start(model, split, splits.columns, splits.records, public, seed=0) is kept
        changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
        assert bool(changed) is kept and not model.training
        said = "kept: the probe, which" if kept else "public do not help: the probe"
        assert "64 ciphertexts with 64 public images: the map explains" in caplog.text and said in caplog.text
        assert ("rose from 0.500 to 0.600" in caplog.text) is kept
        caplog.clear()


def test_the_probe_sees_what_is_there(folder):
    model = ViTForImageClassification.from_pretrained(folder / "pretrained").train()
    rows = make_dataset(120, size=32)
    pixels = torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) for image in rows["img"]]) / 127.5 - 1
    labels = torch.tensor(rows["label"])
    assert aligned.probe(model, pixels, labels) > 0.9 and model.training
    assert aligned.probe(model, pixels, labels[torch.randperm(120, generator=torch.Generator().manual_seed(0))]) < 0.5


def rehearsed(public: torch.Tensor, kept: int) -> Alignment:
    """As if all that decryption gives of a patch were its mean, and the last of its values."""
    patches = aligned.alignment.to_patches(public, 8).flatten(1, 2)
    mean, basis = patches.mean(0), torch.linalg.qr(torch.randn(192, 192, generator=torch.Generator().manual_seed(0)))[0]
    values = (patches - mean) @ basis
    seen = [values[..., -kept:].unflatten(1, (4, 4)) + 0.1 * number for number in range(2)]
    nothing = torch.zeros(192, kept)
    return Alignment(nothing, basis[:, -kept:].T, mean, mean, Corrected(nothing, Corrector(kept), 1.0, seen))


@pytest.mark.parametrize("bf16", [False, True])
def test_the_model_learns_to_see_through_the_errors_of_the_map(monkeypatch, bf16):
    """On images it has not learned from, too; and all that is random elsewhere goes on as it would have."""
    monkeypatch.setattr(aligned, "PASSES", 60)
    torch.manual_seed(0)
    public, model = scenes(200, 2)[..., :32, :32], ViTForImageClassification(ViTConfig(**TINY_VIT)).eval()
    plain, found = copy.deepcopy(model), rehearsed(public, 40)

    def error(student: torch.nn.Module) -> float:
        decrypted = aligned.to_images(found.rehearsed(1, torch.arange(160, 200)), 8)
        with torch.inference_mode():
            wanted = plain(pixel_values=public[160:], output_hidden_states=True).hidden_states[-1]
            seen = student(pixel_values=decrypted, output_hidden_states=True).hidden_states[-1]
        return float((seen - wanted).square().mean())

    before, state = error(model), torch.get_rng_state()
    held_back = [values[:160] for values in found.corrected.rehearsed]
    shown = Alignment(**{**vars(found), "corrected": Corrected(**{**vars(found.corrected), "rehearsed": held_back})})
    aligned.distil(model, public[:160], shown, seed=0, bf16=bf16)
    assert error(model) < 0.8 * before and not model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_pairs_are_flipped_and_moved_alike():
    images = torch.rand(64, 3, 32, 32)
    pairs, generator = torch.cat([images, images], dim=1), torch.Generator().manual_seed(0)
    pairs = aligned.moved(aligned.flipped(pairs, generator), generator)
    assert torch.equal(pairs[:, :3], pairs[:, 3:]) and pairs.shape == (64, 6, 32, 32)
    moves = [pair[:3, 8:24, 8:24] for pair in pairs]
    for image, seen in zip(images, moves):
        places = [
            each[:, y : y + 16, x : x + 16]
            for each in (image, image.flip(-1))
            for y in range(4, 13)
            for x in range(4, 13)
        ]
        assert sum(torch.equal(place, seen) for place in places) == 1


def test_patches_become_images_again():
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(aligned.to_images(aligned.alignment.to_patches(images, 8).flatten(1, 2), 8), images)
