"""Attacks on permutation ciphers with ciphertexts alone: folding, 48 candidates a pixel, and a jigsaw of blocks.

All images are encrypted alike, so what one image leaves open, many decide together: a pixel's colours are those that
fit its neighbour in all images, and two blocks are neighbours if some of their values go up and down together.
"""

import itertools

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment, quadratic_assignment
from scipy.sparse.csgraph import shortest_path

from hf_neuracrypt.audit.ciphertext import unit
from hf_neuracrypt.audit.pairs import Pairs
from hf_neuracrypt.audit.results import NOT_APPLICABLE, Row, grade


COLOR_ORDERS = np.array(list(itertools.permutations(range(3))))
SIGNS = np.array(list(itertools.product((0, 255), repeat=3)), np.uint8)
CANDIDATE_IMAGES, ALONE = 128, 8
JIGSAW_BLOCKS = 400, 100  # the most that are tried, and the most that are exchanged one by one afterwards
JIGSAW_VALUES = 10_000  # of all blocks together, whose correlations are looked at
NEAREST = (3, 4, 5)


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


def candidates(pairs: Pairs) -> tuple[Row, np.ndarray | None]:
    """6 orders of colours times 8 signs for each pixel, decided by its neighbour (Chang and Li, 2020).

    Returns:
        The row, and all images as reconstructed, uint8 (N, 3, S, S), in the colours of the best of the 48 first pixels.
    """
    if pairs.config.tile_name:
        return Row("candidates", NOT_APPLICABLE, "This scheme does not encrypt each pixel by itself."), None
    orders, signs = _decide(pairs.encrypted[:CANDIDATE_IMAGES])
    together = _best_colors(_apply(pairs.encrypted, orders, signs), pairs.plain)
    alone = []
    for number in range(min(ALONE, len(pairs))):
        one = slice(number, number + 1)
        guess = _apply(pairs.encrypted[one], *_decide(pairs.encrypted[one]))
        alone.append((_best_colors(guess, pairs.plain[one]) == pairs.plain[one]).mean())
    figures = {
        "recovered": float((together == pairs.plain).mean()), "recovered_alone": float(np.mean(alone)),
        "images": min(CANDIDATE_IMAGES, len(pairs)),
    }  # fmt: skip
    finding = "Bytes recovered exactly with the colours that fit the neighbour in all images, and in one image alone."
    return Row("candidates", grade(figures["recovered"], 0.1, 0.5), finding, figures), together


