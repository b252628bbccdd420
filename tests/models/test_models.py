"""Models for ciphertexts: published sizes, ShakeDrop in expectation, adaptation networks, life in transformers."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, pipeline

from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import ConfigError, NeuraCryptError
from hf_neuracrypt.models import (
    AdaptNetShakeDropConfig,
    AdaptNetShakeDropForImageClassification,
    ShakeDropConfig,
    ShakeDropForImageClassification,
)
from hf_neuracrypt.models.adaptnet import permutation_penalty, smoothness_penalty
from hf_neuracrypt.models.load import load_model, stock_processor
from hf_neuracrypt.models.shakedrop import ShakeDrop
from hf_neuracrypt.schemes import make_config
from tests.helpers import KEY_ID


SMALL = {
    "shakedrop": ShakeDropConfig.small(num_labels=3),
    "le": AdaptNetShakeDropConfig.small(num_labels=3, adaptation="le"),
    "ele": AdaptNetShakeDropConfig.small(num_labels=3, adaptation="ele"),
}


def small_model(name: str):
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(SMALL[name])


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_published_sizes():
    """28.5 million, and 29.3 million with ELE-AdaptNet (README of the original)."""
    with torch.device("meta"):
        plain = ShakeDropForImageClassification(ShakeDropConfig(num_labels=10))
        adapted = AdaptNetShakeDropForImageClassification(AdaptNetShakeDropConfig(num_labels=10))
    assert f"{parameters(plain) / 1e6:.1f}" == "28.5" and f"{parameters(adapted) / 1e6:.1f}" == "29.3"
    assert parameters(adapted) - parameters(plain) == 64 * (48 * 256 + 2 * 256) + 64**2 + 13 * 16 * 9
    units = plain.network.units
    assert len(units) == 54 and plain.network.classifier.in_features == 16 + 270
    assert units[0].shake_drop.probability == pytest.approx(0.5 / 54) and units[-1].shake_drop.probability == 0.5
    assert [number for number, unit in enumerate(units) if isinstance(unit.shortcut, nn.AvgPool2d)] == [18, 36]
    assert parameters(small_model("shakedrop")) == 314_474


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_shakedrop_in_expectation(probability):
    torch.manual_seed(0)
    drop, trials = ShakeDrop(probability), 4000
    x = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1).requires_grad_()
    outputs, gradients, open_gates = [], [], 0
    for _ in range(trials):
        y = drop(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        outputs.append(y.detach().flatten())
        gradients.append(gradient.flatten())
        open_gates += bool((y == x).all())
    outputs, gradients = torch.stack(outputs), torch.stack(gradients)
    assert abs(open_gates / trials - (1 - probability)) < 0.03
    expected = drop.eval()(x).detach().flatten()
    torch.testing.assert_close(expected, (1 - probability) * x.detach().flatten())
    torch.testing.assert_close(outputs.mean(0), expected, atol=0.06, rtol=0)
    torch.testing.assert_close(gradients.mean(0), torch.full((2,), 1 - probability / 2), atol=0.03, rtol=0)
    assert outputs.abs().max() <= 2 and 0 <= gradients.min() and gradients.max() <= 1
    if probability == 1:  # alpha and beta of an image are drawn apart, and for each image its own
        alpha = outputs / torch.tensor([1.0, -2.0])
        for pair in ((alpha[:, 0], alpha[:, 1]), (alpha[:, 0], gradients[:, 0])):
            assert abs(torch.corrcoef(torch.stack(pair))[0, 1]) < 0.06


@pytest.mark.parametrize("name", SMALL)
def test_a_few_steps_learn(name):
    torch.manual_seed(0)
    generator, config = (
        torch.Generator().manual_seed(1),
        type(SMALL[name])(**(SMALL[name].to_dict() | {"depth": 8, "image_size": 16})),
    )
    model = AutoModelForImageClassification.from_config(config).train()
    labels = torch.arange(9) % 3
    images = torch.randn(9, 3, 16, 16, generator=generator) * 0.3 + (labels - 1.0).view(-1, 1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(25):
        loss = model(pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_save_load_and_pipeline(name, tmp_path):
    model = small_model(name).train()
    model(pixel_values=torch.randn(8, 3, 32, 32))  # batch norm and power iterations have moved
    model.eval().save_pretrained(tmp_path)
    stock_processor(32).save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is type(model) and type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = model(pixel_values=images).logits
        assert expected.shape == (2, 3) and torch.equal(again(pixel_values=images).logits, expected)
    for image, scores in zip(pixels, expected.softmax(-1)):
        answer = pipeline("image-classification", model=str(tmp_path))(Image.fromarray(image))
        assert answer[0]["score"] == pytest.approx(float(scores.max()), abs=1e-5)


@pytest.mark.parametrize("name", ["le", "ele"])
def test_adaptation_keeps_places_and_shape(name):
    """A changed block changes its own place only (with ELE's matrix at the identity)."""
    adaptation = small_model(name).adaptation.eval()
    if name == "ele":
        adaptation.permutation.data = torch.eye(64)
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 4:8, 12:16] += 1
    with torch.no_grad():
        moved = (adaptation(images) != adaptation(changed)).any(1)[0]
    assert moved.shape == (32, 32) and moved[4:8, 12:16].all() and moved.sum() == 16


