"""A start for the patch embedding, found without labels or pairs: statistics of ciphertexts matched to public images.

A ciphertext patch is nearly an affine function of the plain patch under it, the same at every position but for a
constant. So the covariances of ciphertext patches with their neighbours are those of plain patches seen through one
unknown matrix, and covariances at a dozen offsets pin a matrix down, up to signs (the idea of second-order blind
identification: AMUSE, Tong et al. 1991; SOBI, Belouchrani et al. 1997). Third moments tell a sign from the other:
pictures are no negatives. Public images of roughly the same kind supply the plain side. What that leaves inexact,
nearest neighbours improve: 3 x 3 windows of patches are matched between the two sets and the map is fitted again to the
matches (iterative closest points).

**This uses no secret, and it is an attack**: whoever holds enough ciphertexts and similar pictures can compute the map,
and approximate images with it. It is here because a cloud that can learn well from ciphertexts is a cloud that can do
this; an owner should know both.

The map is folded into the patch and position embeddings, so the model stays a stock Vision Transformer.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_neuracrypt.errors import NeuraCryptError


PLAIN_COMPONENTS, CIPHER_COMPONENTS, LEADING = 64, 128, 32
STARTS = 12  # random combinations of offsets; the one that fits all of them best is kept
THIRD = 0.3  # what agreement of third moments weighs, in the first half of each search
ROUNDS = 5  # of matching; more of them drift
MATCHED = 240, 640  # images whose windows are matched, on either side
MAX_PATCHES = 200_000  # on either side: 4,000 images of 49 patches, 1.2 GB of float32 for both
OFFSETS = [(dy, dx) for dy in range(4) for dx in range(-3, 4) if 0 < dy * dy + dx * dx <= 9 and (dy, dx) > (0, 0)]


@dataclass(frozen=True)
class Alignment:
    """Plain patches as an affine function of ciphertext patches; pixels are in [-1, 1], D = 3 P^2, N patches.

    Args:
        to_plain: float32 (D, D); a centred ciphertext patch (a row) times it is about the centred plain patch.
        cipher_mean: float32 (N, D), the mean ciphertext patch at each position.
        plain_mean: float32 (N, D), that of the public images.
    """

    to_plain: torch.Tensor
    cipher_mean: torch.Tensor
    plain_mean: torch.Tensor

    def decrypt(self, pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
        """Patches (B, N, D) that approximate the plain ones of ciphertexts (B, 3, S, S)."""
        patches = to_patches(pixels, patch_size).flatten(1, 2)
        return (patches - self.cipher_mean) @ self.to_plain + self.plain_mean


def to_patches(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Images (B, 3, S, S) -> patches (B, S/P, S/P, 3 P^2), values in the order of a patch embedding's weights."""
    batch, channels, size, _ = pixels.shape
    grid = size // patch_size
    split = pixels.reshape(batch, channels, grid, patch_size, grid, patch_size)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid, grid, -1)


@torch.no_grad()
def align(cipher: torch.Tensor, public: torch.Tensor, patch_size: int, seed: int = 0) -> Alignment:
    """Find the map from ciphertext patches to plain ones, from unpaired images.

    Args:
        cipher: ciphertexts, float32 (B, 3, S, S) in [-1, 1].
        public: plain images of roughly the same kind, (B', 3, S, S), resized as the owner resized.
        patch_size: in pixels.
        seed: of the random combinations and of the images that are matched.

    Raises:
        NeuraCryptError: too few images, or too few patches in an image, to tell anything from.
    """
    if min(len(cipher), len(public)) < 32 or cipher.shape[-1] < 3 * patch_size:
        raise NeuraCryptError("an aligned start needs 32 ciphertexts and 32 public images of at least 3 x 3 patches")
    generator = torch.Generator().manual_seed(seed)
    plain = _Whitened(to_patches(public, patch_size), PLAIN_COMPONENTS)
    hidden = _Whitened(to_patches(cipher, patch_size), CIPHER_COMPONENTS)
    leading = min(LEADING, len(plain.scale), len(hidden.scale))
    start = torch.zeros(len(hidden.scale), len(plain.scale))
    start[:leading, :leading] = _match_moments(hidden.values[..., :leading], plain.values[..., :leading], generator)
    found = _Matching(hidden, plain, start).run(ROUNDS, generator)
    to_plain = hidden.basis / hidden.scale @ found @ (plain.basis * plain.scale).T
    return Alignment(to_plain, hidden.mean.flatten(0, 1), plain.mean.flatten(0, 1))


