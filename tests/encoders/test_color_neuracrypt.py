"""The exact encoder: golden ciphertexts, the same bytes however they are computed, and how it behaves on photos."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.color_neuracrypt import ColorNeuraCrypt, expand, pixel_shuffle, to_patches, weight_bits
from hf_neuracrypt.encoders.kernels import Float32Kernel
from hf_neuracrypt.encoders.reference import ColorNeuraCryptReference
from hf_neuracrypt.errors import ImageError, NeuraCryptError
from hf_neuracrypt.images import prepare
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EncoderConfig
from tests.helpers import GOLDEN, SMALL, batch, golden_image, make_images, sha256


CIPHERTEXTS = json.loads((GOLDEN / "ciphertexts.json").read_text())["ciphertexts"]
WHOLE_WAY = json.loads((GOLDEN / "whole_way.json").read_text())["ciphertexts"]


# ------------------------------------------------------------------------------------------------------- golden bytes


@pytest.mark.parametrize("vector", CIPHERTEXTS, ids=lambda vector: vector["name"])
def test_golden_ciphertexts(vector):
    config = EncoderConfig.from_dict(vector["config"])
    images = batch(np.stack([golden_image(name, config.image_size) for name in vector["images"]]))
    encrypted = load_encoder(config, SecretKey(bytes.fromhex(vector["key"]))).encrypt(images)
    assert [sha256(image) for image in encrypted] == vector["sha256"]


@pytest.mark.parametrize("vector", WHOLE_WAY, ids=lambda vector: vector["name"])
def test_golden_ciphertexts_of_images_of_other_sizes(vector):
    """From decoded pixels through the resize that the config names to the ciphertext."""
    config, (height, width) = EncoderConfig.from_dict(vector["config"]), vector["size"]
    prepared = prepare(golden_image(vector["image"], max(height, width))[:height, :width], config)
    assert hashlib.sha256(prepared.tobytes()).hexdigest() == vector["prepared"]
    encoder = ColorNeuraCrypt(config, SecretKey(bytes.fromhex(vector["key"])))
    assert sha256(encoder.encrypt(torch.from_numpy(prepared.copy())[None])[0]) == vector["ciphertext"]


@pytest.mark.parametrize("vector", [v for v in CIPHERTEXTS if v["config"]["image_size"] <= 64], ids=lambda v: v["name"])
def test_golden_ciphertexts_from_the_written_rule(vector):
    """The whole algorithm again in NumPy int64, straight from the module's docstring."""
    config = EncoderConfig.from_dict(vector["config"])
    network = expand(config, SecretKey(bytes.fromhex(vector["key"])))
    for name, expected in zip(vector["images"], vector["sha256"]):
        image = golden_image(name, config.image_size).transpose(2, 0, 1)
        grid, patch = config.image_size // config.patch_size, config.patch_size
        h = (
            image.reshape(3, grid, patch, grid, patch)
            .transpose(1, 3, 0, 2, 4)
            .reshape(grid * grid, -1)
            .astype(np.int64)
            - 128
        )
        for layer in network.hidden:
            assert (abs(h) @ abs(layer.weight.T.astype(np.int64))).max() + abs(layer.bias).max() < 2**24
            h = h @ layer.weight.T.astype(np.int64) + layer.bias
            h = np.clip((h + 2 ** (layer.shift - 1)) // 2**layer.shift, 0, 127)
        h = np.clip(h + network.position, 0, 127)
        layer = network.projection
        y = h @ layer.weight.T.astype(np.int64) + layer.bias
        y = np.clip((y + 2 ** (layer.shift - 1)) // 2**layer.shift, -128, 127) + 128
        y = y.reshape(grid, grid, 3, patch, patch).transpose(2, 0, 3, 1, 4).astype(np.uint8)
        assert hashlib.sha256(y.tobytes()).hexdigest() == expected


def test_weights_are_what_the_key_gives(insecure_key):
    network, public = expand(SMALL, insecure_key), SMALL.to_json()
    np.testing.assert_array_equal(network.hidden[0].weight, insecure_key.integers(public, "layer/0/weight", (64, 192)))
    np.testing.assert_array_equal(
        network.hidden[2].bias, 127 * insecure_key.integers(public, "layer/2/bias", (64,)).astype(int)
    )
    np.testing.assert_array_equal(network.position, insecure_key.integers(public, "position", (16, 64), 5))
    assert [layer.weight.shape for layer in network.hidden] == [(64, 192), (64, 64), (64, 64)]
    assert network.projection.weight.shape == (192, 64)


def test_shifts_of_the_default_config(insecure_key):
    """Constants of v1, written down."""
    network = expand(EncoderConfig(), insecure_key)
    assert [layer.shift for layer in network.hidden] == [12, 10, 11, 10, 11]
    assert network.projection.shift == 11


@pytest.mark.parametrize("fan_in", [16, 192, 588, 768, 1024, 1040, 2048, 3072, 4096])
def test_sums_stay_below_two_to_the_24(fan_in):
    largest = 2 ** (weight_bits(fan_in) - 1) - 1
    assert fan_in * 128 * largest + 127 * largest < 2**24


# --------------------------------------------------------------------------------------------------------- same bytes


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batch_size_does_not_matter(size, insecure_key):
    encoder = load_encoder(SMALL, insecure_key)
    images = batch(make_images(64, 32))
    whole = encoder.encrypt(images)
    parts = torch.cat([encoder.encrypt(part) for part in images.split(size)])
    assert torch.equal(parts, whole)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.randoms())
def test_an_image_does_not_depend_on_its_neighbours(small_encoder, seed, count, random):
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    order = list(range(count))
    random.shuffle(order)
    together = small_encoder.encrypt(images)
    assert torch.equal(small_encoder.encrypt(images[order]), together[order])
    assert torch.equal(small_encoder.encrypt(images[:1]), together[:1])


def test_chunks_do_not_matter(insecure_key, monkeypatch):
    """However many values a layer holds at a time, from those of one image on."""
    images, encrypted = batch(make_images(13, 64)), []
    for values in (1, 4 * 16 * 768, 10**9):
        monkeypatch.setattr(Float32Kernel, "chunk_values", values)
        encrypted.append(ColorNeuraCrypt(EncoderConfig(image_size=64), insecure_key, kernel="float32").encrypt(images))
    assert torch.equal(encrypted[0], encrypted[1]) and torch.equal(encrypted[0], encrypted[2])


def test_memory_layout_and_threads_do_not_matter(insecure_key):
    encoder, images = load_encoder(EncoderConfig(image_size=64), insecure_key), batch(make_images(5, 64))
    expected, threads = encoder.encrypt(images.contiguous()), torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(encoder.encrypt(images), expected)
            assert torch.equal(encoder.encrypt(images.contiguous(memory_format=torch.channels_last)), expected)
    finally:
        torch.set_num_threads(threads)
    assert encoder.encrypt(images).is_contiguous()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["int8", "float32"])