@pytest.mark.parametrize("name", ["le", "ele"])
def test_adaptation_is_tested_with_the_statistics_it_learned_with(name):
    """Blocks of each position have another contrast, as those of centred pictures have."""
    adaptation = small_model(name).adaptation.train()
    contrast = nn.functional.interpolate(torch.rand(1, 1, 8, 8) + 0.05, scale_factor=4)
    images = contrast * torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        for _ in range(200):
            learned = adaptation(images)
        torch.testing.assert_close(adaptation.eval()(images), learned, atol=0.05, rtol=0.05)


def test_ele_adaptnet_is_separate_networks():
    """The one product against 64 convolutions, spectral norms and batch norms of torch."""
    adaptation = small_model("ele").adaptation
    images = torch.randn(6, 3, 32, 32)
    for _ in range(200):
        weights = adaptation.normalised_weight()
    adaptation.train()
    expected = []
    for number in range(64):
        row, column = divmod(number, 8)
        weight = adaptation.weight[number]
        weight = weight / torch.linalg.matrix_norm(weight, 2)
        torch.testing.assert_close(weights[number], weight, atol=1e-3, rtol=1e-2)
        block = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        h = nn.functional.conv2d(block, weights[number].view(256, 3, 4, 4))
        h = nn.functional.batch_norm(h, None, None, training=True)
        expected.append(nn.functional.leaky_relu(h, 0.2).flatten(1))
    expected = torch.stack(expected, 2) @ adaptation.permutation
    expected = nn.functional.pixel_shuffle(expected.view(6, 256, 8, 8), 4)
    torch.testing.assert_close(adaptation(images), expected, atol=1e-3, rtol=1e-2)


def test_penalties():
    assert permutation_penalty(torch.eye(64)[torch.randperm(64)]) == 0
    assert permutation_penalty(torch.ones(4, 4)) == pytest.approx(8 * (4 - 2) / 16)
    row = torch.zeros(4, 4)
    row[0] = 1
    assert permutation_penalty(row) == permutation_penalty(row.t()) == pytest.approx((4 - 2) / 16)
    features = torch.zeros(2, 16, 32, 32)
    features[:, 3:] = torch.randn(2, 13, 32, 32)
    assert smoothness_penalty(features) == 0
    features[0, 0, 5, 5] = 2
    assert smoothness_penalty(features) == pytest.approx(4 * 4 / (31 * 32 * 16 * 2))


def test_training_takes_any_model_that_fits(tmp_path):
    record = Record(make_config("le", {}), KEY_ID)
    SMALL["shakedrop"].save_pretrained(tmp_path)
    model = load_model(None, str(tmp_path), ["a", "b"], 32, [record])
    assert model.config.model_type == "shakedrop" and model.network.classifier.out_features == 2
    model.save_pretrained(tmp_path)
    more = load_model(str(tmp_path), None, ["a", "b", "c"], 32, [record])
    assert more.network.classifier.out_features == 3 and more.network.classifier.weight.isfinite().all()
    assert torch.equal(more.network.first[0].weight, model.network.first[0].weight)
    with pytest.raises(NeuraCryptError, match=r"shakedrop for images of 32 pixels, not of 64"):
        load_model(str(tmp_path), None, ["a", "b"], 64, [record])


@pytest.mark.parametrize("changes, reason", [({"adaptation": "pe"}, "le, ele"), ({"image_size": 30}, "multiple of")])
def test_configs_that_do_not_fit(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        AdaptNetShakeDropForImageClassification(AdaptNetShakeDropConfig.small(**changes))
