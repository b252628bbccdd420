"""The first guesses: rotations under which covariances of neighbouring patches, and third moments, agree."""

import torch


STARTS = 12  # random combinations of offsets, each of which leads to a rotation
THIRD = 0.3  # weight of third moments, in the first half of each search
OFFSETS = [(dy, dx) for dy in range(4) for dx in range(-3, 4) if 0 < dy * dy + dx * dx <= 9 and (dy, dx) > (0, 0)]


def match_moments(cipher: torch.Tensor, plain: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Orthogonal matrices (K, K), float32, under which covariances of `cipher`, at every offset, and third moments are
    like those of `plain`: where the search ends, from each of its starts."""
    ours, theirs = _covariances(cipher), _covariances(plain)
    ours3, theirs3 = _third_moments(cipher), _third_moments(plain)
    scale, scale3, found = theirs.square().sum(), theirs3.square().sum(), list[torch.Tensor]()
    for _ in range(STARTS):
        weights = torch.rand(len(ours), 1, 1, generator=generator, dtype=torch.float64)
        # Eigenvectors of one random combination correspond by rank, up to their signs ...
        v = torch.linalg.eigh((weights * (ours + ours.mT)).sum(0))[1]
        u = torch.linalg.eigh((weights * (theirs + theirs.mT)).sum(0))[1]
        # ... which the off-diagonal entries at all offsets give: s_i s_j = 1 where the two sides agree, else -1.
        agreement = ((v.T @ ours @ v) * (u.T @ theirs @ u)).sum(0)
        signs = torch.linalg.eigh(agreement + agreement.T)[1][:, -1].sign()
        rotation = v @ torch.diag(signs) @ u.T
        # Covariances do not depend on the sign of the whole rotation; third moments do.
        if (_turned(ours3, rotation) * theirs3).sum() < 0:
            rotation = -rotation
        for step in range(60):  # alternating Procrustes: each step increases the agreement
            towards = (ours @ rotation @ theirs.mT + ours.mT @ rotation @ theirs).sum(0) / (2 * scale)
            if step < 30:  # afterwards covariances alone, which are estimated more exactly
                half = torch.einsum("oijk,jb,kc->oibc", ours3, rotation, rotation)
                third = 2 * torch.einsum("oibc,oabc->ia", half, theirs3)
                third += torch.einsum("oijk,ia,jb,oabc->kc", ours3, rotation, rotation, theirs3)
                towards += THIRD * third / (3 * scale3)
            left, _, right = torch.linalg.svd(towards)
            rotation = left @ right
        found.append(rotation.float())
    return found


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


def _turned(moments: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    return torch.einsum("oijk,ia,jb,kc->oabc", moments, rotation, rotation, rotation)
