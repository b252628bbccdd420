"""The forms in which a key, or what becomes of it, is found among bytes; random bytes and round numbers are none."""

import base64
import hashlib
import json
import pickle
import textwrap
from urllib.parse import quote

import numpy as np
import pytest
import torch

from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.color_neuracrypt import expand
from hf_neuracrypt.errors import LeakError
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.publish.guard import Guard
from hf_neuracrypt.publish.traces import stretches_of_text
from hf_neuracrypt.schemes import SCHEMES, make_config
from tests.helpers import SMALL


SECRET = hashlib.sha256(b"insecure").digest()
KEY = SecretKey(SECRET)

HIDDEN = {
    "base64": base64.b64encode(SECRET),
    "base64 in a longer text": base64.b64encode(b"ab" + SECRET + b"c"),
    "hexadecimal in UTF-16": SECRET.hex().encode("utf-16-le"),
    "base32": base64.b32encode(SECRET),
    "numbers": str(list(SECRET)).encode(),
    "raw": SECRET,
}


@pytest.mark.parametrize("form", HIDDEN.values(), ids=HIDDEN)
def test_a_key_in_the_middle_of_random_bytes_is_found(form):
    noise = np.random.default_rng(0).bytes(20_000)
    Guard(KEY).check_bytes(noise, "noise")
    for offset in range(9_000, 9_008):
        with pytest.raises(LeakError, match="holds the secret key"):
            Guard(KEY).check_bytes(noise[:offset] + form + noise[offset:], "noise")