def test_golden_ciphertexts_on_a_gpu(name):
    for vector in CIPHERTEXTS:
        config, key = EncoderConfig.from_dict(vector["config"]), SecretKey(bytes.fromhex(vector["key"]))
        images = batch(np.stack([golden_image(each, config.image_size) for each in vector["images"]]))
        encrypted = ColorNeuraCrypt(config, key, device="cuda", kernel=name).encrypt(images)
        assert [sha256(image) for image in encrypted] == vector["sha256"]


# ------------------------------------------------------------------------------------------------------- keys, errors


@pytest.mark.parametrize("byte, bit", [(0, 0), (15, 3), (31, 7)])
def test_keys_that_differ_in_one_bit_are_unrelated(byte, bit, insecure_key):
    other = bytearray(range(32))
    other[byte] ^= 1 << bit
    config, images = EncoderConfig(image_size=64), batch(make_images(8, 64))
    one = load_encoder(config, insecure_key).encrypt(images)
    two = load_encoder(config, SecretKey(bytes(other))).encrypt(images)
    assert (one == two).float().mean() < 0.02
    assert abs(torch.corrcoef(torch.stack([one.flatten().float(), two.flatten().float()]))[0, 1]) < 0.05


@pytest.mark.parametrize("change", [{"depth": 5}, {"width": 80}, {"background": "#000000"}])
def test_configs_are_unrelated(change, insecure_key):
    images = batch(make_images(8, 32))
    one = load_encoder(SMALL, insecure_key).encrypt(images)
    two = load_encoder(EncoderConfig(**(SMALL.to_dict() | change)), insecure_key).encrypt(images)
    assert (one == two).float().mean() < 0.02


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 32, 32),
        torch.zeros(1, 3, 32, 32, dtype=torch.int8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 32, 40, dtype=torch.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        None,
    ],
    ids=lambda images: f"{getattr(images, 'dtype', None)} {tuple(getattr(images, 'shape', ()))}",
)
def test_other_input_is_refused(images, small_encoder):
    with pytest.raises(ImageError, match=r"\(B, 3, 32, 32\)"):
        small_encoder.encrypt(images)


