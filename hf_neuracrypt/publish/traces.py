"""The forms in which a key may end up in other data by accident, which the guard searches for.

The one place beside `keys` that reads a key's bytes; what is found is named, never shown. It finds accidents, not
somebody who hides a key on purpose.
"""

import base64
import json
import re
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import numpy as np

from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.keys import PLAIN_PREFIX, WRAPPED_PREFIX, SecretKey
from hf_neuracrypt.schemes import SchemeConfig


WHITE_SPACE = b" \t\r\n\v\f"
BETWEEN = b""",:;"'[](){}<>|#*.-"""  # what else formatting, or a comment, puts between digits
DUMPED = re.compile(  # a line of xxd (groups of four digits), or of hexdump -C and od -tx1 (of two)
    rb"(?<![0-9a-fA-F])[0-9a-fA-F]{6,}:?((?: [0-9a-fA-F]{4}){1,8}(?!\S)|(?: {1,2}[0-9a-fA-F]{2}(?!\S)){1,16})"
)
NUMBER = re.compile(rb"(0x[0-9a-fA-F]+|-?\d+)(?:\.0+(?!\d))?")
NUMBER_TYPES = ("<i2", "<i4", "<i8", "<f2", "<f4", "<f8")  # arrays and tensors of the bytes' values
DERIVED = 64  # values of what a key becomes that are searched for
ENCODINGS = [  # name, function, bytes a group
    ("base64 digits", base64.b64encode, 3), ("base64 digits", base64.urlsafe_b64encode, 3),
    ("base32 digits", base64.b32encode, 5), ("base32 digits", lambda data: base64.b32encode(data).lower(), 5),
    ("base85 digits", base64.b85encode, 4), ("base85 digits", base64.a85encode, 4),
]  # fmt: skip


class Traces:
    """A key in the forms that are searched for, and what it becomes under a config."""

    def __init__(self, key: SecretKey, config: SchemeConfig | None = None):
        secret = key._secret
        self.secret, self.digits = secret, _digit_forms(secret)
        self.binary = [("raw bytes", secret), ("raw bytes as text", _as_pickle_text(secret))]
        for values in (np.frombuffer(secret, np.uint8), np.frombuffer(secret, np.int8)):
            self.binary += [("numbers", values.astype(kind).tobytes()) for kind in NUMBER_TYPES]
            self.binary.append(("numbers", values.astype("<f4").view("<u2")[1::2].tobytes()))  # as bfloat16
        for derived in load_encoder(config, key).secrets() if config is not None else ():
            first = derived.reshape(-1)[:DERIVED]
            kinds = ("<f4", "<f8") if first.dtype.kind == "f" else ("i1", *NUMBER_TYPES)  # not 0s
            self.binary += [("what it becomes", first.astype(kind).tobytes()) for kind in kinds]

    def find(self, data: bytes, texts: bytes) -> str | None:
        """In which form `data` holds the key ("hexadecimal digits", …); None if in none of those known.

        `texts` are the parts of `data` that may be text, where the forms that are text are searched for.
        """
        found = next((form for form, trace in self.binary if trace in data), None)
        return found or self._find_digits(texts) or self._find_numbers(texts)

    def _find_digits(self, texts: bytes) -> str | None:
        for reading in _readings(texts):
            for form, trace in self.digits:
                if trace in reading:
                    return form
            if self.secret.hex().encode() in _without(reading.lower(), b"0x", b"\\x", b"%"):
                return "hexadecimal digits"
        return None

    def _find_numbers(self, texts: bytes) -> str | None:
        for text in _narrow(texts):
            numbers = (int(number, 0 if b"x" in number else 10) for number in NUMBER.findall(text) if len(number) <= 4)
            if self.secret in bytes(number % 256 for number in numbers if -128 <= number < 256):
                return "bytes as numbers"
        return None


def holds_key_file(data: bytes, texts: bytes) -> bool:
    """Whether `data` holds the line of any key file, of whatever key; `texts` as in `Traces.find`."""
    if any(line in data for line in KEY_LINES):
        return True
    for reading in _readings(texts):
        small = reading.lower()
        if any(line.lower() in small for line in KEY_LINES) or any(trace in reading for _, trace in KEY_LINE_DIGITS):
            return True
    return False


def _narrow(texts: bytes) -> Iterator[bytes]:
    """The text, and what it would be if its characters had two or four bytes each."""
    yield texts
    if b"\0" in texts:
        yield texts.replace(b"\0", b"")


def _readings(texts: bytes) -> Iterator[bytes]:
    """Texts with more and more of what may stand between digits taken out; some digits are such characters, too."""
    for text in _narrow(texts):
        yield text
        yield (unwrapped := _without(text.translate(None, WHITE_SPACE), b"\\n", b"\\r"))
        yield unwrapped.translate(None, BETWEEN)
        yield b"".join(DUMPED.findall(text)).translate(None, WHITE_SPACE)


def _without(text: bytes, *parts: bytes) -> bytes:
    for part in parts:
        text = text.replace(part, b"")
    return text


def _as_pickle_text(data: bytes) -> bytes:
    """What pickle protocol 2, and so `torch.save`, makes of bytes."""
    return data.decode("latin-1").encode()


def _digit_forms(data: bytes) -> list[tuple[str, bytes]]:
    """How bytes may end up in a text by accident, wherever in a longer text: (what it is called, what to look for)."""
    forms = [("hexadecimal digits", data.hex()), ("bytes as a Python literal", repr(data)[2:-1])]
    forms += [("value as a number", str(int.from_bytes(data, order))) for order in ("big", "little")]
    forms += [("bytes of an address", quote_from_bytes(data, safe=""))]
    forms += [("bytes as a text of JSON", json.dumps(data.decode("latin-1"))[1:-1])]
    for part in (data, data[1:]):  # in words of two bytes, as hexdump shows them
        words = np.frombuffer(part[: len(part) // 2 * 2], "<u2")
        forms.append(("hexadecimal digits", words.byteswap().tobytes().hex()))
    found = [(form, text.encode()) for form, text in forms]
    for name, encode, group in ENCODINGS:
        for start in range(group):  # of the first whole group, of the digits of which no byte before it has a part
            end = len(data) - (len(data) - start) % group
            found.append((name, encode(data[start:end])))
    return found


def stretches_of_text(data: bytes) -> bytes:
    """The stretches of `data` that may be 40 or more characters of text, in one, two or four bytes each.

    Ciphertext and weights are random bytes: searched for dozens of texts, a dataset would take hours.
    """
    if len(data) < 1_000:
        return data
    first, second, third, fourth = np.frombuffer(data, np.uint8, len(data) // 4 * 4).reshape(-1, 4).T
    text = _is_text(first) | ((first == 0) & _is_text(second))
    wide = np.flatnonzero((first == 0) & (second == 0))  # of zeros alone, and of round numbers, there may be gigabytes
    text[wide] = _is_text(third[wide]) | ((third[wide] == 0) & _is_text(fourth[wide]))
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
KEY_LINE_DIGITS = [trace for line in KEY_LINES for trace in _digit_forms(line)]
