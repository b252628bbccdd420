"""Attacks one by one: what they find where there is something, and that noise gives them nothing."""

import numpy as np
import pytest

from hf_neuracrypt.audit import deep
from hf_neuracrypt.audit.ciphertext import duplicates, repeated, thumbnail
from hf_neuracrypt.audit.deep import inverse_network, unpaired
from hf_neuracrypt.audit.known import attempts, perceptron, quality, reconstruct, ridge
from hf_neuracrypt.audit.matching import matching, unshuffle
from hf_neuracrypt.audit.pairs import Pairs
from hf_neuracrypt.audit.puzzles import candidates, jigsaw
from hf_neuracrypt.data.batches import encrypt_all
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.schemes import EncoderConfig, make_config
from tests.commands import load_script
from tests.helpers import SMALL, make_images, scenes


pytest.importorskip("skimage")
crops = load_script("photos").crops
CONFIG = EncoderConfig(image_size=64, patch_size=8, depth=2, width=64)


def test_an_image_that_is_there_twice_is_found(photos, insecure_key):
    encoder = load_encoder(CONFIG, insecure_key)
    found = []
    for plain in (photos, np.concatenate([photos, photos[:1]])):
        found.append(duplicates(Pairs(CONFIG, plain, encrypt_all(encoder.encrypt, plain)), 0))
    assert found[0].figures["equal_images"] == 0
    assert found[1].figures["equal_images"] == pytest.approx(2 / 61) and found[1].grade == "leaks"


def test_patches_that_are_nearly_the_same_are_found(photos, insecure_key):
    """A photo that is there again with a jitter of one grey level; noise has no more than chance."""
    plain = photos.copy()
    plain[1] = (plain[0].astype(int) + np.random.default_rng(0).integers(-1, 2, plain[0].shape)).clip(0, 255)
    pairs = Pairs(CONFIG, plain, encrypt_all(load_encoder(CONFIG, insecure_key).encrypt, plain))
    equal, near, _ = repeated(pairs.encrypted_centred, 0)
    assert near[:2].all() and not equal[:2].all() and near[2:].mean() < 0.3
    noise = Pairs(CONFIG, plain, np.random.default_rng(0).integers(0, 256, plain.shape, np.uint8))
    assert duplicates(noise, 0).figures["nearly_equal"] < 0.005


def test_a_surrogate_finds_the_partners_that_cosines_alone_miss(insecure_key):
    """Depth 16 at CIFAR's size."""
    config = EncoderConfig(image_size=32, patch_size=8, depth=16, width=192)
    plain = crops(256, 64, ("astronaut", "coffee", "chelsea"))[:, :, ::2, ::2].copy()
    pairs = Pairs(config, plain, encrypt_all(load_encoder(config, insecure_key).encrypt, plain))
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
    assert unshuffle(shuffled, orders).figures["put_back"] > 0.95
    assert unshuffle(noise, orders).grade == "near chance"


def test_the_ridge_is_the_one_that_predicts_what_was_left_out():
    """Next to nothing for an exact linear map, as much as there is for noise."""
    generator = np.random.default_rng(0)
    for rows in (90, 500):
        given = generator.standard_normal((rows, 60), np.float32)
        given -= given.mean(0)
        weights = generator.standard_normal((60, 5), np.float32)
        found, _ = ridge(given, given @ weights, 1, 0)
        assert np.abs(given @ (found - weights)).max() < 0.01
        noise = generator.standard_normal((rows, 5), np.float32)
        assert np.linalg.norm(ridge(given, noise - noise.mean(0), 1, 0)[0]) < 0.5 * np.linalg.norm(
            np.linalg.pinv(given) @ noise
        )


def test_a_network_predicts_what_a_linear_map_cannot():
    generator = np.random.default_rng(0)
    given = generator.standard_normal((4000, 8), np.float32)
    target = np.abs(given)
    found = perceptron(given, target - target.mean(0), given[None, :100], target - target.mean(0), 0)[0]
    assert ((found - (target - target.mean(0))[:100]) ** 2).mean() < 0.1 * target.var()


def test_sixteen_pairs_reconstruct_photos_that_nobody_knew(insecure_key):
    """Color-NeuraCrypt as published: 224 px, depth 4; about 22 dB, against 12.4 for the mean image."""
    encoder = load_encoder(EncoderConfig(), insecure_key)
    known, other = crops(16, 224, ("astronaut", "coffee")), crops(48, 224, ("chelsea", "rocket"), seed=1)
    both = np.concatenate([known, other])  # the attacker has all ciphertexts, and the originals of the first 16
    pairs = Pairs(encoder.config, both, encrypt_all(encoder.encrypt, both))
    found = reconstruct(pairs.take(range(16)), pairs.encrypted_centred[16:24], 0)
    psnr = {method: quality(other[:8], images)[0] for method, images in found.items()}
    mean, _ = quality(other[:8], known.mean(0, keepdims=True).astype(np.uint8).repeat(8, 0))
    assert psnr["ridge"] > 20 and min(psnr.values()) > mean + 6, (psnr, mean)
    assert matching(pairs, thumbnail(pairs, 0)[1], 0).figures["accuracy"] > 0.9


