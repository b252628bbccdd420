"""Attacks that need ciphertexts alone: thumbnails and repeated patches; and how their bytes are spread."""

import lzma

import numpy as np
from scipy.linalg import eigh

from hf_neuracrypt.audit.pairs import Pairs
from hf_neuracrypt.audit.results import NEAR_CHANCE, WEAK, Row, grade


COMPONENTS = 8
COVARIANCE_PATCHES = 20_000
NEAR_BY_CHANCE = 0.001  # share of patches that count as nearly equal where nothing is
COMPRESSED_BYTES = 3_000_000  # a few seconds
MAX_DUPLICATE_VALUES = 64  # values of a patch that are compared; a random projection keeps distances


def principal(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes of centred rows (N, D), the strongest first: float32 (D, count or fewer), and the variances along
    them, float64."""
    size = rows.shape[1]
    covariance = (rows.T @ rows).astype(np.float64) / len(rows)
    variances, axes = eigh(covariance, subset_by_index=(max(0, size - count), size - 1))
    return axes[:, ::-1].astype(np.float32), variances[::-1]


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
    axes, variances = principal(rows, count)
    if whiten:
        real = variances > max(1e-7 * variances[0], 1e-9)
        axes = axes[:, real] / np.sqrt(variances[real]).astype(np.float32)
    return centred @ axes


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
    if pairs.config.moves_blocks:
        finding += " Blocks change places here, alike in all images: the row `jigsaw` puts them back."
    # With few patches an image correlates with any other: only what is well above that counts.
    value = figures["correlation"] if figures["correlation"] > 1.5 * figures["chance"] else 0
    return Row("thumbnail", grade(value, 0.2, 0.5), finding, figures), maps[..., best]


def repeated(centred: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches with an equal, and with a nearly equal, partner at the same place in another image: two masks (N, P).

    Nearly equal means nearer than patches at *another* place of other images are, but for one in a thousand: what is
    similar by chance sets the threshold, whatever the scheme and the noise. The third result is the squared distance
    to the nearest partner.
    """
    count, positions, size = centred.shape
    if size > MAX_DUPLICATE_VALUES:
        centred = centred @ np.random.default_rng(seed).standard_normal((size, MAX_DUPLICATE_VALUES), np.float32)
    nearest, elsewhere, largest = np.empty((count, positions)), np.empty((count, positions)), 0.0
    for place in range(positions):
        here = centred[:, place].astype(np.float64)
        there = centred[:, (place + positions // 2 + 1) % positions].astype(np.float64)
        for found, other in ((nearest, here), (elsewhere, there)):
            distances = (here**2).sum(1)[:, None] + (other**2).sum(1) - 2 * here @ other.T
            np.fill_diagonal(distances, np.inf)
            found[:, place] = distances.min(1)
        largest = max(largest, (here**2).sum(1).max())
    equal = nearest <= 1e-9 * largest
    by_chance = elsewhere[elsewhere > 1e-9 * largest]
    threshold = np.quantile(by_chance, NEAR_BY_CHANCE) if len(by_chance) else 0
    return equal, equal | (nearest <= threshold), nearest


def duplicates(pairs: Pairs, seed: int) -> Row:
    """Patches that occur again at the same place, and how well their silhouette is that of the plain ones."""
    equal, near, _ = repeated(pairs.encrypted_centred, seed)
    _, plain, distances = repeated(pairs.plain_centred, seed)
    # The silhouette of as many plain patches, those nearest to a partner: each side has a threshold of its own.
    silhouette = distances <= np.sort(distances, axis=None)[near.sum() - 1] if near.any() else near
    union = (near | silhouette).sum()
    shares = {
        "equal": float(equal.mean()),
        "nearly_equal": float(near.mean()),
        "equal_images": float(equal.all(1).mean()),
    }
    overlap = float((near & silhouette).sum() / union) if union else None
    figures = {**shares, "in_plain": float(plain.mean()), "silhouette_iou": overlap}
    finding = (
        "Share of ciphertext patches with a partner in another image; IoU of their mask with that of the plain ones."
    )
    worst = max(shares["equal"], shares["nearly_equal"], 10 * shares["equal_images"])
    return Row("duplicates", grade(worst, 0.01, 0.1), finding, figures)


def values(pairs: Pairs) -> Row:
    """Bytes at the ends of the range, entropy of the bytes, and how far they compress, beside the images themselves."""
    figures = {"compressed": compressed(pairs.encrypted), "plain_compressed": compressed(pairs.plain)}
    finding = "A ciphertext that compresses has structure, which attackers use, too; noise does not. "
    if not pairs.is_image:
        return Row("values", NEAR_CHANCE, finding + "A patch representation is float32.", figures)
    counts = np.bincount(pairs.encrypted.reshape(-1), minlength=256)
    share = counts[counts > 0] / counts.sum()
    figures |= {
        "saturated": float((counts[0] + counts[255]) / counts.sum()),
        "entropy_bits": float(-(share * np.log2(share)).sum())
    }  # fmt: skip
    finding += "Entropy of bytes says nothing about leakage: compare the other rows."
    return Row("values", WEAK if figures["saturated"] > 0.05 else NEAR_CHANCE, finding, figures)


def compressed(images: np.ndarray) -> float:
    """What LZMA leaves of the first images (N, ...), as a share of their bytes, at most 1.0 or a little more."""
    first = np.ascontiguousarray(images[: max(1, COMPRESSED_BYTES // images[0].nbytes)])
    return len(lzma.compress(first.tobytes())) / first.nbytes
