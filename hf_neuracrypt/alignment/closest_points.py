"""The second guess: windows of patches matched between the two sets, and the map fitted to the matches, in rounds.

This is the idea of iterative closest points. It finds the leading components approximately, and not the others.
"""

import torch
from tqdm.auto import tqdm

from hf_neuracrypt.alignment.patches import Whitened, middles, windows


ROUNDS = 5  # with more the map gets worse again
IMAGES = 240, 640  # drawn in each round, of ciphertexts and public ones
WINDOWS = 6_000, 16_000  # matched in each round: their distances take 0.4 GB


def match_windows(cipher: Whitened, plain: Whitened, start: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A better map (K', K) from whitened ciphertext patches to whitened plain ones than `start` is."""
    found = start
    trust = torch.full((start.shape[1],), 0.05)  # how well each plain component is predicted
    trust[:16] = torch.linspace(1, 0.2, 16)[: len(trust)]
    for _ in tqdm(range(ROUNDS), desc="Aligning, 1 of 2: matching"):
        ours, theirs = (
            each.values[torch.randperm(len(each.values), generator=generator)[:count]]
            for each, count in zip((cipher, plain), IMAGES)
        )
        weight = trust * (plain.scale / plain.scale[0]).sqrt()
        a, b = _matches(ours, theirs, found, weight, generator)
        cross, gram = (torch.stack([x.T @ y / len(x) for x, y in zip(a, other)]).sum(0) for other in (b, a))
        fitted = torch.linalg.solve(gram + 0.3 * torch.eye(len(gram)), cross)
        # A fit to wrong matches shrinks. The best predicted component shows by how much; a common factor undoes it.
        shrunk = (a[0] @ fitted).std(0)
        found = (found + fitted / shrunk.max()) / 2
        trust = (shrunk / shrunk.max()).clamp(0.02, 1)
    return found


def _matches(
    ours: torch.Tensor, theirs: torch.Tensor, found: torch.Tensor, weight: torch.Tensor, generator: torch.Generator
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Middles of ciphertext windows and of the public windows that match them, row by row: for each ciphertext window
    the nearest public one, then for each public window the nearest ciphertext one."""
    guess = ours @ found
    used = (weight > weight.max() * 0.01).nonzero()[:24, 0]
    x = windows((guess / (guess.flatten(0, 2).std(0) + 1e-6) * weight)[..., used])
    y = windows((theirs * weight)[..., used])
    x, a = _sample(x, middles(ours), WINDOWS[0], generator)
    y, b = _sample(y, middles(theirs), WINDOWS[1], generator)
    inner = (x.bfloat16() @ y.bfloat16().T).float()  # bfloat16: neighbours, not distances, matter
    distance = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * inner
    return [a, a[distance.argmin(0)]], [b[distance.argmin(1)], b]


def _sample(
    rows: torch.Tensor, others: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `count` random rows, and the same rows of the others."""
    chosen = torch.randperm(len(rows), generator=generator)[:count] if len(rows) > count else slice(None)
    return rows[chosen], others[chosen]
