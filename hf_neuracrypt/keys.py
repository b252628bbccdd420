"""The secret key: 32 bytes from the operating system, kept in a small text file, and all that is derived from it.

Notable decisions
- A key is never a seed or a passphrase: torch keeps 32 bits of a seed on CPU, people choose worse. A passphrase only
  *wraps* the file (scrypt, then ChaCha20-Poly1305).
- One HKDF-SHA256 subkey (RFC 5869, no salt) for each purpose, bound to the public config; its ChaCha20 keystream
  (RFC 8439, zero nonce) becomes integers by integer rules alone, so every platform derives the same network.
- `SecretKey` shows its public id only. It pickles as a *reference to its file*, so a worker process loads the key
  itself and no pickle, cache or fingerprint ever holds it.
"""

import base64
import hashlib
import hmac
import os
import secrets
import stat
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import AESSIV, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from hf_neuracrypt.errors import KeyFileError, NeuraCryptError


KEY_BYTES = 32
PLAIN_PREFIX = "NEURACRYPT-SECRET-KEY-1"
WRAPPED_PREFIX = "NEURACRYPT-WRAPPED-KEY-1"
KEY_ID_PREFIX = "nck1-"
DOMAIN = b"hf-neuracrypt/v1"

MAX_FILE_BYTES = 4096
CHECKSUM_BYTES = 3
SALT_BYTES = 16
NONCE_BYTES = 12
# scrypt with N = 2^17, r = 8, p = 1 takes about half a second and 128 MiB. A file may ask for up to 2^20 (1 GiB):
# without a cap, opening somebody's file could exhaust the machine.
WORK_FACTOR = 17
MAX_WORK_FACTOR = 20
SEALED_BLOCK = 1024


