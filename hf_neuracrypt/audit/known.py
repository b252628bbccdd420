"""Attacks with pairs: images that were not among the pairs are reconstructed, from known pairs and from chosen ones.

A permutation cipher is read off symbol by symbol. For a random network, maps from ciphertext patches to plain ones are
fitted on the pairs: a linear one, and a small network on top of it, which adds what the encoder's ReLUs keep a linear
map from. Both see one patch at a time, less a mean: that of all patches, or that of its position, where an encoder's
position embedding or a background that all images share would be in the way.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from scipy.linalg import eigh
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn.functional import mse_loss
from tqdm.auto import tqdm

from hf_neuracrypt.audit.ciphertext import principal
from hf_neuracrypt.audit.pairs import Pairs, join, symbols
from hf_neuracrypt.audit.results import LEAKS, NEAR_CHANCE, NOT_APPLICABLE, WEAK, Row, grade
from hf_neuracrypt.data.batches import encrypt_all
from hf_neuracrypt.encoders.base import Encoder


PAIR_COUNTS = (1, 4, 16, 64, 256)
HELD_OUT_IMAGES = 32
GAIN_DB = 3.0
MAX_PSNR = 100.0  # dB, of images that are equal
RIDGES = (1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of the mean variance
JUDGED_PATCHES = 4_000
HIDDEN, COMPONENTS, BATCH, RATE, DECAY = 512, 128, 256, 2e-3, 0.01
EPOCHS, STEPS = 60, (40, 500)  # of the network: epochs, but within these steps, a second or two


def known_plaintext(pairs: Pairs, seed: int) -> tuple[Row, dict[int, np.ndarray]]:
    """Reconstruct the images of `hold_out` from 1 to 256 pairs of others, and compare with their mean image.

    Returns:
        The row, and the reconstructed images, uint8 (N, 3, S, S), by the number of pairs.
    """
    held_out, pool = hold_out(pairs, seed)
    truth = pairs.plain[held_out]
    baseline, baseline_ssim = quality(truth, mean_images(pairs.plain[pool], len(truth)))
    figures: dict[str, float | None] = {"mean_image_psnr": baseline, "mean_image_ssim": baseline_ssim}
    reconstructed, needed = {}, None
    counts = [count for count in PAIR_COUNTS if count <= len(pool)]
    for count in tqdm(counts, desc="Known plaintext", unit=" tries", leave=False):
        guesses = attempts(pairs, pool[:count].tolist(), held_out.tolist(), seed)
        found = {method: quality(truth, images) for method, images in guesses.items()}
        for method, (psnr, ssim) in found.items():
            prefix = "mlp_" if method == "mlp" else ""
            figures[f"{prefix}psnr_{count}"], figures[f"{prefix}ssim_{count}"] = psnr, ssim
        best = max(found, key=lambda method: found[method])
        reconstructed[count] = guesses[best]
        if needed is None and found[best][0] >= baseline + GAIN_DB:
            needed = count
    figures["pairs_for_3_db"] = needed
    result = NEAR_CHANCE if needed is None else LEAKS if needed <= 16 else WEAK
    permutation = pairs.config.symbol_bits is not None
    attack = "the values of each symbol over the pairs" if permutation else "a linear map of patches, and a network"
    finding = f"Other images reconstructed by {attack}: PSNR in dB and SSIM by number of pairs, and of the mean image."
    return Row("known", result, finding, figures), reconstructed


def hold_out(pairs: Pairs, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to reconstruct, and of those that may be known, in the order in which they are."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    count = max(1, min(HELD_OUT_IMAGES, len(pairs) // 4))
    return order[:count], order[count:]


def attempts(pairs: Pairs, known: Sequence[int], unknown: Sequence[int], seed: int) -> dict[str, np.ndarray]:
    """What an attacker who knows some of the pairs makes of the ciphertexts of others.

    Args:
        pairs: both sides; the attacker has all ciphertexts, and the images whose numbers are `known`.
        known: numbers of images.
        unknown: numbers of the images to reconstruct.
        seed: see `reconstruct`.

    Returns:
        uint8 (N, 3, S, S) by method: "columns" for permutation ciphers, else "ridge" and "mlp".
    """
    given = pairs.take(known)
    if pairs.config.symbol_bits is not None:
        return {"columns": reconstruct_by_columns(given, pairs.encrypted[list(unknown)])}
    return reconstruct(given, pairs.encrypted_centred[list(unknown)], seed)


def mean_images(plain: np.ndarray, count: int) -> np.ndarray:
    """What is known without an attack: the mean of uint8 images (N, 3, S, S), `count` times."""
    return plain.mean(0, keepdims=True).round().astype(np.uint8).repeat(count, 0)


def quality(plain: np.ndarray, guess: np.ndarray) -> tuple[float, float]:
    """Mean PSNR in dB (at most 100) and mean SSIM of uint8 (N, 3, S, S)."""
    window = min(7, plain.shape[-1] - (plain.shape[-1] + 1) % 2)
    psnr, ssim = [], []
    for one, other in zip(plain, guess):
        equal = np.array_equal(one, other)
        psnr.append(MAX_PSNR if equal else min(MAX_PSNR, peak_signal_noise_ratio(one, other, data_range=255)))
        ssim.append(structural_similarity(one, other, win_size=window, channel_axis=0, data_range=255))
    return float(np.mean(psnr)), float(np.mean(ssim))


# ------------------------------------------------------------------------------------------------ permutation ciphers


def reconstruct_by_columns(known: Pairs, unknown: np.ndarray) -> np.ndarray:
    """Reconstruct images of a permutation cipher: a symbol is told by its values over the pairs, inverted or not.

    Args:
        known: pairs.
        unknown: ciphertexts, uint8 (N, 3, S, S).

    Returns:
        uint8 (N, 3, S, S); what was not found is the mean of the known images.
    """
    bits = known.config.symbol_bits or 8
    plain, encrypted, ciphertexts = (_split(images, bits) for images in (known.plain, known.encrypted, unknown))
    places = {column.tobytes(): place for place, column in enumerate(np.ascontiguousarray(plain.T))}
    found = np.repeat(_split(known.plain.mean(0, keepdims=True).astype(np.uint8), bits), len(unknown), 0)
    for place, column in enumerate(np.ascontiguousarray(encrypted.T)):
        for mask in (0, 2**bits - 1):
            if (origin := places.get((column ^ mask).tobytes())) is not None:
                found[:, origin] = ciphertexts[:, place] ^ mask
                break
    return _merge(found, bits, known.config.image_size)


def chosen_plaintext(pairs: Pairs, encoder: Encoder) -> tuple[Row, np.ndarray | None]:
    """Read a permutation cipher off the ciphertexts of a few chosen images, and decrypt all others.

    One black image gives what is inverted; the others hold the digits of each symbol's own number.

    Returns:
        The row, and the decrypted images, uint8 (N, 3, S, S).
    """
    if pairs.config.symbol_bits is None:
        return Row("chosen", NOT_APPLICABLE, "For a network, chosen images are known pairs: see that row."), None
    bits, image_size = pairs.config.symbol_bits, pairs.config.image_size
    size, base = 3 * image_size**2 * 8 // bits, 2**bits
    powers = base ** np.arange(math.ceil(math.log(size, base)))[:, None]
    chosen = np.concatenate([np.zeros((1, size), int), np.arange(size) // powers % base]).astype(np.uint8)
    mask, *answers = _split(encrypt_all(encoder.encrypt, _merge(chosen, bits, image_size)), bits)
    index = ((np.stack(answers) ^ mask).astype(int) * powers).sum(0)
    symbols_found = np.zeros((len(pairs), size), np.uint8)
    inside = index < size  # always, for the cipher that this is
    symbols_found[:, index[inside]] = _split(pairs.encrypted, bits)[:, inside] ^ mask[inside]
    decrypted = _merge(symbols_found, bits, image_size)
    figures = {"recovered": float((decrypted == pairs.plain).mean()), "chosen_images": len(chosen)}
    finding = "Bytes of the other images, decrypted with what the chosen ones gave away."
    return Row("chosen", grade(figures["recovered"], 0.1, 0.5), finding, figures), decrypted


def _split(images: np.ndarray, bits: int) -> np.ndarray:
    """Images -> their symbols (N, M)."""
    return symbols(images.reshape(len(images), -1), bits)


def _merge(found: np.ndarray, bits: int, size: int) -> np.ndarray:
    """The inverse of `_split`."""
    parts = rearrange(found, "n (part c y x) -> part n c y x", part=8 // bits, c=3, y=size)
    return np.bitwise_or.reduce([part << bits * number for number, part in enumerate(parts)])


# ---------------------------------------------------------------------------------------------------- random networks


def reconstruct(known: Pairs, unknown: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Reconstruct images by maps of patches, fitted on pairs.

    Args:
        known: pairs; its ciphertext patches are centred on the mean of all ciphertexts, which an attacker has.
        unknown: float32 (N, P, D), centred alike.
        seed: of the network, and of the patches that judge the ridge.

    Returns:
        uint8 (N, 3, S, S) by "ridge" and "mlp".
    """
    weights, middle, mean = linear_map(known, seed)
    rows, aims = _rows(known.encrypted_centred - middle), _rows(known.plain_patches - mean)
    linear = (unknown - middle) @ weights
    rest = perceptron(rows, aims - rows @ weights, unknown - middle, aims, seed)

    def images(patches: np.ndarray) -> np.ndarray:
        return join((patches + mean).round().clip(0, 255).astype(np.uint8), known.config.image_size)

    return {"ridge": images(linear), "mlp": images(linear + rest)}


