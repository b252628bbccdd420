"""The aligned start: a map found from unpaired images, and its folding into stock embeddings."""

from dataclasses import replace

import pytest
import torch
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTForImageClassification

from hf_neuracrypt import EncoderConfig, load_encoder
from hf_neuracrypt.alignment import Alignment, align, rehearse
from hf_neuracrypt.alignment.adversary import Game, match_windows
from hf_neuracrypt.alignment.patches import Whitened, to_patches
from hf_neuracrypt.alignment.rehearsal import Corrector, correct_map
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.models.embeddings import fold
from tests.helpers import TINY_VIT, scenes


pytestmark = pytest.mark.usefixtures("short_search")
PATCH, COUNT = 8, 120


def explained(found: Alignment, plain: torch.Tensor, cipher: torch.Tensor, corrected: bool = False) -> float:
    """The share of the variance of true patches that the decrypted ones explain."""
    guess = (found.reconstruct if corrected else found.decrypt)(cipher, PATCH)
    true = to_patches(plain, PATCH).flatten(1, 2)
    return 1 - float((guess - true).square().mean() / (true - true.mean(0)).square().mean())


def under_a_matrix(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Ciphertexts under a random matrix and random constants of the positions."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(192, 192, generator=generator) / 192**0.5
    patches = to_patches(images, PATCH) @ matrix + torch.randn(6, 6, 192, generator=generator)
    return patches.reshape(-1, 6, 6, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def aligned(cipher: torch.Tensor, public: torch.Tensor) -> Alignment:
    return align(cipher, public, [under_a_matrix(public, 5), under_a_matrix(public, 6)], PATCH)


@pytest.fixture(scope="module")
def linear(short_search):
    plain = scenes(COUNT, 1)
    cipher = under_a_matrix(plain, 3)
    return plain, cipher, aligned(cipher, scenes(COUNT, 2))


def test_a_random_linear_map_is_found_without_pairs(linear):
    plain, cipher, found = linear
    assert explained(found, plain, cipher) > 0.5 and 0.5 < found.corrected.explained <= 1
    assert explained(replace(found, to_components=-found.to_components), plain, cipher) < 0


def test_a_picture_is_told_from_its_negative(linear):
    """No covariance tells them apart. The sign is that of the public images, not one that the method prefers."""
    plain, cipher, _ = linear
    assert explained(aligned(cipher, -scenes(COUNT, 2)), -plain, cipher) > 0.5


def test_the_encoder_itself_is_seen_through(insecure_key):
    plain, public = scenes(COUNT, 1), scenes(COUNT, 2)
    config = EncoderConfig(image_size=48, patch_size=PATCH, depth=2, width=192)
    cipher = load_encoder(config, insecure_key).encrypt(((plain + 1) * 127.5).byte()).float() / 127.5 - 1
    state = torch.get_rng_state()
    found = align(cipher, public, rehearse(config, public, 0), PATCH)
    assert explained(found, plain, cipher) > 0.2 and explained(found, plain, cipher, corrected=True) > 0.2
    assert torch.equal(torch.get_rng_state(), state)  # training that follows draws as it would without


@pytest.fixture(scope="module")
def whitened(linear):
    """Patches of ciphertexts and of public images, and the map between the two, which nobody knows."""
    plain, cipher, _ = linear
    hidden, public = (Whitened(to_patches(images, PATCH), 16) for images in (cipher, scenes(COUNT, 2)))
    rows = (to_patches(plain, PATCH) - public.mean).flatten(0, 2) @ (public.basis / public.scale)
    return hidden, public, torch.linalg.lstsq(hidden.values.flatten(0, 2), rows).solution


def agreement(found: torch.Tensor, true: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found, true, dim=0)[:8].mean())


def test_errors_seen_under_other_keys_bring_a_wrong_map_nearer_to_the_truth(whitened):
    """The owner's pictures are others than the public ones. Wrong maps of one's own are wrong as the owner's is."""
    hidden, public, true = whitened
    generator, own = torch.Generator().manual_seed(0), []
    for seed in (5, 6):
        side = Whitened(to_patches(under_a_matrix(scenes(COUNT, 2), seed), PATCH), 16).values
        right = torch.linalg.lstsq(side.flatten(0, 2), public.values.flatten(0, 2)).solution
        own.append((side, right + 0.15 * torch.randn(true.shape, generator=generator)))
    wrong = true + 0.15 * torch.randn(true.shape, generator=generator)
    found = correct_map((hidden.values, wrong), own, public.values, seed=0)
    assert agreement(found.map, true) > agreement(wrong, true) + 0.02 and 0.5 < found.explained <= 1


def test_each_patch_is_corrected_by_those_around_it():
    """Of 203 images of 5 x 5 patches, so in parts; beyond an edge stands what is average, nothing."""
    network, values = Corrector(2, width=4), torch.randn(203, 5, 5, 2)
    found = network.correct(values)
    for image, row, column in ((0, 2, 2), (202, 3, 1), (201, 0, 4)):
        window = torch.zeros(3, 3, 2)
        for y, x in ((y, x) for y in range(3) for x in range(3) if 0 <= row + y - 1 < 5 and 0 <= column + x - 1 < 5):
            window[y, x] = values[image, row + y - 1, column + x - 1]
        torch.testing.assert_close(found[image, row, column], network(window.reshape(1, 9, 2))[0])


def test_keys_of_ones_own_differ_and_follow_from_the_seed():
    config, public = EncoderConfig(image_size=48, patch_size=PATCH, depth=1, width=192), scenes(4, 2)
    first, second = rehearse(config, public, 0)
    assert first.shape == public.shape and first.abs().max() <= 1 and not torch.equal(first, second)
    assert torch.equal(first, next(rehearse(config, public, 0)))
    assert not torch.equal(first, next(rehearse(config, public, 1)))


def test_of_several_guesses_the_negatives_lose(whitened):
    hidden, public, true = whitened
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    right = torch.linalg.qr(true + 0.1 * noise)
    right = right[0] * right[1].diagonal().sign()
    for starts in ([-right, right], [right, -right], [-right, -right, right]):
        assert agreement(match_windows(hidden, public, starts, seed=0), true) > 0.5


def test_leading_components_stay_while_others_are_looked_for(whitened):
    hidden, public, _ = whitened
    start = torch.eye(16)
    game = Game(hidden, public, start, fixed=6)
    game.play(5, 1e-2, tqdm(disable=True), ending=True)
    torch.testing.assert_close(game.map[:, :6], start[:, :6], atol=1e-6, rtol=0)
    torch.testing.assert_close(game.map.T @ game.map, torch.eye(16), atol=1e-5, rtol=0)
    assert (game.map[:, 6:] - start[:, 6:]).abs().max() > 1e-3


def test_patches_are_in_the_order_of_a_patch_embedding():
    images, weight = torch.randn(2, 3, 32, 32), torch.randn(5, 3, PATCH, PATCH)
    expected = torch.nn.functional.conv2d(images, weight, stride=PATCH).permute(0, 2, 3, 1)
    torch.testing.assert_close(to_patches(images, PATCH) @ weight.flatten(1).T, expected, atol=1e-4, rtol=0)


def test_folded_logits_are_those_on_decrypted_patches(linear):
    """Folding changes where the map is computed, not what: logits agree to 1e-4."""
    _, cipher, found = linear
    model = ViTForImageClassification(ViTConfig(**(TINY_VIT | {"image_size": 48}))).eval()
    with torch.inference_mode():
        patches = found.decrypt(cipher[:8], PATCH).reshape(8, 6, 6, 3, PATCH, PATCH)
        decrypted = patches.permute(0, 3, 1, 4, 2, 5).reshape(8, 3, 48, 48)
        expected = model(pixel_values=decrypted).logits
        fold(model, found.patch_map)
        folded = model(pixel_values=cipher[:8]).logits
        assert (expected - model(pixel_values=decrypted).logits).abs().max() > 1e-3
    torch.testing.assert_close(folded, expected, atol=1e-4, rtol=0)
    assert type(model) is ViTForImageClassification


def test_images_without_contrast_at_the_border(linear):
    """Digits: constant pixels have no variance to divide by."""
    plain, public = scenes(40, 1), scenes(40, 2)
    plain[:, :, :8], public[:, :, :8] = -1, -1
    assert torch.isfinite(aligned(plain, public).patch_map.to_plain).all()


def test_too_little_to_align():
    with pytest.raises(NeuraCryptError, match="32 ciphertexts"):
        align(scenes(31, 0), scenes(100, 1), [], PATCH)
    with pytest.raises(NeuraCryptError, match="3 x 3 patches"):
        align(scenes(40, 0), scenes(40, 1), [], 24)
