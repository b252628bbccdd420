"""A start for the patch embedding, found without labels or pairs: statistics of ciphertexts matched to public images.

A ciphertext patch is nearly an affine function of the plain patch under it, the same at every position but for a
constant. So the covariances of ciphertext patches with their neighbours are those of plain patches seen through one
unknown matrix, and covariances at a dozen offsets pin a matrix down, up to signs (the idea of second-order blind
identification: AMUSE, Tong et al. 1991; SOBI, Belouchrani et al. 1997). Third moments tell a sign from the other:
pictures are no negatives. Public images of roughly the same kind supply the plain side. That is `moments`; `adversary`
chooses among its guesses and matches whole distributions, and `rehearsal` corrects what is still inexact: whoever knows
how images are encrypted, if not the key, sees under keys of their own how such a map errs.

**This uses no secret, and it is an attack**: whoever holds enough ciphertexts and similar pictures can compute the map,
and approximate images with it. It is here because a cloud that can learn well from ciphertexts is a cloud that can do
this; an owner should know both.

The map is folded into the patch and position embeddings, so the model stays a stock Vision Transformer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from hf_neuracrypt.alignment.adversary import match_windows
from hf_neuracrypt.alignment.moments import match_moments
from hf_neuracrypt.alignment.patches import PatchMap, Whitened, to_patches
from hf_neuracrypt.alignment.rehearsal import Corrected, Side, correct_map, rehearse
from hf_neuracrypt.errors import NeuraCryptError


__all__ = ["MIN_GRID", "MIN_IMAGES", "Alignment", "align", "most_images", "rehearse", "to_patches"]

PLAIN_COMPONENTS, CIPHER_COMPONENTS = 32, 256  # the leading ones, whitened
MIN_IMAGES, MIN_GRID = 32, 3  # on either side; patches in a row of an image
MAX_PATCHES = 400_000  # on either side: 2,000 images of 196 patches


@dataclass(frozen=True)
class Alignment:
    """Plain patches as an affine function of ciphertext patches; pixels are in [-1, 1], D = 3 P^2, N patches.

    Args:
        to_components: float32 (D, K); a centred ciphertext patch (a row) times it gives about the components of the
            plain one.
        components: float32 (K, D), what these are of a centred plain patch.
        cipher_mean: float32 (N, D), the mean ciphertext patch at each position.
        plain_mean: float32 (N, D), that of the public images.
        corrected: how the map was found last.
    """

    to_components: torch.Tensor
    components: torch.Tensor
    cipher_mean: torch.Tensor
    plain_mean: torch.Tensor
    corrected: Corrected

    @property
    def patch_map(self) -> PatchMap:
        """What `models.embeddings.fold` makes embeddings of."""
        return PatchMap(self.to_components @ self.components, self.cipher_mean, self.plain_mean)

    def decrypt(self, pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
        """Patches (B, N, D) that approximate the plain ones of ciphertexts (B, 3, S, S), by the map alone."""
        return self._leading(pixels, patch_size) @ self.components + self.plain_mean

    def reconstruct(self, pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
        """Patches (B, N, D) nearer to the plain ones, corrected by what is around each."""
        grid = pixels.shape[-1] // patch_size
        leading = self._leading(pixels, patch_size).unflatten(1, (grid, grid))
        return self.corrected.network.correct(leading).flatten(1, 2) @ self.components + self.plain_mean

    def rehearsed(self, key: int, images: torch.Tensor) -> torch.Tensor:
        """Patches (B, N, D) of the public images with these numbers, as decrypted under a key of one's own."""
        return self.corrected.rehearsed[key][images].flatten(1, 2) @ self.components + self.plain_mean

    def _leading(self, pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
        return (to_patches(pixels, patch_size).flatten(1, 2) - self.cipher_mean) @ self.to_components


def most_images(image_size: int, patch_size: int) -> int:
    """How many images of a side, in pixels, an alignment is given of ciphertexts, and of public ones, at most."""
    return MAX_PATCHES // (image_size // patch_size) ** 2


@torch.no_grad()
def align(
    cipher: torch.Tensor, public: torch.Tensor, rehearsed: Iterable[torch.Tensor], patch_size: int, seed: int = 0
) -> Alignment:
    """Find the map from ciphertext patches to plain ones, from unpaired images.

    Args:
        cipher: ciphertexts, float32 (B, 3, S, S) in [-1, 1].
        public: plain images of roughly the same kind, (B', 3, S, S), resized as the owner resized.
        rehearsed: the public images encrypted under one key of one's own after the other, (B', 3, S, S) each:
            `rehearse`.
        patch_size: in pixels.
        seed: of the random combinations and of the images that are matched.

    Raises:
        NeuraCryptError: too few images, or too few patches in an image, to tell anything from.
    """
    if min(len(cipher), len(public)) < MIN_IMAGES or cipher.shape[-1] < MIN_GRID * patch_size:
        raise NeuraCryptError(
            f"an aligned start needs {MIN_IMAGES} ciphertexts and {MIN_IMAGES} public images of at least "
            f"{MIN_GRID} x {MIN_GRID} patches"
        )
    generator = torch.Generator().manual_seed(seed)
    plain = Whitened(to_patches(public, patch_size), PLAIN_COMPONENTS)
    hidden = Whitened(to_patches(cipher, patch_size), CIPHER_COMPONENTS)
    leading = min(len(plain.scale), len(hidden.scale))
    truth = plain.values[..., :leading]
    rotations = match_moments(hidden.values[..., :leading], truth, generator)
    starts = [_extended(sign * rotation, hidden) for rotation in rotations for sign in (1, -1)]
    owners, own = (hidden.values, match_windows(hidden, plain, starts, seed)), list[Side]()
    for number, images in enumerate(rehearsed, 1):
        side = Whitened(to_patches(images, patch_size), CIPHER_COMPONENTS)
        left, _, right = torch.linalg.svd(side.values[..., :leading].flatten(0, 2).T @ truth.flatten(0, 2))
        found = match_windows(side, plain, [_extended(left @ right, side)], seed, f"rehearsal {number}")
        own.append((side.values, found))
    corrected = correct_map(owners, own, truth, seed)
    return unwhitened(hidden, plain, corrected)


def unwhitened(cipher: Whitened, plain: Whitened, corrected: Corrected) -> Alignment:
    """The alignment of patches that a map of their whitened components makes."""
    to_components = cipher.basis / cipher.scale @ corrected.map
    components = (plain.basis * plain.scale)[:, : corrected.map.shape[1]].T
    return Alignment(to_components, components, cipher.mean.flatten(0, 1), plain.mean.flatten(0, 1), corrected)


def _extended(rotation: torch.Tensor, side: Whitened) -> torch.Tensor:
    """A map of the leading components as one of all."""
    return torch.cat([rotation, torch.zeros(len(side.scale) - len(rotation), rotation.shape[1])])