def fold(model: PreTrainedModel, alignment: Alignment) -> None:
    """Give the model embeddings that see through the encryption: on ciphertexts, what it had on decrypted patches.

    The map goes into the weights of the patch embedding, the means of each position into the position embeddings.
    """
    embeddings = model.base_model.embeddings
    weight, positions = embeddings.patch_embeddings.projection.weight, embeddings.position_embeddings
    old = weight.detach().flatten(1)
    new = old @ alignment.to_plain.T
    shift = alignment.plain_mean @ old.T - alignment.cipher_mean @ new.T  # before `old`, a view, is overwritten
    with torch.no_grad():
        weight.copy_(new.reshape(weight.shape))
        positions[:, -len(shift) :] += shift


class _Whitened:
    """Leading principal components of patches: mean (g, g, D), basis (D, K), scale (K,), values (B, g, g, K)."""

    def __init__(self, patches: torch.Tensor, components: int):
        self.mean = patches.mean(0)
        rows = (patches - self.mean).flatten(0, 2)
        variances, basis = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
        variances, basis = variances.flip(0)[:components], basis.flip(1)[:, :components]
        real = variances > 1e-7 * variances[0]  # black borders have no variance at all
        self.basis, self.scale = basis[:, real].float(), variances[real].sqrt().float()
        self.values = (rows @ (self.basis / self.scale)).reshape(*patches.shape[:3], -1)


def _covariances(values: torch.Tensor) -> torch.Tensor:
    """Of patches (B, g, g, K) with their neighbours at each offset: float64 (offsets, K, K)."""
    grid, found = values.shape[1], []
    for dy, dx in OFFSETS:
        if dy < grid and abs(dx) < grid:
            here = values[:, : grid - dy, max(0, -dx) : grid - max(0, dx)].flatten(0, 2)
            there = values[:, dy:, max(0, dx) : grid + min(0, dx)].flatten(0, 2)
            found.append(here.T @ there / len(here))
    return torch.stack(found).double()


def _third_moments(values: torch.Tensor) -> torch.Tensor:
    """Of patches (B, g, g, K) with themselves, the patch to the right, the patch below: float64 (3, K, K, K).

    Entry (i, j, k) is the mean of the values i and j of a patch times the value k of the other one.
    """
    grid, components, found = values.shape[1], values.shape[-1], []
    for dy, dx in ((0, 0), (0, 1), (1, 0)):
        here = values[:, : grid - dy, : grid - dx].flatten(0, 2)
        there = values[:, dy:, dx:].flatten(0, 2)
        total = torch.zeros(components**2, components)
        for a, b in zip(here.split(20_000), there.split(20_000)):
            total += (a[:, :, None] * a[:, None, :]).flatten(1).T @ b
        found.append(total.reshape(components, components, components) / len(here))
    return torch.stack(found).double()


