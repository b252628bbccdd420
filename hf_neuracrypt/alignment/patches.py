"""Images as grids of patches, patches as their leading principal components, and windows of 3 x 3 patches."""

from typing import NamedTuple

import torch
from einops import rearrange


Places = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # image, row, column of the upper left patch of windows


def to_patches(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Images (B, 3, S, S) -> patches (B, S/P, S/P, 3 P^2), values in the order of a patch embedding's weights."""
    return rearrange(pixels, "b c (h p) (w q) -> b h w (c p q)", p=patch_size, q=patch_size)


def to_images(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Patches (B, N, 3 P^2) -> images (B, 3, S, S)."""
    side = int(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=side, p=patch_size, q=patch_size)


class PatchMap(NamedTuple):
    """Plain patches as an affine function of ciphertext patches; pixels are in [-1, 1], D = 3 P^2, N patches.

    Args:
        to_plain: float32 (D, D); a centred ciphertext patch (a row) times it is about the centred plain patch.
        cipher_mean: float32 (N, D), the mean ciphertext patch at each position.
        plain_mean: float32 (N, D), the mean plain patch.
    """

    to_plain: torch.Tensor
    cipher_mean: torch.Tensor
    plain_mean: torch.Tensor


class Whitened:
    """Leading principal components of patches: mean (g, g, D), basis (D, K), scale (K,), values (B, g, g, K)."""

    def __init__(self, patches: torch.Tensor, components: int):
        self.mean = patches.mean(0)
        rows = (patches - self.mean).flatten(0, 2)
        variances, basis = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
        variances, basis = variances.flip(0)[:components], basis.flip(1)[:, :components]
        real = variances > 1e-7 * variances[0]  # black borders have no variance at all
        self.basis, self.scale = basis[:, real].float(), variances[real].sqrt().float()
        self.values = (rows @ (self.basis / self.scale)).reshape(*patches.shape[:3], -1)


def any_places(values: torch.Tensor, count: int) -> Places:
    """`count` random windows of patches (B, g, g, K)."""
    image, top, left = (
        torch.randint(size, (count,)) for size in (len(values), *(side - 2 for side in values.shape[1:3]))
    )
    return image, top, left


def windows(values: torch.Tensor, places: Places) -> torch.Tensor:
    """Patches (B, g, g, K) -> windows of them (N, 9, K)."""
    image, top, left = places
    return torch.stack([values[image, top + y, left + x] for y in range(3) for x in range(3)], dim=1)


def in_order(columns: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns (Gram, Schmidt): the first, known best, stay; what others share with them is removed."""
    q, r = torch.linalg.qr(columns)
    return q * r.diagonal().sign()