NUMBERS = list(SECRET)
SIGNED = [number - 256 * (number > 127) for number in SECRET]
FORMS = {
    "wrapped base64": "\n".join(textwrap.wrap(base64.b64encode(bytes(70) + SECRET + bytes(70)).decode(), 76)).encode(),
    "base85": base64.b85encode(SECRET),
    "spaced hex": SECRET.hex(" ").encode(),
    "colon hex": SECRET.hex(":").upper().encode(),
    "indented numbers": json.dumps({"key": NUMBERS}, indent=2).encode(),
    "numpy's repr": repr(np.frombuffer(SECRET, np.uint8)).encode(),
    "torch's repr": repr(torch.tensor(NUMBERS)).encode(),
    "signed numbers": json.dumps(SIGNED).encode(),
    "int64": np.array(NUMBERS, np.int64).tobytes(),
    "float32": np.array(NUMBERS, np.float32).tobytes(),
    "signed float64": np.array(SIGNED, np.float64).tobytes(),
    "UTF-32": SECRET.hex().encode("utf-32-le"),
    "pickle protocol 0": pickle.dumps(SECRET, protocol=0),
    "first weights": expand(SMALL, KEY).hidden[0].weight.tobytes(),
    "first weights in float32": expand(SMALL, KEY).hidden[0].weight.astype(np.float32).tobytes(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_key_is_found_in_forms_that_tools_print(form):
    noise = np.random.default_rng(0).bytes(20_000)
    guard = Guard(KEY, config=SMALL)
    guard.check_bytes(noise, "noise")
    for data in (FORMS[form], noise + FORMS[form] + noise):
        with pytest.raises(LeakError, match="holds the secret key"):
            guard.check_bytes(data, "it")


def texts_of(secret: bytes, folder) -> dict[str, bytes]:
    """What a shell, an editor or Python makes of a key or of its file: by what it is called."""
    SecretKey(secret).save(folder / "a.key")
    file, numbers = (folder / "a.key").read_bytes(), list(secret)
    (folder / "a.key").unlink()
    line = file.split()[-1].decode()
    return {
        "base64 of the file": base64.encodebytes(file),
        "base64 of the file, unwrapped": base64.b64encode(file),
        "base64 of the file, CRLF": base64.encodebytes(file).replace(b"\n", b"\r\n"),
        "base64 of the line": base64.encodebytes(line.encode()),
        "base64, wrapped": "\n".join(textwrap.wrap(base64.b64encode(b"key" + secret).decode(), 20)).encode(),
        "base64": base64.b64encode(secret),
        "base85": base64.b85encode(secret),
        "hex": secret.hex().encode(),
        "spaced hex": secret.hex(" ", 2).encode(),
        "indented": json.dumps(numbers, indent=4).encode(),
        "a list of YAML": "".join(f"- {number}\n" for number in numbers).encode(),
        "repr": repr(secret).encode(),
        "hex() of each": str([hex(number) for number in numbers]).encode(),
        "an address": f"https://host/?k={quote(secret, safe='')}".encode(),
        "xxd": dumped(b"before" + secret, "{:08x}: ", 2, "  {}"),
        "hexdump -C": dumped(b"before" + secret, "{:08x}  ", 1, "  |{}|"),
        "od -tx1": dumped(b"before" + secret, "{:07o} ", 1, ""),
        "base32 in a longer text": base64.b32encode(b"before" + secret + b"after").lower(),
        "base85 in a longer text": base64.b85encode(b"before" + secret + b"after"),
        "base85 of the file": base64.a85encode(file, wrapcol=60),
        "a list of floats": json.dumps([float(number) for number in numbers]).encode(),
        "a text of JSON": json.dumps({"key": secret.decode("latin-1")}).encode(),
        "hex with dashes": secret.hex("-").encode(),
        "hex with dots": secret.hex(".").upper().encode(),
        "a comment": "".join(f"# {part}\n" for part in textwrap.wrap(base64.b64encode(secret).decode(), 20)).encode(),
        "the line, in groups": "-".join(textwrap.wrap(line, 8)).encode(),
        "hexdump": words_of(b"before" + secret),
        "hexdump, at an odd place": words_of(b"befor" + secret + b"x"),
        "hexdump of the file": words_of(file + b"x" * (len(file) % 2)),
        "half precision": torch.tensor(numbers).half().numpy().tobytes(),
        "bfloat16": torch.tensor(numbers).bfloat16().view(torch.int16).numpy().tobytes(),
        "mixed case": line.title().encode(),
        "UTF-32": line.encode("utf-32-be"),
        "quoted": json.dumps({"source": [file.decode()]}).encode(),
    }


def words_of(data: bytes) -> bytes:
    """What `hexdump` prints: words of two bytes, the lower one last."""
    swapped = np.frombuffer(data, "<u2").byteswap().tobytes()
    return dumped(swapped, "{:07x} ", 2, "")


def dumped(data: bytes, offset: str, together: int, gutter: str) -> bytes:
    """Lines of 16 bytes in hexadecimal digits, as tools print them."""
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(offset.format(start) + row.hex(" ", -together) + gutter.format(shown))
    return "\n".join([*lines, ""]).encode()


def test_texts_of_any_key_are_found(tmp_path):
    """Whatever digits it happens to have, wherever in a file they stand."""
    generator, missed = np.random.default_rng(0), set()
    for _ in range(25):
        secret = generator.bytes(32)
        guard, before = Guard(SecretKey(secret)), generator.bytes(int(generator.integers(2_000)))
        for name, text in texts_of(secret, tmp_path).items():
            try:
                guard.check_bytes(before + text + before, "it")
            except LeakError:
                continue
            missed.add(name)
    assert not missed


def test_random_bytes_and_text_pass(tmp_path):
    """Of the size of a shard, whatever the scheme and the key; and text of another key's public id and digits."""
    noise = np.random.default_rng(1).bytes(2_000_000)
    other = SecretKey(hashlib.sha256(b"other").digest())
    text = json.dumps({"key_id": other.id, "sha256": hashlib.sha256(noise).hexdigest(), "history": list(range(5_000))})
    for scheme in SCHEMES:
        small = {"image_size": 64} | ({"width": 64} if scheme == "neuracrypt" else {})
        guard = Guard(KEY, ["hf_token"], make_config(scheme, small))
        for data in (noise, bytes(100_000), b"\xff" * 100_000, text.encode(), base64.encodebytes(noise[:50_000])):
            guard.check_bytes(data, "it")


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(200_000, generator=torch.Generator().manual_seed(0)).bfloat16().float(), torch.ones(200_000),
        torch.zeros(200_000), torch.arange(200_000) % 256, torch.full((200_000,), -100),
    ],
    ids=["bfloat16 in float32", "ones", "zeros", "small numbers", "ignored labels"],
)  # fmt: skip
def test_round_numbers_are_no_text(values):
    """Weights and states of an optimiser are gigabytes, of which most would be searched for dozens of texts."""
    data = values.numpy().tobytes()
    assert len(stretches_of_text(data)) < len(data) / 20
    text = f"see {SECRET.hex()} there"
    for form in (text.encode(), text.encode("utf-16-le"), text.encode("utf-32-be")):
        for before in range(1_000, 1_004):
            with pytest.raises(LeakError, match="hexadecimal"):
                Guard(KEY).check_bytes(data[:before] + form + data[:2_000], "it")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_a_key_becomes_is_found(scheme):
    """The expanded network, or the permutation, is as secret as the key: as it is, and as a saved tensor has it."""
    config = make_config(scheme, {"image_size": 64} | ({"width": 64} if scheme == "neuracrypt" else {}))
    first, guard = load_encoder(config, KEY).secrets()[0], Guard(KEY, config=config)
    kinds = (np.int64, np.float32) if first.dtype.kind == "i" else (np.float32, np.float64)
    for data in (first, *(first.astype(kind) for kind in kinds)):
        with pytest.raises(LeakError, match="holds the secret key"):
            guard.check_bytes(bytes(7) + np.ascontiguousarray(data).tobytes(), "it")
