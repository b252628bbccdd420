"""Both sides of an encrypted folder, side by side: what the owner has and no attacker should.

Images are uint8 (N, 3, S, S); *patches* are (N, P, D): P tiles of an image in row-major order, each flattened as
(colour, row, column). The tile is the scheme's own patch or block, since code and config are public.
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import Array2D, Dataset, Image, load_from_disk
from tqdm.auto import tqdm

from hf_neuracrypt import store
from hf_neuracrypt.columns import find_columns
from hf_neuracrypt.configuration import PublicConfig
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import DatasetError, ImageError
from hf_neuracrypt.images import prepare
from hf_neuracrypt.sources import is_table, load_source, quiet_datasets


NIBBLE_SCHEMES = ("le", "ele")  # what these move are half bytes
BLOCK_MOVING_SCHEMES = ("ele", "etc", "vit-blockwise")
PERMUTATION_SCHEMES = ("le", "ele", "pe", "etc", "vit-blockwise")
MAX_VALUES = 80_000_000  # of the ciphertexts looked at; float32 copies of both sides must fit into 4 GiB
BATCH_SIZE = 32


@dataclass(frozen=True)
class Pairs:
    """Plain images and their ciphertexts, row by row.

    Args:
        config: how they were encrypted.
        plain: uint8 (N, 3, S, S).
        encrypted: uint8 (N, 3, S, S), or float32 (N, P, D) for a patch representation, its shuffle undone.
        rows: where each pair is in the source: its number, over all splits.
        wrong: rows of the folder that are not what the key makes of the source.
        middle: float32 (P, D), the mean of symbols of encrypted patches that is taken off; None: that of these pairs.
    """

    config: PublicConfig
    plain: np.ndarray
    encrypted: np.ndarray
    rows: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()
    middle: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.plain)

    def take(self, chosen: Iterable[int]) -> "Pairs":
        """Some of the pairs, their ciphertexts still centred on the mean of all, which an attacker has."""
        chosen = list(chosen)
        return Pairs(self.config, self.plain[chosen], self.encrypted[chosen], middle=self.encrypted_mean)

    @property
    def is_image(self) -> bool:
        """Whether ciphertexts are images."""
        return self.encrypted.ndim == 4

    @cached_property
    def tile(self) -> int:
        """The attacker's patch size, in pixels: that of the scheme; for one without, any of 4 x 4 or more patches."""
        size = self.config.image_size
        own = getattr(self.config, "patch_size", None) or getattr(self.config, "block_size", None)
        return own or next(tile for tile in (16, 8, 4, 2, 1) if size % tile == 0 and (size >= 4 * tile or tile == 1))

    @cached_property
    def plain_patches(self) -> np.ndarray:
        """uint8 (N, P, 3 tile²)."""
        return cut(self.plain, self.tile)

    @cached_property
    def brightness(self) -> np.ndarray:
        """float32 (N, P): mean value of each plain patch."""
        return self.plain_patches.mean(-1, dtype=np.float32)

    @cached_property
    def plain_centred(self) -> np.ndarray:
        """float32 (N, P, D): symbols of plain patches, less their mean over the images."""
        patches = self._symbols(self.plain_patches)
        return patches - _mean(patches)

    @cached_property
    def encrypted_mean(self) -> np.ndarray:
        """float32 (P, D): the mean encrypted patch at each position, with it the position embedding."""
        return _mean(self._encrypted_symbols()) if self.middle is None else self.middle

    @cached_property
    def encrypted_centred(self) -> np.ndarray:
        """float32 (N, P, D): symbols of encrypted patches, less their mean over the images: no position embedding."""
        return self._encrypted_symbols() - self.encrypted_mean

    def _encrypted_symbols(self) -> np.ndarray:
        return self._symbols(cut(self.encrypted, self.tile) if self.is_image else self.encrypted)

    def _symbols(self, patches: np.ndarray) -> np.ndarray:
        """What the scheme moves: values, or the low and high halves of bytes."""
        if self.config.scheme in NIBBLE_SCHEMES:
            return np.concatenate([patches & 15, patches >> 4], axis=-1)
        return patches


def cut(images: np.ndarray, tile: int) -> np.ndarray:
    """(N, C, S, S) -> (N, P, C tile²), patches in row-major order."""
    count, channels, size, _ = images.shape
    grid = size // tile
    tiles = images.reshape(count, channels, grid, tile, grid, tile).transpose(0, 2, 4, 1, 3, 5)
    return tiles.reshape(count, grid * grid, channels * tile * tile)


