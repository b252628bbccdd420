"""The forms in which a key may end up in other data by accident: what the guard searches for.

The one place beside `keys` that reads a key's bytes; what is found is named, never shown.
"""

import base64

from hf_neuracrypt.keys import PLAIN_PREFIX, WRAPPED_PREFIX, SecretKey


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
