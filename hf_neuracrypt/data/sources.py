"""A dataset by whatever name a user has for it -> `DatasetDict` (or `IterableDatasetDict` when streamed)."""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_neuracrypt.data import folders, tables
from hf_neuracrypt.data.files import CONVERT, Files, builder_of, describe, dicom_members, name_kinds, show
from hf_neuracrypt.data.manifest import MANIFEST, MAX_MANIFEST_BYTES, parse_manifest, read_manifest
from hf_neuracrypt.data.places import HUB, is_address, place, reachable
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import DatasetError, HubError, NeuraCryptError, first_line
from hf_neuracrypt.hub import explain, may_be_repository, offline, read_small_file
from hf_neuracrypt.keys import SecretKey


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


def files_of(name: str) -> Files | None:
    """The files of a local folder of images or tables, or of a tar of DICOM files; None: it is neither."""
    path = place(name)
    if is_address(name) or is_saved(path):
        return None
    return Files(path) if path.is_dir() or dicom_members(path) else None


def is_table(name: str, files: Files | None) -> bool:
    """Whether `name`, with these `files_of` it, is what `datasets` would copy into its cache, in clear: local tables or
    archives, or an address of some."""
    if files is not None:
        return not files.are_images
    return not is_saved(place(name)) and (is_address(name) or place(name).is_file())


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk`, or `encrypt`, wrote this folder."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def identity(name: str) -> str:
    """What tells one source from another: the names, sizes and times of local files, else the Hub id itself."""
    path = Path(name)
    if is_address(name) or not path.exists():
        return name
    if path.is_file():
        return describe(path, path.name)
    files = Files(path)
    return files.fingerprint(files.all)


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
    name = name.removeprefix(HUB)
    folder = place(name)
    if is_address(name) or folder.exists():
        return read_manifest(folder) if (folder / MANIFEST).exists() else None
    return published_manifest(name) if may_be_repository(name) else None


def published_manifest(name: str, revision: str | None = None) -> dict | None:
    """The manifest of a dataset on the Hub, None if it has none. Raises HubError and DatasetError."""
    text = read_small_file(name, MANIFEST, "dataset", revision, MAX_MANIFEST_BYTES)
    return None if text is None else parse_manifest(text, f"{MANIFEST} of {name}")


def plain_splits(
    name: str,
    streaming: bool | None = None,
    max_rows: int | None = None,
    max_bad_fraction: float = 0.0,
    all_frames: bool = False,
    patients: SecretKey | None = None,
    files: Files | None = None,
) -> tuple[dict[str, Dataset | IterableDataset], str]:
    """The splits of a dataset that is to be encrypted.

    Args:
        name: see `load_source`.
        streaming: see there; None: yes for files that `datasets` would copy into its cache, in clear.
        max_rows: only the first rows of each split.
        max_bad_fraction: the share of a folder's files that may be left out because they are no rows.
        all_frames, patients: of DICOM files; see `folders.load_images`.
        files: what `files_of` found there, if it was called before.

    Returns:
        The splits, and which files are left out, in a sentence for the terminal alone; empty: none.

    Raises:
        DatasetError: as `load_source`; it is encrypted already; more files would be left out.
    """
    if (record := stored_record(name)) is not None:
        raise DatasetError(f"{name} is already encrypted (key {record.key_id}): encrypt the plain images instead")
    files = files or files_of(name)
    of_images = files is not None and files.are_images
    streaming = is_table(name, files) if streaming is None else streaming
    splits = dict(load_source(name, streaming and not of_images, files, all_frames, patients))
    left_out = _left_out(files, splits, max_bad_fraction) if files else ""
    if of_images and streaming:
        splits = {split: rows.to_iterable_dataset() for split, rows in splits.items()}
    if max_rows is not None:
        splits = {
            split: rows.select(range(min(max_rows, len(rows)))) if isinstance(rows, Dataset) else rows.take(max_rows)
            for split, rows in splits.items()
        }
    return splits, left_out


def _left_out(files: Files, splits: Mapping[str, Dataset | IterableDataset], max_bad_fraction: float) -> str:
    if files.are_images:
        unused, read = folders.left_out(files, splits), files.images
    else:
        unused, read = tables.unread(files), tables.main_tables(files)
    total = len({*unused, *read})
    counted = f"{len(unused):,} of {total:,} files of {files.root} are no rows: {name_kinds(unused)}"
    nameless = len({*unused}.intersection(files.images)) if files.are_images else 0  # only tables leave images out
    if nameless:
        counted += f"; {show(files.metadata)} does not name {nameless:,} of them"
    if len(unused) > max_bad_fraction * total:
        way = f"{CONVERT}; move away what is no image" if nameless < len(unused) else "name them there"
        raise DatasetError(f"{counted}; {way}, or allow a --max-bad-fraction")
    return counted if unused else ""


def load_source(
    name: str,
    streaming: bool = False,
    files: Files | None = None,
    all_frames: bool = False,
    patients: SecretKey | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Load the splits of a dataset.

    Args:
        name: a folder written by `save_to_disk` or by `hf-neuracrypt encrypt`; a folder of images (a subfolder a class)
            or of Parquet, CSV, JSON or WebDataset files; one such file; or the id of a dataset on the Hub.
        streaming: do not download or hold the data.
        files: what `files_of` found there, if it was called before.
        all_frames, patients: of DICOM files; see `folders.load_images`.

    Raises:
        DatasetError: nothing is there, or it cannot be read as a dataset; it is no folder of DICOM files, but options
            for one are given.
    """
    name = name.removeprefix(HUB)
    path = place(name)
    try:
        files = files or files_of(name)
        if (all_frames or patients) and not (files and files.dicom):
            raise DatasetError(f"{name} holds no DICOM files: --all-frames and --group-by-patient are for such")
        if files is not None and files.are_images:
            loaded = folders.load_images(files, all_frames, patients)
            if streaming:
                loaded = IterableDatasetDict({split: rows.to_iterable_dataset() for split, rows in loaded.items()})
        elif is_address(name):
            loaded = _from_bucket(name, path)
        else:
            loaded = _load(path, files, streaming) if path.exists() else _from_hub(name, streaming)
    except NeuraCryptError:
        raise
    except Exception as error:  # builders raise whatever their file format's library raises
        reason = explain(error, name) or (offline(name) if not path.exists() and may_be_repository(name) else None)
        if reason is not None:
            raise HubError(reason) from error
        empty = _empty_split(path)
        why = first_line(_innermost(error)) if empty is None else f"its split {empty} is empty: remove it"
        way = "; unpack it: a folder of images is read" if builder_of(PurePath(name)) == "webdataset" else ""
        raise DatasetError(f"cannot load the dataset {name}: {why}{way}") from error
    if isinstance(loaded, Dataset):
        loaded = DatasetDict({str(loaded.split or "train"): loaded})
    return loaded


def _from_hub(name: str, streaming: bool) -> DatasetDict | IterableDatasetDict:
    if not may_be_repository(name):
        raise DatasetError(f"there is no folder or file {name}")
    return datasets.load_dataset(name, streaming=streaming)


def _from_bucket(name: str, path: Path) -> Dataset | DatasetDict | IterableDatasetDict:
    """What `encrypt` or `save_to_disk` wrote there, or a stream of one split: a file, or several (train-*.tar)."""
    with reachable(name):
        return datasets.load_from_disk(name) if is_saved(path) else tables.load_address(name)


def _load(path: Path, files: Files | None, streaming: bool) -> Dataset | DatasetDict | IterableDatasetDict:
    if is_saved(path):
        return datasets.load_from_disk(str(path))
    if files is None:
        return tables.load_tables(path.parent, {"train": [PurePath(path.name)]}, streaming)
    if tables.has_card(path):
        return datasets.load_dataset(str(path), streaming=streaming)
    if files.others and not files.tables:
        raise DatasetError(f"{path} holds no image that is read, but {name_kinds(files.others)}; {CONVERT}")
    return tables.load_tables(path, tables.split_files(tables.main_tables(files)), streaming)


def _empty_split(path: Path) -> str | None:
    """The split of a saved dataset that has no rows, which `load_from_disk` fails at."""
    for state in path.glob("*/state.json"):
        try:
            if json.loads(state.read_bytes())["_data_files"] == []:
                return state.parent.name
        except (OSError, ValueError, LookupError, TypeError):  # damaged: not what is looked for here
            continue
    return None


def _innermost(error: BaseException) -> BaseException:
    """The reason behind the "An error occurred while generating the dataset" that `datasets` wraps it in."""
    return error if error.__cause__ is None else _innermost(error.__cause__)
