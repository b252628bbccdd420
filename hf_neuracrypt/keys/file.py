"""The file of a key: comments, then one line of base32 with a checksum, plain or wrapped with a passphrase."""

import base64
import hashlib
import os
import secrets
import stat
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from hf_neuracrypt.errors import KeyFileError, first_line


KEY_BYTES = 32
PLAIN_PREFIX = "NEURACRYPT-SECRET-KEY-1"
WRAPPED_PREFIX = "NEURACRYPT-WRAPPED-KEY-1"

MAX_FILE_BYTES = 4096
CHECKSUM_BYTES = 3
SALT_BYTES = 16
NONCE_BYTES = 12
# scrypt with N = 2^17, r = 8, p = 1 takes about half a second and 128 MiB. A file may ask for up to 2^20 (1 GiB):
# without a cap, opening somebody's file could exhaust the machine.
WORK_FACTOR = 17
MAX_WORK_FACTOR = 20
MIN_PASSPHRASE = 8

Source = tuple[str, str | None]  # paths of the key file, and of the file that holds its passphrase
Result = TypeVar("Result")


def attempt(function: Callable[..., Result], *arguments: object) -> tuple[Result | None, str | None]:
    """What a function gives, or what went wrong, to be raised anew: the frames that an error has passed hold secrets
    here, and error trackers record their locals."""
    try:
        return function(*arguments), None
    except KeyFileError as error:
        return None, str(error)
    except Exception as error:  # a NUL in a path, or something that is no path
        return None, f"that is no path of a key file, or no passphrase: {first_line(error)}"


