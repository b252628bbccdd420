"""The float32 network as published: torch's own layers give the same, batch-norm modes, initialisation, storage."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.errors import ConfigError
from hf_neuracrypt.schemes import config_from_dict, make_config
from tests.helpers import GOLDEN, batch, golden_image, make_images


SCHEME = "color-neuracrypt-float"
SMALL = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2}
VECTORS = json.loads((GOLDEN / "float.json").read_text())["vectors"]
IMAGES = batch(make_images(6, 32))
QUIET = pytest.mark.filterwarnings("ignore:batch_norm batch")


class Published(nn.Module):
    """PrivateEncoder's layers in its order, from torch's own modules."""

    def __init__(self, network):
        super().__init__()
        config = network.config
        first, *rest = network.hidden
        layers = [self.convolution(first, network.channels, config.patch_size), nn.ReLU()]
        for layer in rest:
            layers += [self.convolution(layer, config.width, 1)]
            if config.batch_norm != "none":
                layers += [nn.BatchNorm2d(config.width, track_running_stats=False)]
            layers += [nn.ReLU()]
        self.image_encoder = nn.Sequential(*layers)
        self.position, (weight, bias) = network.position, network.projection
        self.mixer = nn.Sequential(nn.ReLU(), nn.Linear(weight.shape[1], weight.shape[0]))
        self.mixer[1].weight.data, self.mixer[1].bias.data = weight, bias

    def convolution(self, layer, channels, kernel):
        convolution = nn.Conv2d(channels, len(layer[0]), kernel, stride=kernel)
        convolution.weight.data, convolution.bias.data = layer[0].reshape(convolution.weight.shape), layer[1]
        return convolution

    @torch.no_grad()
    def forward(self, images):
        h = self.image_encoder(images)
        batch, channels, height, width = h.shape
        return self.mixer(h.view(batch, channels, height * width).transpose(1, 2) + self.position)


@QUIET
@pytest.mark.parametrize("mode", ["batch", "none"])
def test_torchs_own_layers_give_the_same(mode, insecure_key):
    encoder = load_encoder(make_config(SCHEME, SMALL | {"batch_norm": mode}), insecure_key)
    expected = Published(encoder).train()(IMAGES.float() / 127.5 - 1)
    torch.testing.assert_close(encoder.encode(IMAGES), expected, atol=1e-5, rtol=1e-4)
    image = nn.functional.pixel_shuffle(expected.transpose(1, 2).reshape(6, 192, 4, 4), 8)
    stored = (encoder.encrypt(IMAGES).float() - 128) / encoder.config.scale
    assert (stored - image.clamp(-128 / 51, 127 / 51)).abs().max() <= 0.5 / 51 + 1e-4


@QUIET
@pytest.mark.parametrize("mode, alone_is_different", [("batch", True), ("frozen", False), ("none", False)])
def test_only_batch_mode_depends_on_neighbours(mode, alone_is_different, insecure_key):
    encoder = load_encoder(make_config(SCHEME, SMALL | {"batch_norm": mode}), insecure_key)
    images = batch(make_images(40, 32))
    together = encoder.encode(images)
    alone = torch.cat([encoder.encode(images[index : index + 1]) for index in range(40)])
    difference = (alone - together).abs().mean() / together.std(0).mean()
    assert (difference > 0.1) == alone_is_different and (difference < 1e-4) != alone_is_different
    assert encoder.encrypt(images[:0]).shape == (0, 3, 32, 32)


def test_batch_mode_warns(insecure_key):
    with pytest.warns(UserWarning, match="depends on the images it is encrypted with"):
        load_encoder(make_config(SCHEME, SMALL | {"batch_norm": "batch"}), insecure_key)


def test_frozen_statistics_are_near_those_of_images(insecure_key):
    """Normalised by them, images become nearly what their own statistics make of them: values do not grow or fade."""
    encoder = load_encoder(make_config(SCHEME, SMALL | {"batch_norm": "frozen"}), insecure_key)
    images = batch(make_images(64, 32))
    frozen, own = encoder.encode(images), Published(encoder).train()(images.float() / 127.5 - 1)
    frozen, own = (values - values.mean(0) for values in (frozen, own))  # what depends on the image
    assert torch.corrcoef(torch.stack([frozen.flatten(), own.flatten()]))[0, 1] > 0.8  # without a norm: 0.5
    assert 0.5 < frozen.std() / own.std() < 2  # without a norm: 0.04


def test_initialisation_is_torchs_default(insecure_key):
    encoder = load_encoder(make_config(SCHEME, {"batch_norm": "none"}), insecure_key)
    for weight, bias in (*encoder.hidden, encoder.projection):
        bound = 1 / math.sqrt(768)
        assert weight.shape == (768, 768) and bias.shape == (768,) and weight.dtype == torch.float32
        assert 0.999 * bound < weight.abs().max() <= bound and bias.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01) and abs(weight.mean()) < bound / 100
        assert len(weight.unique()) > 0.9 * weight.numel()
    assert float(encoder.position.std()) == pytest.approx(1, rel=0.01) and abs(encoder.position.mean()) < 0.01
    assert 4 < encoder.position.abs().max() < 6


@pytest.mark.parametrize("width, count", [(768, 3_700_224), (2048, 20_351_744)])
def test_parameters_are_as_many_as_the_originals(width, count, insecure_key):
    encoder = load_encoder(make_config(SCHEME, {"width": width, "batch_norm": "none"}), insecure_key)
    drawn = sum(part.numel() for layer in (*encoder.hidden, encoder.projection) for part in layer)
    assert drawn + encoder.position.numel() + 4 * 2 * width == count  # with batch norm's weights and biases, 1 and 0


@QUIET
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_golden_values(vector):
    """Not bytes: float32 sums differ in their last digits between processors."""
    config = config_from_dict(vector["config"])
    encoder = load_encoder(config, SecretKey(bytes.fromhex(vector["key"])))
    images = batch(np.stack([golden_image(name, config.image_size) for name in vector["images"]]))
    values = (encoder.encrypt(images) if config.patch_shape else encoder.encode(images)).flatten(1)
    np.testing.assert_allclose(values[:, ::101][:, :8].numpy(), vector["values"], atol=2e-4)
    np.testing.assert_allclose(values.mean(1).numpy(), vector["means"], atol=2e-5)


# ------------------------------------------------------------------------------------------------------- NeuraCrypt


def neuracrypt(key, **changes):
    return load_encoder(make_config("neuracrypt", SMALL | changes), key)


@QUIET
@pytest.mark.parametrize("channels", [1, 3])
def test_neuracrypt_is_the_published_network(channels, insecure_key):
    encoder = neuracrypt(insecure_key, channels=channels, shuffle="off", batch_norm="batch")
    images = IMAGES.float() / 127.5 - 1
    if channels == 1:
        grey = sum(weight * IMAGES[:, c].float() for c, weight in enumerate((0.299, 0.587, 0.114)))
        images = ((grey - 43.9) / 63.2)[:, None]
    encrypted = encoder.encrypt(IMAGES)
    assert encrypted.shape == (6, 16, 48) and encrypted.dtype == torch.float32
    torch.testing.assert_close(encrypted, Published(encoder).train()(images), atol=1e-5, rtol=1e-4)


def test_the_shuffle_is_the_keys_and_the_images_own(insecure_key):
    shuffled = neuracrypt(insecure_key, batch_norm="none")
    encrypted, again = shuffled.encrypt(IMAGES), shuffled.encrypt(IMAGES.flip(0)).flip(0)
    torch.testing.assert_close(encrypted, again)
    orders = [
        torch.cdist(image, plain).argmin(1).tolist()
        for image, plain in zip(encrypted, shuffled.encrypt_in_place(IMAGES))
    ]
    assert all(sorted(order) == list(range(16)) for order in orders) and len(set(map(tuple, orders))) == 6
    other = load_encoder(shuffled.config, SecretKey(bytes(32)))
    assert other.shuffle_order(IMAGES[0]) != shuffled.shuffle_order(IMAGES[0]) == orders[0]
    assert shuffled.encrypt(IMAGES[:0]).shape == (0, 16, 48)


@pytest.mark.parametrize("options, reason", [({"batch_norm": "off"}, "batch, frozen, none"), ({"scale": 0}, "scale 0"),
                                             ({"image_size": 225}, "multiple of patch_size")])  # fmt: skip
def test_what_does_not_fit_is_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        make_config(SCHEME, options)
