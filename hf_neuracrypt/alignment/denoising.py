"""The last guess: a denoiser corrects decrypted patches, and the map is fitted again to the corrected patches.

A small network learns, from public images alone, to denoise the patch in the middle of a 3 x 3 window: each component
of a patch can in part be predicted from the others, and from the patches around it. Applied to decrypted ciphertexts,
it corrects them towards pictures. A linear map cannot follow each correction, only what all corrections have in common,
and that is the error of the map.
"""

import torch
from torch.nn.functional import gelu
from tqdm.auto import tqdm

from hf_neuracrypt.alignment.patches import Whitened, in_order, middles, windows


ROUNDS = 9
STEPS, BATCH, RATE = 120, 1024, 1e-3  # of training in each round, twice as many in the first
PASSES = 10  # over all windows in a round, at most: the network soon memorises few images
BEST, WORST = 0.95, 0.2  # share of variance taken to be right in the first component, and in the last


class Denoiser(torch.nn.Module):
    """Noisy windows of patches (B, 9 K) -> the patch in the middle of each, without the noise (B, K)."""

    def __init__(self, components: int, width: int = 512):
        super().__init__()
        self.linear = torch.nn.Linear(9 * components, components)
        self.inner = torch.nn.Linear(9 * components, width)
        self.deeper = torch.nn.Linear(width, width)
        self.out = torch.nn.Linear(width, components)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        hidden = gelu(self.inner(noisy))
        return self.linear(noisy) + self.out(hidden + gelu(self.deeper(hidden)))


@torch.no_grad()
def denoise(cipher: Whitened, plain: Whitened, start: torch.Tensor, seed: int) -> tuple[torch.Tensor, float]:
    """A better map (K', K) from whitened ciphertext patches to the K leading whitened plain ones than `start` is, and
    which share of the variance of the corrected patches the last map gives."""
    components = start.shape[1]
    trust = torch.linspace(BEST, WORST, components)
    clean = plain.values[..., :components]
    inputs, targets, ours = windows(clean), middles(clean), middles(cipher.values)
    inverse = torch.linalg.inv(ours.T @ ours / len(ours) + 1e-3 * torch.eye(ours.shape[1]))
    found, steps = in_order(start), min(STEPS, 1 + PASSES * len(inputs) // BATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Denoiser(components)
        optimizer = torch.optim.AdamW(denoiser.parameters(), weight_decay=0.02)
        for number in tqdm(range(ROUNDS), desc="Aligning, 2 of 2: refining"):
            _learn(denoiser, optimizer, inputs, targets, trust, 2 * steps if number == 0 else steps)
            guess = cipher.values @ found
            guess = guess / guess.flatten(0, 2).std(0) * trust.sqrt()
            cleaned = torch.cat([denoiser(part) for part in windows(guess).split(8192)])
            cleaned -= cleaned.mean(0)
            fitted = inverse @ (ours.T @ cleaned / len(ours))
            found = in_order(found + fitted / fitted.norm(dim=0))
    explained = 1 - float((cleaned - ours @ fitted).square().sum() / cleaned.square().sum())
    return found * trust, explained  # uncertain components are shrunk towards the mean


@torch.enable_grad()
def _learn(
    denoiser: Denoiser, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, targets: torch.Tensor,
    trust: torch.Tensor, steps: int,
) -> None:  # fmt: skip
    """Train on windows with the noise that decrypted ones are assumed to have: a component of variance `trust`, of
    which the share 1 - `trust` is noise."""
    keep, noise = trust.repeat(9), (trust * (1 - trust)).sqrt().repeat(9)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1, 2 * (1 - step / steps))
        chosen = torch.randint(len(inputs), (BATCH,))
        rows = inputs[chosen]
        loss = (denoiser(rows * keep + torch.randn_like(rows) * noise) - targets[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