def _match_moments(cipher: torch.Tensor, plain: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The orthogonal matrix (K, K) under which covariances of `cipher`, at every offset, and third moments are most
    like those of `plain`."""
    ours, theirs = _covariances(cipher), _covariances(plain)
    ours3, theirs3 = _third_moments(cipher), _third_moments(plain)
    scale, scale3 = theirs.square().sum(), theirs3.square().sum()
    best, best_score = None, -float("inf")
    for _ in range(STARTS):
        weights = torch.rand(len(ours), 1, 1, generator=generator, dtype=torch.float64)
        # Eigenvectors of one random combination correspond by rank, up to their signs ...
        v = torch.linalg.eigh((weights * (ours + ours.mT)).sum(0))[1]
        u = torch.linalg.eigh((weights * (theirs + theirs.mT)).sum(0))[1]
        # ... which what is off the diagonals of the others gives: s_i s_j = +-1 wherever two entries agree or do not.
        agreement = ((v.T @ ours @ v) * (u.T @ theirs @ u)).sum(0)
        signs = torch.linalg.eigh(agreement + agreement.T)[1][:, -1].sign()
        rotation = v @ torch.diag(signs) @ u.T
        # Covariances do not see a sign of the whole; third moments change theirs with it.
        if (_turned(ours3, rotation) * theirs3).sum() < 0:
            rotation = -rotation
        for step in range(60):  # alternating Procrustes: each step increases the agreement
            towards = (ours @ rotation @ theirs.mT + ours.mT @ rotation @ theirs).sum(0) / (2 * scale)
            if step < 30:  # then covariances alone, which are known more exactly
                half = torch.einsum("oijk,jb,kc->oibc", ours3, rotation, rotation)
                third = 2 * torch.einsum("oibc,oabc->ia", half, theirs3)
                third += torch.einsum("oijk,ia,jb,oabc->kc", ours3, rotation, rotation, theirs3)
                towards += THIRD * third / (3 * scale3)
            left, _, right = torch.linalg.svd(towards)
            rotation = left @ right
        turned = _turned(ours3, rotation)
        score = THIRD * float((turned * theirs3).sum() / (turned.norm() * theirs3.norm()))
        score -= float((rotation.T @ ours @ rotation - theirs).square().sum() / scale)
        if score > best_score:
            best, best_score = rotation, score
    return best.float()


def _turned(moments: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    return torch.einsum("oijk,ia,jb,kc->oabc", moments, rotation, rotation, rotation)


class _Matching:
    """Rounds of: match windows of patches between ciphertexts and public images, fit the map (K', K) to the matches."""

    def __init__(self, cipher: _Whitened, plain: _Whitened, start: torch.Tensor):
        self.cipher, self.plain, self.map = cipher, plain, start
        self.trust = torch.full((start.shape[1],), 0.05)  # how well each plain component is predicted
        self.trust[:16] = torch.linspace(1, 0.2, 16)[: len(self.trust)]

    def run(self, rounds: int, generator: torch.Generator) -> torch.Tensor:
        for _ in range(rounds):
            self._round(generator)
        return self.map

    def _round(self, generator: torch.Generator) -> None:
        ours, theirs = (
            each.values[torch.randperm(len(each.values), generator=generator)[:count]]
            for each, count in zip((self.cipher, self.plain), MATCHED)
        )
        guess = ours @ self.map
        weight = self.trust * (self.plain.scale / self.plain.scale[0]).sqrt()
        used = (weight > weight.max() * 0.01).nonzero()[:24, 0]
        x = _windows((guess / (guess.flatten(0, 2).std(0) + 1e-6) * weight)[..., used])
        y = _windows((theirs * weight)[..., used])
        inner = (x.bfloat16() @ y.bfloat16().T).float()  # bfloat16: neighbours, not distances, matter
        distance = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * inner
        a, b = _middles(ours), _middles(theirs)
        # Both ways: the nearest public window of each ciphertext window, and the other way round.
        back = a[distance.argmin(0)]
        cross = a.T @ b[distance.argmin(1)] / len(a) + back.T @ b / len(b)
        gram = a.T @ a / len(a) + back.T @ back / len(b)
        fitted = torch.linalg.solve(gram + 0.3 * torch.eye(len(gram)), cross)
        # A fit to wrong matches shrinks. The best predicted component shows by how much; a common factor undoes it.
        shrunk = (a @ fitted).std(0)
        self.map = (self.map + fitted / shrunk.max()) / 2
        self.trust = (shrunk / shrunk.max()).clamp(0.02, 1)


def _windows(values: torch.Tensor) -> torch.Tensor:
    """Patches (B, g, g, K) -> every 3 x 3 window of them (B (g-2)^2, 9 K)."""
    grid = values.shape[1] - 2
    shifted = [values[:, y : y + grid, x : x + grid] for y in range(3) for x in range(3)]
    return torch.cat(shifted, dim=-1).flatten(0, 2)


def _middles(values: torch.Tensor) -> torch.Tensor:
    """The patch in the middle of each window (B (g-2)^2, K)."""
    return values[:, 1:-1, 1:-1].flatten(0, 2)
