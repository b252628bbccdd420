"""What lies in a folder, by endings and first bytes: images, tables, and what may be an image that is not read.

A tar of DICOM files is looked into as if it were a folder, without unpacking it: each file is a part of the tar.
"""

import hashlib
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePath
from typing import BinaryIO

from hf_neuracrypt.data.manifest import MANIFEST
from hf_neuracrypt.errors import DatasetError, printable
from hf_neuracrypt.images import ENDINGS, OTHER_ENDINGS
from hf_neuracrypt.images.dicom import is_dicom


METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Of a dataset, and not data:
ABOUT = (MANIFEST, "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json")
TABLES = {
    ".parquet": "parquet",
    ".geoparquet": "parquet",
    ".gpq": "parquet",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".tgz": "webdataset",
}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4"}
SPLITS = {  # what `datasets` takes for the name of a split
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
OFFICE = {".xlsx", ".xls", ".ods", ".docx", ".db"}  # binary, and no images: lists beside them, a system's index
UNSEEN = ("__MACOSX", "DICOMDIR")  # what macOS packs beside files; the list of the files of a DICOM disk
FIRST_MEMBERS = 16  # of a tar, to see what it holds
CONTROLS = bytes({*range(32)} - {*b"\t\n\f\r\x1b"})  # in no text
CONVERT = (
    "`magick mogrify -format png FILES` makes PNGs of HEIC, AVIF, JPEG 2000, JPEG XL and most others, the code in "
    "hf_neuracrypt/data/README.md of NIfTI"
)


class Files:
    """What lies in a folder, or in a tar of DICOM files: paths relative to it, sorted.

    Linked folders are followed. Hidden files, what macOS packs beside them, and DICOMDIR are not seen.

    Raises:
        DatasetError: a folder cannot be read, or is reached twice; two tars hold a file of the same name.
    """

    def __init__(self, root: Path):
        self.root = root.absolute()
        names = _walk(self.root) if root.is_dir() else [PurePath()]
        self._places = {name: (self.root / name, 0, -1) for name in names}
        for name in list(self._places):
            if members := dicom_members(self.root / name):
                del self._places[name]
                within = name.parent / (name.stem if split_of(name.stem) else "")
                for member, place in members.items():
                    if self._places.setdefault(within / member, place) != place:
                        raise DatasetError(f"{show([within / member])} is there twice, in a tar: unpack them, apart")
        self.all = sorted(self._places, key=PurePath.as_posix)
        self.metadata = [file for file in self.all if file.name in METADATA]
        self.tables = [file for file in self.all if builder_of(file) and file.name not in METADATA]
        named = {file for file in self.all if file.suffix.lower() in ENDINGS}
        other = (file for file in self.all if file not in named and not builder_of(file))
        self.dicom = {file for file in other if is_dicom(self.start(file) or b"")}
        self.images = [file for file in self.all if file in named or file in self.dicom]
        if not self.images and not self.tables:
            self.tables = self.metadata  # these are all there is

    @property
    def are_images(self) -> bool:
        """Whether this is a folder of images, beside which tables and archives may lie; not the other way round."""
        return len(self.images) >= max(1, len(self.tables))

    @cached_property
    def others(self) -> list[PurePath]:
        """Files beside the images that may be images, too: all but text and office documents."""
        known = {*self.images, *self.metadata}
        return [file for file in self.all if file not in known and not self._is_text(file)]

    def source(self, file: PurePath) -> dict[str, str | int]:
        """A file as `images.open_image` takes it: its path or, in a tar, that of the tar and where it lies in there."""
        path, offset, size = self._places[file]
        return {"path": str(path)} if size < 0 else {"path": str(path), "offset": offset, "size": size}

    def start(self, file: PurePath) -> bytes | None:
        """How a file begins; None: it cannot be read."""
        path, offset, size = self._places[file]
        if path.exists() and not path.is_file():  # a pipe would be waited for
            return b""
        try:
            with open(path, "rb") as content:
                content.seek(offset)
                return content.read(1024 if size < 0 else min(size, 1024))
        except OSError:
            return None

    def fingerprint(self, files: Sequence[PurePath], rows: int | None = None) -> str:
        """What tells these files from others: their names, sizes and times; and how many rows they become, if not one
        each."""
        lines = [] if rows is None else [f"{rows} rows"]
        for file in files:
            path, offset, size = self._places[file]
            inside = f" {offset} {size}" if size >= 0 else ""
            lines.append(describe(path, str(file)) + inside)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    def _is_text(self, file: PurePath) -> bool:
        if file.suffix.lower() in OFFICE:
            return True
        start = self.start(file)
        if start is None or file.suffix.lower() in OTHER_ENDINGS:
            return False
        return start.startswith((b"\xff\xfe", b"\xfe\xff")) or not any(byte in CONTROLS for byte in start)


def builder_of(file: PurePath) -> str | None:
    """What reads a table or an archive, compressed or not, by the name that `datasets` has for it."""
    endings = [ending.lower() for ending in file.suffixes]
    if endings and endings[-1] in COMPRESSED:
        endings.pop()
    return TABLES.get(endings[-1]) if endings and file.name not in ABOUT else None


def dicom_members(path: Path) -> dict[PurePath, tuple[Path, int, int]]:
    """The files in a tar by name, and where each lies (path, first byte, size), if there is DICOM in it.

    Raises:
        DatasetError: other files have the names of DICOM files, as labels in a WebDataset have.
    """
    if path.suffix.lower() != ".tar" or not path.is_file():
        return {}
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as content:
            if not any(_begins_as_dicom(content, member) for member in islice(tar, FIRST_MEMBERS)):
                return {}
            inside = [(PurePath(member.name.lstrip("/")), member) for member in tar if member.isfile()]
    except (tarfile.TarError, OSError, ValueError):
        return {}
    seen = {name: (path, each.offset_data, each.size) for name, each in inside if all(map(_is_seen, name.parts))}
    labels = [name for name in seen if name.suffix in (".cls", ".json") and name.with_suffix(".dcm") in seen]
    if labels:
        raise DatasetError(f"{path} has labels beside its DICOM files ({show(labels)}): write them into a metadata.csv")
    return seen


def _begins_as_dicom(content: BinaryIO, member: tarfile.TarInfo) -> bool:
    content.seek(member.offset_data)
    return member.isfile() and member.size > 132 and is_dicom(content.read(132))


def _is_seen(name: str) -> bool:
    return not name.startswith(".") and name.upper() not in UNSEEN


def _walk(root: Path) -> Iterable[PurePath]:
    seen: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        raise DatasetError(f"cannot read the folder {error.filename}: {error.strerror}")

    for folder, inside, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in seen:
            raise DatasetError(f"{printable(folder)} and {printable(seen[real])} are the same folder: remove the link")
        seen[real] = folder
        inside[:] = filter(_is_seen, inside)
        yield from (PurePath(folder, name).relative_to(root) for name in files if _is_seen(name))


def describe(path: Path, name: str) -> str:
    """A file's name, as it is called here, its size and time, in one line."""
    try:
        stat = os.stat(path)
    except OSError:
        return f"{name!r} missing"
    return f"{name!r} {stat.st_size} {stat.st_mtime_ns}"


def split_of(name: str) -> str | None:
    """The split that a folder or file is named after: train, train2017, val_images, my-test; None: none, or several."""
    found = {
        split
        for split, words in SPLITS.items()
        for word in words
        if re.fullmatch(rf"(.*[-._ 0-9])?{word}([-._ 0-9].*)?", name, re.IGNORECASE)
    }
    return found.pop() if len(found) == 1 else None


def show(files: Sequence[PurePath], most: int = 3) -> str:
    """The first few names, for the terminal alone."""
    return ", ".join(printable(str(file)) for file in files[:most]) + (", …" if len(files) > most else "")


def name_kinds(files: Sequence[PurePath]) -> str:
    """How many files of each ending there are, and the first few names."""
    kinds = Counter(printable(file.suffix) or "(no ending)" for file in files)
    counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    return f"{counted} ({show(files)})"
