"""Checks every file before upload: allow-listed names, no keys, tokens, plain images or metadata.

The owner's `push` knows the key and searches for it in every form it may take; the cloud's `train.py` knows none and
searches for the line of any key file. Whatever is not known to belong into a published repository is refused, with
the reason; nothing is left out silently.
"""

import bz2
import fnmatch
import gzip
import json
import lzma
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from datasets import Dataset
from pyarrow import types

from hf_neuracrypt.encoders.stored import stored_as
from hf_neuracrypt.errors import LeakError
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.publish.traces import Traces, holds_key_file, stretches_of_text
from hf_neuracrypt.schemes import SchemeConfig


MODEL_FILES = (
    "README.md", "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "training_args.bin",
    "trainer_state.json", "train_results.json", "eval_results.json", "all_results.json",
    "runs/*/events.out.tfevents.*",
)  # fmt: skip
CHECKPOINT_FILES = (
    *MODEL_FILES, "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_*.pth",
    "optimizer.bin", "pytorch_model_fsdp.bin",  # FSDP, whole
)  # fmt: skip
SAVED_BY_TORCH = ("data.pkl", "byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")
ROWS_AT_A_TIME = 1_000
ARCHIVES_DEEP = 2
COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ\x00": lzma}
CHUNK_BYTES, OVERLAP_BYTES = 64_000_000, 4_000  # no trace of a key is longer than the overlap


class Guard:
    """Refuses what must not be published.

    Args:
        key: the owner's key, searched for in every form; None where no key is known.
        tokens: access tokens that must not be published either.
        config: of the encryption; with it, what the key becomes under it is searched for, too.
    """

    def __init__(
        self, key: SecretKey | None = None, tokens: Iterable[str | None] = (), config: SchemeConfig | None = None
    ):
        self.traces = None if key is None else Traces(key, config)
        self.tokens = [token.encode() for token in tokens if token]

    def check_bytes(self, data: bytes, where: str) -> None:
        """Raises LeakError if `data` holds a key or a token."""
        found = self._find(data)
        del data  # error trackers record the locals of frames
        self._refuse(found, where)

    def _refuse(self, found: str | None, where: str) -> None:
        if found is not None:
            raise LeakError(f"{where} holds {found}: nothing was published; remove it")

    def _find(self, data: bytes) -> str | None:
        texts = stretches_of_text(data)
        if holds_key_file(data, texts):
            return "the text of a secret key file"
        if self.traces is not None and (form := self.traces.find(data, texts)):
            return f"the secret key ({form})"
        return "an access token" if any(token in data for token in self.tokens) else None

    def check_file(self, path: Path, where: str) -> None:
        """Name and content of a file, in pieces; archives (as `torch.save` writes) unpacked, two deep."""
        self.check_bytes(where.encode(), f"the name of a file ({Path(where).parent}/…)")
        if path.is_symlink() or not path.is_file():
            raise LeakError(f"{where} is a link or no regular file: only regular files are published")
        with open(path, "rb") as file:
            self._check_archive(file, where, ARCHIVES_DEEP)

    def _check_archive(self, file: IO[bytes], where: str, deep: int) -> None:
        self._check_stream(file, where)
        if deep == 0:
            return
        file.seek(0)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member:
                        self._check_archive(member, where, deep - 1)
            return
        file.seek(0)
        head = file.read(6)
        file.seek(0)
        for magic, module in COMPRESSED.items():
            if head.startswith(magic):
                try:
                    with module.open(file) as inside:
                        self._check_archive(inside, where, deep - 1)
                except (OSError, EOFError, lzma.LZMAError):
                    raise LeakError(f"{where} is compressed and cannot be looked into: nothing was published") from None

    def _check_stream(self, file: IO[bytes], where: str) -> None:
        for found in map(self._find, _pieces(file)):  # no frame that an error passes holds a piece
            self._refuse(found, where)

    def check_folder(self, folder: Path, allowed: Sequence[str], ignored: Sequence[str] = ()) -> None:
        """Every file of `folder` must match an `allowed` pattern; `ignored` ones at its top are not published.

        Raises:
            LeakError: for a key, a link, a dotfile, or a file that is not on the list.
        """
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if any(fnmatch.fnmatchcase(name.split("/")[0], pattern) for pattern in ignored):
                continue
            if path.is_symlink():
                raise LeakError(f"{path} is a link: only regular files are published")
            if path.is_dir():
                continue
            if any(part.startswith(".") for part in Path(name).parts):
                raise LeakError(f"{path} is a hidden file, which is never published: move it out of the folder")
            if not any(_matches(name, pattern) for pattern in allowed):
                self.check_file(path, str(path))  # if it holds a key, that is what the error should say
                raise LeakError(f"{path} is not on the list of files that are published: move it out of the folder")
            self.check_file(path, str(path))
            if not _is_what_it_is_called(path):
                raise LeakError(f"{path} is not what its name says: move it out of the folder")

    def check_shard(self, shard: Dataset, where: str, columns: Sequence[str], config: SchemeConfig) -> None:
        """All rows of a shard, some at a time; see `check_rows`."""
        for start in range(0, max(1, len(shard)), ROWS_AT_A_TIME):
            self.check_rows(shard.data.table.slice(start, ROWS_AT_A_TIME), where, columns, config, start)

    def check_rows(
        self, table: pa.Table, where: str, columns: Sequence[str], config: SchemeConfig, first_row: int = 0
    ) -> None:
        """Rows of an encrypted dataset: metadata, columns, and each image.

        Args:
            table: with the column `image`, a struct of `bytes` and `path`.
            where: what to call it in an error.
            columns: the allow-list.
            config: how they were encrypted.
            first_row: the number of the first row.

        Raises:
            LeakError: for a key, an unexpected column, an image path, or an image that `encrypt` did not write.
        """
        for key, value in (table.schema.metadata or {}).items():
            self.check_bytes(key + b" " + value, f"the metadata of {where}")
        for name in table.column_names:
            self.check_bytes(name.encode(), f"a column name of {where}")
            if name not in columns:
                raise LeakError(
                    f"{where} has the column {name!r}, stored in clear: name it to publish it (--keep-column {name})"
                )
            if name != "image" and _holds_binary(table.schema.field(name).type):
                raise LeakError(f"column {name!r} of {where} holds binary data, as pictures are: it is never published")
        for name, column in zip(table.column_names, table.columns):
            if types.is_dictionary(column.type):  # whose texts are in no buffer of its own
                column = column.cast(column.type.value_type)
            for chunk in column.chunks:
                for buffer in chunk.buffers():
                    if buffer is not None:
                        self.check_bytes(memoryview(buffer).tobytes(), f"column {name!r} of {where}")
        stored = stored_as(config)
        for index, image in enumerate(table.column("image").to_pylist(), first_row):
            if problem := stored.problem(image):
                raise LeakError(f"row {index} of {where} {problem}")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """A file in pieces that overlap."""
    tail = b""
    while chunk := file.read(CHUNK_BYTES):
        yield tail + chunk
        tail = chunk[-OVERLAP_BYTES:]


