"""`encrypt_dataset`: the `datasets.map` step from plain images to encrypted ones, and the public record beside it.

Notable decisions
- Columns are an allow-list: `image`, `label`, and what the caller names. Nothing else of the source survives: no file
  name, no path (`{"bytes": …, "path": None}`), no builder info.
- The fingerprint is given, not computed: sha256(source fingerprint, config, key id, options). Hashing the function
  would put the key into it.
"""

import dataclasses
import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias, TypeVar

import numpy as np
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, IterableDataset, IterableDatasetDict

from hf_neuracrypt.data.batches import encrypt_rows
from hf_neuracrypt.data.columns import Columns, LabelColumns, array_dtype, check_splits, common_columns, features_of
from hf_neuracrypt.data.labels import Labels, is_by_class
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.data.targets import find_target, splits_without
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import DatasetError, ImageError
from hf_neuracrypt.images import as_array
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import check_floor


# Rows of 150 kB: the writer's default of 1,000 rows would hold 150 MB.
WRITER_BATCH_SIZE = 100
Split: TypeAlias = Dataset | IterableDataset
AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)


class EncryptRows:
    """The function given to `datasets.map(batched=True, with_indices=True)`; picklable if the key came from a file.

    Args:
        encoder, columns, labels: see `Plan`.
        without: the rows are of a split without labels.
        rows: numbers of the source's rows that are read, in their order; None: all of them.
        rejected: takes the rows that cannot be encrypted, which are then left out; None: the first of them is an error.
        views: rows stored for each image, one after the other: itself, then `make_views` of it.
        flip: see `make_views`.
        dtype: of image arrays, which come as lists; see `array_dtype`.
        stop: the text of the error, with the row's number and the reason put in.
    """

    def __init__(
        self,
        encoder: Encoder,
        columns: Columns,
        labels: Labels | None,
        without: bool = False,
        rows: Sequence[int] | None = None,
        rejected: list[dict] | None = None,
        views: int = 1,
        flip: bool = False,
        dtype: str | None = None,
        stop: str = "row {} cannot be encrypted: {}",
    ):
        self.dtype, self.stop = dtype, stop
        self.encoder, self.columns, self.labels, self.without, self.rows = encoder, columns, labels, without, rows
        self.rejected, self.views, self.flip = rejected, views, flip

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows: dict[str, list] = {"image": []} | ({"label": []} if self.labels else {})
        rows |= {name: [] for name in self.columns.kept}
        sources = [as_array(source, self.dtype) for source in batch[self.columns.image]]
        images = encrypt_rows(self.encoder, sources, self.views, self.flip)
        for position, (index, stored) in enumerate(zip(indices, images)):
            try:
                if isinstance(stored, ImageError):
                    raise stored
                source = {name: column[position] for name, column in batch.items()}
                row = {name: source[name] for name in self.columns.kept}
                if self.labels is not None:
                    row["label"] = self.labels.encode(self.columns.value(source), self.without)
            except (ImageError, DatasetError) as error:
                # The row, never the path: a path may hold a person's name, and this line may end in a log.
                number = index if self.rows is None else int(self.rows[index])
                if self.rejected is None:
                    raise DatasetError(self.stop.format(number, error)) from None
                self.rejected.append({"row": number, "reason": str(error)})
                continue
            rows["image"] += stored
            for name, value in row.items():
                rows[name] += [value] * self.views
        return rows


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first image is touched; the same for all splits.

    Args:
        encoder: with the key.
        columns: that are read.
        labels: how they are stored; None: there are none.
        without: the splits without labels, beside others that have some.
        lacking: those of them that have no label column, either.
        features: of the encrypted dataset.
        origins: what tells each split from any other data.
        keyed_order: whether rows are stored in an order that the key gives. That of the source would tell hidden labels
            apart, and show where one class ends and the next begins.
        dtype: of image arrays; see `array_dtype`.
    """

    encoder: Encoder
    columns: Columns
    labels: Labels | None
    without: frozenset[str]
    lacking: frozenset[str]
    features: Features
    origins: dict[str, str]
    keyed_order: bool
    dtype: str | None = None

    @property
    def record(self) -> Record:
        """What will be public about the encryption."""
        return Record(self.encoder.config, self.encoder.key.id, self.labels.sealed if self.labels else None)

    def fingerprint(self, origin: str) -> str:
        """That of what is made of some data under this plan. It is public, and keyed: it must not confirm a guess which
        dataset the source is."""
        parts = (origin, self.record.to_json(), repr(self.columns), repr(self.features))
        return keyed_tag(self.encoder.key, "\n".join(parts), "source")

    def order(self, split: str, count: int) -> Sequence[int]:
        """The source's rows of a split in the order in which they are stored."""
        if not self.keyed_order:
            return range(count)
        return keyed_order(self.encoder.key, self.fingerprint(self.origins[split]), count)

    def source(self, name: str, split: Split) -> Split:
        """The split of that name as `rows()` reads it: the planned columns only, images not decoded."""
        labels = () if name in self.lacking else self.columns.labels
        names = [self.columns.image, *labels, *self.columns.kept]
        source = split.with_format(None).select_columns(names)
        if split.features is not None and isinstance(split.features[self.columns.image], Image):
            source = source.cast_column(self.columns.image, Image(decode=False))
        return source

    def rows(self, name: str, **options: Any) -> EncryptRows:
        """The function that encrypts rows of `source()` of the split `name`."""
        without = name in self.without
        return EncryptRows(self.encoder, self.columns, self.labels, without, dtype=self.dtype, **options)

    def apply(self, name: str, split: Split, function: EncryptRows, **options: Any) -> Split:
        """`split.map(...)` of the split `name`; `options` go to `map`."""
        source, lazy = self.source(name, split), isinstance(split, IterableDataset)
        encrypted = source.map(
            function, batched=True, with_indices=True, remove_columns=source.column_names,
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
    label_column: LabelColumns = None,
    keep_columns: Sequence[str] = (),
    hide_labels: bool = False,
    origin: str = "",
) -> Plan:
    """Look at all splits and decide; see `encrypt_dataset` for the arguments and errors.

    `origin` tells streams apart, which have no fingerprint of their own: `sources.identity`.
    """
    if not splits or all(isinstance(split, Dataset) and len(split) == 0 for split in splits.values()):
        raise DatasetError("the dataset is empty")
    check_floor(encoder.config)
    check_splits(splits)
    found = {name: features_of(name, split) for name, split in splits.items()}
    first = next(iter(found.values()))
    columns = common_columns(found, image_column, label_column, keep_columns)
    if hide_labels and not columns.labels:
        raise DatasetError("there is no label column to hide: name it with --label-column")
    if hide_labels and not all(isinstance(split, Dataset) for split in splits.values()):
        raise DatasetError(
            "hidden labels need rows in a keyed order, which a stream cannot have: give --no-streaming (datasets then "
            "keeps a plain copy in its cache), or leave --hide-labels out"
        )
    origins = {
        name: split._fingerprint if isinstance(split, Dataset) else f"{origin} {name} {split.num_shards}"
        for name, split in splits.items()
    }
    target, labels, without = find_target(splits, found, columns), None, frozenset[str]()
    if target is not None:
        without = splits_without(splits, found, columns, target)
        labels = Labels(target, hide_labels, encoder.key, keyed_tag(encoder.key, json.dumps(origins), "labels"))
    lacking = frozenset(name for name, features in found.items() if set(columns.labels) - set(features))
    keyed = hide_labels or any(is_by_class(split, columns) for split in splits.values())
    stored = {"image": encoder.stored.feature} | ({"label": labels.feature} if labels else {})
    features = Features(stored | {name: first[name] for name in columns.kept})
    dtype = array_dtype(first[columns.image])
    return Plan(encoder, columns, labels, without, lacking, features, origins, keyed, dtype)


