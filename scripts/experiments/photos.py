"""Pieces of the photos that come with scikit-image and scikit-learn: real pictures where no dataset is at hand.

python scripts/experiments/photos.py photos/

The photos are in the public domain (NASA, SpaceX) or CC0. Pieces are uint8 (count, 3, size, size), of one photo after
the other in turn, and the same for the same arguments.

The command writes a dataset whose classes are places: six photos are divided as a chessboard of 4 x 4 fields, and
squares of 32 pixels to a field's side come from their white fields, at 112 px; which of the 48 fields is it? The train
split has 2,000 of them, and then 2,000 of black fields, without a label: they share no pixel with the first ones.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image

from hf_neuracrypt.errors import one_line_errors


FIELDS, SIZE, TRAIN, PUBLIC, TEST = 4, 112, 2_000, 2_000, 1_000  # of the dataset that the command writes
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry")
OTHER_PHOTOS = ("hubble_deep_field", "china", "flower")


def crops(count: int, size: int, names: Sequence[str] = PHOTOS, seed: int = 0) -> np.ndarray:
    """Squares of `size` pixels as they are: real texture at its native resolution."""
    generator, photos = np.random.default_rng(seed), [read_photo(name) for name in names]
    return _stacked([_square(photo, size, generator) for photo in _in_turn(photos, count)])


def squares(
    count: int, size: int, names: Sequence[str] = PHOTOS, smallest: int | None = None, seed: int = 0
) -> np.ndarray:
    """Squares of any side, from `smallest` pixels (default: `size`) to a whole photo's, resized to `size`."""
    return squares_of([read_photo(name) for name in names], count, size, smallest, seed)


def squares_of(
    photos: Sequence[np.ndarray], count: int, size: int, smallest: int | None = None, seed: int = 0
) -> np.ndarray:
    """`squares`, of photos uint8 (H, W, 3)."""
    generator, pieces = np.random.default_rng(seed), []
    for photo in _in_turn(photos, count):
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


def fields(photo: np.ndarray, black: bool) -> list[np.ndarray]:
    """The eight white or the eight black ones of a photo, as on a chessboard of 4 x 4."""
    rows = [np.array_split(row, FIELDS, axis=1) for row in np.array_split(photo, FIELDS)]
    return [row[x] for y, row in enumerate(rows) for x in range(FIELDS) if (x + y) % 2 == black]


def places(count: int, seed: int, black: bool = False) -> Dataset:
    """Squares of fields in random order, and the number of the white field that each is from, -1 if it is black."""
    chosen = [field for name in PHOTOS for field in fields(read_photo(name), black)]
    images = squares_of(chosen, count, SIZE, smallest=32, seed=seed).transpose(0, 2, 3, 1)
    labels = [-1 if black else number % len(chosen) for number in range(count)]
    names = [f"{name} {number}" for name in PHOTOS for number in range(len(chosen) // len(PHOTOS))]
    features = Features(image=ImageFeature(), label=ClassLabel(names=names))
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels}
    return Dataset.from_dict(rows, features).shuffle(seed=seed)


def _in_turn(photos: Sequence[np.ndarray], count: int) -> Iterator[np.ndarray]:
    return (photos[number % len(photos)] for number in range(count))


def _square(photo: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    top, left = (int(generator.integers(0, length - side + 1)) for length in photo.shape[:2])
    return photo[top : top + side, left : left + side]


def _stacked(pieces: list[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(np.stack(pieces).transpose(0, 3, 1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="new folder to write train.parquet and test.parquet to")
    output = parser.parse_args().output
    output.mkdir(parents=True)  # never over another dataset
    train = concatenate_datasets([places(TRAIN, seed=0), places(PUBLIC, seed=1, black=True)])
    train.to_parquet(output / "train.parquet")
    places(TEST, seed=2).to_parquet(output / "test.parquet")


if __name__ == "__main__":
    with one_line_errors():
        main()
