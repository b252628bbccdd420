"""Images as grids of patches, and patches as their leading principal components."""

import torch
from einops import rearrange


def to_patches(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Images (B, 3, S, S) -> patches (B, S/P, S/P, 3 P^2), values in the order of a patch embedding's weights."""
    return rearrange(pixels, "b c (h p) (w q) -> b h w (c p q)", p=patch_size, q=patch_size)


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


def windows(values: torch.Tensor) -> torch.Tensor:
    """Patches (B, g, g, K) -> every 3 x 3 window of them (B (g-2)^2, 9 K)."""
    grid = values.shape[1] - 2
    shifted = [values[:, y : y + grid, x : x + grid] for y in range(3) for x in range(3)]
    return torch.cat(shifted, dim=-1).flatten(0, 2)


def middles(values: torch.Tensor) -> torch.Tensor:
    """The patch in the middle of each window (B (g-2)^2, K)."""
    return values[:, 1:-1, 1:-1].flatten(0, 2)


def in_order(columns: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns (Gram, Schmidt): the first, known best, stay; what others share with them is removed."""
    q, r = torch.linalg.qr(columns)
    return q * r.diagonal().sign()