def encrypt_dataset(
    dataset: AnyDataset,
    encoder: Encoder,
    *,
    image_column: str | None = None,
    label_column: LabelColumns = None,
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
            Several make one label together (0, 1 and empty, or numbers); an empty list: store no labels.
        keep_columns: further columns to store, in clear.
        hide_labels: neutral class names under a keyed permutation; the true names travel sealed by the key.
        batch_size: rows encrypted at a time; no effect on the result.
        num_proc: worker processes (spawned; each reads the key file itself). Not for iterable datasets.

    Returns:
        The same kind of dataset with the columns `image` (uint8 RGB PNG), `label`, and the kept ones. What types a
        label may have, and how it is stored, is in this folder's README.md.

    Raises:
        DatasetError: no such column, an unusable label or image (naming the row), a transform that would be left out,
            an empty or encrypted dataset.
    """
    splits = dict(dataset) if isinstance(dataset, dict) else {"dataset": dataset}
    plan = make_plan(splits, encoder, image_column, label_column, keep_columns, hide_labels)
    encrypted = {}
    for name, split in splits.items():
        options: dict[str, Any] = {"batch_size": batch_size}
        rows = None
        if isinstance(split, Dataset):
            rows = plan.order(name, len(split))
            options |= {"desc": f"Encrypting {name}", "new_fingerprint": plan.fingerprint(plan.origins[name])}
            split = in_order(split, rows)
            options |= {"writer_batch_size": WRITER_BATCH_SIZE, "num_proc": num_proc}
        with spawned_workers() if num_proc is not None else nullcontext():
            encrypted[name] = plan.apply(name, split, plan.rows(name, rows=rows), **options)
    return type(dataset)(encrypted) if isinstance(dataset, dict) else encrypted["dataset"]


def in_order(split: Dataset, rows: Sequence[int]) -> Dataset:
    """These rows of a split."""
    return split.select(rows, new_fingerprint="rows")  # or `datasets` would hash them all


def keyed_order(key: SecretKey, public: str, count: int) -> Sequence[int]:
    """An order of range(count), int64, that the key gives: of keyed 64-bit numbers, by their size."""
    numbers = key.integers(public, "rows", (count, 8)).view("<i8")[:, 0]
    return np.argsort(numbers, kind="stable")  # type: ignore[return-value]  # an array is used as a sequence


def keyed_tag(key: SecretKey, text: str, purpose: str) -> str:
    """32 digits that only the key's holder can compute of a text."""
    return key.integers(text, purpose, (16,)).tobytes().hex()


@contextmanager
def spawned_workers() -> Iterator[None]:
    """Let `datasets` spawn its workers: forked ones deadlock once the parent has used torch.

    They need nothing of the caller's main module, and would run a script that has no main guard: it is out of sight.
    """
    import multiprocess  # the fork of multiprocessing that `datasets` uses

    method, main = multiprocess.get_start_method(allow_none=True), sys.modules["__main__"]
    multiprocess.set_start_method("spawn", force=True)
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        multiprocess.set_start_method(method, force=True)


def _replace_info(info: DatasetInfo, new: DatasetInfo) -> None:
    """Nothing of the source's info goes on: its checksums and names hold paths of the owner's machine."""
    for field in dataclasses.fields(DatasetInfo):
        setattr(info, field.name, getattr(new, field.name))
