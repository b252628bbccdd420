"""The forms in which a key may end up in other data by accident, which the guard searches for.

The one place beside `keys` that reads a key's bytes; what is found is named, never shown. It finds accidents, not
somebody who hides a key on purpose.
"""

import base64
import re
from collections.abc import Iterator

import numpy as np

from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.keys import PLAIN_PREFIX, WRAPPED_PREFIX, SecretKey
from hf_neuracrypt.schemes import SchemeConfig


BETWEEN = re.compile(rb"""[\s,:;"'\[\](){}<>|]|0x|\\[xn]""")  # what formatting puts between digits
NUMBER = re.compile(rb"-?\d+")
NUMBER_TYPES = ("<i2", "<i4", "<i8", "<f4", "<f8")  # arrays and tensors of the bytes' values
DERIVED = 64  # values of what a key becomes that are searched for


class Traces:
    """A key in the forms that are searched for, and what it becomes under a config."""

    def __init__(self, key: SecretKey, config: SchemeConfig | None = None):
        secret = key._secret
        self.secret, self.digits = secret, _digit_forms(secret)
        self.binary = [("raw bytes", secret), ("raw bytes as text", _as_pickle_text(secret))]
        for values in (np.frombuffer(secret, np.uint8), np.frombuffer(secret, np.int8)):
            self.binary += [("numbers", values.astype(kind).tobytes()) for kind in NUMBER_TYPES]
        for derived in load_encoder(config, key).secrets() if config is not None else ():
            first = derived.reshape(-1)[:DERIVED]
            kinds = ("<f4", "<f8") if first.dtype.kind == "f" else ("i1", *NUMBER_TYPES)  # not 0s
            self.binary += [("what it becomes", first.astype(kind).tobytes()) for kind in kinds]

    def find(self, data: bytes, texts: bytes) -> str | None:
        """In which form `data` holds the key ("hexadecimal digits", …); None if in none of those known.

        `texts` are the parts of `data` that may be text, where the forms that are text are searched for.
        """
        found = next((form for form, trace in self.binary if trace in data), None)
        return found or next((form for text in _readings(texts) if (form := self._find_text(text))), None)

    def _find_text(self, text: bytes) -> str | None:
        condensed = BETWEEN.sub(b"", text)
        for form, trace in self.digits:
            if trace in text or trace in condensed:
                return form
        if self.secret.hex().encode() in condensed.lower():
            return "hexadecimal digits"
        numbers = (int(number) for number in NUMBER.findall(text) if len(number) <= 4)
        return "bytes as numbers" if self.secret in bytes(n % 256 for n in numbers if -128 <= n < 256) else None


def holds_key_file(data: bytes, texts: bytes) -> bool:
    """Whether `data` holds the line of any key file, of whatever key; `texts` as in `Traces.find`."""
    if any(line in data for line in KEY_LINES):
        return True
    for text in _readings(texts):
        condensed = BETWEEN.sub(b"", text)
        if any(line.lower() in text.lower() for line in KEY_LINES):
            return True
        if any(trace in condensed for _, trace in ENCODED_KEY_LINES):
            return True
    return False


def _readings(texts: bytes) -> Iterator[bytes]:
    """The text, and what it would be if its characters had two or four bytes each."""
    yield texts
    if b"\0" in texts:
        yield texts.replace(b"\0", b"")


def _as_pickle_text(data: bytes) -> bytes:
    """What pickle protocol 2, and so `torch.save`, makes of bytes."""
    return data.decode("latin-1").encode()


def _digit_forms(data: bytes) -> list[tuple[str, bytes]]:
    """How bytes may end up in a text by accident: (what it is called, what to search for), 40 characters or more."""
    forms = [("hexadecimal digits", data.hex()), ("base32 digits", base64.b32encode(data).decode().rstrip("=")[:-1])]
    forms += [("value as a number", str(int.from_bytes(data, order))) for order in ("big", "little")]
    forms += [("bytes as a Python literal", repr(data)[2:-1]), ("base85 digits", base64.b85encode(data).decode())]
    for shift in range(3):  # where the key starts within a group of three bytes of a longer text
        digits = base64.b64encode(bytes(shift) + data).decode().rstrip("=")
        inner = digits[(8 * shift + 5) // 6 : len(digits) - bool((shift + len(data)) % 3)]
        forms += [("base64 digits", inner), ("base64 digits", inner.replace("+", "-").replace("/", "_"))]
    return [(form, text.encode()) for form, text in forms]


def stretches_of_text(data: bytes) -> bytes:
    """The stretches of `data` that may be 40 or more characters of text, in one, two or four bytes each.

    Ciphertext and weights are random bytes: searched for dozens of texts, a dataset would take hours.
    """
    if len(data) < 1_000:
        return data
    every_fourth = np.frombuffer(data, np.uint8)[:-1:4]
    next_ones = np.frombuffer(data, np.uint8)[1::4][: len(every_fourth)]
    text = _is_text(every_fourth) | ((every_fourth == 0) & (_is_text(next_ones) | (next_ones == 0)))
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


def _is_text(values: np.ndarray) -> np.ndarray:
    # uint8 arithmetic wraps around, so one comparison tests both ends: of " " to "~", and of tabs and line ends.
    return ((values - 0x20) < 0x5F) | ((values - 9) < 5)


KEY_LINES = [line.encode() for line in (PLAIN_PREFIX, WRAPPED_PREFIX)]
ENCODED_KEY_LINES = [trace for line in KEY_LINES for trace in _digit_forms(line)]