class SecretKey:
    """A 256-bit secret key. Its `id` is public; its bytes never leave the object.

    Make one with `SecretKey.generate()`, keep it with `save(path)`, get it back with `SecretKey.load(path)`.
    """

    __slots__ = ("_secret", "_source", "id")

    def __init__(self, secret: bytes, _source: tuple[str, str | None] | None = None):
        if not isinstance(secret, bytes) or len(secret) != KEY_BYTES:
            raise NeuraCryptError(f"a secret key is {KEY_BYTES} bytes of the system's randomness: SecretKey.generate()")
        self._secret = secret
        self._source = _source
        self.id: str = KEY_ID_PREFIX + self._derive(b"key-id", 16).hex()

    @classmethod
    def generate(cls) -> "SecretKey":
        """A new key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    # ------------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path, passphrase: str | None = None) -> None:
        """Write the key to a *new* file of mode 0600, wrapped with `passphrase` if one is given.

        Raises:
            KeyFileError: the file exists, or cannot be written.
        """
        body = _encode(PLAIN_PREFIX, self._secret) if passphrase is None else _wrap(self._secret, passphrase)
        text = (
            "# hf_neuracrypt secret key: keep it secret, keep two copies, never upload it\n"
            f"# created: {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n# key id (public): {self.id}\n{body}\n"
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except FileExistsError:
            raise KeyFileError(f"{path} exists; a key file is never overwritten: choose another name") from None
        except OSError as error:
            raise KeyFileError(f"cannot create {path}: {error.strerror}") from None
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(
        cls, path: str | Path, passphrase: str | None = None, passphrase_file: str | Path | None = None
    ) -> "SecretKey":
        """Read a key file.

        Args:
            path: the file; refused when the group or others may read it.
            passphrase: opens a wrapped file; such a key cannot be sent to worker processes.
            passphrase_file: the same, read from a file's first line; worker processes read it again themselves.

        Raises:
            KeyFileError: with the reason, never with the content.
        """
        if passphrase_file is not None:
            passphrase = read_passphrase(passphrase_file)
        prefix, payload = _parse(_read_private(path, "key file"), path)
        secret = payload if prefix == PLAIN_PREFIX else _unwrap(payload, passphrase, path)
        typed = prefix == WRAPPED_PREFIX and passphrase_file is None
        reference = None if typed else (os.path.abspath(path), passphrase_file and os.path.abspath(passphrase_file))
        return cls(secret, reference)

    @staticmethod
    def is_locked(path: str | Path) -> bool:
        """Whether the key file asks for a passphrase. Raises KeyFileError for a file that is no key file."""
        return _parse(_read_private(path, "key file"), path)[0] == WRAPPED_PREFIX

    # ------------------------------------------------------------------------------------------------- derivation

    def _derive(self, purpose: bytes, length: int) -> bytes:
        return HKDF(hashes.SHA256(), length, salt=None, info=DOMAIN + b"/" + purpose).derive(self._secret)

    def _keystream(self, purpose: str) -> CipherContext:
        return Cipher(ChaCha20(self._derive(purpose.encode(), 32), bytes(16)), mode=None).encryptor()

    def integers(self, public: str, purpose: str, shape: tuple[int, ...], bits: int = 8) -> np.ndarray:
        """Keyed integers, uniform on [-(2^(bits-1) - 1), 2^(bits-1) - 1], as int8 of `shape` in row-major order.

        The subkey is HKDF-SHA256(key, info = domain / "integers" / purpose / public), its ChaCha20 keystream is read
        byte by byte: the low `bits` bits as a two's complement number, the one value without a negative discarded.

        Args:
            public: the canonical text of the public parameters the numbers belong to.
            purpose: what they are for; no two purposes share a keystream.
            shape: how many, and how they are laid out.
            bits: 2 to 8.
        """
        keystream = self._keystream(f"integers/{purpose}/{public}")
        count = int(np.prod(shape))
        parts, missing = [], count
        while missing > 0:
            raw = np.frombuffer(keystream.update(bytes(missing + missing // 64 + 64)), np.uint8)
            values = (raw << np.uint8(8 - bits)).view(np.int8) >> np.int8(8 - bits)
            parts.append(values[values != -(1 << (bits - 1))])
            missing -= len(parts[-1])
        return np.concatenate(parts)[:count].reshape(shape) if parts else np.zeros(shape, np.int8)

    def permutation(self, public: str, purpose: str, size: int) -> list[int]:
        """A keyed permutation of range(size): Fisher-Yates on 64-bit little-endian words of the keystream."""
        keystream = self._keystream(f"permutation/{purpose}/{public}")
        order = list(range(size))
        for last in range(size - 1, 0, -1):
            limit = (1 << 64) // (last + 1) * (last + 1)
            while (word := int.from_bytes(keystream.update(bytes(8)), "little")) >= limit:
                pass
            order[last], order[word % (last + 1)] = order[word % (last + 1)], order[last]
        return order

    def seal(self, text: str, purpose: str) -> str:
        """Encrypt a short text (AES-SIV, deterministic), padded so that its length tells little; base64."""
        padded = text.encode() + b"\x80"
        padded += bytes(-len(padded) % SEALED_BLOCK)
        return base64.b64encode(AESSIV(self._derive(b"seal", 64)).encrypt(padded, [purpose.encode()])).decode()

    def unseal(self, sealed: str, purpose: str) -> str:
        """Undo `seal`. Raises NeuraCryptError when the text was sealed by another key or was changed."""
        try:
            padded = AESSIV(self._derive(b"seal", 64)).decrypt(base64.b64decode(sealed), [purpose.encode()])
        except (InvalidTag, ValueError):
            raise NeuraCryptError(f"the sealed {purpose} were changed, or belong to another key") from None
        return padded.rstrip(b"\0")[:-1].decode()

    def __repr__(self) -> str:
        return f"SecretKey(id={self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretKey) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self):
        if self._source is None:
            raise TypeError(
                "a SecretKey is never pickled: load it with SecretKey.load(path), without a typed passphrase, so that "
                "worker processes can read the key file themselves"
            )
        return _reload, (*self._source, self.id)

    def __copy__(self) -> "SecretKey":
        return self

    def __deepcopy__(self, memo: dict) -> "SecretKey":
        return self


def read_passphrase(path: str | Path) -> str:
    """The first line of a passphrase file, which only its owner may read. Raises KeyFileError."""
    return _read_private(path, "passphrase file").split("\n")[0].rstrip("\r")


def _reload(path: str, passphrase_file: str | None, key_id: str) -> SecretKey:
    key = SecretKey.load(path, passphrase_file=passphrase_file)
    if key.id != key_id:
        raise KeyFileError(f"{path} changed while the job was running: it now holds {key.id}, the job uses {key_id}")
    return key


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


def _parse(text: str, path: str | Path) -> tuple[str, bytes]:
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
    derived = Scrypt(salt=header[1:], length=32, n=1 << header[0], r=8, p=1).derive(passphrase.encode())
    return ChaCha20Poly1305(derived), WRAPPED_PREFIX.encode() + header


def _wrap(secret: bytes, passphrase: str) -> str:
    if not passphrase:
        raise KeyFileError("the passphrase is empty")
    header, nonce = bytes([WORK_FACTOR]) + secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
    cipher, associated = _wrapping(passphrase, header)
    return _encode(WRAPPED_PREFIX, header + nonce + cipher.encrypt(nonce, secret, associated))


def _unwrap(payload: bytes, passphrase: str | None, path: str | Path) -> bytes:
    if passphrase is None:
        raise KeyFileError(f"{path} is locked with a passphrase: give --passphrase-file, or type it when asked")
    header, rest = payload[: 1 + SALT_BYTES], payload[1 + SALT_BYTES :]
    if not 1 <= header[0] <= MAX_WORK_FACTOR:
        raise KeyFileError(f"{path} asks for a work factor of 2^{header[0]}; more than 2^{MAX_WORK_FACTOR} is refused")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cipher, associated = _wrapping(passphrase, header)
            return cipher.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], associated)
    except InvalidTag:
        raise KeyFileError(f"wrong passphrase for {path}") from None
