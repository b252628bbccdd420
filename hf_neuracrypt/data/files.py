"""What lies in a folder, by endings and first bytes: images, tables, and what may be an image that is not read."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePath

from hf_neuracrypt.data.manifest import MANIFEST
from hf_neuracrypt.errors import DatasetError, printable
from hf_neuracrypt.images import ENDINGS, OTHER_ENDINGS


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
CONTROLS = bytes({*range(32)} - {*b"\t\n\f\r\x1b"})  # in no text
CONVERT = "`magick mogrify -format png FILES` makes PNGs of HEIC, AVIF, JPEG 2000, JPEG XL and most others"


class Files:
    """What lies in a folder: paths relative to it, sorted; hidden files and what macOS packs beside them are not seen.

    Linked folders are followed.

    Raises:
        DatasetError: a folder cannot be read, or is reached twice.
    """

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.all = sorted(_walk(self.root), key=PurePath.as_posix)
        self.images = [file for file in self.all if file.suffix.lower() in ENDINGS]
        self.metadata = [file for file in self.all if file.name in METADATA]
        self.tables = [file for file in self.all if builder_of(file)]

    @property
    def are_images(self) -> bool:
        """Whether this is a folder of images, beside which tables and archives may lie; not the other way round."""
        return len(self.images) >= max(1, len(self.tables))

    @cached_property
    def others(self) -> list[PurePath]:
        """Files beside the images that may be images, too: all but text and office documents."""
        known = {*self.images, *self.metadata}
        return [file for file in self.all if file not in known and not self._is_text(file)]

    def _is_text(self, file: PurePath) -> bool:
        place = self.root / file
        if file.suffix.lower() in OFFICE or (place.exists() and not place.is_file()):  # a pipe would be waited for
            return True
        if file.suffix.lower() in OTHER_ENDINGS:
            return False
        try:
            with open(place, "rb") as content:
                start = content.read(1024)
        except OSError:
            return False
        return start.startswith((b"\xff\xfe", b"\xfe\xff")) or not any(byte in CONTROLS for byte in start)


def builder_of(file: PurePath) -> str | None:
    """What reads a table or an archive, compressed or not, by the name that `datasets` has for it."""
    endings = [ending.lower() for ending in file.suffixes]
    if endings and endings[-1] in COMPRESSED:
        endings.pop()
    return TABLES.get(endings[-1]) if endings and file.name not in (*METADATA, *ABOUT) else None


def _walk(root: Path) -> Iterable[PurePath]:
    seen: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        raise DatasetError(f"cannot read the folder {error.filename}: {error.strerror}")

    for folder, inside, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in seen:
            raise DatasetError(f"{printable(folder)} and {printable(seen[real])} are the same folder: remove the link")
        seen[real] = folder
        inside[:] = [name for name in inside if not name.startswith(".") and name != "__MACOSX"]
        yield from (PurePath(folder, name).relative_to(root) for name in files if not name.startswith("."))


def fingerprint(root: Path, files: Iterable[PurePath]) -> str:
    """What tells these files from others: their names, sizes and times."""
    return hashlib.sha256("\n".join(describe(root, file) for file in files).encode()).hexdigest()[:32]


def describe(root: Path, file: PurePath) -> str:
    """A file's name, size and time, in one line."""
    try:
        stat = os.stat(root / file)
    except OSError:
        return f"{str(file)!r} missing"
    return f"{str(file)!r} {stat.st_size} {stat.st_mtime_ns}"


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
