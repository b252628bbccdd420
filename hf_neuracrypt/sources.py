"""A dataset by whatever name a user has for it -> `DatasetDict` (or `IterableDatasetDict` when streamed)."""

from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, IterableDatasetDict

from hf_neuracrypt.errors import DatasetError, NeuraCryptError


BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".arrow": "arrow",
    ".tar": "webdataset",
}


def is_table(name: str) -> bool:
    """Whether `name` is a local file, or a folder of files, that `datasets` would copy into its cache, in clear."""
    path = Path(name)
    if path.is_dir():
        first = next((file for file in sorted(path.iterdir()) if file.suffix in BUILDERS), None)
        return first is not None and not first.name.startswith("metadata.")  # which lies beside a folder of images
    return path.suffix in BUILDERS and path.is_file()


def identity(name: str) -> str:
    """What tells one source from another: the names, sizes and times of local files, else the Hub id itself."""
    path = Path(name)
    if not path.exists():
        return name
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return "\n".join(
        f"{file.relative_to(path.parent)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files
    )


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
        if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
            loaded = datasets.load_from_disk(name)
        elif path.is_file():
            if path.suffix not in BUILDERS:
                raise DatasetError(
                    f"{name} is a file of type {path.suffix or '(none)'}; known are {', '.join(BUILDERS)}"
                )
            loaded = datasets.load_dataset(BUILDERS[path.suffix], data_files=name, streaming=streaming)
        elif path.is_dir():
            loaded = datasets.load_dataset(name, streaming=streaming)
        elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise DatasetError(f"there is no folder or file {name}")
        else:
            loaded = datasets.load_dataset(name, streaming=streaming)
    except NeuraCryptError:
        raise
    except Exception as error:  # builders raise whatever their file format's library raises
        raise DatasetError(f"cannot load the dataset {name}: {_first_line(error)}") from error
    if isinstance(loaded, Dataset):
        loaded = DatasetDict({str(loaded.split or "train"): loaded})
    return loaded


def _first_line(error: Exception) -> str:
    """The innermost reason in one line: `datasets` wraps it in "An error occurred while generating the dataset"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
