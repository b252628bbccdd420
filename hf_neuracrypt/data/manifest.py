"""An encrypted dataset on disk: the layout of `save_to_disk`, with a manifest. `writer` fills it, this file reads it.

FOLDER/neuracrypt.json          manifest: record, rows and sha256 of every file, and of itself; written last
FOLDER/dataset_dict.json        the splits; written just before, so an unfinished folder does not load
FOLDER/train/data-00000.arrow   a shard: written once, then fsync, then rename
FOLDER/train/dataset_info.json, state.json
FOLDER/rejected.jsonl           with `--max-bad-fraction`: the rows left out, and why
FOLDER/.unfinished/             while a job runs: what it is, notes on finished shards, locks, scratch
"""

import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hf_neuracrypt.data.places import HUB, place, sha256
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import ConfigError, DatasetError, first_line


MANIFEST = "neuracrypt.json"
REJECTED = "rejected.jsonl"
UNFINISHED = ".unfinished"
JOB = "job.json"  # a folder is unfinished as long as it has this file
MAX_MANIFEST_BYTES = 64_000_000
DICOM = {"all_frames", "by_patient"}
TRAIN = "train"  # the one split whose images may have several views


def is_unfinished(folder: Path) -> bool:
    """Whether a job has begun to fill the folder and has not finished."""
    return (folder / UNFINISHED / JOB).exists()


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a finished folder.

    Raises:
        DatasetError: there is none, the folder is unfinished, or the manifest is damaged.
    """
    folder = place(folder)
    if is_unfinished(folder):
        raise DatasetError(f"{folder} is unfinished: run the same `hf-neuracrypt encrypt` command again to complete it")
    try:
        status = (folder / MANIFEST).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device never ends
            raise DatasetError(f"{folder / MANIFEST} is damaged: it is no regular file")
        if status.st_size > MAX_MANIFEST_BYTES:
            raise DatasetError(f"{folder / MANIFEST} is larger than any manifest")
        text = (folder / MANIFEST).read_text()
    except FileNotFoundError:
        raise DatasetError(f"{folder} is not an encrypted dataset: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder / MANIFEST} is damaged: {error}") from None
    return parse_manifest(text, str(folder / MANIFEST))


def parse_manifest(text: str, where: str) -> dict:
    """The manifest in a text that may be a stranger's. Raises DatasetError, naming it as `where`."""
    try:
        manifest = json.loads(text)
        Record.from_dict(manifest)
    except (ValueError, RecursionError, ConfigError) as error:
        raise DatasetError(f"{where} is damaged: {first_line(error)}") from None
    if text != to_text(manifest) or manifest.pop("sha256", None) != checksum(manifest):
        raise DatasetError(f"{where} is damaged: it fails its own checksum")
    rows, files = manifest.get("rows"), manifest.get("files")
    if not isinstance(rows, dict) or not all(type(count) is int and count >= 0 for count in rows.values()):
        raise DatasetError(f"{where} does not say how many rows each split has")
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in files.values()
    ):
        raise DatasetError(f"{where} does not list the files with their sha256")
    if manifest.get("order") not in (None, "keyed"):
        raise DatasetError(f"{where} has rows in an order that this version does not know")
    views = manifest.get("views", {"count": 1, "flip": False})
    kinds = [type(views.get(name)) for name in ("count", "flip")] if isinstance(views, dict) else []
    if kinds != [int, bool] or views["count"] < 1:
        raise DatasetError(f"{where} does not say how many views each image has")
    if rows.get(TRAIN, 0) % views["count"]:
        raise DatasetError(f"{where} contradicts itself: its rows are not {views['count']} for each image")
    if set(dicom_of(manifest)) != DICOM or not all(type(value) is bool for value in dicom_of(manifest).values()):
        raise DatasetError(f"{where} has rows of DICOM files made in a way that this version does not know")
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or str(path) != file or "\\" in file or not file.isprintable():
            raise DatasetError(f"{where} names the file {file!r}, which is not inside its folder")
    return manifest


def views_of(manifest: dict | None, split: str) -> int:
    """How many rows each image has in a split, one after the other, itself first (`encrypt --views`)."""
    return (manifest or {}).get("views", {"count": 1})["count"] if split == TRAIN else 1


def dicom_of(manifest: dict) -> dict[str, bool]:
    """How rows were made of DICOM files: of all frames or the first, in splits by patient or as they were."""
    found = manifest.get("dicom", dict.fromkeys(DICOM, False))
    return found if isinstance(found, dict) else {}


def verify(folder: str | Path) -> Iterator[tuple[str, str | None]]:
    """Compare every file of a finished folder with the manifest: yields (file, what is wrong with it, or None)."""
    folder = place(folder)
    expected = read_manifest(folder)["files"]
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    present = {path.as_posix() for path in files if path.parts[0] != UNFINISHED} - {MANIFEST}
    if str(folder).startswith(HUB):
        present -= {"README.md", ".gitattributes"}
    for file in sorted(present - set(expected)):
        yield file, "is not in the manifest"
    for file, entry in expected.items():
        if file not in present:
            yield file, "is missing"
        else:
            yield file, None if sha256(folder / file) == entry["sha256"] else "does not have its sha256 of the manifest"


def to_text(content: dict) -> str:
    """JSON as manifests are written."""
    return json.dumps(content, indent=2) + "\n"


def checksum(content: dict) -> str:
    """sha256 of a manifest's text, in hexadecimal."""
    return hashlib.sha256(to_text(content).encode()).hexdigest()
