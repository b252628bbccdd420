"""Checks every file before upload: allow-listed names, no keys, tokens, plain images or metadata.

The owner's `push` knows the key and searches for it in every form it may take; the cloud's `train.py` knows none and
searches for the line of any key file. Whatever is not known to belong into a published repository is refused, with
the reason; nothing is left out silently.
"""

import base64
import fnmatch
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_neuracrypt.encoders.stored import stored_as
from hf_neuracrypt.errors import LeakError
from hf_neuracrypt.keys import PLAIN_PREFIX, WRAPPED_PREFIX, SecretKey
from hf_neuracrypt.schemes import SchemeConfig


MODEL_FILES = (
    "README.md", "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "training_args.bin",
    "trainer_state.json", "*_results.json", "runs/*/events.out.tfevents.*",
)  # fmt: skip
CHECKPOINT_FILES = (
    *MODEL_FILES, "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_*.pth",
    "optimizer.bin", "pytorch_model_fsdp.bin",  # FSDP, whole
)  # fmt: skip
ROWS_AT_A_TIME = 1_000
CHUNK_BYTES, OVERLAP_BYTES = 64_000_000, 4_000  # no trace of a key is longer than the overlap


class Guard:
    """Refuses what must not be published.

    Args:
        key: the owner's key, searched for in every form; None where no key is known.
        tokens: access tokens that must not be published either.
    """

    def __init__(self, key: SecretKey | None = None, tokens: Iterable[str | None] = ()):
        self.key, self.tokens = key, [token.encode() for token in tokens if token]

    def check_bytes(self, data: bytes, where: str) -> None:
        """Raises LeakError if `data` holds a key or a token."""
        texts = _texts(data)
        if holds_key_file(data, texts):
            raise LeakError(f"{where} holds the text of a secret key file: nothing was published; remove it")
        if self.key is not None and (form := find_key(self.key, data, texts)):
            raise LeakError(f"{where} holds the secret key ({form}): nothing was published; remove it")
        if any(token in data for token in self.tokens):
            raise LeakError(f"{where} holds an access token: nothing was published; remove it")

    def check_file(self, path: Path, where: str) -> None:
        """Name and content of a file, in pieces; the members of a zip file (as `torch.save` writes) unpacked."""
        self.check_bytes(where.encode(), f"the name of a file ({Path(where).parent}/…)")
        if path.is_symlink() or not path.is_file():
            raise LeakError(f"{where} is a link or no regular file: only regular files are published")
        with open(path, "rb") as file:
            self._check_stream(file, where)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member:
                        self._check_stream(member, where)

    def _check_stream(self, file: IO[bytes], where: str) -> None:
        tail = b""
        while chunk := file.read(CHUNK_BYTES):
            self.check_bytes(tail + chunk, where)
            tail = chunk[-OVERLAP_BYTES:]

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
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
                self.check_file(path, str(path))  # if it holds a key, that is what the error should say
                raise LeakError(f"{path} is not on the list of files that are published: move it out of the folder")
            self.check_file(path, str(path))

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
        for name in table.column_names:
            for chunk in table.column(name).chunks:
                for buffer in chunk.buffers():
                    if buffer is not None:
                        self.check_bytes(memoryview(buffer).tobytes(), f"column {name!r} of {where}")
        stored = stored_as(config)
        for index, image in enumerate(table.column("image").to_pylist(), first_row):
            if problem := stored.problem(image):
                raise LeakError(f"row {index} of {where} {problem}")


def _texts(data: bytes) -> bytes:
    """The stretches of `data` that may be 40 or more printable characters, in one or two bytes each.

    Ciphertext and weights are random bytes: searched for dozens of texts, a dataset would take hours.
    """
    if len(data) < 1_000:
        return data
    every_fourth = np.frombuffer(data, np.uint8)[:-1:4]
    next_ones = np.frombuffer(data, np.uint8)[1::4][: len(every_fourth)]
    # uint8 arithmetic wraps around, so one comparison tests both ends of " " to "~".
    text = ((every_fourth - 0x20) < 0x5F) | ((every_fourth == 0) & ((next_ones - 0x20) < 0x5F))
    run = text[: len(text) - 8].copy()
    for ahead in range(1, 9):
        run &= text[ahead : len(text) - 8 + ahead]
    starts = np.flatnonzero(run)
    if not len(starts):
        return b""
    breaks = np.flatnonzero(np.diff(starts) > 9)
    firsts, lasts = starts[np.r_[0, breaks + 1]], starts[np.r_[breaks, len(starts) - 1]]
    return b"\xff".join(
        data[max(0, 4 * first - 4) : 4 * last + 40] for first, last in zip(firsts.tolist(), lasts.tolist())
    )


def find_key_file(folder: Path) -> Path | None:
    """A key file somewhere below `folder`, which would be published with it."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and path.stat().st_size <= 1_000_000:
            content = path.read_bytes()
            if holds_key_file(content, content):
                return path
    return None


# ------------------------------------------------------------------------------------------------ forms of a key
# The one place beside `keys` that reads a key's bytes; what is found is named, never shown.


def find_key(key: SecretKey, data: bytes, texts: bytes) -> str | None:
    """In which form `data` holds this key ("hexadecimal digits", …); None if in none of those known.

    `texts` are the parts of `data` that may be text, where the forms that are text are searched for.
    """
    secret = key._secret
    forms = [("raw bytes", secret), ("raw bytes as text", _as_pickle_text(secret))]
    found = [form for form, trace in forms if trace in data]
    found += [form for form, trace in _text_forms(secret) if trace in texts]
    return found[0] if found else None


def holds_key_file(data: bytes, texts: bytes) -> bool:
    """Whether `data` holds the line of any key file, of whatever key; `texts` as in `find_key`."""
    return any(line in data for line in _KEY_LINES) or any(trace in texts for trace in _ENCODED_KEY_LINES)


def _as_pickle_text(data: bytes) -> bytes:
    """What pickle protocol 2, and so `torch.save`, makes of bytes."""
    return data.decode("latin-1").encode()


def _text_forms(secret: bytes) -> list[tuple[str, bytes]]:
    """How bytes may end up in a text by accident: (what it is called, what to search for), 40 characters or more."""
    numbers = [str(byte) for byte in secret]
    texts = [("hexadecimal digits", secret.hex()), ("hexadecimal digits", secret.hex().upper())]
    texts += [("base32 digits", base64.b32encode(secret).decode().rstrip("=")[:-1])]
    texts += [("bytes as numbers", separator.join(numbers)) for separator in (",", ", ", " ")]
    texts += [("value as a number", str(int.from_bytes(secret, order))) for order in ("big", "little")]
    texts += [("bytes as a Python literal", repr(secret)[2:-1])]
    for shift in range(3):  # where the key starts within a group of three bytes of a longer text
        digits = base64.b64encode(bytes(shift) + secret).decode().rstrip("=")
        inner = digits[(8 * shift + 5) // 6 : len(digits) - bool((shift + len(secret)) % 3)]
        texts += [("base64 digits", inner), ("base64 digits", inner.replace("+", "-").replace("/", "_"))]
    wide = [(f"{form} in UTF-16", text.encode("utf-16-le")) for form, text in texts]
    return [(form, text.encode()) for form, text in texts] + wide


_KEY_LINES = [line.encode() for prefix in (PLAIN_PREFIX, WRAPPED_PREFIX) for line in (prefix, prefix.lower())]
_ENCODED_KEY_LINES = [line.decode().encode("utf-16-le") for line in _KEY_LINES] + [
    trace for line in _KEY_LINES for _, trace in _text_forms(line)
]
