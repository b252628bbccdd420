"""`encrypt_dataset`: the `datasets.map` step from plain images to encrypted ones, and the public record beside it.

Notable decisions
- Columns are an allow-list: `image`, `label`, and what the caller names. Nothing else of the source survives: no file
  name, no path (`{"bytes": …, "path": None}`), no builder info.
- The fingerprint is given, not computed: sha256(source fingerprint, config, key id, options). Hashing the function
  would put the key into it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, IterableDataset, IterableDatasetDict

from hf_neuracrypt.data.batches import encrypt_rows
from hf_neuracrypt.data.columns import Columns, Labels, find_columns, label_names
from hf_neuracrypt.data.record import Record, records_of
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import DatasetError, ImageError


# Rows of 150 kB: the writer's default of 1,000 rows would hold 150 MB.
WRITER_BATCH_SIZE = 100
Split = Dataset | IterableDataset
AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)


class EncryptRows:
    """The function given to `datasets.map(batched=True, with_indices=True)`; picklable if the key came from a file.

    Args:
        encoder, columns, labels: see `Plan`.
        first_row: the row of the split that index 0 stands for.
        rejected: takes the rows that cannot be encrypted, which are then left out; None: the first of them is an error.
        progress: told how many rows each batch had.
        views: rows stored for each image, one after the other: itself, then `make_views` of it.
        flip: see `make_views`.
    """

    def __init__(
        self,
        encoder: Encoder,
        columns: Columns,
        labels: Labels,
        first_row: int = 0,
        rejected: list[dict] | None = None,
        progress: Callable[[int], object] | None = None,
        views: int = 1,
        flip: bool = False,
    ):
        self.encoder, self.columns, self.labels, self.first_row = encoder, columns, labels, first_row
        self.rejected, self.progress, self.views, self.flip = rejected, progress, views, flip

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        names = ("image", *(["label"] if self.columns.label else []), *self.columns.kept)
        rows: dict[str, list] = {name: [] for name in names}
        images = encrypt_rows(self.encoder, batch[self.columns.image], self.views, self.flip)
        for position, (index, stored) in enumerate(zip(indices, images)):
            try:
                if isinstance(stored, ImageError):
                    raise stored
                row = {name: batch[name][position] for name in self.columns.kept}
                if self.columns.label is not None:
                    row["label"] = self.labels.encode(batch[self.columns.label][position])
            except (ImageError, DatasetError) as error:
                # The row, never the path: a path may hold a person's name, and this line may end in a log.
                if self.rejected is None:
                    raise DatasetError(f"row {self.first_row + index} cannot be encrypted: {error}") from None
                self.rejected.append({"row": self.first_row + index, "reason": str(error)})
                continue
            rows["image"] += stored
            for name, value in row.items():
                rows[name] += [value] * self.views
        if self.progress:
            self.progress(len(indices))
        return rows


class EncryptTransform:
    """Encrypts the images of a dataset whenever rows are read, for owners who train on their own machine.

    Each image becomes what `encrypt_dataset` would store of it, and whatever happens to the plain image before (a crop,
    a flip) happens anew each time, which a stored ciphertext cannot have. The other columns are passed on as they are.
    It is picklable, for the workers of a DataLoader, if the key came from a file; what goes is the file's path.

    Args:
        encoder: from `load_encoder`.
        image_column: default: the first of `image`, `img`, `pixel_values` that is there.

    Raises:
        DatasetError: there is no such column.
        ImageError: an image cannot be used; it is named by its place in the batch.

    Example:
        >>> encrypt = EncryptTransform(load_encoder(EncoderConfig(), SecretKey.load("hospital.key")))
        >>> encrypted = load_dataset("photos/", split="train").with_transform(encrypt)
        >>> encrypted[0]["image"]  # a PIL image; from a scheme with a patch representation, float32 (N, width)
        >>> varied = load_dataset("photos/", split="train").with_transform(lambda batch: encrypt(augment(batch)))
    """

    def __init__(self, encoder: Encoder, image_column: str | None = None):
        self.encoder, self.image_column = encoder, image_column

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        column, shown = find_columns(batch, self.image_column, None).image, []
        for place, stored in enumerate(encrypt_rows(self.encoder, batch[column])):
            if isinstance(stored, ImageError):
                raise ImageError(f"image {place} of the batch cannot be encrypted: {stored}")
            shown.append(self.encoder.stored.shown(stored[0]))
        return {**batch, column: shown}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first image is touched; the same for all splits."""

    encoder: Encoder
    columns: Columns
    labels: Labels
    features: Features

    @property
    def record(self) -> Record:
        """What will be public about the encryption."""
        return Record(self.encoder.config, self.encoder.key.id, self.labels.sealed)

    def fingerprint(self, source: str) -> str:
        """That of the encrypted split, given the source's; the key is not in it."""
        parts = (source, self.record.to_json(), repr(self.columns), repr(self.features))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def source(self, split: Split) -> Split:
        """The split as `rows()` reads it: the planned columns only, images not decoded."""
        names = [name for name in (self.columns.image, self.columns.label, *self.columns.kept) if name]
        source = split.with_format(None).select_columns(names)
        if split.features is not None and isinstance(split.features[self.columns.image], Image):
            source = source.cast_column(self.columns.image, Image(decode=False))
        return source

    def rows(self, **options: Any) -> EncryptRows:
        """The function that encrypts rows of `source()`."""
        return EncryptRows(self.encoder, self.columns, self.labels, **options)

    def apply(self, split: Split, function: EncryptRows | None = None, **options: Any) -> Split:
        """`split.map(...)`; `options` go to `map`."""
        source, lazy = self.source(split), isinstance(split, IterableDataset)
        encrypted = source.map(
            function or self.rows(), batched=True, with_indices=True, remove_columns=source.column_names,
            features=None if lazy else self.features, **options,
        )  # fmt: skip
        if lazy:  # a stream decodes images that a cast declares, not those that `map` declares
            encrypted = encrypted.cast(self.features)
        _replace_info(encrypted.info, DatasetInfo(description=self.record.to_json(), features=self.features))
        return encrypted


