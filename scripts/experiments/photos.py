"""Pieces of the photos that come with scikit-image and scikit-learn: real pictures where no dataset is at hand.

The photos are in the public domain (NASA, SpaceX) or CC0. Pieces are uint8 (count, 3, size, size), of one photo after
the other in turn, and the same for the same arguments.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image


PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry")
OTHER_PHOTOS = ("hubble_deep_field", "china", "flower")


def crops(count: int, size: int, names: Sequence[str] = PHOTOS, seed: int = 0) -> np.ndarray:
    """Squares of `size` pixels as they are: real texture at its native resolution."""
    generator = np.random.default_rng(seed)
    return _stacked([_square(photo, size, generator) for photo in _in_turn(names, count)])


def squares(
    count: int, size: int, names: Sequence[str] = PHOTOS, smallest: int | None = None, seed: int = 0
) -> np.ndarray:
    """Squares of any side, from `smallest` pixels (default: `size`) to a whole photo's, resized to `size`."""
    generator, pieces = np.random.default_rng(seed), []
    for photo in _in_turn(names, count):
        side = int(generator.integers(smallest or size, min(photo.shape[:2]) + 1))
        piece = Image.fromarray(_square(photo, side, generator)).resize((size, size), Image.Resampling.BILINEAR)
        pieces.append(np.asarray(piece))
    return _stacked(pieces)


def read_photo(name: str) -> np.ndarray:
    """A whole photo, uint8 (H, W, 3)."""
    from skimage import data

    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return load_sample_image(f"{name}.jpg")
    return getattr(data, name)()


def _in_turn(names: Sequence[str], count: int) -> Iterator[np.ndarray]:
    photos = [read_photo(name) for name in names]
    return (photos[number % len(photos)] for number in range(count))


def _square(photo: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    top, left = (int(generator.integers(0, length - side + 1)) for length in photo.shape[:2])
    return photo[top : top + side, left : left + side]


def _stacked(pieces: list[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(np.stack(pieces).transpose(0, 3, 1, 2))