def write(path: str | Path, secret: bytes, key_id: str, passphrase: str | None) -> None:
    """A new file of mode 0600, wrapped with `passphrase` if there is one. Raises KeyFileError."""
    body = _encode(PLAIN_PREFIX, secret) if passphrase is None else _wrap(secret, passphrase)
    text = (
        "# hf_neuracrypt secret key: keep it secret, keep two copies, never upload it\n"
        f"# created: {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n# key id (public): {key_id}\n{body}\n"
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise KeyFileError(f"{path} exists; a key file is never overwritten: choose another name") from None
    except OSError as error:
        raise KeyFileError(f"cannot create {path}: {error.strerror}") from None


def read(path: str | Path, passphrase: str | None, passphrase_file: str | Path | None) -> tuple[bytes, Source | None]:
    """The key in a file, and where a worker process finds it again: nowhere, if its passphrase was typed.

    Raises:
        KeyFileError: with the reason, never with the content.
    """
    if passphrase_file is not None:
        passphrase = read_passphrase(passphrase_file)
    prefix, payload = parse(path)
    secret = payload if prefix == PLAIN_PREFIX else _unwrap(payload, passphrase, path)
    typed = prefix == WRAPPED_PREFIX and passphrase_file is None
    locked_by = os.path.abspath(passphrase_file) if passphrase_file is not None else None
    return secret, None if typed else (os.path.abspath(path), locked_by)


def read_passphrase(path: str | Path) -> str:
    """The first line of a passphrase file, which only its owner may read. Raises KeyFileError."""
    return _read_private(path, "passphrase file").split("\n")[0].rstrip("\r")


def _read_private(path: str | Path, what: str) -> str:
    """The text of a small private file. Symbolic links are followed (mounted secrets are links), nothing else is."""
    try:
        # Without O_NONBLOCK a named pipe would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise KeyFileError(f"{what} {path} does not exist") from None
    except OSError as error:
        raise KeyFileError(f"cannot read {what} {path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{what} {path} is not a regular file")
        if os.name == "posix" and status.st_mode & 0o077:
            raise KeyFileError(f"{what} {path} can be read by others: chmod 600 {path}")
        content = os.read(descriptor, MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError(f"{what} {path} is larger than {MAX_FILE_BYTES} bytes, so it is no {what}")
    try:
        # A byte-order mark and CRLF line ends come from editors, not from tampering: both are accepted.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise KeyFileError(f"{what} {path} is not a text file") from None


def parse(path: str | Path) -> tuple[str, bytes]:
    """The prefix of the one line that holds a key, plain or wrapped, and its bytes. Raises KeyFileError."""
    text = _read_private(path, "key file")
    lines = [line for each in text.splitlines() if (line := each.strip()) and not line.startswith("#")]
    if not lines:
        raise KeyFileError(f"{path} holds no key: it is empty")
    if len(lines) > 1:
        raise KeyFileError(f"{path} must hold one key and nothing else, but has {len(lines)} lines that are no comment")
    for prefix, size in ((PLAIN_PREFIX, KEY_BYTES), (WRAPPED_PREFIX, 1 + SALT_BYTES + NONCE_BYTES + KEY_BYTES + 16)):
        if lines[0].startswith(prefix):
            return prefix, _decode(prefix, lines[0], size, path)
    raise KeyFileError(f"{path} holds no hf_neuracrypt key: the line should start with {PLAIN_PREFIX}")


def _checksum(prefix: str, payload: bytes) -> bytes:
    return hashlib.sha256(prefix.encode() + payload).digest()[:CHECKSUM_BYTES]


def _encode(prefix: str, payload: bytes) -> str:
    return prefix + base64.b32encode(payload + _checksum(prefix, payload)).decode()


def _decode(prefix: str, line: str, size: int, path: str | Path) -> bytes:
    body = line[len(prefix) :]
    if len(body) != (size + CHECKSUM_BYTES) * 8 // 5:
        raise KeyFileError(f"the key in {path} has {len(body)} characters after its prefix: it was cut or extended")
    try:
        data = base64.b32decode(body)
    except ValueError:
        raise KeyFileError(f"the key in {path} has a character that no key has: it was mistyped") from None
    if data[size:] != _checksum(prefix, data[:size]):
        raise KeyFileError(f"the key in {path} fails its checksum: it was mistyped or damaged")
    return data[:size]


def _wrapping(passphrase: str, header: bytes) -> tuple[ChaCha20Poly1305, bytes]:
    """The cipher that wraps a key, and the associated data it vouches for."""
    try:
        derived = Scrypt(salt=header[1:], length=32, n=1 << header[0], r=8, p=1).derive(passphrase.encode())
    except UnicodeEncodeError:
        raise KeyFileError("the passphrase holds characters that are no text") from None
    except MemoryError:
        raise KeyFileError(
            f"a passphrase takes {1 << header[0] - 10:,} MiB of memory to check, which are not free"
        ) from None
    return ChaCha20Poly1305(derived), WRAPPED_PREFIX.encode() + header


def _wrap(secret: bytes, passphrase: str) -> str:
    passphrase = unicodedata.normalize("NFC", passphrase)  # the same, typed on a Mac or not
    if len(passphrase) < MIN_PASSPHRASE:
        raise KeyFileError(f"a passphrase has {MIN_PASSPHRASE} characters or more: four words are easy to keep")
    header, nonce = bytes([WORK_FACTOR]) + secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
    cipher, associated = _wrapping(passphrase, header)
    return _encode(WRAPPED_PREFIX, header + nonce + cipher.encrypt(nonce, secret, associated))


def _unwrap(payload: bytes, passphrase: str | None, path: str | Path) -> bytes:
    if passphrase is None:
        raise KeyFileError(f"{path} is locked with a passphrase: give --passphrase-file, or type it when asked")
    header, rest = payload[: 1 + SALT_BYTES], payload[1 + SALT_BYTES :]
    if not 1 <= header[0] <= MAX_WORK_FACTOR:
        raise KeyFileError(f"{path} asks for a work factor of 2^{header[0]}; more than 2^{MAX_WORK_FACTOR} is refused")
    for typed in dict.fromkeys((unicodedata.normalize("NFC", passphrase), passphrase)):
        cipher, associated = _wrapping(typed, header)
        try:
            return cipher.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], associated)
        except InvalidTag:
            continue
    raise KeyFileError(f"wrong passphrase for {path}")
