"""The second guess: a critic learns to tell decrypted windows of patches from public ones, the map to mislead it.

Where no critic can, decrypted patches are distributed as those of pictures are: all their moments agree, not second and
third ones alone. (Adversarial matching of unpaired sets: Goodfellow et al. 2014; with an orthogonal map, to translate
without a dictionary: Conneau et al. 2018; the penalty: Mescheder et al. 2018.)

Two things make it work. The leading components come first, and stay while the next ones are looked for: a ciphertext
holds those further down only in part, and a critic that sees them looks at nothing else. And several guesses of the
moments compete: the critic of a wrong one, a negative for instance, is the surest of itself.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import gelu, softplus
from tqdm.auto import tqdm

from hf_neuracrypt.alignment.patches import Whitened, any_places, in_order, windows


STAGES = ((8, 5e-3), (16, 5e-3), (32, 2e-3))  # components that are matched, those before stay; the rate of the others
STEPS, BATCH, RATE = 400, 512, 1e-3  # of training in each stage; the rate is the critic's
HEATS = ((40, 4), (150, 1))  # before the first stage: each guess plays so many steps, then so many are left
PASSES = 20  # over all windows in a heat or a stage, at most: a critic soon memorises few images
PENALTY = 1.0  # on the slope of the critic at public windows (R1)


class Critic(torch.nn.Module):
    """Windows of patches (B, 9 K) -> how public they look (B, 1), a logit."""

    def __init__(self, components: int, width: int = 256):
        super().__init__()
        self.inner = torch.nn.Linear(9 * components, width)
        self.deeper = torch.nn.Linear(width, width)
        self.out = torch.nn.Linear(width, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        hidden = gelu(self.inner(windows))
        return self.out(hidden + gelu(self.deeper(hidden)))


class Game:
    """A map, its leading columns fixed, and the critic that it is to mislead.

    Args:
        cipher, plain: patches of the two sides.
        start: float32 (K', K), the map.
        fixed: how many of its columns, which are orthonormal, stay as they are.
    """

    def __init__(self, cipher: Whitened, plain: Whitened, start: torch.Tensor, fixed: int):
        self.ours, self.theirs = cipher.values, plain.values[..., : start.shape[1]]
        self.fixed, self.critic = start[:, :fixed], Critic(start.shape[1])
        self.map = self._orthonormal(start).requires_grad_()
        self.teacher = torch.optim.Adam(self.critic.parameters(), RATE, betas=(0.5, 0.99))
        self.learner = torch.optim.Adam([self.map], betas=(0.5, 0.99))

    @torch.enable_grad()
    def play(self, steps: int, rate: float, progress: tqdm, ending: bool = False) -> float:
        """Train both, the map more and more slowly if the game is `ending`; how well the map misleads: the mean loss
        of the critic in the second half, at most ln 4."""
        lost, mean = 0.0, torch.zeros_like(self.map)
        for step in range(steps):
            real = _windows(self.theirs).requires_grad_()
            answer, fake = self.critic(real), _windows(self.ours, self.map.detach())
            loss = softplus(-answer).mean() + softplus(self.critic(fake)).mean()
            slope = torch.autograd.grad(answer.sum(), real, create_graph=True)[0]
            _step(self.teacher, loss + PENALTY / 2 * slope.square().sum(1).mean())
            self.learner.param_groups[0]["lr"] = rate * min(1, 1.5 * (1 - step / steps)) if ending else rate
            _step(self.learner, softplus(-self.critic(_windows(self.ours, self.map))).mean())
            with torch.no_grad():
                self.map.copy_(self._orthonormal(self.map))
            if step >= steps // 2:
                lost, mean = lost + float(loss.detach()), mean + self.map.detach()
            progress.update()
        if ending:
            with torch.no_grad():
                self.map.copy_(self._orthonormal(mean))
        return lost / (steps - steps // 2)

    def _orthonormal(self, columns: torch.Tensor) -> torch.Tensor:
        """The nearest orthonormal columns, the fixed ones first."""
        free = columns[:, self.fixed.shape[1] :]
        left, _, right = torch.linalg.svd(free - self.fixed @ (self.fixed.T @ free), full_matrices=False)
        return torch.cat([self.fixed, left @ right], dim=1)


def match_windows(
    cipher: Whitened, plain: Whitened, starts: Sequence[torch.Tensor], seed: int, of: str = "matching"
) -> torch.Tensor:
    """A better map (K', K), with orthonormal columns, from whitened ciphertext patches to whitened plain ones than any
    of `starts` is; the progress bar says `of` what."""
    fewer = min(len(cipher.values), len(plain.values)) * (plain.values.shape[1] - 2) ** 2
    most = max(2, PASSES * fewer // BATCH)
    heats, last = [(min(steps, most), left) for steps, left in HEATS], min(STEPS, most)
    before = (0, *(count for count, _ in STAGES))
    stages = [(fixed, *stage) for fixed, stage in zip(before, STAGES) if fixed < starts[0].shape[1]]
    total, players = len(stages) * last, len(starts)
    for steps, left in heats:
        total, players = total + players * steps, min(left, players)
    with torch.random.fork_rng(devices=[]), tqdm(total=total, desc=f"Aligning, {of}") as progress:
        torch.manual_seed(seed)
        found = _race(cipher, plain, starts, heats, progress)
        for fixed, count, rate in stages:
            game = Game(cipher, plain, found[:, :count], fixed)
            game.play(last, rate, progress, ending=True)
            found = in_order(torch.cat([game.map.detach(), found[:, count:]], dim=1))
    return found


def _race(
    cipher: Whitened, plain: Whitened, starts: Sequence[torch.Tensor], heats: Sequence[tuple[int, int]], progress: tqdm
) -> torch.Tensor:
    """The start whose leading components mislead a critic best, these components as they then are."""
    count, rate = STAGES[0]
    games = [(Game(cipher, plain, start[:, :count], 0), start[:, count:]) for start in starts]
    for steps, left in heats:
        misled = [game.play(steps, rate, progress) for game, _ in games]
        games = [games[i] for i in sorted(range(len(games)), key=misled.__getitem__, reverse=True)[:left]]
    return torch.cat([games[0][0].map.detach(), games[0][1]], dim=1)


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _windows(values: torch.Tensor, to: torch.Tensor | None = None) -> torch.Tensor:
    """Random windows of patches (B, g, g, K), each patch mapped: (BATCH, 9 K)."""
    found = windows(values, any_places(values, BATCH))
    return (found if to is None else found @ to).flatten(1)
