"""Plain images and their ciphertexts, side by side: what the owner has and no attacker should.

Images are uint8 (N, 3, S, S); *patches* are (N, P, D): P tiles of an image in row-major order, each flattened as
(colour, row, column). The tile is the scheme's own patch or block, since code and config are public.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from einops import rearrange

from hf_neuracrypt.schemes import SchemeConfig


@dataclass(frozen=True)
class Pairs:
    """Plain images and their ciphertexts, row by row.

    Args:
        config: how they were encrypted.
        plain: uint8 (N, 3, S, S).
        encrypted: uint8 (N, 3, S, S), or float32 (N, P, D) for a patch representation, its shuffle undone.
        wrong: rows of the folder that are not what the key makes of the source.
        mean: float32 (P, D), the mean ciphertext patch at each position, subtracted in `encrypted_centred`; default:
            computed from these pairs.
        labels: int64 (N,), as they are stored; None if there are none.
    """

    config: SchemeConfig
    plain: np.ndarray
    encrypted: np.ndarray
    wrong: tuple[int, ...] = ()
    mean: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.plain)

    def take(self, chosen: Iterable[int]) -> "Pairs":
        """Some of the pairs, their ciphertexts still centred on the mean of all, which an attacker has."""
        chosen = list(chosen)
        return Pairs(self.config, self.plain[chosen], self.encrypted[chosen], mean=self.encrypted_mean)

    @property
    def is_image(self) -> bool:
        """Whether ciphertexts are images."""
        return self.config.patch_shape is None

    @cached_property
    def plain_patches(self) -> np.ndarray:
        """uint8 (N, P, 3 tile²)."""
        return cut(self.plain, self.config.tile)

    @cached_property
    def brightness(self) -> np.ndarray:
        """float32 (N, P): mean value of each plain patch."""
        return self.plain_patches.mean(-1, dtype=np.float32)

    @cached_property
    def plain_centred(self) -> np.ndarray:
        """float32 (N, P, D): symbols of plain patches, less their mean over the images."""
        patches = symbols(self.plain_patches, self.config.symbol_bits)
        return patches - mean_patch(patches)

    @cached_property
    def encrypted_mean(self) -> np.ndarray:
        """float32 (P, D): the mean encrypted patch at each position, with it the position embedding."""
        return mean_patch(self._encrypted_symbols()) if self.mean is None else self.mean

    @cached_property
    def encrypted_centred(self) -> np.ndarray:
        """float32 (N, P, D): symbols of encrypted patches, less their mean over the images: no position embedding."""
        return self._encrypted_symbols() - self.encrypted_mean

    def _encrypted_symbols(self) -> np.ndarray:
        return symbols(to_patches(self.encrypted, self.config.tile), self.config.symbol_bits)


def cut(images: np.ndarray, tile: int) -> np.ndarray:
    """(N, C, S, S) -> (N, P, C tile²), patches in row-major order."""
    return rearrange(images, "n c (h p) (w q) -> n (h w) (c p q)", p=tile, q=tile)


def join(patches: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `cut`, for three channels."""
    grid = math.isqrt(patches.shape[1])
    return rearrange(patches, "n (h w) (c p q) -> n c (h p) (w q)", c=3, h=grid, p=size // grid)


def to_patches(encrypted: np.ndarray, tile: int) -> np.ndarray:
    """Patches of ciphertexts: images are cut, a patch representation is as it is."""
    return cut(encrypted, tile) if encrypted.ndim == 4 else encrypted


def symbols(values: np.ndarray, bits: int | None) -> np.ndarray:
    """What a permutation cipher moves, (..., D) -> (..., 8 D / bits): bytes, or their low halves and then the high
    ones; the values themselves if `bits` is None."""
    if bits is None:
        return values
    return np.concatenate([values >> shift & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1)


def mean_patch(patches: np.ndarray) -> np.ndarray:
    """Of each position over the images, as float32."""
    return patches.mean(0, dtype=np.float64).astype(np.float32)