def test_an_empty_batch_is_fine(small_encoder):
    assert small_encoder.encrypt(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)).shape == (0, 3, 32, 32)


def test_an_unknown_kernel_is_refused(insecure_key):
    with pytest.raises(NeuraCryptError, match="fused, int8, float32"):
        ColorNeuraCrypt(SMALL, insecure_key, kernel="int4")


def test_repr_and_pickle_hold_no_key(tmp_path):
    secret = hashlib.sha256(b"secret").digest()
    SecretKey(secret).save(tmp_path / "a.key")
    key = SecretKey.load(tmp_path / "a.key")
    encoder, network = load_encoder(SMALL, key), expand(SMALL, key)
    pickled = pickle.dumps(encoder)
    for part in (secret, network.hidden[0].weight.tobytes()[:64], network.position.tobytes()[:64]):
        assert part not in pickled
    assert repr(secret) not in repr(encoder) and key.id in repr(encoder)
    images = batch(make_images(2, 32))
    assert torch.equal(pickle.loads(pickled).encrypt(images), encoder.encrypt(images))


# -------------------------------------------------------------------------------------------------------- the network


def test_patches_are_in_pixel_shuffle_order():
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    rows, out = to_patches(images, 14), torch.empty_like(images)
    unfolded = torch.nn.functional.unfold(images.float(), 14, stride=14)
    assert torch.equal(rows.view(2, 4, -1).transpose(1, 2).float(), unfolded)
    pixel_shuffle(rows, 14, out)
    assert torch.equal(out, images)
    assert torch.equal(torch.nn.functional.pixel_shuffle(rows.view(2, 2, 2, -1).permute(0, 3, 1, 2), 14), images)


@pytest.mark.parametrize("patch, size", [(8, 64), (14, 56), (16, 64), (32, 64)])
def test_every_patch_size_matches_the_float_reference(patch, size, insecure_key):
    config = EncoderConfig(patch_size=patch, image_size=size)
    images = batch(make_images(6, size) // 2 + 64)  # the contrast of photos
    exact = load_encoder(config, insecure_key).encrypt(images).float()
    reference = ColorNeuraCryptReference(config, insecure_key)(images.float())
    assert torch.corrcoef(torch.stack([exact.flatten(), reference.clamp(0, 255).flatten()]))[0, 1] > 0.99
    # The part that depends on the image, not the position, must agree as well.
    exact, reference = exact - exact.mean(0), reference - reference.mean(0)
    assert torch.corrcoef(torch.stack([exact.flatten(), reference.flatten()]))[0, 1] > 0.97


@pytest.fixture(scope="session")
def photos() -> torch.Tensor:
    """Photos that come with scikit-image and scikit-learn, and crops of them at native resolution, 224 px."""
    data = pytest.importorskip("skimage.data")
    datasets = pytest.importorskip("sklearn.datasets")
    from PIL import Image

    sources = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee", "cat", "rocket")]
    sources += [Image.fromarray(photo) for photo in datasets.load_sample_images().images]
    images = [photo.resize((224, 224), Image.Resampling.BILINEAR) for photo in sources]
    images += [photo.crop((left, 40, left + 224, 264)) for photo in sources for left in (0, 100, 200)]
    return batch(np.stack([np.asarray(image.convert("RGB")) for image in images]))


@pytest.mark.parametrize("seed", range(3))
def test_saturation_and_scale_on_photos(seed, photos):
    key = SecretKey(hashlib.sha256(bytes([seed])).digest())
    config = EncoderConfig(resize="bilinear")  # other configs are other networks, some of which saturate more
    encoder = ColorNeuraCrypt(config, key, kernel="float32")
    h = to_patches(photos.contiguous(), 16)
    for layer in encoder.layers[:-1]:
        h = layer(h)
        assert 127 / 8 < h.float().square().mean().sqrt() < 127 / 2
        assert (h == 127).float().mean() < 0.02
    encrypted = encoder.encrypt(photos)
    assert ((encrypted == 0) | (encrypted == 255)).float().mean() < 0.02
    encrypted = encrypted.float()
    positional = encrypted.mean(0).var() / encrypted.var()
    assert 0.6 < positional < 0.85
    reference = ColorNeuraCryptReference(config, key)(photos.float())
    assert torch.corrcoef(torch.stack([encrypted.flatten(), reference.clamp(0, 255).flatten()]))[0, 1] > 0.99