def _decide(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours of each pixel that are nearest to its neighbour's: the left one in the first row, else the upper one.

    Returns:
        Which colour of the ciphertext is each colour of each pixel, int (3, S, S), and whether it is inverted, uint8
        (3, S, S) of 0 or 255.
    """
    size = images.shape[-1]
    orders = np.broadcast_to(np.arange(3)[:, None, None], (3, size, size)).copy()
    signs, images = np.zeros((3, size, size), np.uint8), images.copy()
    steps = [((0, slice(x, x + 1)), (0, slice(x - 1, x))) for x in range(1, size)]
    steps += [((y, slice(None)), (y - 1, slice(None))) for y in range(1, size)]
    for here, neighbour in steps:
        given, known = images[:, :, *here].astype(np.int16), images[:, :, *neighbour].astype(np.int16)
        both = np.stack([given, 255 - given])[:, :, :, None]
        distances = np.abs(both - known[:, None]).sum(1, dtype=np.int64)  # (inverted, from, to, pixels)
        inverted, nearest = distances.argmin(0), distances.min(0)
        totals = sum(nearest[COLOR_ORDERS[:, color], color] for color in range(3))
        orders[:, *here] = COLOR_ORDERS[totals.argmin(0)].T
        signs[:, *here] = 255 * np.take_along_axis(inverted, orders[None, :, *here], 0)[0]
        images[:, :, *here] = _apply(images[:, :, *here], orders[:, *here], signs[:, *here])
    return orders, signs


def _apply(images: np.ndarray, orders: np.ndarray, signs: np.ndarray) -> np.ndarray:
    return np.take_along_axis(images, orders[None], 1) ^ signs


def _best_colors(guess: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """The first pixel is a guess: of its 48 colours, an attacker takes those that look right."""
    colors = itertools.product(COLOR_ORDERS, SIGNS)
    return max((guess[:, order] ^ sign[:, None, None] for order, sign in colors), key=lambda all: (all == plain).mean())


def jigsaw(pairs: Pairs, order: np.ndarray | None, seed: int) -> Row:
    """Blocks put back into their places, but for a turned or mirrored whole, by how their values go together.

    Two blocks are the more alike, the more the best correlated of their values correlate over the images; that depends
    neither on what happens inside a block nor on its sign. Steps to the nearest blocks give a map of all (Isomap;
    Tenenbaum et al. 2000), the map is fitted to a grid, and exchanges of two blocks improve it. Le Roux et al.,
    "Learning the 2-D topology of images" (2007), order single pixels in this way.

    Args:
        order: int (P,), where each block of the ciphertext comes from; None: blocks do not move.
    """
    if order is None:
        return Row("jigsaw", NOT_APPLICABLE, "Blocks do not change places here.")
    count = len(order)
    if not 9 <= count <= JIGSAW_BLOCKS[0]:
        return Row("jigsaw", NOT_APPLICABLE, f"Tried on 9 to {JIGSAW_BLOCKS[0]} blocks; here are {count}.")
    beside, origins = _distances(count) == 1, order[put_back(pairs, seed)]
    figures = {
        "neighbours": float(beside[np.ix_(origins, origins)][beside].mean()),
        "chance": float(beside.sum() / (count * (count - 1))), "blocks": count,
    }  # fmt: skip
    finding = "Share of neighbours that are neighbours in the original again, with the blocks put in order."
    return Row("jigsaw", grade(max(0, figures["neighbours"] - figures["chance"]), 0.1, 0.5), finding, figures)


def put_back(pairs: Pairs, seed: int) -> np.ndarray:
    """The block of the ciphertexts that belongs at each place, int (P,), but for a turned or mirrored whole."""
    return _arrange(_likeness(pairs.encrypted_centred, pairs.config.tile, seed), seed)


def _likeness(centred: np.ndarray, strongest: int, seed: int) -> np.ndarray:
    """(N, P, D) -> (P, P): mean of the `strongest` |correlations| between values of two blocks, over the images."""
    images, count, size = centred.shape
    chosen = np.random.default_rng(seed).permutation(size)[: max(8, JIGSAW_VALUES // count)]
    norms = np.linalg.norm(centred[..., chosen], axis=0)
    values = np.divide(centred[..., chosen], norms, out=np.zeros_like(centred[..., chosen]), where=norms > 1e-6)
    width, values = len(chosen), values.reshape(images, -1)
    strongest, likeness = min(strongest, width**2 // 4), np.empty((count, count))
    for block in range(count):
        correlations = np.abs(values[:, block * width : (block + 1) * width].T @ values)
        by_block = correlations.reshape(width, count, width).transpose(1, 0, 2).reshape(count, -1)
        likeness[block] = np.partition(by_block, -strongest, axis=1)[:, -strongest:].mean(1)
    np.fill_diagonal(likeness, 0)
    return likeness


def _arrange(likeness: np.ndarray, seed: int) -> np.ndarray:
    """The block at each place of a square grid, int (P,): of several maps the one whose neighbours are most alike."""
    count = len(likeness)
    rows, columns = np.divmod(np.arange(count), round(count**0.5))
    grid = np.stack([rows - rows.mean(), columns - columns.mean()], axis=1)
    beside, best, most = (_distances(count) == 1).astype(float), np.arange(count), -1.0
    maps = [_map(likeness, nearest) for nearest in NEAREST]
    for points, angle in itertools.product(maps, np.linspace(0, np.pi / 2, 18, endpoint=False)):
        turned = points @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned *= grid.std(0) / turned.std(0)
        places = linear_sum_assignment(((grid[:, None] - turned) ** 2).sum(-1))[1]
        total = (beside * likeness[np.ix_(places, places)]).sum()
        if total > most:
            best, most = places, total
    if count > JIGSAW_BLOCKS[1]:
        return best
    guess, rng = np.stack([np.arange(count), best], axis=1), np.random.default_rng(seed)
    options = {"maximize": True, "partial_guess": guess, "rng": rng}  # without `rng`, the state of NumPy's own counts
    return quadratic_assignment(beside, likeness, method="2opt", options=options).col_ind


def _map(likeness: np.ndarray, nearest: int) -> np.ndarray:
    """Coordinates (P, 2) that tell steps between blocks, each with its `nearest` ones: classical scaling."""
    least = np.sort(likeness, axis=1)[:, -nearest][:, None]
    steps = shortest_path((likeness >= least) | (likeness >= least.T), directed=False, unweighted=True)
    squares = np.minimum(steps, 2 * len(likeness) ** 0.5) ** 2
    squares = squares - squares.mean(0) - squares.mean(1, keepdims=True) + squares.mean()
    variances, axes = eigh(-squares / 2, subset_by_index=(len(squares) - 2, len(squares) - 1))
    return axes * np.sqrt(variances.clip(1e-9))


def _distances(count: int) -> np.ndarray:
    """Between the places of a square grid, float (P, P)."""
    rows, columns = np.divmod(np.arange(count), round(count**0.5))
    return np.hypot(rows[:, None] - rows, columns[:, None] - columns)
