"""Attacks with pairs: known plaintext, redrawing images that were not among the pairs, and chosen plaintext."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm.auto import tqdm

from hf_neuracrypt.audit.pairs import NIBBLE_SCHEMES, PERMUTATION_SCHEMES, Pairs
from hf_neuracrypt.audit.redraw import redraw
from hf_neuracrypt.audit.rows import LEAKS, NEAR_CHANCE, NOT_APPLICABLE, WEAK, Row, grade
from hf_neuracrypt.configuration import PublicConfig
from hf_neuracrypt.encoders.base import Encoder


PAIR_COUNTS = (1, 4, 16, 64, 256)
REDRAWN_IMAGES = 32
GAIN_DB = 3.0
MAX_PSNR = 100.0  # dB, of images that are equal

Symbols = Callable[[np.ndarray], np.ndarray]


def symbols_of(config: PublicConfig) -> tuple[Symbols, Symbols, int]:
    """How a permutation cipher sees images: (bytes to symbols (N, M), back to bytes, the mask that inverts one)."""
    shape = (-1, 3, config.image_size, config.image_size)
    if config.scheme in NIBBLE_SCHEMES:
        half = 3 * config.image_size**2

        def merge(symbols: np.ndarray) -> np.ndarray:
            return (symbols[:, half:] << 4 | symbols[:, :half]).reshape(shape)

        return lambda images: np.stack([images & 15, images >> 4], 1).reshape(len(images), -1), merge, 15
    return lambda images: images.reshape(len(images), -1), lambda symbols: symbols.reshape(shape), 255


def columns(known: Pairs, unknown: np.ndarray) -> np.ndarray:
    """Redraw images of a permutation cipher: a symbol is told by its values over the pairs, inverted or not.

    Args:
        known: pairs.
        unknown: ciphertexts, uint8 (N, 3, S, S).

    Returns:
        uint8 (N, 3, S, S); what was not found is the mean of the known images.
    """
    split, merge, inverse = symbols_of(known.config)
    plain, encrypted = split(known.plain), split(known.encrypted)
    places = {column.tobytes(): place for place, column in enumerate(np.ascontiguousarray(plain.T))}
    redrawn = np.repeat(split(known.plain.mean(0, keepdims=True).astype(np.uint8)), len(unknown), 0)
    ciphertexts = split(unknown)
    for place, column in enumerate(np.ascontiguousarray(encrypted.T)):
        for mask in (0, inverse):
            if (origin := places.get((column ^ mask).tobytes())) is not None:
                redrawn[:, origin] = ciphertexts[:, place] ^ mask
                break
    return merge(redrawn)


def attempts(pairs: Pairs, known: Sequence[int], unknown: Sequence[int], seed: int) -> dict[str, np.ndarray]:
    """What an attacker who knows some of the pairs makes of the ciphertexts of others.

    Args:
        pairs: both sides; the attacker has all ciphertexts, and the images whose numbers are `known`.
        known: numbers of images.
        unknown: of those to be redrawn.
        seed: see `redraw`.

    Returns:
        uint8 (N, 3, S, S) by method: "columns" for permutation ciphers, else "ridge" and "mlp".
    """
    given = pairs.take(list(known))
    if pairs.config.scheme in PERMUTATION_SCHEMES:
        return {"columns": columns(given, pairs.encrypted[list(unknown)])}
    return redraw(given, pairs.encrypted_centred[list(unknown)], seed)


def quality(plain: np.ndarray, redrawn: np.ndarray) -> tuple[float, float]:
    """Mean PSNR in dB (at most 100) and mean SSIM of uint8 (N, 3, S, S)."""
    window = min(7, plain.shape[-1] - (plain.shape[-1] + 1) % 2)
    psnr, ssim = [], []
    for image, guess in zip(plain, redrawn):
        equal = np.array_equal(image, guess)
        psnr.append(MAX_PSNR if equal else min(MAX_PSNR, peak_signal_noise_ratio(image, guess, data_range=255)))
        ssim.append(structural_similarity(image, guess, win_size=window, channel_axis=0, data_range=255))
    return float(np.mean(psnr)), float(np.mean(ssim))


def known_plaintext(pairs: Pairs, seed: int) -> tuple[Row, np.ndarray, dict[int, np.ndarray]]:
    """Redraw images from 1 to 256 pairs of others, against their mean image.

    Returns:
        The row, which images were redrawn, and these as uint8 (N, 3, S, S) by the number of pairs.
    """
    order = np.random.default_rng(seed).permutation(len(pairs))
    held_out = order[: max(1, min(REDRAWN_IMAGES, len(pairs) // 4))]
    pool = order[len(held_out) :]
    truth = pairs.plain[held_out]
    mean = pairs.plain[pool].mean(0, keepdims=True).round().astype(np.uint8).repeat(len(truth), 0)
    baseline, baseline_ssim = quality(truth, mean)
    figures: dict[str, float | int | None] = {"mean_image_psnr": baseline, "mean_image_ssim": baseline_ssim}
    redrawn, needed = {}, None
    counts = [count for count in PAIR_COUNTS if count <= len(pool)]
    for count in tqdm(counts, desc="Known pairs", leave=False):
        drawn = attempts(pairs, pool[:count], held_out, seed)
        found = {method: quality(truth, images) for method, images in drawn.items()}
        for method, (psnr, ssim) in found.items():
            prefix = "mlp_" if method == "mlp" else ""
            figures[f"{prefix}psnr_{count}"], figures[f"{prefix}ssim_{count}"] = psnr, ssim
        best = max(found, key=found.get)
        redrawn[count] = drawn[best]
        if needed is None and found[best][0] >= baseline + GAIN_DB:
            needed = count
    figures["pairs_for_3_db"] = needed
    result = NEAR_CHANCE if needed is None else LEAKS if needed <= 16 else WEAK
    exact = pairs.config.scheme in PERMUTATION_SCHEMES
    attack = "the values of each symbol over the pairs" if exact else "a linear map of patches, and a small network"
    finding = f"Other images redrawn by {attack}: PSNR in dB and SSIM by number of pairs, against their mean image."
    return Row("known", result, finding, figures), held_out, redrawn


def chosen_plaintext(pairs: Pairs, encoder: Encoder) -> tuple[Row, np.ndarray | None]:
    """Read a permutation cipher off the ciphertexts of a few chosen images, and decrypt all others.

    One black image gives what is inverted; the others hold the digits of each symbol's own number.

    Returns:
        The row, and the decrypted images, uint8 (N, 3, S, S).
    """
    if pairs.config.scheme not in PERMUTATION_SCHEMES:
        return Row("chosen", NOT_APPLICABLE, "For a network, chosen images are known pairs: see that row."), None
    split, merge, inverse = symbols_of(pairs.config)
    size = split(pairs.plain[:1]).shape[1]
    digits = math.ceil(math.log(size, inverse + 1))
    numbers = np.arange(size)
    images = np.stack(
        [np.zeros(size, int), *(numbers // (inverse + 1) ** digit % (inverse + 1) for digit in range(digits))]
    )
    answers = split(encoder.encrypt(torch.from_numpy(merge(images.astype(np.uint8)))).numpy())
    mask = answers[0]
    index = sum((answers[1 + digit] ^ mask).astype(int) * (inverse + 1) ** digit for digit in range(digits))
    decrypted = np.zeros((len(pairs), size), np.uint8)
    inside = index < size  # always, for the cipher that this is
    decrypted[:, index[inside]] = split(pairs.encrypted)[:, inside] ^ mask[inside]
    redrawn = merge(decrypted)
    figures = {"recovered": float((redrawn == pairs.plain).mean()), "chosen_images": digits + 1}
    finding = "Bytes of the other images, decrypted with what the chosen ones gave away."
    return Row("chosen", grade(figures["recovered"], 0.1, 0.5), finding, figures), redrawn