def join(patches: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `cut`, for three channels."""
    count, positions, _ = patches.shape
    grid = round(positions**0.5)
    tile = size // grid
    tiles = patches.reshape(count, grid, grid, 3, tile, tile).transpose(0, 3, 1, 4, 2, 5)
    return tiles.reshape(count, 3, size, size)


def _mean(patches: np.ndarray) -> np.ndarray:
    """Of each position over the images, as float32."""
    return patches.mean(0, dtype=np.float64).astype(np.float32)


def load_pairs(
    folder: Path, source: str, encoder: Encoder, max_images: int, seed: int, image_column: str | None = None
) -> Pairs:
    """Rows of a finished folder beside the plain images they were made of.

    Args:
        folder: written by `hf-neuracrypt encrypt`; of several views of an image, the image itself is looked at.
        source: what was given to it as `--dataset`.
        encoder: of the folder's config, with its key.
        max_images: how many rows to look at, drawn by `seed`; of a streamed source, the first ones.
        image_column: as given to `encrypt`.

    Raises:
        DatasetError: the source has fewer rows than the folder, or the folder is not made of it.
    """
    encrypted = load_from_disk(str(folder))
    streaming = is_table(source)
    with quiet_datasets():
        splits = dict(load_source(source, streaming))
    rejected = _rejected(folder)
    per_image = 3 * encoder.config.image_size**2
    if shape := encoder.config.representation:
        per_image = max(per_image, shape[0] * shape[1])
    views = {name: store.views_of(store.read_manifest(folder), name) for name in encrypted}
    total = sum(len(split) // views[name] for name, split in encrypted.items())
    count = min(max_images, total, max(16, MAX_VALUES // per_image))
    chosen = np.arange(count) if streaming else np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    plain, stored, first = [], [], 0
    for name, split in encrypted.items():
        images = len(split) // views[name]
        rows = [int(row) - first for row in chosen if first <= row < first + images]
        first += images
        if rows:
            stored += _stored(split, [row * views[name] for row in rows], encoder.config)
            plain += _plain(splits, name, rows, rejected.get(name, set()), encoder.config, image_column, source)
    return _compare(encoder, np.stack(plain), stored, [int(row) for row in chosen], source, folder)


def _rejected(folder: Path) -> dict[str, set[int]]:
    """The source rows of each split that are not in the folder."""
    left_out: dict[str, set[int]] = {}
    if (folder / store.REJECTED).exists():
        for line in (folder / store.REJECTED).read_text().splitlines():
            entry = json.loads(line)
            left_out.setdefault(entry["split"], set()).add(entry["row"])
    return left_out


def _stored(split: Dataset, rows: list[int], config: PublicConfig) -> list[np.ndarray | None]:
    """Ciphertexts as arrays; None for one that cannot be what `encrypt` wrote."""
    if config.representation:
        return list(
            split.cast_column("image", Array2D(config.representation, "float32")).with_format("numpy")[rows]["image"]
        )
    images: list[np.ndarray | None] = []
    for image in split.select(rows).cast_column("image", Image(decode=False))["image"]:
        try:
            images.append(prepare(image, config).transpose(2, 0, 1))
        except ImageError:
            images.append(None)
    return images


def _plain(
    splits: dict, name: str, rows: list[int], rejected: set[int], config: PublicConfig, image_column: str | None,
    source: str,
) -> list[np.ndarray]:  # fmt: skip
    """uint8 (3, S, S) of the source rows that the folder's `rows` were made of."""
    if name not in splits:
        raise DatasetError(f"{source} has no split {name}, which the encrypted folder has")
    split = splits[name]
    column = find_columns(split.features or next(iter(split)), image_column, None).image
    split = split.select_columns([column])
    if split.features is not None and isinstance(split.features[column], Image):
        split = split.cast_column(column, Image(decode=False))
    numbers = _source_rows(rows, rejected)
    if isinstance(split, Dataset):
        found = split.select([number for number in numbers if number < len(split)])
    else:
        found = (entry for number, entry in zip(range(numbers[-1] + 1), split) if number in set(numbers))
    bar = tqdm(found, desc=f"Reading {name}", total=len(numbers), unit=" images", leave=False)
    images = [prepare(entry[column], config).transpose(2, 0, 1) for entry in bar]
    if len(images) != len(numbers):
        raise DatasetError(f"{source} has fewer images in {name} than the encrypted folder")
    return images


def _source_rows(rows: list[int], rejected: set[int]) -> list[int]:
    """Where rows of the folder are in the source, some of whose rows were left out."""
    kept = (number for number in itertools.count() if number not in rejected)
    places = list(itertools.islice(kept, max(rows) + 1))
    return [places[row] for row in rows]


def _compare(encoder: Encoder, plain: np.ndarray, stored: list, rows: list[int], source: str, folder: Path) -> Pairs:
    """The rows that are what the key makes of the source; an error if most are not."""
    good, encrypted, wrong = [], [], []
    for start in range(0, len(plain), BATCH_SIZE):
        batch = torch.from_numpy(plain[start : start + BATCH_SIZE])
        for number, expected in enumerate(encoder.encrypt(batch).numpy(), start):
            if stored[number] is not None and _equal(stored[number], expected, encoder.config):
                good.append(number)
                encrypted.append(_unshuffled(stored[number], plain[number], encoder))
            else:
                wrong.append(rows[number])
    if len(good) < max(4, len(wrong)):
        raise DatasetError(
            f"{len(wrong)} of {len(rows)} rows of {folder} are not what this key makes of {source}: give the dataset "
            "that was encrypted (an audit needs four images or more)"
        )
    return Pairs(encoder.config, plain[good], np.stack(encrypted), tuple(rows[n] for n in good), tuple(wrong))


def _equal(stored: np.ndarray, expected: np.ndarray, config: PublicConfig) -> bool:
    """Whether a stored ciphertext is the expected one; those of a float32 network differ in their last digits."""
    if getattr(config, "batch_norm", None) == "batch":
        return stored.shape == expected.shape  # it depends on images that were beside it then
    if config.scheme.startswith("color-neuracrypt-float") or config.representation:
        return stored.shape == expected.shape and np.allclose(
            stored.astype(np.float32), expected, rtol=1e-3, atol=1e-3 if config.representation else 1
        )
    return np.array_equal(stored, expected)


def _unshuffled(ciphertext: np.ndarray, plain: np.ndarray, encoder: Encoder) -> np.ndarray:
    """A representation with its patches where they were: what the attack of the row `shuffle` gives an attacker."""
    if getattr(encoder.config, "shuffle", "off") == "off":
        return ciphertext
    restored = np.empty_like(ciphertext)
    restored[encoder.patch_order(torch.from_numpy(plain))] = ciphertext
    return restored
