"""Key files, derivation vectors, and that a key never shows."""

import base64
import copy
import dataclasses
import hashlib
import hmac
import itertools
import json
import os
import pickle
import pprint
import stat
import traceback
from collections.abc import Iterator

import dill
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from hf_neuracrypt.errors import KeyFileError, NeuraCryptError
from hf_neuracrypt.keys import SecretKey, file
from hf_neuracrypt.publish.guard import Guard
from tests.helpers import GOLDEN, leaks


FILES = GOLDEN / "keys"
VECTORS = json.loads((GOLDEN / "derivation.json").read_text())


def private_copy(name: str, tmp_path):
    """Git does not keep file modes, so each vector is copied to a private file."""
    path = tmp_path / "copy.key"
    path.write_bytes((FILES / name).read_bytes())
    path.chmod(0o600)
    return path


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with an empty salt, written out."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    okm = previous = b""
    for counter in range(1, -(-length // 32) + 1):
        previous = hmac.new(extracted, previous + info + bytes([counter]), hashlib.sha256).digest()
        okm += previous
    return okm[:length]


# --------------------------------------------------------------------------------------------------------- derivation


@pytest.mark.parametrize("vector", VECTORS["key_ids"], ids=lambda vector: vector["key"][:8])
def test_key_id_vectors(vector):
    secret = bytes.fromhex(vector["key"])
    assert SecretKey(secret).id == vector["id"]
    assert vector["id"] == "nck1-" + hkdf(secret, b"hf-neuracrypt/v1/key-id", 16).hex()


@pytest.mark.parametrize("vector", VECTORS["integers"], ids=lambda vector: f"{vector['purpose']}-{vector['bits']}")
def test_integer_vectors(vector):
    key = SecretKey(bytes.fromhex(vector["key"]))
    values = key.integers(vector["public"], vector["purpose"], (1000,), vector["bits"])
    assert values.dtype == np.int8
    assert values[:16].tolist() == vector["first"]
    assert hashlib.sha256(values.tobytes()).hexdigest() == vector["sha256_of_1000"]


@pytest.mark.parametrize("vector", VECTORS["permutations"], ids=lambda vector: str(vector["size"]))
def test_permutation_vectors(vector):
    key = SecretKey(bytes.fromhex(vector["key"]))
    assert key.permutation(vector["public"], "labels", vector["size"]) == vector["permutation"]


@pytest.mark.parametrize("bits", [8, 7, 6, 5])
def test_integers_follow_the_written_rule(bits, insecure_key):
    subkey = hkdf(bytes(range(32)), b"hf-neuracrypt/v1/integers/some/purpose/{}", 32)
    stream = Cipher(ChaCha20(subkey, bytes(16)), None).encryptor().update(bytes(5000))
    expected = []
    for byte in stream:
        value = byte & ((1 << bits) - 1)
        value -= (1 << bits) if value >= 1 << (bits - 1) else 0
        if value != -(1 << (bits - 1)):
            expected.append(value)
    assert insecure_key.integers("{}", "some/purpose", (30, 20), bits).ravel().tolist() == expected[:600]


def test_integers_are_uniform_and_purposes_unrelated(insecure_key):
    values = insecure_key.integers("{}", "a", (254_000,), 8)
    counts = np.bincount(values.astype(int) + 127, minlength=255)
    assert counts.min() > 800 and counts.max() < 1200
    other = insecure_key.integers("{}", "b", (254_000,), 8)
    assert (values == other).mean() < 0.01
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.01


def chi_square(counts: np.ndarray) -> float:
    """For each degree of freedom: 1 is what chance gives; what is uniform stays below 2 at these sizes."""
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_of_any_width_are_uniform(bits, insecure_key):
    """All values alike, and a value says nothing of the next one."""
    values = insecure_key.integers("{}", "bias", (200_000,), bits).astype(int) + 2 ** (bits - 1) - 1
    width = 2**bits - 1
    assert values.min() == 0 and values.max() == width - 1
    assert chi_square(np.bincount(values, minlength=width)) < (4 if bits == 2 else 2)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("size", [2, 3, 5])
def test_permutations_are_uniform(size):
    keys = [SecretKey(hashlib.sha256(bytes([number >> 8, number & 255])).digest()) for number in range(3_000)]
    found = [tuple(key.permutation("{}", "bias", size)) for key in keys]
    orders = list(itertools.permutations(range(size)))
    assert chi_square(np.array([found.count(order) for order in orders])) < (8 if size == 2 else 3 if size == 3 else 2)


@pytest.mark.parametrize(
    "text", ["", "\x80", "\0", "a\0\x80\0", "\u00e9 \u0301 \U0001f5dd \u202e", "x" * 1023, "x" * 1024, "\n\r\t\x1b[2J"]
)
def test_odd_texts_are_sealed_and_come_back(text, insecure_key):
    """Whatever ends in what is padded with, or is as long as the padding."""
    assert insecure_key.unseal(insecure_key.seal(text, "label names"), "label names") == text


def test_sealed_text_opens_with_the_key_only(insecure_key):
    sealed = insecure_key.seal("melanoma", "label names")
    assert insecure_key.unseal(sealed, "label names") == "melanoma"
    assert insecure_key.seal("melanoma", "label names") == sealed
    assert len(sealed) == len(insecure_key.seal("x" * 900, "label names"))
    damaged = base64.b64encode(bytes([base64.b64decode(sealed)[0] ^ 1]) + base64.b64decode(sealed)[1:]).decode()
    for wrong in (lambda: SecretKey.generate().unseal(sealed, "label names"),
                  lambda: insecure_key.unseal(sealed, "other"),
                  lambda: insecure_key.unseal(damaged, "label names"),
                  lambda: insecure_key.unseal("not base64!", "label names")):  # fmt: skip
        with pytest.raises(NeuraCryptError, match="sealed"):
            wrong()


# -------------------------------------------------------------------------------------------------------------- files


def test_save_and_load(tmp_path):
    key = SecretKey.generate()
    path = tmp_path / "a.key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SecretKey.load(path) == key
    assert key.id in path.read_text()


def test_save_never_overwrites(tmp_path):
    path = tmp_path / "a.key"
    path.write_text("precious")
    with pytest.raises(KeyFileError, match="never overwritten"):
        SecretKey.generate().save(path)
    assert path.read_text() == "precious"
    (tmp_path / "link.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError):
        SecretKey.generate().save(tmp_path / "link.key")
    assert not (tmp_path / "elsewhere").exists()


def test_a_new_file_is_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        SecretKey.generate().save(tmp_path / "a.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600


def test_the_file_that_is_read_is_the_one_that_was_looked_at(tmp_path, monkeypatch):
    """Somebody changes a link between the look at the mode and the reading: there is no such moment."""
    link, opened = tmp_path / "link.key", os.open
    for name, mode in (("private", 0o600), ("open", 0o644)):
        SecretKey.generate().save(tmp_path / name)
        (tmp_path / name).chmod(mode)

    def swapped(path, *words, **more):
        descriptor = opened(path, *words, **more)
        link.unlink()
        link.symlink_to(tmp_path / "private")
        return descriptor

    link.symlink_to(tmp_path / "open")
    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(KeyFileError, match="can be read by others"):
        SecretKey.load(link)


def test_passphrase(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "WORK_FACTOR", 10)
    key, path = SecretKey(SECRET), tmp_path / "a.key"
    key.save(path, passphrase="correct horse")
    assert not leaks(SECRET, path.read_bytes())
    assert SecretKey.is_locked(path)
    assert SecretKey.load(path, passphrase="correct horse") == key
    with pytest.raises(KeyFileError, match="wrong passphrase"):
        SecretKey.load(path, passphrase="wrong horse")
    with pytest.raises(KeyFileError, match="locked"):
        SecretKey.load(path)
    for short in ("", "7 chars"):
        with pytest.raises(KeyFileError, match="8 characters or more"):
            key.save(tmp_path / "b.key", passphrase=short)
    assert not (tmp_path / "b.key").exists()


def test_a_passphrase_is_the_same_on_every_keyboard(tmp_path, monkeypatch):
    """A letter with its accent, or a letter and an accent after it."""
    monkeypatch.setattr(file, "WORK_FACTOR", 10)
    SecretKey(SECRET).save(tmp_path / "a.key", passphrase="caf\u00e9 cr\u00e8me")
    assert SecretKey.load(tmp_path / "a.key", passphrase="cafe\u0301 cre\u0300me").id == SecretKey(SECRET).id


@pytest.mark.parametrize("case", json.loads((FILES / "cases.json").read_text()), ids=lambda case: case["file"])
def test_key_file_vectors(case, tmp_path):
    """One file for each way a key file can be wrong, or odd but right."""
    path = private_copy(case["file"], tmp_path)
    passphrase = case.get("passphrase")
    if "error" in case:
        with pytest.raises(KeyFileError, match=case["error"]) as caught:
            SecretKey.load(path, passphrase=passphrase)
        assert "\n" not in str(caught.value)
        assert "AAAQEAYE" not in str(caught.value)  # how the test key starts in base32
    else:
        assert SecretKey.load(path, passphrase=passphrase).id == case["id"]


def test_refuses_what_is_no_private_file(tmp_path):
    SecretKey.generate().save(tmp_path / "a.key")
    for mode in (0o640, 0o604, 0o660):
        os.chmod(tmp_path / "a.key", mode)
        with pytest.raises(KeyFileError, match="chmod 600"):
            SecretKey.load(tmp_path / "a.key")
    with pytest.raises(KeyFileError, match="does not exist"):
        SecretKey.load(tmp_path / "none.key")
    with pytest.raises(KeyFileError, match=r"directory|regular"):
        SecretKey.load(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeyFileError, match="regular"):
        SecretKey.load(tmp_path / "pipe")
    (tmp_path / "huge.key").write_bytes(b"#" * 5000)
    (tmp_path / "huge.key").chmod(0o600)
    with pytest.raises(KeyFileError, match="larger"):
        SecretKey.load(tmp_path / "huge.key")


@pytest.mark.parametrize("secret", [b"short", bytes(33), 7, "0" * 32, None])
def test_only_32_bytes_make_a_key(secret):
    with pytest.raises(NeuraCryptError, match="32 bytes"):
        SecretKey(secret)


# -------------------------------------------------------------------------------------------------------- never leaks


SECRET = hashlib.sha256(b"insecure").digest()


def test_key_is_not_shown():
    key = SecretKey(SECRET)
    assert leaks(SECRET, SECRET) and leaks(SECRET, f"key = {SECRET.hex()}".encode())  # the check itself works
    for text in (repr(key), str(key), f"{key}", f"{[key]}", repr({"key": key}), pprint.pformat({"key": [key]})):
        assert not leaks(SECRET, text.encode()) and key.id in text
    assert not hasattr(key, "__dict__")
    assert copy.deepcopy(key) is key and copy.copy(key) is key
    for reveal in (json.dumps, vars, bytes, list, dataclasses.asdict):
        with pytest.raises(TypeError):
            reveal(key)


def test_pickle_holds_a_reference_to_the_file(tmp_path):
    key = SecretKey(SECRET)
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(key)
    key.save(tmp_path / "a.key")
    loaded = SecretKey.load(tmp_path / "a.key")
    pickled = pickle.dumps(loaded)
    torch.save({"key": loaded}, tmp_path / "saved.pt")
    whole = (pickled, dill.dumps(loaded), dill.dumps(lambda: loaded), dill.dumps(loaded.integers, recurse=True))
    for held in (*whole, (tmp_path / "saved.pt").read_bytes()):
        assert not leaks(SECRET, held) and b"a.key" in held
    assert pickle.loads(pickled) == key
    os.remove(tmp_path / "a.key")
    SecretKey.generate().save(tmp_path / "a.key")
    with pytest.raises(KeyFileError, match="changed while"):
        pickle.loads(pickled)


def test_a_typed_passphrase_does_not_travel(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "WORK_FACTOR", 10)
    SecretKey.generate().save(tmp_path / "a.key", passphrase="four short words")
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(SecretKey.load(tmp_path / "a.key", passphrase="four short words"))
    (tmp_path / "words").write_text("four short words\n")
    (tmp_path / "words").chmod(0o600)
    key = SecretKey.load(tmp_path / "a.key", passphrase_file=tmp_path / "words")
    assert pickle.loads(pickle.dumps(key)) == key


ACTIONS = {
    "an existing file": lambda key, folder, words: key.save(folder / "locked.key", words),
    "no folder": lambda key, folder, words: key.save(folder / "none" / "a.key", words),
    "a NUL in a path": lambda key, folder, words: key.save("a\0b"),
    "half a character in a path": lambda key, folder, words: key.save("a\ud800b"),
    "no path": lambda key, folder, words: key.save(None, words),
    "a short passphrase": lambda key, folder, words: key.save(folder / "b.key", words[:7]),
    "bytes for a passphrase": lambda key, folder, words: key.save(folder / "b.key", words.encode()),
    "half a character of a passphrase": lambda key, folder, words: key.save(folder / "b.key", words + "\ud800"),
    "another passphrase": lambda key, folder, words: SecretKey.load(folder / "locked.key", words + "!"),
    "a NUL in a path to load": lambda key, folder, words: SecretKey.load("a\0b", words),
    "no path to load": lambda key, folder, words: SecretKey.load(None, words),
    "a mistyped key": lambda key, folder, words: SecretKey.load(folder / "mistyped.key"),
    "not a key": lambda key, folder, words: SecretKey(bytearray(SECRET)),
    "a text that cannot be sealed": lambda key, folder, words: key.seal("\ud800", "x"),
    "a key that the guard finds": lambda key, folder, words: Guard(key).check_file(folder / "a.key", "it"),
    "a key that it finds in text": lambda key, folder, words: Guard(key).check_bytes(
        (folder / "a.key").read_bytes(), "it"
    ),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_no_traceback_holds_a_secret(action, tmp_path, monkeypatch):
    """Not in the values of any frame of the package, nor of the errors before it, as error trackers record them."""
    monkeypatch.setattr(file, "WORK_FACTOR", 10)
    key, words = SecretKey(SECRET), " ".join(["correct", "horse"])
    key.save(tmp_path / "a.key")
    key.save(tmp_path / "locked.key", words)
    line = (tmp_path / "a.key").read_text().splitlines()[-1]
    (tmp_path / "mistyped.key").write_text(line[:-1] + ("A" if line[-1] != "A" else "B"))
    (tmp_path / "mistyped.key").chmod(0o600)
    with pytest.raises((NeuraCryptError, UnicodeEncodeError)) as caught:
        action(key, tmp_path, words)
    recorded = list(recorded_of(caught.value))
    assert len(recorded) > 1 and not any(words[:7] in text for text in recorded)
    assert not any(leaks(SECRET, text.encode()) or line[30:60] in text for text in recorded)


def recorded_of(error: BaseException | None) -> Iterator[str]:
    """What an error says, and the values in the frames of the package that it and the errors before it passed."""
    while error is not None:
        yield str(error)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if "hf_neuracrypt" in frame.f_globals.get("__name__", ""):
                yield from map(repr, frame.f_locals.values())
        error = error.__cause__ or error.__context__
