"""How ciphertexts are stored in rows: both kinds give back what was put in, and say what is wrong with a row."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from PIL import Image as PILImage

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.encoders.stored import stored_as
from hf_neuracrypt.errors import ConfigError, ImageError
from hf_neuracrypt.images import to_png
from hf_neuracrypt.schemes import make_config
from tests.helpers import SMALL, batch, encoded, make_images


PATCHES = make_config("neuracrypt", {"image_size": 32, "patch_size": 8, "width": 24})
BLOCKS = make_config("le", {"image_size": 32})
IMAGES = batch(make_images(3, 32))
PLAIN = PILImage.fromarray(make_images(1, 32)[0])


@pytest.mark.parametrize("config", [SMALL, BLOCKS, PATCHES], ids=lambda config: config.scheme)
def test_what_is_stored_comes_back(config, insecure_key):
    """Straight, and through the column of a dataset."""
    encoder = load_encoder(config, insecure_key)
    ciphertexts, stored = encoder.encrypt(IMAGES), stored_as(config)
    rows = stored.rows(ciphertexts)
    assert len(rows) == 3 and all(stored.problem(row) is None for row in rows)
    assert np.array_equal(stored.arrays(rows), ciphertexts.numpy())
    read = Dataset.from_dict({"image": rows}, features=Features({"image": stored.feature}))
    shown = np.stack([np.asarray(image) for image in read["image"]])
    expected = ciphertexts.numpy() if config.patch_shape else ciphertexts.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(shown, expected)
    assert np.array_equal(np.stack([np.asarray(stored.shown(row)) for row in rows]), expected)
    assert stored.arrays([]).shape[0] == 0 and stored.rows(ciphertexts[:0]) == []
    assert type(encoder.stored) is type(stored)


def test_what_a_model_is_given(insecure_key):
    ciphertexts = load_encoder(SMALL, insecure_key).encrypt(IMAGES)
    values = stored_as(SMALL).pixel_values(stored_as(SMALL).rows(ciphertexts))
    torch.testing.assert_close(values, ciphertexts.float() / 127.5 - 1)
    patches = load_encoder(PATCHES, insecure_key).encrypt(IMAGES)
    assert torch.equal(stored_as(PATCHES).pixel_values(stored_as(PATCHES).rows(patches)), patches)


@pytest.mark.parametrize("config", [SMALL, PATCHES], ids=lambda config: config.scheme)
def test_a_row_takes_about_what_is_said(config, insecure_key):
    stored = stored_as(config)
    (row,) = stored.rows(load_encoder(config, insecure_key).encrypt(IMAGES[:1]))
    size = row.nbytes if config.patch_shape else len(row["bytes"])
    assert size <= stored.row_bytes < 1.1 * size + 100


def test_only_images_go_to_an_endpoint(insecure_key):
    (row,) = stored_as(SMALL).rows(load_encoder(SMALL, insecure_key).encrypt(IMAGES[:1]))
    assert stored_as(SMALL).png(row) == row["bytes"]
    with pytest.raises(ConfigError, match="ciphertexts of neuracrypt are no images"):
        stored_as(PATCHES).png(np.zeros((16, 24), np.float32))


# ----------------------------------------------------------------------------------------------- what must not go out


def row_of(content: bytes | None, path: str | None = None) -> dict:
    return {"bytes": content, "path": path}


CIPHERTEXT = to_png(load_encoder(SMALL, SecretKey(bytes(32))).encrypt(IMAGES[:1])[0].numpy())


@pytest.mark.parametrize(
    "row, problem",
    [
        (None, "no image bytes"),
        (row_of(None, "photos/jane.png"), "no image bytes"),
        (row_of(CIPHERTEXT, "jane.png"), "path of its image"),
        (row_of(encoded(PLAIN, "PNG")), "not an image that `encrypt` wrote"),
        (row_of(encoded(PLAIN, "JPEG")), "not an image that `encrypt` wrote"),
        (row_of(CIPHERTEXT + b"more"), "not an image that `encrypt` wrote"),
        (row_of(CIPHERTEXT[:-1]), "not an image that `encrypt` wrote"),
        (row_of(b""), "not an image that `encrypt` wrote"),
        (row_of(to_png(np.zeros((3, 16, 16), np.uint8))), "not an image that `encrypt` wrote"),
        (row_of(to_png(np.asarray(PLAIN.resize((4, 4)).resize((32, 32))).transpose(2, 0, 1))), "looks like a plain"),
        (row_of(to_png(np.full((3, 32, 32), 7, np.uint8))), "looks like a plain image"),
    ],
    ids=str,
)
def test_problems_are_named(row, problem):
    assert problem in stored_as(SMALL).problem(row)


def test_a_permutation_cipher_may_look_plain():
    """It leaves areas of one colour what they are; only a random network's output is never smooth."""
    assert stored_as(BLOCKS).problem(row_of(to_png(np.full((3, 32, 32), 7, np.uint8)))) is None


