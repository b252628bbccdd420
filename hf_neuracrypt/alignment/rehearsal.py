"""The last guess: a network that has seen how such maps err, under other keys, corrects this one.

Everybody can draw keys of their own, encrypt the public images under them, and look for the maps of these ciphertexts
in the same way. There the pictures are known. A small network learns what decrypted windows of 3 x 3 patches should
have been; the errors are those of the encryption, mostly functions of its strongest components, and so they are alike
under all keys. Applied to the owner's decrypted ciphertexts, it corrects them. A linear map cannot follow each
correction, only what all have in common, and that is the next map. Then the same once more, from there.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import gelu, pad
from tqdm.auto import tqdm

from hf_neuracrypt.alignment.patches import any_places, windows
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import SchemeConfig


KEYS = 4  # of one's own
ROUNDS = 3
STEPS, BATCH, RATE = 1000, 1024, 1e-3  # of training in each round
PASSES = 10  # over all windows of a key in a round, at most: the network soon memorises few images

Side = tuple[torch.Tensor, torch.Tensor]  # whitened ciphertext patches (B, g, g, K'), and a map of them (K', K)


class Corrector(torch.nn.Module):
    """Decrypted windows of patches (B, 9, K) -> what the patch in the middle of each should be (B, K)."""

    def __init__(self, components: int, width: int = 512):
        super().__init__()
        self.linear = torch.nn.Linear(9 * components, components)
        self.inner = torch.nn.Linear(9 * components, width)
        self.deeper = torch.nn.Linear(width, width)
        self.out = torch.nn.Linear(width, components)

    def forward(self, decrypted: torch.Tensor) -> torch.Tensor:
        rows = decrypted.flatten(1)
        hidden = gelu(self.inner(rows))
        return self.linear(rows) + self.out(hidden + gelu(self.deeper(hidden)))

    @torch.no_grad()
    def correct(self, decrypted: torch.Tensor) -> torch.Tensor:
        """All decrypted patches of images, (B, g, g, K) -> (B, g, g, K); beyond an edge all is as on the average."""
        parts, (_, height, width, _) = list[torch.Tensor](), decrypted.shape
        for part in decrypted.split(200):
            image, top, left = torch.meshgrid(*map(torch.arange, (len(part), height, width)), indexing="ij")
            places = image.flatten(), top.flatten(), left.flatten()
            parts.append(self(windows(_framed(part), places)).reshape(part.shape))
        return torch.cat(parts)


def rehearse(config: SchemeConfig, public: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """The public images, float32 (B, 3, S, S) in [-1, 1], encrypted under one key after the other: the same shape.

    These keys protect nothing, so they follow from the seed.
    """
    pixels = public.add(1).mul(127.5).round().clamp(0, 255).byte()
    for number in range(KEYS):
        encoder = load_encoder(config, SecretKey(hashlib.sha256(f"rehearsal {seed} {number}".encode()).digest()))
        yield torch.cat([encoder.encrypt(part) for part in pixels.split(100)]).float().div_(127.5).sub_(1)


@dataclass(frozen=True)
class Corrected:
    """Args:
    map: float32 (K', K), of the owner's whitened ciphertext patches.
    network: what corrects the patches that it gives.
    explained: the share of the variance of corrected patches that the map gives by itself.
    rehearsed: what maps as good as it give of the public images under each key of one's own: (B, g, g, K).
    """

    map: torch.Tensor
    network: Corrector
    explained: float
    rehearsed: list[torch.Tensor]


def correct_map(owners: Side, rehearsed: Sequence[Side], plain: torch.Tensor, seed: int) -> Corrected:
    """A better map than that of `owners`.

    Args:
        owners: ciphertexts whose pictures nobody knows.
        rehearsed: ciphertexts of the same pictures each.
        plain: these pictures, whitened patches (B, g, g, K).
        seed: of the network, and of the windows it is shown.
    """
    steps = min(STEPS, 1 + PASSES * plain[..., 0].numel() // BATCH)
    with torch.random.fork_rng(devices=[]), tqdm(total=ROUNDS * steps, desc="Aligning, the last step") as progress:
        torch.manual_seed(seed)
        network = Corrector(plain.shape[-1])
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
        sides = [owners, *rehearsed]
        for _ in range(ROUNDS):
            _learn(network, optimizer, [values @ found for values, found in sides[1:]], plain, steps, progress)
            sides = [(values, fitted(values, network.correct(values @ found))) for values, found in sides]
    decrypted = [values @ found for values, found in sides]
    corrected = network.correct(decrypted[0])
    corrected -= corrected.mean((0, 1, 2))
    explained = 1 - float((corrected - decrypted[0]).square().sum() / corrected.square().sum())
    return Corrected(sides[0][1], network, explained, decrypted[1:])


@torch.enable_grad()
def _learn(
    network: Corrector, optimizer: torch.optim.Optimizer, decrypted: Sequence[torch.Tensor], plain: torch.Tensor,
    steps: int, progress: tqdm,
) -> None:  # fmt: skip
    """Train on windows of images under one of the keys at a time."""
    framed = [_framed(values) for values in decrypted]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1, 2 * (1 - step / steps))
        places = any_places(framed[0], BATCH)
        shown = framed[int(torch.randint(len(framed), ()))]
        loss = (network(windows(shown, places)) - plain[places]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.update()


def _framed(values: torch.Tensor) -> torch.Tensor:
    """Patches (B, g, g, K) with average ones around: every patch is the middle of a window."""
    return pad(values, (0, 0, 1, 1, 1, 1))


def fitted(values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The map (K', K) under which `values` (B, g, g, K') come nearest to what is wanted, (B, g, g, K)."""
    rows, wanted = values.flatten(0, 2), wanted.flatten(0, 2)
    gram = rows.T @ rows / len(rows) + 1e-3 * torch.eye(rows.shape[1])
    return torch.linalg.solve(gram, rows.T @ (wanted - wanted.mean(0)) / len(rows))
