"""Attacks that need ciphertexts alone: thumbnails, repeated patches, folding, and matching with candidate originals."""

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment
from tqdm.auto import tqdm

from hf_neuracrypt.audit.pairs import BLOCK_MOVING_SCHEMES, Pairs, cut
from hf_neuracrypt.audit.rows import NEAR_CHANCE, NOT_APPLICABLE, WEAK, Row, grade


COMPONENTS = 8
COVARIANCE_PATCHES = 20_000
GRAM_POSITIONS = 256
LINKED_IMAGES = 128
NEAR = 0.01  # squared distance, as a share of the median one, below which two patches count as nearly equal
MAX_DUPLICATE_VALUES = 64  # values of a patch that are compared; a random projection keeps distances


def components(centred: np.ndarray, seed: int) -> np.ndarray:
    """Maps of the leading principal components: (N, P, D) -> (N, P, 8), the strongest first."""
    rows = centred.reshape(-1, centred.shape[-1])
    if len(rows) > COVARIANCE_PATCHES:
        sample = rows[np.random.default_rng(seed).choice(len(rows), COVARIANCE_PATCHES, replace=False)]
    else:
        sample = rows
    size = rows.shape[1]
    covariance = (sample.T @ sample).astype(np.float64)
    _, axes = eigh(covariance, subset_by_index=(max(0, size - COMPONENTS), size - 1))
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
        finding += " Blocks change places here, alike in all images: a jigsaw solver, not tried, may put them back."
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


def folded(images: np.ndarray) -> np.ndarray:
    """|value - 127.5|, summed over colours: what inverting values and permuting colours cannot change. (N, S, S)."""
    return np.abs(images.astype(np.float32) - 127.5).sum(1)


def folding(pairs: Pairs) -> Row:
    """Folding at half range undoes negative-positive ciphers but for a mirrored brightness (Chang and Li)."""
    if not pairs.is_image:
        return Row("folding", NOT_APPLICABLE, "A patch representation has no 8-bit range to fold.")
    ours, truth = (unit(folded(images)) for images in (pairs.encrypted, pairs.plain))
    figures = {
        "correlation": float(np.median(np.abs((ours * truth).sum(1)))),
        "chance": float(np.median(np.abs((ours * np.roll(truth, 1, axis=0)).sum(1)))),
    }
    value = figures["correlation"] if figures["correlation"] > 1.5 * figures["chance"] else 0
    return Row("folding", grade(value, 0.2, 0.5), "Ciphertext and plain image, both folded (median).", figures)


def grams(centred: np.ndarray) -> np.ndarray:
    """Cosines between the patches of each image, which random layers nearly keep: (N, P, D) -> (N, P(P-1)/2)."""
    positions = centred.shape[1]
    places = np.unique(np.linspace(0, positions - 1, min(positions, GRAM_POSITIONS)).astype(int))
    above = np.triu_indices(len(places), 1)
    features = np.empty((len(centred), len(above[0])), np.float32)
    for number, patches in enumerate(centred):
        chosen = patches[places]
        chosen = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-6)
        features[number] = (chosen @ chosen.T)[above]
    return features


def descriptors(brightness: np.ndarray, centred: np.ndarray, images: np.ndarray | None, tile: int) -> dict:
    """What an attacker compares images by: (N, F) by method. The sorted ones do not mind that blocks move."""
    cosines = grams(centred)
    found = {"map": unit(brightness), "gram": unit(cosines), "sorted_gram": unit(np.sort(cosines, axis=1))}
    if images is not None:
        folds = cut(folded(images)[:, None], tile).mean(-1)
        found |= {"fold": unit(folds), "sorted_fold": unit(np.sort(folds, axis=1))}
    return found


def accuracies(ours: dict, theirs: dict, seed: int) -> dict[str, float]:
    """Share of images assigned to their partner, by method; row i of both sides is the same image."""
    found = {}
    for method in ours.keys() & theirs.keys():
        # The attacker's side is in another order: an assignment that has nothing to go by must not find the diagonal.
        order = np.random.default_rng(seed).permutation(len(ours[method]))
        similarity = ours[method] @ theirs[method][order].T
        rows, columns = linear_sum_assignment(np.abs(similarity) if method == "map" else similarity, maximize=True)
        found[method] = float((order[columns] == rows).mean())
    return {method: found[method] for method in sorted(found)}


def _matching_row(name: str, found: dict[str, float], count: int, finding: str) -> Row:
    best = max(found.values())
    figures = {"accuracy": best, "chance": 1 / count, "images": count, **found}
    return Row(name, grade(best, max(0.05, 4 / count), max(0.2, 8 / count)), finding, figures)


def matching(pairs: Pairs, maps: np.ndarray, seed: int) -> Row:
    """Which ciphertext belongs to which original, without a single pair."""
    brightness = pairs.brightness - pairs.brightness.mean(0)
    ours = descriptors(brightness, pairs.plain_centred, pairs.plain if pairs.is_image else None, pairs.tile)
    theirs = descriptors(maps, pairs.encrypted_centred, pairs.encrypted if pairs.is_image else None, pairs.tile)
    finding = (
        "Best of maps of components, cosines between patches, and folded values; assignment by linear_sum_assignment."
    )
    return _matching_row("matching", accuracies(ours, theirs, seed), len(pairs), finding)


def linkability(pairs: Pairs, other: Pairs, seed: int) -> Row:
    """The same images under two keys: which belongs to which. `other` is encrypted under a throw-away key."""
    sides = [
        descriptors(
            components(side.encrypted_centred, seed)[..., 0], side.encrypted_centred,
            side.encrypted if side.is_image else None, side.tile,
        )
        for side in (pairs, other)
    ]  # fmt: skip
    finding = "The same images under a second key: rotating keys does not unlink what was published."
    return _matching_row("link", accuracies(*sides, seed), len(pairs), finding)


def shuffle(shuffled: np.ndarray, orders: np.ndarray) -> Row:
    """Patches of each image put back in the order of the first image's, by the position embedding in them.

    Args:
        shuffled: float32 (N, P, D) as stored.
        orders: int (N, P): where each patch came from.
    """
    reference, right = shuffled[0], []
    for image, order in zip(tqdm(shuffled[1:], desc="Patch shuffle", leave=False), orders[1:]):
        distances = (image**2).sum(1)[:, None] + (reference**2).sum(1) - 2 * image @ reference.T
        rows, columns = linear_sum_assignment(distances)
        right.append(float((order[rows] == orders[0][columns]).mean()))
    figures = {"put_back": float(np.mean(right)), "chance": 1 / len(reference)}
    return Row("shuffle", grade(figures["put_back"], 0.1, 0.5), "Patches put back without the key.", figures)


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
