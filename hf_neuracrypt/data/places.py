"""Where an encrypted dataset lies: in a folder, or below an address of a bucket (s3://, gs://, …), used alike.

Whatever is written is there whole or not at all: in a folder by renaming it, in an object store by its nature.
Credentials are taken as fsspec takes them, from the environment or their own files, and stored nowhere.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upath import UPath

from hf_neuracrypt.errors import DatasetError, KeyFileError, NeuraCryptError, first_line


HUB = "hf://datasets/"  # what follows is the name of a repository


def is_address(name: str | Path) -> bool:
    """Whether a name is that of something in a bucket."""
    return "://" in str(name)


def place(name: str | Path) -> Path:
    """A folder or file by its path or address. Raises DatasetError for a kind of address that nothing here reads."""
    if not is_address(name):
        return Path(name)
    try:
        with reachable(str(name)):
            found: Any = UPath(str(name))
            _ = found.fs
            return found
    except ImportError as error:
        raise DatasetError(f"{name} needs a package that is not installed: {first_line(error)}") from None


@contextmanager
def reachable(name: str | Path) -> Iterator[None]:
    """Whatever a bucket has against us, in one line. Raises DatasetError."""
    try:
        yield
    except (NeuraCryptError, ImportError):
        raise
    except Exception as error:  # of any object store's library
        if not is_address(name):
            raise
        raise DatasetError(
            f"{name} cannot be used ({type(error).__name__}: {first_line(error)}): look at the name and your "
            "credentials; the same command again continues"
        ) from None


def atomic_write(path: Path, text: str, scratch: Path | None = None) -> None:
    """Write a small file so that it is there whole or not at all; `scratch`, if not beside it, is where it grows."""
    if is_address(path):
        path.write_text(text)
        return
    temporary = (scratch or path.parent) / f".{path.name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)  # of a process that was killed, or somebody's link to elsewhere
    with open(temporary, "x") as file:
        file.write(text)
    keep(temporary, path)


def keep(temporary: Path, path: Path) -> None:
    """Give a finished file its place, and do not return before it is safe there."""
    if is_address(path):
        path.fs.put_file(str(temporary), path.path)  # type: ignore[attr-defined]
        temporary.unlink()
        return
    fsync(temporary)
    os.replace(temporary, path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def passing_folder() -> Iterator[Path]:
    """A folder that goes when this process ends; those of processes that were killed go now."""
    for left in Path(tempfile.gettempdir()).glob("neuracrypt-*-*"):
        process = left.name.split("-")[1]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"neuracrypt-{os.getpid()}-") as folder:
        yield Path(folder)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def make_folder(folder: Path) -> None:
    """Make it, and those that it lies in, where they are not there; a bucket has none."""
    if not is_address(folder):
        folder.mkdir(parents=True, exist_ok=True)


def names_in(folder: Path) -> list[str]:
    """Of what is in a folder, as it is now; none if it is not there."""
    if not is_address(folder):
        return os.listdir(folder) if folder.exists() else []
    folder.fs.invalidate_cache()  # type: ignore[attr-defined]
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def texts_of(folder: Path, names: list[str]) -> dict[str, str]:
    """Small files of a folder; those of a bucket many at once."""
    if not is_address(folder):
        return {name: (folder / name).read_text() for name in names}
    paths = {(folder / name).path: name for name in names}  # type: ignore[attr-defined]
    found = folder.fs.cat(list(paths)) if paths else {}  # type: ignore[attr-defined]
    return {paths[path]: content.decode() for path, content in found.items()}


def remove(folder: Path) -> None:
    """A folder with all that is in it."""
    if not is_address(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.fs.rm(folder.path, recursive=True)  # type: ignore[attr-defined]


def check_places(dataset: str, key_file: Path, output: str | Path) -> None:
    """Source, key and output are three places: an output folder gets copied and published."""
    if str(output).startswith(("file://", "local://", "memory://")):
        raise DatasetError(f"{output} is in no bucket: give the path of a folder")
    folder, source, key = (_resolved(str(name)) for name in (output, dataset, key_file))
    if f"{source}/".startswith(f"{folder}/") or f"{HUB}{dataset}" == folder:
        raise DatasetError(f"the output {output} is or holds the source {dataset}: choose another place")
    if (is_address(source) or Path(source).is_dir()) and folder.startswith(f"{source}/"):
        raise DatasetError(f"the output {output} lies inside the source {dataset}: choose another place")
    if key.startswith(f"{folder}/"):
        raise KeyFileError(f"the key file {key_file} lies inside the output {output}: keep it elsewhere")


def _resolved(name: str) -> str:
    return name.rstrip("/") if is_address(name) else os.path.realpath(name)


def sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
