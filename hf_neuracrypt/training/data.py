"""What `Trainer` needs to learn from encrypted images: datasets with their records, a collator.

Nothing here holds a key. Ciphertext is never resized, cropped, flipped or normalised per image: the collator only maps
grey levels to [-1, 1], which is what the stock `ViTImageProcessor` saved beside the model does.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Image, concatenate_datasets
from datasets.features.features import require_decoding

from hf_neuracrypt.data.columns import Columns, LabelColumns, find_columns
from hf_neuracrypt.data.manifest import TRAIN, views_of
from hf_neuracrypt.data.record import Record, records_of
from hf_neuracrypt.data.sources import load_source, stored_manifest
from hf_neuracrypt.data.targets import Target, find_target, read_labels
from hf_neuracrypt.encoders.stored import stored_as
from hf_neuracrypt.errors import DatasetError, KeyMismatchError
from hf_neuracrypt.images import prepare
from hf_neuracrypt.schemes import PEConfig


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Splits to learn from.

    Args:
        data: their rows.
        columns: which of their columns are image and label.
        records: of their encryption; none: plain images.
        images: int64 (rows of the split `train`,): the image of each row, non-decreasing; views of one image share it.
        target: what is to be learned; None: there are no labels.
    """

    data: DatasetDict
    columns: Columns
    records: list[Record]
    images: np.ndarray
    target: Target | None

    @property
    def to_learn(self) -> Target:
        """The target, its names known. Raises DatasetError when there is nothing to learn."""
        if self.target is None:
            found = ", ".join((self.columns.image, *self.columns.others))
            raise DatasetError(
                f"there are no labels to learn (the columns are {found}): encrypt again with them, without --no-labels"
            )
        return self.target

    @property
    def label_names(self) -> list[str]:
        """Names in the order of their ids. Raises DatasetError when there is nothing to learn."""
        return list(self.to_learn.names or ())

    def labelled(self, name: str) -> Dataset:
        """The rows of a split that have a label. Raises DatasetError for one that is out of range, naming the row."""
        split, target = self.data[name], self.to_learn
        known = [target.is_known(label) for label in read_labels(split, self.columns, target)]
        if (lacking := len(split) - sum(known)) == 0:
            return split
        log.info("%d of %d rows of the split %s have no label that is known: left out", lacking, len(split), name)
        return split.select(np.flatnonzero(known))


