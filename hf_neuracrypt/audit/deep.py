"""`--deep`: a network that learns to undo the scheme under the attacker's own keys, and then meets the owner's.

It is the inverse transformation network of Ito, Kinoshita and Kiya's group: an attacker needs no pair, since everybody
can encrypt under keys of their own. It can only learn what is the same under all keys. Here it sees other images of
the owner's source in training, which an attacker would replace by similar ones.
"""

import hashlib

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hf_neuracrypt.audit.known import quality
from hf_neuracrypt.audit.pairs import NIBBLE_SCHEMES, PERMUTATION_SCHEMES, Pairs, cut, join
from hf_neuracrypt.audit.results import Row, grade
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import PublicConfig


KEYS, BATCHES, BATCH = 100, 4, 32  # keys, batches of images under each, images
CHANNELS, PIXEL_CHANNELS = 128, 32  # of the network; where its patches are single pixels
RATE = 2e-3


def inverse_network(pairs: Pairs, held_out: np.ndarray, seed: int, keys: int) -> tuple[Row, np.ndarray]:
    """Redraw images from their ciphertexts by a network that was trained on other images under other keys.

    Args:
        pairs: the owner's.
        held_out: numbers of the images to redraw; the network is trained on the others.
        seed: of the keys and the network.
        keys: how many the attacker trains with; the time it takes goes with it.

    Returns:
        The row, and the images as redrawn, uint8 (N, 3, S, S).
    """
    generator = np.random.default_rng(seed)
    pool = np.delete(pairs.plain, held_out, axis=0)
    tile = 1 if pairs.config.scheme == "pe" else pairs.tile  # pixels are encrypted one by one
    mean = cut(pool, tile).mean(0, dtype=np.float64).astype(np.float32)
    owners = _inputs(pairs.encrypted, pairs.config, tile)[held_out]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(owners.shape[1], 3 * tile**2, PIXEL_CHANNELS if tile == 1 else CHANNELS)
        optimizer = torch.optim.AdamW(network.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, keys * BATCHES)
        for number in tqdm(range(keys), desc="Training on the attacker's own keys", unit=" keys"):
            key = SecretKey(hashlib.sha256(f"deep {seed} {number}".encode()).digest())
            images = pool[generator.integers(0, len(pool), BATCHES * BATCH)]
            inputs = _inputs(encrypt_in_place(load_encoder(pairs.config, key), images), pairs.config, tile)
            targets = _grid((cut(images, tile) - mean) / 64)
            for rows in torch.arange(len(images)).split(BATCH):
                loss = nn.functional.mse_loss(network(inputs[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    network.eval()
    with torch.no_grad():
        drawn = torch.cat([network(part) for part in owners.split(8)]).flatten(2).mT.numpy() * 64 + mean
    redrawn = join(drawn.round().clip(0, 255).astype(np.uint8), pairs.config.image_size)
    truth = pairs.plain[held_out]
    guess = join(mean[None].round().astype(np.uint8), pairs.config.image_size).repeat(len(truth), 0)
    (psnr, ssim), (mean_psnr, mean_ssim) = quality(truth, redrawn), quality(truth, guess)
    figures = {"psnr": psnr, "ssim": ssim, "mean_image_psnr": mean_psnr, "mean_image_ssim": mean_ssim, "keys": keys}
    finding = "Images redrawn by a network that never saw this key, nor a pair: PSNR in dB and SSIM."
    return Row("deep", grade(psnr - mean_psnr, 1, 3), finding, figures), redrawn


def encrypt_in_place(encoder: Encoder, images: np.ndarray) -> np.ndarray:
    """Ciphertexts of uint8 (N, 3, S, S), patches not shuffled."""
    encrypt = encoder.represent if encoder.config.representation else encoder.encrypt
    return np.concatenate([encrypt(torch.from_numpy(part)).numpy() for part in _batches(images)])


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def _inputs(encrypted: np.ndarray, config: PublicConfig, tile: int) -> torch.Tensor:
    """Ciphertexts of one key, as the network takes them: float32 (N, D, rows of patches, columns)."""
    patches = cut(encrypted, tile) if encrypted.ndim == 4 else encrypted
    if config.scheme in NIBBLE_SCHEMES:
        patches = np.concatenate([patches & 15, patches >> 4], axis=-1) / np.float32(4) - np.float32(7.5 / 4)
    elif config.scheme in PERMUTATION_SCHEMES:
        patches = (patches - np.float32(127.5)) / 64
    else:  # the position embedding shows in the mean of all ciphertexts, so that an attacker takes it off
        patches = patches - patches.mean(0, dtype=np.float64).astype(np.float32)
        patches /= max(float(patches.std()), 1e-6)
    return _grid(patches)


def _grid(patches: np.ndarray) -> torch.Tensor:
    """(N, P, D) -> float32 (N, D, g, g)."""
    count, positions, size = patches.shape
    side = round(positions**0.5)
    return torch.from_numpy(patches.astype(np.float32)).mT.reshape(count, size, side, side)


def _network(given: int, drawn: int, channels: int) -> nn.Sequential:
    """Patches to patches, with a look at the patches around; it starts as the mean image."""
    last = nn.Conv2d(channels, drawn, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Conv2d(given, channels, 1), nn.GELU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.GELU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.GELU(),
        last,
    )  # fmt: skip
