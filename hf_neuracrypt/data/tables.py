"""A folder of tables or archives (Parquet, CSV, JSON, Arrow, WebDataset) -> its splits, by the names of its files.

`datasets` is told which files are of which split: guessing by itself, it leaves out those whose names look like no
split when others do.
"""

import glob
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import datasets
from datasets import DatasetDict, IterableDatasetDict

from hf_neuracrypt.data.files import SPLITS, TABLES, Files, builder_of, show, split_of
from hf_neuracrypt.errors import DatasetError


def load_tables(
    root: Path, splits: Mapping[str, Sequence[PurePath]], streaming: bool
) -> DatasetDict | IterableDatasetDict:
    """Splits of files of one kind below `root`. Raises DatasetError for a kind that is not read."""
    first = next((file for files in splits.values() for file in files), None)
    builder = first and builder_of(first)
    if first is None or builder is None:
        what = f"{root} holds no image and no table"
        if first is not None:
            what = f"{root / first} is a file of type {first.suffix or '(none)'}"
        raise DatasetError(
            f"{what}; read are folders of images, and {', '.join(TABLES)}: unpack other archives, save other tables as "
            "one of these"
        )
    found = {split: [glob.escape(str(root.absolute() / file)) for file in files] for split, files in splits.items()}
    return datasets.load_dataset(builder, data_files=found, streaming=streaming)


def load_address(address: str) -> IterableDatasetDict:
    """A stream of files in a bucket, * standing for parts of their names. Raises DatasetError."""
    builder = builder_of(PurePath(address))
    if builder is None:
        raise DatasetError(f"{address} is no file of a known kind: {', '.join(TABLES)}, or an encrypted dataset")
    return datasets.load_dataset(builder, data_files={"train": address}, streaming=True)


def has_card(root: Path) -> bool:
    """Whether a README, as a dataset on the Hub has it, says what the splits are."""
    card = root / "README.md"
    return card.is_file() and bool(
        re.search(r"^(configs|dataset_info):", card.read_text(errors="replace"), re.MULTILINE)
    )


def main_tables(files: Files) -> list[PurePath]:
    """The files of the kind that most are of."""
    kinds = Counter(kind for file in files.tables if (kind := builder_of(file)))
    most = kinds.most_common(1)[0][0] if kinds else None
    return [file for file in files.tables if builder_of(file) == most]


def split_files(files: Sequence[PurePath]) -> dict[str, list[PurePath]]:
    """The files of each split: train-00000-of-00001.parquet, train.csv, train/0.parquet; train, if no name says it.

    Raises:
        DatasetError: some say and others do not.
    """
    shards = [re.fullmatch(r"(\w[\w.]*)-\d{5}-of-\d{5}.*", file.name) for file in files]
    if files and all(shards):
        names: list[str | None] = [shard[1] for shard in shards if shard]
    else:
        names = [_split_by_name(file) for file in files]
    if not any(names):
        return {"train": list(files)} if files else {}
    if not all(names):
        nameless = [file for file, name in zip(files, names) if name is None]
        raise DatasetError(
            f"the names of some files say their split and those of others do not: {show(nameless)}; rename or move them"
        )
    ordered = [
        *(split for split in SPLITS if split in names),
        *sorted({name for name in names if name} - SPLITS.keys()),
    ]
    return {split: [file for file, name in zip(files, names) if name == split] for split in ordered}


def _split_by_name(file: PurePath) -> str | None:
    by_folder = [split for part in file.parts[:-1] if (split := split_of(part))]
    return by_folder[0] if by_folder else split_of(file.name.split(".")[0])


def unread(files: Files) -> list[PurePath]:
    """The files of a folder of tables that may hold images and are not read."""
    return sorted({*files.images, *files.others} - {*main_tables(files)})
