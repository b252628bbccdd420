"""Both sides of an encrypted folder, side by side: what the owner has and no attacker should.

Images are uint8 (N, 3, S, S); *patches* are (N, P, D): P tiles of an image in row-major order, each flattened as
(colour, row, column). The tile is the scheme's own patch or block, since code and config are public.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, IterableDataset, load_from_disk
from einops import rearrange
from tqdm.auto import tqdm

from hf_neuracrypt.data.batches import encrypt_all, prepare_all
from hf_neuracrypt.data.columns import array_dtype, find_columns
from hf_neuracrypt.data.dataset import keyed_order
from hf_neuracrypt.data.manifest import REJECTED, dicom_of, read_manifest, views_of
from hf_neuracrypt.data.sources import files_of, is_table, load_source, quiet_datasets, stored_record
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import DatasetError, ImageError
from hf_neuracrypt.images import as_array
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import SchemeConfig


MAX_VALUES = 80_000_000  # of the ciphertexts looked at; float32 copies of both sides must fit into 4 GiB
READ_IMAGES = 64  # source images in memory as files, at a time


@dataclass(frozen=True)
class Pairs:
    """Plain images and their ciphertexts, row by row.

    Args:
        config: how they were encrypted.
        plain: uint8 (N, 3, S, S).
        encrypted: uint8 (N, 3, S, S), or float32 (N, P, D) for a patch representation, its shuffle undone.
        wrong: rows of the folder that are not what the key makes of the source.
        mean: float32 (P, D), the mean ciphertext patch at each position, subtracted in `encrypted_centred`; default:
            computed from these pairs.
        labels: int64 (N,), as they are stored; None if there are none.
    """

    config: SchemeConfig
    plain: np.ndarray
    encrypted: np.ndarray
    wrong: tuple[int, ...] = ()
    mean: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.plain)

    def take(self, chosen: Iterable[int]) -> "Pairs":
        """Some of the pairs, their ciphertexts still centred on the mean of all, which an attacker has."""
        chosen = list(chosen)
        return Pairs(self.config, self.plain[chosen], self.encrypted[chosen], mean=self.encrypted_mean)

    @property
    def is_image(self) -> bool:
        """Whether ciphertexts are images."""
        return self.config.patch_shape is None

    @cached_property
    def plain_patches(self) -> np.ndarray:
        """uint8 (N, P, 3 tile²)."""
        return cut(self.plain, self.config.tile)

    @cached_property
    def brightness(self) -> np.ndarray:
        """float32 (N, P): mean value of each plain patch."""
        return self.plain_patches.mean(-1, dtype=np.float32)

    @cached_property
    def plain_centred(self) -> np.ndarray:
        """float32 (N, P, D): symbols of plain patches, less their mean over the images."""
        patches = symbols(self.plain_patches, self.config.symbol_bits)
        return patches - mean_patch(patches)

    @cached_property
    def encrypted_mean(self) -> np.ndarray:
        """float32 (P, D): the mean encrypted patch at each position, with it the position embedding."""
        return mean_patch(self._encrypted_symbols()) if self.mean is None else self.mean

    @cached_property
    def encrypted_centred(self) -> np.ndarray:
        """float32 (N, P, D): symbols of encrypted patches, less their mean over the images: no position embedding."""
        return self._encrypted_symbols() - self.encrypted_mean

    def _encrypted_symbols(self) -> np.ndarray:
        return symbols(to_patches(self.encrypted, self.config.tile), self.config.symbol_bits)


def cut(images: np.ndarray, tile: int) -> np.ndarray:
    """(N, C, S, S) -> (N, P, C tile²), patches in row-major order."""
    return rearrange(images, "n c (h p) (w q) -> n (h w) (c p q)", p=tile, q=tile)


def join(patches: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `cut`, for three channels."""
    grid = math.isqrt(patches.shape[1])
    return rearrange(patches, "n (h w) (c p q) -> n c (h p) (w q)", c=3, h=grid, p=size // grid)


def to_patches(encrypted: np.ndarray, tile: int) -> np.ndarray:
    """Patches of ciphertexts: images are cut, a patch representation is as it is."""
    return cut(encrypted, tile) if encrypted.ndim == 4 else encrypted


def symbols(values: np.ndarray, bits: int | None) -> np.ndarray:
    """What a permutation cipher moves, (..., D) -> (..., 8 D / bits): bytes, or their low halves and then the high
    ones; the values themselves if `bits` is None."""
    if bits is None:
        return values
    return np.concatenate([values >> shift & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1)


def mean_patch(patches: np.ndarray) -> np.ndarray:
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
    config, manifest, encrypted = encoder.config, read_manifest(folder), load_from_disk(str(folder))
    files, rejected, dicom = files_of(source), _rejected(folder), dicom_of(manifest)
    streaming, patients = is_table(source, files), encoder.key if dicom["by_patient"] else None
    with quiet_datasets():
        splits = dict(load_source(source, streaming, files, dicom["all_frames"], patients))
    images = {name: len(split) // views_of(manifest, name) for name, split in encrypted.items()}
    total, values = sum(images.values()), max(3 * config.image_size**2, math.prod(config.patch_shape or ()))
    count = min(max_images, total, max(16, MAX_VALUES // values))
    chosen = np.arange(count) if streaming else np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    plain: list[np.ndarray] = []
    stored: list[np.ndarray | None] = []
    labels: list[int] = []
    first = 0
    for name, split in encrypted.items():
        rows = (chosen[(chosen >= first) & (chosen < first + images[name])] - first).tolist()
        first += images[name]
        if rows and name not in splits:
            raise DatasetError(f"{source} has no split {name}, which the encrypted folder has")
        if rows:
            places = [row * views_of(manifest, name) for row in rows]
            stored += _stored(split, places, encoder)
            if isinstance(split.features.get("label"), ClassLabel):
                labels += split.select(places)["label"]
            order = _source_rows(manifest, name, images[name], rejected.get(name, set()), encoder.key)
            numbers = [order[row] for row in rows]
            plain += _plain(splits[name], numbers, config, image_column, f"the split {name} of {source}")
    known = np.array(labels) if len(labels) == len(stored) else None
    return _compare(encoder, np.stack(plain), stored, known, chosen.tolist(), f"rows of {folder}", source)


def make_pairs(source: str, encoder: Encoder, count: int, seed: int, image_column: str | None = None) -> Pairs:
    """Plain images, and what the key makes of them.

    Args:
        source, image_column: as given to `encrypt`; of its splits, the one called train or the first.
        encoder: with the key.
        count: how many images, drawn by `seed`; of a streamed source, the first ones.

    Raises:
        DatasetError: it has fewer, they cannot be read, or they are encrypted.
    """
    size = encoder.config.image_size
    if count > (most := MAX_VALUES // (3 * size**2)):
        raise DatasetError(f"{count:,} images of {size} pixels are too many: {most:,} fit into memory")
    if stored_record(source) is not None:
        raise DatasetError(f"{source} is encrypted: give plain images")
    files = files_of(source)
    streaming = is_table(source, files)
    with quiet_datasets():
        splits = dict(load_source(source, streaming, files))
    name = "train" if "train" in splits else next(iter(splits))
    if (total := count if streaming else len(splits[name])) < count:
        raise DatasetError(f"the split {name} of {source} has {total:,} images, {count:,} are needed")
    numbers = np.random.default_rng(seed).permutation(total)[:count].tolist()
    plain = np.stack(_plain(splits[name], numbers, encoder.config, image_column, f"the split {name} of {source}"))
    return Pairs(encoder.config, plain, encrypt_all(encoder.encrypt_in_place, plain))


def _rejected(folder: Path) -> dict[str, set[int]]:
    """The source rows of each split that are not in the folder."""
    left_out: dict[str, set[int]] = {}
    if (folder / REJECTED).exists():
        for line in (folder / REJECTED).read_text().splitlines():
            entry = json.loads(line)
            left_out.setdefault(entry["split"], set()).add(entry["row"])
    return left_out


def _source_rows(manifest: dict[str, Any], split: str, count: int, rejected: set[int], key: SecretKey) -> list[int]:
    """Where the `count` images of a split are in the source, some of whose rows were left out."""
    order: Iterable[int] = range(count + len(rejected))
    if manifest.get("order") == "keyed":
        order = np.asarray(keyed_order(key, manifest["source"][split], count + len(rejected))).tolist()
    return [number for number in order if number not in rejected]


def _stored(split: Dataset, rows: list[int], encoder: Encoder) -> list[np.ndarray | None]:
    """Ciphertexts as arrays; None for one that cannot be what `encrypt` wrote."""
    found: list[np.ndarray | None] = []
    for batch in split.select(rows).with_format("arrow").iter(1):
        try:
            found.append(encoder.stored.arrays(batch["image"].to_pylist())[0])
        except (ImageError, TypeError):  # TypeError: an empty row
            found.append(None)
    return found


def _plain(
    split: Dataset | IterableDataset, numbers: list[int], config: SchemeConfig, image_column: str | None, where: str
) -> list[np.ndarray]:
    """uint8 (3, S, S) of the source rows with these `numbers`."""
    column = find_columns(split.features or next(iter(split)), image_column, None).image
    dtype, split = array_dtype((split.features or {}).get(column)), split.select_columns([column])
    if split.features is not None and isinstance(split.features[column], Image):
        split = split.cast_column(column, Image(decode=False))
    entries = _entries(split, sorted(numbers))
    images: list[np.ndarray] = []
    with tqdm(desc="Reading images", total=len(numbers), unit=" images", leave=False) as bar:
        while batch := [as_array(entry[column], dtype) for entry in itertools.islice(entries, READ_IMAGES)]:
            for image in prepare_all(batch, config):
                if isinstance(image, ImageError):
                    row = sorted(numbers)[len(images)]
                    raise DatasetError(f"row {row} of {where} cannot be read: {image}")
                images.append(image)
            bar.update(len(batch))
    if len(images) != len(numbers):
        raise DatasetError(f"{where} has fewer images than are needed")
    return [images[place] for place in np.argsort(np.argsort(numbers))]


def _entries(split: Dataset | IterableDataset, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """The rows with these numbers, which rise; those that the split does not have are left out."""
    if isinstance(split, Dataset):
        return iter(split.select([number for number in numbers if number < len(split)]))
    wanted = set(numbers)
    return (entry for number, entry in zip(range(numbers[-1] + 1), split) if number in wanted)


def _compare(
    encoder: Encoder,
    plain: np.ndarray,
    stored: list[np.ndarray | None],
    labels: np.ndarray | None,
    rows: list[int],
    what: str,
    source: str,
) -> Pairs:
    """The rows that are what the key makes of the source; an error if most are not."""
    good, encrypted, wrong = [], [], []
    for number, expected in enumerate(encrypt_all(encoder.encrypt_in_place, plain)):
        found = stored[number]
        if found is not None and encoder.config.shuffles:  # the attack of the row `shuffle` undoes it for an attacker
            found = found[np.argsort(encoder.shuffle_order(torch.from_numpy(plain[number])))]
        if found is not None and _equal(found, expected, encoder.config):
            good.append(number)
            encrypted.append(found)
        else:
            wrong.append(rows[number])
    if len(good) < max(4, len(wrong)):
        raise DatasetError(
            f"{len(wrong)} of {len(rows)} {what} are not what this key makes of {source}: give the dataset that was "
            "encrypted (an audit needs four images or more)"
        )
    known = None if labels is None else labels[good]
    return Pairs(encoder.config, plain[good], np.stack(encrypted), tuple(wrong), labels=known)


def _equal(stored: np.ndarray, expected: np.ndarray, config: SchemeConfig) -> bool:
    """Whether a stored ciphertext is the expected one; those of a float32 network differ in their last digits."""
    if config.exact:
        return np.array_equal(stored, expected)
    if stored.shape != expected.shape or config.depends_on_batch:  # on images that were beside it then
        return stored.shape == expected.shape
    least = 1 if config.patch_shape is None else 1e-3  # a grey level; values of a patch are about 1
    return np.allclose(stored.astype(np.float32), expected, rtol=1e-3, atol=least)