def linear_map(known: Pairs, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The linear map from ciphertext patches to plain ones that fits the pairs best.

    Returns:
        float32 (D, D'), of a ciphertext patch that is centred as in `Pairs.encrypted_centred`, less the second: float32
        (1, P or 1, D), and the third, (1, P or 1, D'), is to be added to what it gives, in grey levels.
    """
    given, target = known.encrypted_centred, known.plain_patches.astype(np.float32)
    fits = []
    for over in ((0, 1), (0,)) if len(known) > 1 else ((0, 1),):  # one pair has no mean of a position
        middle, mean = given.mean(over, keepdims=True), target.mean(over, keepdims=True)
        weights, error = ridge(_rows(given - middle), _rows(target - mean), middle.shape[1], seed)
        fits.append((error, weights, middle, mean))
    return min(fits, key=lambda fit: fit[0])[1:]


def _rows(patches: np.ndarray) -> np.ndarray:
    """(N, P, D) -> (N P, D)."""
    return patches.reshape(-1, patches.shape[-1])


def ridge(given: np.ndarray, target: np.ndarray, means: int, seed: int) -> tuple[np.ndarray, float]:
    """The linear map (D, D') from rows to rows, with the ridge that predicts best, and the mean square of its error.

    Each ridge is judged by patches left out one at a time, which one decomposition gives in closed form (PRESS: the
    error of a row is its residual over 1 - leverage; Allen 1974). `means` is how many means were subtracted from rows.
    """
    variances, axes = eigh((given.T @ given).astype(np.float64))
    variances, axes = variances.clip(0), axes.astype(np.float32)
    turned = given @ axes
    covariances = turned.T @ target
    judged = np.random.default_rng(seed).permutation(len(given))[:JUDGED_PATCHES]
    leverages, best, least = turned[judged].astype(np.float64) ** 2, np.zeros_like(covariances), np.inf
    for share in RIDGES:
        scale = 1 / (variances + max(share * variances.mean(), 1e-6))
        weights = scale[:, None].astype(np.float32) * covariances
        left = (1 - means / len(given) - leverages @ scale).clip(1e-6)
        error = (((target[judged] - turned[judged] @ weights) / left[:, None]) ** 2).mean()
        if error < least:
            best, least = weights, error
    return axes @ best, float(least)


def perceptron(given: np.ndarray, rest: np.ndarray, unknown: np.ndarray, target: np.ndarray, seed: int) -> np.ndarray:
    """What a network with one hidden layer predicts of the `rest`, for the `unknown` (N, P, D) -> (N, P, D').

    It sees and predicts leading principal components; those of its input are half whitened.
    """
    axes_in, deviations = _axes(given)
    axes_out, sizes = _axes(target)
    axes_in = axes_in / np.sqrt(deviations * deviations[0])
    inputs, outputs = (torch.from_numpy(part) for part in (given @ axes_in, rest @ axes_out / sizes[0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, last = torch.nn.Linear(inputs.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, outputs.shape[1])
        network = torch.nn.Sequential(first, torch.nn.GELU(), last)
        torch.nn.init.zeros_(last.weight)
        steps = int(np.clip(EPOCHS * len(inputs) / BATCH, *STEPS))
        optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
        for _ in range(steps):
            rows = torch.randint(0, len(inputs), (BATCH,))
            loss = mse_loss(network(inputs[rows]), outputs[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return network(torch.from_numpy(unknown @ axes_in)).numpy() @ axes_out.T * sizes[0]


def _axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leading axes (D, K) and the standard deviations along them."""
    axes, variances = principal(rows, COMPONENTS)
    return axes, np.sqrt(variances.clip(1e-9)).astype(np.float32)