def test_images_that_share_a_background_are_reconstructed_too(small_encoder):
    """Radiographs, digits: what is the same in all of them must not hide the rest from the attack."""
    coarse = np.random.default_rng(0).integers(0, 2, (40, 4, 4, 3)).repeat(8, 1).repeat(8, 2) * 50
    images = (make_images(1, 32) // 2 + 20 + coarse).astype(np.uint8).transpose(0, 3, 1, 2).copy()
    pairs = Pairs(SMALL, images, encrypt_all(small_encoder.encrypt, images))
    psnr, _ = quality(images[16:], attempts(pairs, range(16), range(16, 40), 0)["ridge"])
    mean, _ = quality(images[16:], images[:16].mean(0, keepdims=True).astype(np.uint8).repeat(24, 0))
    assert psnr > mean + 6, (psnr, mean)
    assert matching(pairs, thumbnail(pairs, 0)[1], 0).figures["accuracy"] > 0.9


# ------------------------------------------------------------------------------------------------ permutation ciphers


@pytest.fixture(scope="module")
def small():
    return crops(200, 64, ("astronaut", "coffee", "chelsea", "rocket"))[:, :, ::2, ::2].copy()


def test_colours_of_pixels_are_told_by_their_neighbours(small, insecure_key):
    """32 ciphertexts and no pair are enough for all bytes; one alone is not."""
    config = make_config("pe", {})
    encrypted = encrypt_all(load_encoder(config, insecure_key).encrypt, small)
    row, found = candidates(Pairs(config, small[:32], encrypted[:32]))
    assert row.figures["recovered"] > 0.99 > 0.6 > row.figures["recovered_alone"]
    assert (found == small[:32]).mean() == row.figures["recovered"]
    assert candidates(Pairs(config, small, small))[0].figures["recovered"] == 1
    noise = np.random.default_rng(0).integers(0, 256, small.shape, np.uint8)
    assert candidates(Pairs(config, small, noise))[0].grade == "near chance"


@pytest.mark.parametrize("scheme", ["etc", "ele", "vit-blockwise"])
def test_blocks_are_put_back(scheme, small, insecure_key):
    config = make_config(scheme, {"image_size": 32} | ({"patch_size": 4} if scheme == "vit-blockwise" else {}))
    encoder = load_encoder(config, insecure_key)
    encrypted, order = encrypt_all(encoder.encrypt, small), np.array(encoder.block_order())
    assert sorted(order) == list(range(64))
    assert jigsaw(Pairs(config, small, encrypted), order, 0).figures["neighbours"] > 0.9
    assert jigsaw(Pairs(config, small, small), np.arange(64), 0).figures["neighbours"] > 0.9
    noise = np.random.default_rng(0).integers(0, 256, small.shape, np.uint8)
    assert jigsaw(Pairs(config, small, noise), order, 0).grade == "near chance"


def test_a_block_comes_from_where_the_cipher_takes_it(insecure_key):
    encoder = load_encoder(make_config("etc", {}), insecure_key)
    images = np.zeros((64, 3, 32, 32), np.uint8)
    for block in range(64):
        images[block, :, block // 8 * 4 : block // 8 * 4 + 4, block % 8 * 4 : block % 8 * 4 + 4] = 9
    changed = encrypt_all(encoder.encrypt, images) != encrypt_all(encoder.encrypt, np.zeros_like(images))
    places = changed[:, 0, ::4, ::4].reshape(64, 64)
    assert places.argmax(0).tolist() == encoder.block_order() and (places.sum(0) == 1).all()


# ------------------------------------------------------------------------------------------------ --deep


@pytest.mark.parametrize("scheme", ["le", "color-neuracrypt"])
def test_a_network_learns_what_is_the_same_under_all_keys(scheme, small, monkeypatch):
    """A scheme without a key is undone; noise and another key's ciphertexts give the mean image and no more."""
    config = make_config(scheme, {"image_size": 32} | ({"patch_size": 8, "width": 64} if scheme != "le" else {}))
    noise = np.random.default_rng(0).integers(0, 256, small.shape, np.uint8)
    row, found = inverse_network(Pairs(config, small, noise), np.arange(8), 0, keys=4)
    assert row.grade == "near chance" and found.shape == (8, 3, 32, 32)
    monkeypatch.setattr(deep, "encrypt_all", lambda encrypt, images: images)
    row, found = inverse_network(Pairs(config, small, small), np.arange(8), 0, keys=8)
    assert row.grade == "leaks" and quality(small[:8], found)[0] == row.figures["psnr"], row


def test_images_are_reconstructed_without_a_pair(insecure_key, short_search):
    """What is seen through is graded so, noise is not; for other schemes, and a handful of images, it says so."""
    images = ((scenes(250, 1) + 1) * 127.5).byte().numpy()
    config = EncoderConfig(image_size=48, patch_size=8, depth=1)
    encrypted = encrypt_all(load_encoder(config, insecure_key).encrypt, images)
    row, found = unpaired(Pairs(config, images, encrypted), np.arange(8), 0)
    assert row.grade == "leaks" and quality(images[:8], found)[0] == row.figures["psnr"], row
    noise = np.random.default_rng(0).integers(0, 256, images[:100].shape, np.uint8)
    assert unpaired(Pairs(config, images[:100], noise), np.arange(8), 0)[0].grade == "near chance"
    few = unpaired(Pairs(config, images[:60], noise[:60]), np.arange(8), 0)
    other = unpaired(Pairs(make_config("le", {"image_size": 48}), images[:100], noise), np.arange(8), 0)
    assert few[0].grade == other[0].grade == "not applicable" and few[1] is other[1] is None
