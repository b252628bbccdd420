"""Attacks that need ciphertexts alone: thumbnails and repeated patches; and how their bytes are spread."""

import numpy as np
from scipy.linalg import eigh

from hf_neuracrypt.audit.pairs import BLOCK_MOVING_SCHEMES, Pairs
from hf_neuracrypt.audit.rows import NEAR_CHANCE, NOT_APPLICABLE, WEAK, Row, grade


COMPONENTS = 8
COVARIANCE_PATCHES = 20_000
NEAR = 0.01  # squared distance, as a share of the median one, below which two patches count as nearly equal
MAX_DUPLICATE_VALUES = 64  # values of a patch that are compared; a random projection keeps distances


def components(centred: np.ndarray, seed: int, count: int = COMPONENTS, whiten: bool = False) -> np.ndarray:
    """Maps of the leading principal components: (N, P, D) -> (N, P, count or fewer), the strongest first.

    Args:
        centred: float32, of mean 0.
        seed: chooses the patches that the components are those of.
        count: how many components.
        whiten: scale all to variance 1, and leave out those without any.
    """
    rows = centred.reshape(-1, centred.shape[-1])
    if len(rows) > COVARIANCE_PATCHES:
        rows = rows[np.random.default_rng(seed).choice(len(rows), COVARIANCE_PATCHES, replace=False)]
    size = rows.shape[1]
    covariance = (rows.T @ rows).astype(np.float64) / len(rows)
    variances, axes = eigh(covariance, subset_by_index=(max(0, size - count), size - 1))
    if whiten:
        real = variances > max(1e-7 * variances[-1], 1e-9)
        axes = axes[:, real] / np.sqrt(variances[real])
    return centred @ axes[:, ::-1].astype(np.float32)


def unit(features: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N, F) of mean 0 and norm 1, so that products of rows are correlations; a constant gives zeros."""
    flat = features.reshape(len(features), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 1e-6)


def thumbnail(pairs: Pairs, seed: int) -> tuple[Row, np.ndarray]:
    """Principal components of ciphertext patches, position means removed, against patch brightness.

    Returns:
        The row, and the best component's maps, (N, P).
    """
    maps = components(pairs.encrypted_centred, seed)
    truth = unit(pairs.brightness - pairs.brightness.mean(0))
    each = np.stack([np.abs((unit(maps[..., k]) * truth).sum(1)) for k in range(maps.shape[-1])])
    best = int(np.median(each, axis=1).argmax())
    others = np.abs((unit(maps[..., best]) * np.roll(truth, 1, axis=0)).sum(1))
    figures = {
        "correlation": float(np.median(each[best])), "first_component": float(np.median(each[0])),
        "chance": float(np.median(others)),
    }  # fmt: skip
    finding = f"Component {best + 1} of the ciphertext patches follows their brightness (median over images)."
    if pairs.config.scheme in BLOCK_MOVING_SCHEMES:
        finding += " Blocks change places here, alike in all images: the row `jigsaw` puts them back."
    # With few patches an image correlates with any other: what counts is above that.
    value = figures["correlation"] if figures["correlation"] > 1.5 * figures["chance"] else 0
    return Row("thumbnail", grade(value, 0.2, 0.5), finding, figures), maps[..., best]


def repeated(centred: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks (N, P) of patches with an equal, and with a nearly equal, partner at the same place in another image."""
    count, positions, size = centred.shape
    if size > MAX_DUPLICATE_VALUES:
        centred = centred @ np.random.default_rng(seed).standard_normal((size, MAX_DUPLICATE_VALUES), np.float32)
    equal, near = np.zeros((count, positions), bool), np.zeros((count, positions), bool)
    for place in range(positions):
        here = centred[:, place].astype(np.float64)
        norms = (here**2).sum(1)
        distances = norms[:, None] + norms - 2 * here @ here.T
        np.fill_diagonal(distances, np.inf)
        typical = np.median(distances[np.isfinite(distances)])
        nearest = distances.min(1)
        equal[:, place], near[:, place] = nearest <= 1e-9 * norms.max(), nearest <= NEAR * typical
    return equal, near


def duplicates(pairs: Pairs, seed: int) -> Row:
    """Patches that occur again at the same place, and how well they draw the same silhouette as the plain ones."""
    equal, near = repeated(pairs.encrypted_centred, seed)
    _, plain = repeated(pairs.plain_centred, seed)
    union = (near | plain).sum()
    figures = {
        "equal": float(equal.mean()), "nearly_equal": float(near.mean()), "in_plain": float(plain.mean()),
        "silhouette_iou": float((near & plain).sum() / union) if union else None,
        "equal_images": float(equal.all(1).mean()),
    }  # fmt: skip
    finding = (
        "Share of ciphertext patches with a partner in another image; IoU of their mask with that of the plain ones."
    )
    worst = max(figures["equal"], figures["nearly_equal"], 10 * figures["equal_images"])
    return Row("duplicates", grade(worst, 0.01, 0.1), finding, figures)


def values(pairs: Pairs) -> Row:
    """Bytes at the ends of the range, and entropy of the bytes."""
    if not pairs.is_image:
        return Row("values", NOT_APPLICABLE, "A patch representation is float32.")
    counts = np.bincount(pairs.encrypted.reshape(-1), minlength=256)
    share = counts[counts > 0] / counts.sum()
    figures = {
        "saturated": float((counts[0] + counts[255]) / counts.sum()),
        "entropy_bits": float(-(share * np.log2(share)).sum())
    }  # fmt: skip
    finding = "Entropy of bytes says nothing about leakage: compare the other rows."
    return Row("values", WEAK if figures["saturated"] > 0.05 else NEAR_CHANCE, finding, figures)
