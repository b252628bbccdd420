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
import hmac
import os
import secrets
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hf_neuracrypt.errors import KeyFileError, NeuraCryptError
from hf_neuracrypt.keys import file


KEY_ID_PREFIX = "nck1-"
DOMAIN = b"hf-neuracrypt/v1"
SEALED_BLOCK = 1024


class SecretKey:
    """A 256-bit secret key. Its `id` is public; its bytes never leave the object.

    Make one with `SecretKey.generate()`, keep it with `save(path)`, get it back with `SecretKey.load(path)`.
    """

    __slots__ = ("_secret", "_source", "id")

    def __init__(self, secret: bytes, _source: file.Source | None = None):
        if not isinstance(secret, bytes) or len(secret) != file.KEY_BYTES:
            del secret
            raise NeuraCryptError(
                f"a secret key is {file.KEY_BYTES} bytes of the system's randomness: SecretKey.generate()"
            )
        self._secret = secret
        self._source = _source
        self.id: str = KEY_ID_PREFIX + self._derive(b"key-id", 16).hex()

    @classmethod
    def generate(cls) -> "SecretKey":
        """A new key from the operating system's generator."""
        return cls(secrets.token_bytes(file.KEY_BYTES))

    # ------------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path, passphrase: str | None = None) -> None:
        """Write the key to a *new* file of mode 0600, wrapped with `passphrase` if one is given.

        Raises:
            KeyFileError: the file exists, or cannot be written.
        """
        _, problem = file.attempt(file.write, path, self._secret, self.id, passphrase)
        del passphrase
        if problem is not None:
            raise KeyFileError(problem)

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
        found, problem = file.attempt(file.read, path, passphrase, passphrase_file)
        del passphrase
        if found is None:
            raise KeyFileError(problem)
        return cls(*found)

    @staticmethod
    def is_locked(path: str | Path) -> bool:
        """Whether the key file asks for a passphrase. Raises KeyFileError for a file that is no key file."""
        parsed, problem = file.attempt(file.parse, path)
        if parsed is None:
            raise KeyFileError(problem)
        return parsed[0] == file.WRAPPED_PREFIX

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
        return f"SecretKey(id={getattr(self, 'id', None)!r})"  # shown half-made, too, if it is given what is no key

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


def _reload(path: str, passphrase_file: str | None, key_id: str) -> SecretKey:
    """Read the key file again, in another process; on another machine it may be elsewhere."""
    if not Path(path).exists():
        path = os.environ.get("NEURACRYPT_KEY_FILE", path)
    key = SecretKey.load(path, passphrase_file=passphrase_file)
    if key.id != key_id:
        raise KeyFileError(f"{path} changed while the job was running: it now holds {key.id}, the job uses {key_id}")
    return key