def _matches(name: str, pattern: str) -> bool:
    """Whether a path matches, part by part."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _holds_binary(kind: pa.DataType) -> bool:
    """Whether bytes may be stored somewhere in an Arrow type."""
    binaries = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    if any(is_one(kind) for is_one in binaries):
        return True
    if isinstance(kind, pa.ExtensionType | pa.BaseExtensionType):
        return _holds_binary(kind.storage_type)
    if types.is_dictionary(kind):
        return _holds_binary(kind.value_type)
    return any(_holds_binary(kind.field(number).type) for number in range(kind.num_fields))


def _is_what_it_is_called(path: Path) -> bool:
    """Whether a file of a model repository holds what its name says; other names are looked at elsewhere."""
    with open(path, "rb") as file:
        head = file.read(8)
    if path.suffix == ".safetensors":
        return path.stat().st_size >= 8 + int.from_bytes(head, "little") > 8
    if path.suffix in (".bin", ".pt", ".pth"):
        return _is_saved_by_torch(path)
    if ".tfevents." in path.name:  # each record begins with its length
        return path.stat().st_size == 0 or int.from_bytes(head, "little") < path.stat().st_size
    if path.suffix != ".json":
        return True
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    figures = content.values() if isinstance(content, dict) else [content]
    return not path.name.endswith("_results.json") or all(isinstance(value, int | float) for value in figures)


def _is_saved_by_torch(path: Path) -> bool:
    """Whether a file is the archive that `torch.save` writes, of one folder, with nothing else in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = [name.split("/", 1) for name in archive.namelist()]
    inside = {name[-1] for name in names}
    return (
        "data.pkl" in inside
        and len({name[0] for name in names}) == 1
        and all(name in SAVED_BY_TORCH or name.removeprefix("data/").isdigit() for name in inside)
    )


def find_key_file(folder: Path) -> Path | None:
    """A key file somewhere below `folder`, which would be published with it."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and path.stat().st_size <= 1_000_000:
            content = path.read_bytes()
            if holds_key_file(content, content):
                return path
    return None
