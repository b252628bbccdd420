"""A dataset by whatever name a user has for it -> `DatasetDict` (or `IterableDatasetDict` when streamed)."""

from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from PIL import Image

from hf_neuracrypt.data.manifest import MANIFEST, MAX_MANIFEST_BYTES, parse_manifest, read_manifest
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import DatasetError, HubError, NeuraCryptError, first_line
from hf_neuracrypt.hub import explain, may_be_repository, offline, read_small_file


BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".arrow": "arrow",
    ".tar": "webdataset",
}
TABLES = {*BUILDERS, ".tsv", ".ndjson", ".geoparquet", ".gpq", ".h5", ".hdf5", ".lance", ".vortex"}
ARCHIVES = {".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar"}


@contextmanager
def quiet_datasets():
    """One bar for a whole job, ours, instead of one for each shard."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def is_table(name: str) -> bool:
    """Whether `name` is a local file, or a folder with such a file at any depth, that `datasets` would copy into its
    cache, in clear: a table or an archive."""
    path = Path(name)
    if is_saved(path):
        return False
    files = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    tables = [file for file in files if (TABLES | ARCHIVES).intersection(file.with_name(file.name.lower()).suffixes)]
    # Beside images, metadata.csv and the like hold none; alone, metadata.parquet is the dataset.
    beside = any(file.suffix.lower() in Image.registered_extensions() for file in files)
    return any(not (beside and file.name.startswith("metadata.")) for file in tables)


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk`, or `encrypt`, wrote this folder."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def identity(name: str) -> str:
    """What tells one source from another: the names, sizes and times of local files, else the Hub id itself."""
    path = Path(name)
    if not path.exists():
        return name
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return "\n".join(
        f"{file.relative_to(path.parent)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files
    )


def stored_record(name: str) -> Record | None:
    """The record in the `neuracrypt.json` beside a local or published dataset; see `stored_manifest`."""
    manifest = stored_manifest(name)
    return Record.from_dict(manifest) if manifest else None


def stored_manifest(name: str) -> dict | None:
    """The `neuracrypt.json` beside a local or published dataset; None for a plain one.

    Raises:
        DatasetError: the file is damaged, or the folder unfinished.
        HubError: the repository is not there, or cannot be read.
    """
    folder = Path(name)
    if folder.exists():
        return read_manifest(folder) if (folder / MANIFEST).exists() else None
    return published_manifest(name) if may_be_repository(name) else None


def published_manifest(name: str, revision: str | None = None) -> dict | None:
    """The manifest of a dataset on the Hub, None if it has none. Raises HubError and DatasetError."""
    text = read_small_file(name, MANIFEST, "dataset", revision, MAX_MANIFEST_BYTES)
    return None if text is None else parse_manifest(text, f"{MANIFEST} of {name}")


def plain_splits(
    name: str, streaming: bool | None = None, max_rows: int | None = None
) -> dict[str, Dataset | IterableDataset]:
    """The splits of a dataset that is to be encrypted.

    Args:
        name: see `load_source`.
        streaming: see there; None: yes for files that `datasets` would copy into its cache, in clear.
        max_rows: only the first rows of each split.

    Raises:
        DatasetError: as `load_source`, or it is encrypted already.
    """
    if (record := stored_record(name)) is not None:
        raise DatasetError(f"{name} is already encrypted (key {record.key_id}): encrypt the plain images instead")
    splits = dict(load_source(name, is_table(name) if streaming is None else streaming))
    if max_rows is None:
        return splits
    return {
        split: rows.select(range(min(max_rows, len(rows)))) if isinstance(rows, Dataset) else rows.take(max_rows)
        for split, rows in splits.items()
    }


def load_source(name: str, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Load the splits of a dataset.

    Args:
        name: a folder written by `save_to_disk` or by `hf-neuracrypt encrypt`; a folder of images (a subfolder a class)
            or of Parquet, CSV, JSON or WebDataset files; one such file; or the id of a dataset on the Hub.
        streaming: do not download or hold the data.

    Raises:
        DatasetError: nothing is there, or it cannot be read as a dataset.
    """
    path = Path(name)
    try:
        if is_saved(path):
            loaded = datasets.load_from_disk(name)
        elif path.is_file():
            builder = next((BUILDERS[suffix] for suffix in path.suffixes if suffix in BUILDERS), None)
            if builder is None:
                raise DatasetError(
                    f"{name} is a file of type {path.suffix or '(none)'}; known are {', '.join(BUILDERS)}"
                )
            loaded = datasets.load_dataset(builder, data_files=name, streaming=streaming)
        elif path.is_dir():
            loaded = datasets.load_dataset(name, streaming=streaming)
        elif not may_be_repository(name):
            raise DatasetError(f"there is no folder or file {name}")
        else:
            loaded = datasets.load_dataset(name, streaming=streaming)
    except NeuraCryptError:
        raise
    except Exception as error:  # builders raise whatever their file format's library raises
        reason = explain(error, name) or (offline(name) if not path.exists() and may_be_repository(name) else None)
        if reason is not None:
            raise HubError(reason) from error
        raise DatasetError(f"cannot load the dataset {name}: {first_line(_innermost(error))}") from error
    if isinstance(loaded, Dataset):
        loaded = DatasetDict({str(loaded.split or "train"): loaded})
    return loaded


def _innermost(error: BaseException) -> BaseException:
    """The reason behind the "An error occurred while generating the dataset" that `datasets` wraps it in."""
    return error if error.__cause__ is None else _innermost(error.__cause__)
