"""`--deep`: attacks that train networks, and need ciphertexts and similar pictures, but no pair and no key.

`unpaired` is the map of an aligned start (`alignment/`), used as an attack. `inverse_network` learns to undo the scheme
under the attacker's own keys, and is then applied to the owner's ciphertexts; it is the inverse transformation network
of Ito, Kinoshita and Kiya's group. Everybody can encrypt under keys of their own, but the network can only learn what
is the same under all keys. Other images of the owner stand for the similar pictures that an attacker finds elsewhere.
"""

import hashlib

import numpy as np
import torch
from einops import rearrange
from torch import nn
from tqdm.auto import tqdm

from hf_neuracrypt.alignment import MIN_GRID, MIN_IMAGES, align, most_images, rehearse
from hf_neuracrypt.audit.known import mean_images, quality
from hf_neuracrypt.audit.pairs import Pairs, cut, join, mean_patch, symbols, to_patches
from hf_neuracrypt.audit.results import NOT_APPLICABLE, Row, grade
from hf_neuracrypt.data.batches import encrypt_all
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import SchemeConfig


KEYS, BATCHES, BATCH = 100, 4, 32  # keys, batches of images under each, images
CHANNELS, PIXEL_CHANNELS = 128, 32  # of the network; where its patches are single pixels
RATE = 2e-3


def unpaired(pairs: Pairs, held_out: np.ndarray, seed: int) -> tuple[Row, np.ndarray | None]:
    """Reconstruct images by the map that statistics of ciphertexts and of other images give.

    Args:
        pairs: the owner's; half of the images stand for public ones.
        held_out: numbers of the images to reconstruct; their ciphertexts are among those the attacker has.
        seed: chooses the public images, and of the alignment.

    Returns:
        The row, and the reconstructed images, uint8 (N, 3, S, S).
    """
    config, grid = pairs.config, pairs.config.image_size // pairs.config.tile
    order = np.random.default_rng(seed).permutation(np.delete(np.arange(len(pairs)), held_out))
    public, hidden = np.split(order, [len(pairs) // 2])
    if config.symbol_bits is not None or not pairs.is_image or grid < MIN_GRID:
        return Row("unpaired", NOT_APPLICABLE, "For image-to-image networks of 3 x 3 patches or more."), None
    hidden = np.concatenate([held_out, hidden])[: most_images(config.image_size, config.tile)]
    if min(len(public), len(hidden)) < MIN_IMAGES:
        return Row("unpaired", NOT_APPLICABLE, f"It takes {2 * MIN_IMAGES} images and more."), None
    similar = _to_float(pairs.plain[public])
    found = align(_to_float(pairs.encrypted[hidden]), similar, rehearse(config, similar, seed), config.tile, seed)
    patches = found.reconstruct(_to_float(pairs.encrypted[held_out]), config.tile).add(1).mul(127.5)
    images = join(patches.round().clamp(0, 255).byte().numpy(), config.image_size)
    mean = mean_images(pairs.plain[public], 1)
    finding = "Images reconstructed without key or pair, from statistics of ciphertexts and of other images of yours."
    counts = {"ciphertexts": len(hidden), "public_images": len(public)}
    return _row("unpaired", pairs.plain[held_out], images, mean, finding, counts), images


def inverse_network(pairs: Pairs, held_out: np.ndarray, seed: int, keys: int) -> tuple[Row, np.ndarray]:
    """Reconstruct images from their ciphertexts by a network that was trained on other images under other keys.

    Args:
        pairs: the owner's.
        held_out: numbers of the images to reconstruct; the network is trained on the others.
        seed: of the keys and the network.
        keys: how many the attacker trains with; the time it takes is proportional.

    Returns:
        The row, and the reconstructed images, uint8 (N, 3, S, S).
    """
    config, pool = pairs.config, np.delete(pairs.plain, held_out, axis=0)
    tile = config.tile if config.tile_name else 1  # a pixel
    mean = mean_patch(cut(pool, tile))
    owners = _inputs(pairs.encrypted, config, tile)[held_out]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(owners.shape[1], 3 * tile**2, PIXEL_CHANNELS if tile == 1 else CHANNELS)
        _train(network, pool, mean, config, tile, seed, keys)
    network.eval()
    with torch.no_grad():
        patches = torch.cat([network(part) for part in owners.split(8)]).flatten(2).mT.numpy() * 64 + mean
    images, guess = (
        join(part.round().clip(0, 255).astype(np.uint8), config.image_size) for part in (patches, mean[None])
    )
    finding = "Images reconstructed by a network that never saw this key, nor a pair: PSNR in dB and SSIM."
    return _row("deep", pairs.plain[held_out], images, guess, finding, {"keys": keys}), images


def _row(
    name: str, truth: np.ndarray, images: np.ndarray, mean: np.ndarray, finding: str, counts: dict[str, int]
) -> Row:
    """Reconstructed images against the mean image (1, 3, S, S)."""
    (psnr, ssim), (mean_psnr, mean_ssim) = quality(truth, images), quality(truth, mean.repeat(len(truth), 0))
    figures = {"psnr": psnr, "ssim": ssim, "mean_image_psnr": mean_psnr, "mean_image_ssim": mean_ssim, **counts}
    return Row(name, grade(psnr - mean_psnr, 1, 3), finding, figures)


def _train(
    network: nn.Module, pool: np.ndarray, mean: np.ndarray, config: SchemeConfig, tile: int, seed: int, keys: int
) -> None:
    """Learn to undo the scheme, some batches of images under each of the attacker's keys."""
    generator, optimizer = np.random.default_rng(seed), torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, keys * BATCHES)
    for number in tqdm(range(keys), desc="Training on the attacker's own keys", unit=" keys"):
        encoder = load_encoder(config, SecretKey(hashlib.sha256(f"deep {seed} {number}".encode()).digest()))
        images = pool[generator.integers(0, len(pool), BATCHES * BATCH)]
        inputs = _inputs(encrypt_all(encoder.encrypt_in_place, images), config, tile)
        targets = _grid((cut(images, tile) - mean) / 64)
        for rows in torch.arange(len(images)).split(BATCH):
            loss = nn.functional.mse_loss(network(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _inputs(encrypted: np.ndarray, config: SchemeConfig, tile: int) -> torch.Tensor:
    """Ciphertexts of one key, as the network takes them: float32 (N, D, rows of patches, columns)."""
    patches = symbols(to_patches(encrypted, tile), config.symbol_bits)
    if config.symbol_bits is not None:
        count = np.float32(2**config.symbol_bits)
        return _grid((patches - (count - 1) / 2) / (count / 4))
    # An attacker sees the position embedding in the mean of all ciphertexts, and subtracts it.
    centred = patches - mean_patch(patches)
    return _grid(centred / max(float(centred.std()), 1e-6))


def _grid(patches: np.ndarray) -> torch.Tensor:
    """(N, P, D) -> float32 (N, D, g, g)."""
    side = round(patches.shape[1] ** 0.5)
    return torch.from_numpy(rearrange(patches.astype(np.float32), "n (h w) d -> n d h w", h=side))


def _network(given: int, predicted: int, channels: int) -> nn.Sequential:
    """Patches to patches, with a look at the patches around; it starts as the mean image."""
    last = nn.Conv2d(channels, predicted, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(
        nn.Conv2d(given, channels, 1), nn.GELU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.GELU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.GELU(),
        last,
    )  # fmt: skip


def _to_float(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).float().div_(127.5).sub_(1)
