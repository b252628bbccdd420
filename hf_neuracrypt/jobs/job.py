"""A job, and the units it is cut into, which follow from the data, never from the number of workers.

A unit is a run of rows of a dataset (one shard), or one source shard of a stream (several, one after the other, in one
pass).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from hf_neuracrypt.data.dataset import Plan, Split
from hf_neuracrypt.data.manifest import TRAIN, UNFINISHED
from hf_neuracrypt.errors import DatasetError


SHARD_BYTES = 500_000_000
# A record batch of an Arrow file holds what was encrypted at once: part of the bytes, so not a user's choice.
BATCH_SIZE = 64


@dataclass(frozen=True)
class Job:
    """What is to be encrypted, and where to.

    Args:
        splits: plain images by split; a stream is read once, from its start, and never held.
        plan: from `dataset.make_plan`.
        output: a new or empty folder, or an unfinished one of the same job.
        shard_bytes: about how large a shard becomes.
        max_bad_fraction: the share of rows that may be left out because they cannot be encrypted; 0: the first of them
            stops the job.
        views: rows of each image in the split `train`, one after the other: itself, then moved versions of it.
        flip: half of those are mirrored.
        dicom: how rows were made of DICOM files, for the manifest; see `manifest.dicom_of`.
        send: takes a finished shard elsewhere, given its file and its name in the folder; what it returns becomes part
            of the shard's note. Then `output` gets neither shards nor notes, but the rest.

    Raises:
        DatasetError: there is no split `train` to have views of, or nothing to flip.
    """

    splits: dict[str, Split]
    plan: Plan
    output: Path
    shard_bytes: int = SHARD_BYTES
    max_bad_fraction: float = 0.0
    views: int = 1
    flip: bool = False
    dicom: Mapping[str, bool] = field(default_factory=dict)
    send: Callable[[Path, str], Any] | None = None

    def __post_init__(self) -> None:
        if self.views > 1 and TRAIN not in self.splits:
            raise DatasetError(f"--views are of the split {TRAIN!r}; the splits are {', '.join(self.splits)}")
        if self.flip and self.views == 1:
            raise DatasetError("--flip mirrors some of the --views of an image: give --views 2 or more")

    @property
    def shard_rows(self) -> int:
        """Images of a shard: whole record batches of about `shard_bytes`."""
        row_bytes = self.plan.encoder.stored.row_bytes * self.views
        return max(1, self.shard_bytes // row_bytes // BATCH_SIZE) * BATCH_SIZE

    def views_of(self, split: str) -> int:
        return self.views if split == TRAIN else 1

    @property
    def notes(self) -> Path:
        """The folder for what a finished shard leaves."""
        return self.output / UNFINISHED / "notes"

    def source_of(self, split: str) -> str:
        """The public fingerprint of a split's source under this plan."""
        return self.plan.fingerprint(self.plan.origins[split])

    @cached_property
    def orders(self) -> dict[str, Sequence[int]]:
        """The rows of each split that is no stream, in the order in which they are stored."""
        tables = {name: split for name, split in self.splits.items() if isinstance(split, Dataset)}
        return {name: self.plan.order(name, len(split)) for name, split in tables.items()}

    def identity(self) -> dict:
        """What must be the same for a job to be continued, by the names an error calls it by."""
        record = self.plan.record
        return {
            "key": record.key_id,
            "config": record.config.to_dict(),
            "labels": [record.sealed_labels is not None, str(self.plan.features)],
            "source": {name: self.source_of(name) for name in self.splits},
            "rows": {name: len(each) if isinstance(each, Dataset) else None for name, each in self.splits.items()},
            "shard size": self.shard_rows,
            "views": [self.views, self.flip],
        }


@dataclass(frozen=True)
class Unit:
    """What one worker does at a time: as many `rows` of a dataset, or source shard `index` of a stream."""

    split: str
    index: int
    rows: int | None = None

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}"

    def file(self, part: int) -> str:
        name = f"data-{self.index:05d}" if self.rows is not None else f"data-{self.index:05d}-{part:05d}"
        return f"{self.split}/{name}.arrow"


def units_of(job: Job) -> list[Unit]:
    """All units of a job, in the order of the data; an empty split is one empty unit."""
    units = []
    for name, split in job.splits.items():
        if isinstance(split, IterableDataset):
            units += [Unit(name, index) for index in range(split.num_shards)]
        else:
            starts = range(0, max(1, len(split)), job.shard_rows)
            units += [Unit(name, i, min(job.shard_rows, len(split) - start)) for i, start in enumerate(starts)]
    return units


def rows_of(units: Iterable[Unit]) -> int | None:
    """Of the source, in all; None: of a stream it is not known."""
    rows = [unit.rows for unit in units]
    return None if None in rows else sum(count or 0 for count in rows)