def make_plan(
    splits: Mapping[str, Split],
    encoder: Encoder,
    image_column: str | None = None,
    label_column: str | None = None,
    keep_columns: Sequence[str] = (),
    hide_labels: bool = False,
) -> Plan:
    """Look at all splits and decide; see `encrypt_dataset` for the arguments and errors."""
    if not splits or all(isinstance(split, Dataset) and len(split) == 0 for split in splits.values()):
        raise DatasetError("the dataset is empty")
    for name, split in splits.items():
        if records_of(split):
            key_id = records_of(split)[0].key_id
            raise DatasetError(f"split {name} is already encrypted (key {key_id}): encrypt the plain images instead")
    features = {name: split.features or _peek(split) for name, split in splits.items()}
    first = next(iter(features.values()))
    columns = find_columns(first, image_column, label_column, keep_columns)
    for name, other in features.items():
        if find_columns(other, image_column, label_column, keep_columns) != columns:
            raise DatasetError(f"split {name} has other columns than the first one")
        if columns.label and other[columns.label] != first[columns.label]:
            raise DatasetError(f"the labels of split {name} are not those of the first one: {other[columns.label]}")
    if hide_labels and columns.label is None:
        raise DatasetError("there is no label column to hide")
    names = label_names(splits, first, columns.label)
    labels = Labels(names, hide_labels, encoder.key)
    stored = {"image": encoder.stored.feature} | ({"label": labels.feature} if columns.label else {})
    return Plan(encoder, columns, labels, Features(stored | {name: first[name] for name in columns.kept}))


def encrypt_dataset(
    dataset: AnyDataset,
    encoder: Encoder,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    keep_columns: Sequence[str] = (),
    hide_labels: bool = False,
    batch_size: int = 64,
    num_proc: int | None = None,
) -> AnyDataset:
    """Encrypt the images of a dataset.

    Args:
        dataset: plain images; a dict of splits gives a dict of splits, an iterable dataset stays lazy.
        encoder: from `load_encoder`.
        image_column: default: the first of `image`, `img`, `pixel_values` that is there.
        label_column: default: the first of `label`, `labels`, `fine_label` that is there; a dataset may have none.
        keep_columns: further columns to store, in clear.
        hide_labels: neutral class names under a keyed permutation; the true names travel sealed by the key.
        batch_size: rows encrypted at a time; no effect on the result.
        num_proc: worker processes (spawned; each reads the key file itself). Not for iterable datasets.

    Returns:
        The same kind of dataset with the columns `image` (uint8 RGB PNG), `label`, and the kept ones.

    Raises:
        DatasetError: no such column, an unusable label or image (naming the row), an empty or encrypted dataset.
    """
    splits = dict(dataset) if isinstance(dataset, dict) else {"dataset": dataset}
    plan = make_plan(splits, encoder, image_column, label_column, keep_columns, hide_labels)
    encrypted = {}
    for name, split in splits.items():
        options: dict = {"batch_size": batch_size}
        if isinstance(split, Dataset):
            options |= {"new_fingerprint": plan.fingerprint(split._fingerprint), "desc": f"Encrypting {name}"}
            options |= {"writer_batch_size": WRITER_BATCH_SIZE, "num_proc": num_proc}
        if num_proc is not None:
            use_spawn()
        encrypted[name] = plan.apply(split, **options)
    return type(dataset)(encrypted) if isinstance(dataset, dict) else encrypted["dataset"]


def use_spawn() -> None:
    """Let `datasets` spawn its workers: forked ones deadlock once the parent has used torch."""
    import multiprocess  # the fork of multiprocessing that `datasets` uses

    multiprocess.set_start_method("spawn", force=True)


def _peek(split: IterableDataset) -> Features:
    row = next(iter(split), None)
    if row is None:
        raise DatasetError("the dataset is empty")
    return Features(dict.fromkeys(row))


def _replace_info(info: DatasetInfo, new: DatasetInfo) -> None:
    """Nothing of the source's info goes on: its checksums and names hold paths of the owner's machine."""
    for field in dataclasses.fields(DatasetInfo):
        setattr(info, field.name, getattr(new, field.name))
