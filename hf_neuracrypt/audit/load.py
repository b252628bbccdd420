"""Pairs from where they lie: of a finished encrypted folder and its source, or made of plain images with the key."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, IterableDataset, load_from_disk
from tqdm.auto import tqdm

from hf_neuracrypt.audit.pairs import Pairs
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
    rejected, dicom = _rejected(folder), dicom_of(manifest)
    splits, streaming = _open(source, dicom["all_frames"], encoder.key if dicom["by_patient"] else None)
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
    splits, streaming = _open(source)
    name = "train" if "train" in splits else next(iter(splits))
    if (total := count if streaming else len(splits[name])) < count:
        raise DatasetError(f"the split {name} of {source} has {total:,} images, {count:,} are needed")
    numbers = np.random.default_rng(seed).permutation(total)[:count].tolist()
    plain = np.stack(_plain(splits[name], numbers, encoder.config, image_column, f"the split {name} of {source}"))
    return Pairs(encoder.config, plain, encrypt_all(encoder.encrypt_in_place, plain))


def _open(
    source: str, all_frames: bool = False, patients: SecretKey | None = None
) -> tuple[dict[str, Dataset | IterableDataset], bool]:
    """The splits of a plain dataset, and whether they are streamed."""
    files = files_of(source)
    streaming = is_table(source, files)
    with quiet_datasets():
        return dict(load_source(source, streaming, files, all_frames, patients)), streaming


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