# ------------------------------------------------------------------------------------------------------ hostile bytes


def png(width: int, height: int, pixels: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        (b"IDAT", pixels),
        (b"IEND", b""),
    )
    written = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.parametrize(
    "content, reason",
    [
        (png(100_000, 100_000), "does not fit|damaged"),
        (png(2**31 - 1, 2**31 - 1), "does not fit|damaged"),
        (png(30_000, 1), "30000 x 1 pixels, RGB, does not fit a model of 32 pixels"),
        (png(0, 0), "does not fit|damaged"),
        (png(32, 32, zlib.compress(bytes(3000))), "damaged"),
        (png(32, 32), "damaged"),
        (png(32, 32, zlib.compress(bytes(33 * 32)), colour=0), "32 x 32 pixels, L, does not fit"),
        (encoded(PLAIN, "JPEG"), "damaged"),
        (b"", "damaged"),
    ],
)
def test_hostile_images_are_refused_before_they_are_decoded(content, reason):
    with pytest.raises(ImageError, match=reason):
        stored_as(SMALL).arrays([row_of(content)])
    assert stored_as(SMALL).problem(row_of(content)) is not None


def test_a_bomb_behind_the_pixels_is_not_unpacked():
    """100 MB of zeros in 500 kB."""
    bomb = row_of(png(32, 32, zlib.compress(bytes(100_000_000), 1)))
    assert stored_as(SMALL).arrays([bomb]).shape == (1, 3, 32, 32)
    assert "not an image" in stored_as(SMALL).problem(bomb)


def test_patches_of_another_shape_are_refused():
    with pytest.raises(ImageError, match=r"shape \(16, 25\) are not of shape \(16, 24\)"):
        stored_as(PATCHES).arrays([np.zeros((16, 25), np.float32)])


def test_any_png_of_the_right_size_reads_as_pillow_reads_it():
    """As `rows` wrote it, or filtered and compressed: the same pixels. A flipped bit is found wherever it is."""
    stored, pixels = stored_as(SMALL), np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    (ours,) = stored.rows(torch.from_numpy(pixels[None]))
    image = PILImage.open(io.BytesIO(ours["bytes"]))
    others = []
    for level in (0, 6):
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=level)
        others.append(row_of(file.getvalue()))
    for row in (ours, *others):
        assert np.array_equal(stored.arrays([row])[0], pixels)
    for place in range(60, len(ours["bytes"]) - 20, 97):
        damaged = bytearray(ours["bytes"])
        damaged[place] ^= 1
        with pytest.raises(ImageError):
            stored.arrays([row_of(bytes(damaged))])


def test_a_header_that_says_another_size_or_kind_is_believed():
    """As many bytes, but 8 x 128 pixels: it is no image of 32."""
    (ours,) = stored_as(SMALL).rows(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    header = struct.pack(">IIBBBBB", 31, 32, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    other = ours["bytes"][:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + ours["bytes"][33:]
    with pytest.raises(ImageError, match="31 x 32"):
        stored_as(SMALL).arrays([row_of(other)])
