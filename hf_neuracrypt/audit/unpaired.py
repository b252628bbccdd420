"""`--deep`: the map of an aligned start, as the attack that it is: ciphertexts and similar pictures, no pair, no key.

Half of the owner's images stand for pictures of the same kind that an attacker finds elsewhere.
"""

import numpy as np
import torch

from hf_neuracrypt.alignment import MAX_PATCHES, MIN_GRID, MIN_IMAGES, align
from hf_neuracrypt.audit.known import quality
from hf_neuracrypt.audit.pairs import PERMUTATION_SCHEMES, Pairs, join
from hf_neuracrypt.audit.rows import NOT_APPLICABLE, Row, grade


def unpaired(pairs: Pairs, held_out: np.ndarray, seed: int) -> tuple[Row, np.ndarray | None]:
    """Redraw images by the map that statistics of ciphertexts and of other images give.

    Args:
        pairs: the owner's.
        held_out: numbers of the images to redraw; their ciphertexts are among those the attacker has.
        seed: tells which images are public, and of the alignment.

    Returns:
        The row, and the images as redrawn, uint8 (N, 3, S, S).
    """
    order = np.random.default_rng(seed).permutation(np.delete(np.arange(len(pairs)), held_out))
    public, hidden = np.split(order, [len(pairs) // 2])
    grid = pairs.config.image_size // pairs.tile
    if pairs.config.scheme in PERMUTATION_SCHEMES or not pairs.is_image or grid < MIN_GRID:
        return Row("unpaired", NOT_APPLICABLE, "For image-to-image networks of 3 x 3 patches or more."), None
    hidden = np.concatenate([held_out, hidden])[: MAX_PATCHES // grid**2]
    if min(len(public), len(hidden)) < MIN_IMAGES:
        return Row("unpaired", NOT_APPLICABLE, f"It takes {2 * MIN_IMAGES} images and more."), None
    found = align(_pixels(pairs.encrypted[hidden]), _pixels(pairs.plain[public]), pairs.tile, seed)
    patches = found.decrypt(_pixels(pairs.encrypted[held_out]), pairs.tile).add(1).mul(127.5)
    redrawn = join(patches.round().clamp(0, 255).byte().numpy(), pairs.config.image_size)
    truth, mean = pairs.plain[held_out], pairs.plain[public].mean(0, keepdims=True).round().astype(np.uint8)
    (psnr, ssim), (mean_psnr, mean_ssim) = quality(truth, redrawn), quality(truth, mean.repeat(len(truth), 0))
    figures = {
        "psnr": psnr, "ssim": ssim, "mean_image_psnr": mean_psnr, "mean_image_ssim": mean_ssim,
        "ciphertexts": len(hidden), "public_images": len(public),
    }  # fmt: skip
    finding = "Images redrawn without key or pair, from statistics of ciphertexts and of other images of yours."
    return Row("unpaired", grade(psnr - mean_psnr, 1, 3), finding, figures), redrawn


def _pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).float().div_(127.5).sub_(1)
