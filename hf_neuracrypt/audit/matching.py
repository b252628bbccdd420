"""Which ciphertext belongs to which image, and which patch to which place: attacks that need no pair.

The matching is that of Carlini et al. on NeuraCrypt (github.com/tensorflow/privacy, research/neuracrypt_attack_2021),
without training: cosines between the patches of an image survive random layers, so they give a first assignment, right
for some images. A surrogate of the cipher is fitted to it, and images are assigned again by what the surrogate makes of
them, until nothing changes. Their surrogate is a network and takes minutes; here a linear map of principal components
is as good.
"""

import numpy as np
from scipy.linalg import cholesky, solve, solve_triangular
from scipy.optimize import linear_sum_assignment
from tqdm.auto import tqdm

from hf_neuracrypt.audit.ciphertext import components, unit
from hf_neuracrypt.audit.pairs import Pairs, cut
from hf_neuracrypt.audit.puzzles import folded
from hf_neuracrypt.audit.results import Row, grade


GRAM_POSITIONS = 256
LINKED_IMAGES = 128
SURROGATE_COMPONENTS, SURROGATE_ROUNDS, SURROGATE_RIDGE = 64, 5, 0.1
FOLDS = 4
HALVINGS = 20
SHUFFLE_COMPONENTS, SHUFFLE_ROUNDS = 256, 4


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


Descriptors = dict[str, np.ndarray]  # float32 (N, F) by method


def descriptors(maps: np.ndarray, centred: np.ndarray, images: np.ndarray, tile: int) -> Descriptors:
    """What an attacker compares images by. The sorted descriptors do not mind that blocks move.

    Args:
        maps: (N, P), a guess of the brightness of each patch.
        centred: float32 (N, P, D).
        images: uint8 (N, 3, S, S); a patch representation has no 8-bit range to fold.
        tile: in pixels.
    """
    cosines = grams(centred)
    found = {"map": unit(maps), "gram": unit(cosines), "sorted_gram": unit(np.sort(cosines, axis=1))}
    if images.ndim == 4:
        folds = cut(folded(images)[:, None], tile).mean(-1)
        found |= {"fold": unit(folds), "sorted_fold": unit(np.sort(folds, axis=1))}
    return found


def accuracies(ours: Descriptors, theirs: Descriptors, order: np.ndarray) -> dict[str, float]:
    """Share of images assigned to their partner, by method; row i of both sides is the same image.

    Args:
        order: of the other side's rows; an assignment without any evidence must not find the diagonal.
    """
    found = {}
    for method in sorted(ours.keys() & theirs.keys()):
        similarity = ours[method] @ theirs[method][order].T
        columns = _assign(np.abs(similarity) if method == "map" else similarity)
        found[method] = _accuracy(columns, order)
    return found