def load_splits(
    names: str | Sequence[str], plain: bool = False, image_column: str | None = None, label_column: LabelColumns = None
) -> Splits:
    """Load a dataset for training or evaluation.

    Args:
        names: folder or Hub id; several owners' datasets are put together, split by split.
        plain: the images are meant to be plain (a baseline); without it, a plain dataset is refused.
        image_column: default: guessed.
        label_column: one, or several that make a label together; default: guessed.

    Raises:
        DatasetError: not found, unfinished, plain although `plain` is off or the other way round, or several that do
            not fit together.
        HubError: it is on the Hub and cannot be read.
    """
    names = [names] if isinstance(names, str) else list(names)
    loaded, records, images = [], [], np.empty(0, np.int64)
    for name in names:
        data, found, views = _load_one(name)
        if not found and not plain:
            raise DatasetError(f"{name} is not encrypted: encrypt it first, or give --plain to train on plain images")
        if found and plain:
            raise DatasetError(f"{name} is encrypted (key {found[0].key_id}): leave --plain out")
        loaded.append(data)
        records += [record for record in found if record not in records]
        rows = np.arange(len(data[TRAIN]) if TRAIN in data else 0)
        images = np.append(images, rows // views + (images[-1] + 1 if len(images) else 0))
    data = loaded[0] if len(loaded) == 1 else _together(loaded, names)
    everything = {name: feature for split in reversed(list(data.values())) for name, feature in split.features.items()}
    columns = find_columns(everything, image_column, label_column)
    return Splits(data, columns, records, images, _target(data, columns))


def _target(data: DatasetDict, columns: Columns) -> Target | None:
    """What is to be learned; classes without names are called by their numbers."""
    target = find_target(data, {name: split.features for name, split in data.items()}, columns)
    if target is None or target.names is not None:
        return target
    labels = itertools.chain(*(read_labels(split, columns, target) for split in data.values()))
    return replace(target, names=tuple(map(str, range(int(max(labels, default=-1)) + 1))))


def hold_out(splits: Splits, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """The split `train`, or the only one there is, in two: to learn from, and to evaluate on.

    Views of an image stay on one side; of those held out, only the image itself is evaluated. Rows without a label are
    on neither.
    """
    name = TRAIN if TRAIN in splits.data else next(iter(splits.data))
    split, target = splits.data[name], splits.to_learn
    images = splits.images if name == TRAIN else np.arange(len(split))
    labels = read_labels(split, splits.columns, target)
    known = np.fromiter((target.is_known(label) for label in labels), bool, len(split))
    generator, count = np.random.default_rng(seed), int(images[-1]) + 1
    held = np.isin(images, generator.permutation(count)[: max(1, round(share * count))])
    first = np.diff(images, prepend=-1) > 0
    chosen = (~held & known, held & first & known)
    kept, evaluated = (generator.permutation(np.flatnonzero(rows)) for rows in chosen)
    return split.select(kept), split.select(evaluated)


def choose_splits(
    splits: Splits, share: float, seed: int, max_train: int | None = None, max_eval: int | None = None
) -> tuple[Dataset, Dataset]:
    """The training split, and one to evaluate on: validation, else test, else a part of the training split.

    Rows without a label are left out, and with them the test splits that have none.

    Args:
        splits: from `load_splits`.
        share: of the images that is held out, if there is no other split.
        seed: of that choice.
        max_train, max_eval: only so many rows, chosen by the seed: a folder of images has them class by class.

    Returns:
        Both with their images left as they are stored, for `Collator`.

    Raises:
        DatasetError: no row is left in one of them.
    """
    name = TRAIN if TRAIN in splits.data else next(iter(splits.data))
    others = (
        splits.labelled(other) for other in ("validation", "val", "test") if other in splits.data and other != name
    )
    held_out = next((other for other in others if len(other)), None)
    train, held_out = hold_out(splits, share, seed) if held_out is None else (splits.labelled(name), held_out)
    if not (len(train) and len(held_out)):
        raise DatasetError(f"too few rows of the split {name} have a label to learn from and to evaluate on")
    train, held_out = sample(train, max_train, seed), sample(held_out, max_eval, seed)
    return undecoded(train, splits.columns), undecoded(held_out, splits.columns)


def sample(split: Dataset, limit: int | None, seed: int) -> Dataset:
    """At most `limit` rows, chosen by `seed`, in the order of the split."""
    if not limit or limit >= len(split):
        return split
    return split.select(np.sort(np.random.default_rng(seed).permutation(len(split))[:limit]))


def _load_one(name: str) -> tuple[DatasetDict, list[Record], int]:
    """A dataset, its records, which the data carries, or else the manifest beside it, and its views of an image."""
    manifest = stored_manifest(name)
    stored = Record.from_dict(manifest) if manifest else None
    data = load_source(name)
    records = records_of(data) or ([stored] if stored else [])
    if stored is not None and stored not in records:
        raise DatasetError(
            f"{name} contradicts itself: its data was encrypted with {records[0].key_id}, its neuracrypt.json says "
            f"{stored.key_id}, or another config"
        )
    return data, records, views_of(manifest, TRAIN)


def _together(loaded: list[DatasetDict], names: list[str]) -> DatasetDict:
    splits: dict[str, list[Dataset]] = {}
    for name, data in zip(names, loaded, strict=True):
        for split, rows in data.items():
            first = splits.setdefault(split, [rows])
            if first[0].features != rows.features:
                raise DatasetError(
                    f"{name} and {names[0]} cannot be put together: split {split} has {rows.features}, "
                    f"not {first[0].features}"
                )
            if first[-1] is not rows:
                first.append(rows)
    return DatasetDict({split: concatenate_datasets(rows) for split, rows in splits.items()})


def checked_records(splits: Splits, allow_mixed_keys: bool = False) -> list[Record]:
    """The records of encrypted splits, none for plain ones.

    Raises:
        KeyMismatchError: a mix of keys or configs that was not asked for, or one that no model can learn from.
    """
    records = splits.records
    if len(records) > 1:
        ids = ", ".join(record.key_id for record in records)
        if not allow_mixed_keys:
            raise KeyMismatchError(
                f"the dataset mixes images of several keys or configs: {ids} (--allow_mixed_keys, if that is meant)"
            )
        if len({record.config for record in records}) > 1:
            raise KeyMismatchError(f"the images of {ids} were encrypted with different configs: no model takes both")
        if any(record.sealed_labels for record in records):
            raise KeyMismatchError(
                f"class names of {ids} are hidden, each in another order: labels do not fit together"
            )
    return records


def reader(records: Sequence[Record], size: int) -> Callable[[Sequence[Any]], torch.Tensor]:
    """For `Collator`: ciphertexts of `records` as a model is given them; without any, plain images at `size` pixels."""
    return stored_as(records[0].config).pixel_values if records else partial(_plain_pixel_values, size=size)


def _plain_pixel_values(images: Sequence[object], size: int) -> torch.Tensor:
    """Plain images, brought to `size` exactly as `encrypt` does before it encrypts."""
    config = PEConfig(image_size=size)  # of a scheme that takes any size
    return torch.from_numpy(np.stack([prepare(image, config) for image in images])).float().div_(127.5).sub_(1)


class Collator:
    """Rows of a dataset -> {"pixel_values": float32 (B, 3, S, S) in [-1, 1], "labels": int64 (B,)}.

    From a scheme with a patch representation, "pixel_values" are float32 patches (B, N, D); "labels" that are no
    classes are float32 (B, names), NaN where they are unknown.

    Args:
        columns: where image and label are.
        read: from `reader`.
        target: what labels are; None: the numbers of classes, as they stand there.
    """

    def __init__(self, columns: Columns, read: Callable[[Sequence[Any]], torch.Tensor], target: Target | None = None):
        self.columns, self.read, self.target = columns, read, target

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = {"pixel_values": self.read([row[self.columns.image] for row in rows])}
        labels = [self.columns.value(row) for row in rows] if self.columns.labels else []
        if self.target is not None:
            labels = [self.target.read(label) for label in labels]
        if labels:
            kind = torch.float32 if isinstance(labels[0], np.ndarray) else torch.int64
            batch["labels"] = torch.tensor(np.array(labels), dtype=kind)
        return batch


def undecoded(split: Dataset, columns: Columns) -> Dataset:
    """The image and label of each row as they are stored, for `Collator` to decode in the loader's workers.

    `datasets` would decode whatever else is in a row, too: open files of this machine and addresses that a stranger's
    dataset names.

    Raises:
        DatasetError: it would still decode something: a list of images, say.
    """
    split = split.select_columns([columns.image, *columns.labels])
    if isinstance(split.features[columns.image], Image):
        split = split.cast_column(columns.image, Image(decode=False))
    for name, feature in split.features.items():
        if require_decoding(feature):
            raise DatasetError(f"column {name!r} holds {feature}, not one image a row")
    return split
