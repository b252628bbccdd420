"""A dataset by whatever name a user has for it -> `DatasetDict` (or `IterableDatasetDict` when streamed)."""

from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, IterableDatasetDict
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

from hf_neuracrypt.errors import DatasetError, NeuraCryptError, first_line
from hf_neuracrypt.record import Record
from hf_neuracrypt.store import MANIFEST, read_manifest


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


def stored_record(name: str) -> Record | None:
    """The record in the `neuracrypt.json` beside a local or published dataset; None for a plain one.

    Raises:
        DatasetError: the file is damaged, the folder unfinished, or the Hub cannot be reached.
    """
    folder = Path(name)
    if not folder.exists():
        try:
            folder = Path(hf_hub_download(name, MANIFEST, repo_type="dataset")).parent
        except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
            return None  # a plain dataset, or none at all: loading it says so
        except Exception as error:
            raise DatasetError(f"cannot reach the Hub for {name}: {first_line(error)}") from None
    return Record.from_dict(read_manifest(folder)) if (folder / MANIFEST).exists() else None


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
        raise DatasetError(f"cannot load the dataset {name}: {first_line(_innermost(error))}") from error
    if isinstance(loaded, Dataset):
        loaded = DatasetDict({str(loaded.split or "train"): loaded})
    return loaded


def _innermost(error: BaseException) -> BaseException:
    """The reason behind the "An error occurred while generating the dataset" that `datasets` wraps it in."""
    return error if error.__cause__ is None else _innermost(error.__cause__)