def named_classes(pairs: Pairs, seed: int) -> float | None:
    """Hidden labels against an attacker with similar labelled pictures: class means of the thumbnails are compared.

    The images are halved at random, again and again: of one half the attacker has pictures and true labels, of the
    other ciphertexts and hidden ones.

    Returns:
        The share of classes that get their true name, on average; None if two classes have too few images.
    """
    labels = pairs.labels
    if labels is None:
        return None
    classes = [number for number in np.unique(labels) if number >= 0 and (labels == number).sum() >= 2]
    if len(classes) < 2:
        return None
    brightness = pairs.brightness - pairs.brightness.mean(0)
    maps = np.moveaxis(components(pairs.encrypted_centred, seed), -1, 0)
    generator, named = np.random.default_rng(seed), []
    for _ in range(HALVINGS):
        own = np.zeros(len(pairs), bool)
        for number in classes:
            rows = generator.permutation(np.flatnonzero(labels == number))
            own[rows[: len(rows) // 2]] = True
        theirs = unit(_class_means(brightness, labels, classes, own))
        likeness = [unit(_class_means(of_one, labels, classes, ~own)) @ theirs.T for of_one in maps]
        guesses = [sign * each for each in likeness for sign in (1, -1)]  # light and dark may be exchanged
        found = [linear_sum_assignment(-guess) for guess in guesses]
        best = max(range(len(found)), key=lambda place: guesses[place][found[place]].sum())
        named.append(_accuracy(found[best][1], np.arange(len(classes))))
    return float(np.mean(named))


def _class_means(maps: np.ndarray, labels: np.ndarray, classes: list[int], chosen: np.ndarray) -> np.ndarray:
    """(N, P) -> (classes, P), less what the classes have in common."""
    means = np.stack([maps[chosen & (labels == number)].mean(0) for number in classes])
    return means - means.mean(0)


def matching(pairs: Pairs, maps: np.ndarray, seed: int) -> Row:
    """Which ciphertext belongs to which original, without a single pair."""
    brightness, tile = pairs.brightness - pairs.brightness.mean(0), pairs.config.tile
    plain = descriptors(brightness, pairs.plain_centred, pairs.plain, tile)
    encrypted = descriptors(maps, pairs.encrypted_centred, pairs.encrypted, tile)
    order = np.random.default_rng(seed).permutation(len(pairs))
    found = accuracies(encrypted, plain, order)
    ours, theirs = (
        components(centred, seed, SURROGATE_COMPONENTS, whiten=True)
        for centred in (pairs.encrypted_centred, pairs.plain_centred[order])
    )
    columns = refine(ours, theirs, _assign(encrypted["gram"] @ plain["gram"][order].T))
    before = max(found.values())
    finding = (
        "Best of maps of components, cosines between patches, and folded values, and after refinement by a surrogate; "
        "assignment by linear_sum_assignment."
    )
    found |= {"before_refinement": before, "surrogate": _accuracy(columns, order)}
    return _matching_row("matching", found, len(pairs), finding)


def refine(encrypted: np.ndarray, plain: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Better partners, from some that are right (Carlini et al., steps 7 and 8).

    Args:
        encrypted, plain: components of patches, float32 (N, P, K), the images of each in an order of its own.
        columns: int (N,): the number of the plain image that is assigned to each ciphertext.

    Returns:
        The same after refinement. No surrogate judges pairs it was fitted to: it would confirm wrong ones.
    """
    folds = np.arange(len(encrypted)) % min(FOLDS, len(encrypted))
    ciphertexts = unit(encrypted)
    for _ in range(SURROGATE_ROUNDS):
        similarity = np.empty((len(encrypted), len(plain)), np.float32)
        for fold in np.unique(folds):
            used = folds != fold
            given = plain[columns[used]].reshape(-1, plain.shape[-1])
            gram = given.T @ given
            gram[np.diag_indices_from(gram)] += max(SURROGATE_RIDGE * np.trace(gram) / len(gram), 1e-6)
            weights = solve(gram, given.T @ encrypted[used].reshape(len(given), -1), assume_a="pos")
            similarity[~used] = ciphertexts[~used] @ unit(plain @ weights).T
        previous, columns = columns, _assign(similarity)
        if np.array_equal(previous, columns):
            break
    return columns


def linkability(pairs: Pairs, other: Pairs, seed: int) -> Row:
    """The same images under two keys: which belongs to which. `other` is encrypted under a throw-away key."""
    ours, theirs = (
        descriptors(components(each.encrypted_centred, seed)[..., 0], each.encrypted_centred, each.encrypted, tile)
        for each, tile in ((pairs, pairs.config.tile), (other, other.config.tile))
    )
    finding = "The same images under a second key: rotating keys does not unlink what was published."
    order = np.random.default_rng(seed).permutation(len(pairs))
    return _matching_row("link", accuracies(ours, theirs, order), len(pairs), finding)


def unshuffle(shuffled: np.ndarray, orders: np.ndarray, seed: int = 0) -> Row:
    """Put the patches of each image into the order of the first image's, by the position embedding in them.

    The first image tells what each place looks like, in later rounds the mean of all images as put back before; one
    unit of distance is how much patches at a place differ between images.

    Args:
        shuffled: float32 (N, P, D) as stored.
        orders: int (N, P): where each patch came from.
    """
    patches = components(shuffled - shuffled.mean((0, 1)), seed, SHUFFLE_COMPONENTS)
    places, scale = patches[0], np.eye(patches.shape[-1], dtype=np.float32)
    for _ in tqdm(range(SHUFFLE_ROUNDS), desc="Patch shuffle", unit=" rounds", leave=False):
        restored, right, reference = np.empty_like(patches), [], places @ scale
        for number, image in enumerate(patches):
            scaled = image @ scale
            distances = (scaled**2).sum(1)[:, None] + (reference**2).sum(1) - 2 * scaled @ reference.T
            columns = _assign(-distances)
            restored[number, columns] = image
            right.append(float((orders[number] == orders[0][columns]).mean()))
        places = restored.mean(0)
        rest = (restored - places).reshape(-1, patches.shape[-1])
        covariance = (rest.T @ rest).astype(np.float64) / len(rest)
        covariance[np.diag_indices_from(covariance)] += 1e-3 * np.trace(covariance) / len(covariance) + 1e-9
        half = cholesky(covariance, lower=True)
        scale = solve_triangular(half, np.eye(len(half)), lower=True).T.astype(np.float32)
    figures = {"put_back": float(np.mean(right[1:])), "chance": 1 / len(reference)}
    return Row("shuffle", grade(figures["put_back"], 0.1, 0.5), "Patches put back without the key.", figures)


def _assign(similarity: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(similarity, maximize=True)[1]


def _accuracy(columns: np.ndarray, order: np.ndarray) -> float:
    return float((order[columns] == np.arange(len(order))).mean())


def _matching_row(name: str, found: dict[str, float], count: int, finding: str) -> Row:
    best = max(found.values())
    figures = {"accuracy": best, "chance": 1 / count, "images": count, **found}
    return Row(name, grade(best, max(0.05, 4 / count), max(0.2, 8 / count)), finding, figures)
