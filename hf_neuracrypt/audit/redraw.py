"""Maps from ciphertext patches to plain ones, fitted on pairs: a linear one, and a small network on top of it.

Both see one patch at a time, less a mean: that of all patches, or that of its position, where an encoder's position
embedding or a background that all images share would be in the way. What the network adds is what the encoder's ReLUs
keep a linear map from.
"""

import numpy as np
import torch
from scipy.linalg import eigh

from hf_neuracrypt.audit.pairs import Pairs, join


RIDGES = (1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of the mean variance
JUDGED_PATCHES = 4_000
HIDDEN, COMPONENTS, BATCH, RATE, DECAY = 512, 128, 256, 2e-3, 0.01
EPOCHS, STEPS = 60, (40, 500)  # of the network: epochs, but within these steps, a second or two


def redraw(known: Pairs, unknown: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Redraw images by maps of patches, fitted on pairs.

    Args:
        known: pairs; its ciphertext patches are centred on the mean of all ciphertexts, which an attacker has.
        unknown: float32 (N, P, D), centred alike.
        seed: of the network, and of the patches that judge the ridge.

    Returns:
        uint8 (N, 3, S, S) by "ridge" and "mlp".
    """
    given, target = known.encrypted_centred, known.plain_patches.astype(np.float32)
    least = np.inf
    for over in ((0, 1), (0,)) if len(known) > 1 else ((0, 1),):  # one pair has no mean of a position
        middle, average = given.mean(over, keepdims=True), target.mean(over, keepdims=True)
        rows, aims = ((part - its).reshape(-1, part.shape[-1]) for part, its in ((given, middle), (target, average)))
        weights, error = ridge(rows, aims, middle.shape[1], seed)
        if error < least:
            least, best = error, (middle, average, rows, aims, weights)
    middle, mean, given, target, weights = best
    unknown = unknown - middle
    linear = unknown @ weights
    rest = perceptron(given, target - given @ weights, unknown, target, seed)

    def images(patches: np.ndarray) -> np.ndarray:
        return join((patches + mean).round().clip(0, 255).astype(np.uint8), known.config.image_size)

    return {"ridge": images(linear), "mlp": images(linear + rest)}


def ridge(given: np.ndarray, target: np.ndarray, means: int, seed: int) -> tuple[np.ndarray, float]:
    """The linear map (D, D') from rows to rows, with the ridge that predicts best, and the mean square of its error.

    Each ridge is judged by patches left out one at a time, which one decomposition gives in closed form (PRESS: the
    error of a row is its residual over 1 - leverage; Allen 1974). `means` says how many were taken off the rows.
    """
    variances, axes = eigh((given.T @ given).astype(np.float64))
    variances, axes = variances.clip(0), axes.astype(np.float32)
    turned = given @ axes
    covariances = turned.T @ target
    judged = np.random.default_rng(seed).permutation(len(given))[:JUDGED_PATCHES]
    leverages, best, least = turned[judged].astype(np.float64) ** 2, None, np.inf
    for share in RIDGES:
        scale = 1 / (variances + max(share * variances.mean(), 1e-6))
        weights = scale[:, None].astype(np.float32) * covariances
        left = (1 - means / len(given) - leverages @ scale).clip(1e-6)
        error = (((target[judged] - turned[judged] @ weights) / left[:, None]) ** 2).mean()
        if error < least:
            best, least = weights, error
    return axes @ best, float(least)


def perceptron(
    given: np.ndarray, rest: np.ndarray, unknown: np.ndarray, target: np.ndarray, seed: int
) -> np.ndarray:  # fmt: skip
    """What a network with one hidden layer predicts of the `rest`, for the `unknown` (N, P, D) -> (N, P, D').

    It sees and draws leading principal components; those of what goes in are half whitened.
    """
    axes_in, deviations = _principal(given)
    axes_out, sizes = _principal(target)
    axes_in = axes_in / np.sqrt(deviations * deviations[0])
    inputs, outputs = (torch.from_numpy(part) for part in (given @ axes_in, rest @ axes_out / sizes[0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(inputs.shape[1], HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, outputs.shape[1])
        )
        torch.nn.init.zeros_(network[-1].weight)
        steps = int(np.clip(EPOCHS * len(inputs) / BATCH, *STEPS))
        optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
        for _ in range(steps):
            rows = torch.randint(0, len(inputs), (BATCH,))
            loss = torch.nn.functional.mse_loss(network(inputs[rows]), outputs[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return network(torch.from_numpy(unknown @ axes_in)).numpy() @ axes_out.T * sizes[0]


def _principal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leading axes (D, K) and the standard deviations along them."""
    variances, axes = eigh((rows.T @ rows).astype(np.float64) / len(rows), subset_by_index=_last(rows.shape[1]))
    return axes[:, ::-1].astype(np.float32), np.sqrt(variances[::-1].clip(1e-9)).astype(np.float32)


def _last(size: int) -> tuple[int, int]:
    return max(0, size - COMPONENTS), size - 1
