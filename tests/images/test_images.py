"""Images in: every mode people have, metadata gone, damage refused. PNG out: exact bytes."""

import hashlib
import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.images import MAX_PIXELS, make_views, prepare, to_png, to_rgb
from hf_neuracrypt.schemes import EncoderConfig
from tests.helpers import encoded, make_images


CONFIG = EncoderConfig(image_size=32, patch_size=8)
PIXELS = make_images(1, 32)[0]


def pixels_of(source, config: EncoderConfig = CONFIG) -> np.ndarray:
    """What `prepare` gives, (S, S, 3) as Pillow has it."""
    return prepare(source, config).transpose(1, 2, 0)


# ------------------------------------------------------------------------------------------------------------ sources


@pytest.mark.parametrize(
    "source",
    [
        PIXELS,
        PIXELS.tolist(),
        PIXELS.transpose(2, 0, 1),
        PIXELS.astype(np.int64),
        PIXELS.astype(np.uint16) * 257,
        PIXELS[:, ::-1][:, ::-1],
        Image.fromarray(PIXELS),
        encoded(Image.fromarray(PIXELS), "PNG"),
        encoded(Image.fromarray(PIXELS), "BMP"),
        encoded(Image.fromarray(PIXELS), "TIFF"),
        encoded(Image.fromarray(PIXELS), "PPM"),
        encoded(Image.fromarray(PIXELS), "WEBP", lossless=True),
        {"bytes": encoded(Image.fromarray(PIXELS), "PNG"), "path": "/nowhere/else.png"},
    ],
    ids=lambda source: type(source).__name__,
)
def test_every_lossless_source_gives_the_same_pixels(source):
    prepared = prepare(source, CONFIG)
    assert prepared.dtype == np.uint8 and prepared.shape == (3, 32, 32)
    np.testing.assert_array_equal(prepared.transpose(1, 2, 0), PIXELS)


def test_files_by_path(tmp_path):
    path = tmp_path / "größe 🙂.png"
    Image.fromarray(PIXELS).save(path)
    for source in (path, str(path), {"bytes": None, "path": str(path)}):
        np.testing.assert_array_equal(pixels_of(source), PIXELS)


def test_jpeg_is_close():
    prepared = pixels_of(encoded(Image.fromarray(PIXELS), "JPEG", quality=98, subsampling=0))
    assert np.abs(prepared.astype(int) - PIXELS).mean() < 5


# -------------------------------------------------------------------------------------------------------------- modes


def test_grey_and_bilevel_and_bool():
    grey = PIXELS[:, :, 0]
    for source in (grey, grey[:, :, None], grey[None], Image.fromarray(grey), encoded(Image.fromarray(grey), "PNG")):
        np.testing.assert_array_equal(pixels_of(source), grey[:, :, None].repeat(3, 2))
    mask = grey > 127
    expected = (mask * 255).astype(np.uint8)[:, :, None].repeat(3, 2)
    np.testing.assert_array_equal(pixels_of(mask), expected)
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(mask), "PNG")), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind):
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    prepared = pixels_of(encoded(Image.fromarray(values), kind))
    expected = np.round(values / 257).astype(int)
    assert np.abs(prepared[:, :, 0].astype(int) - expected).max() <= 1
    assert len(np.unique(prepared)) == 256
    np.testing.assert_array_equal(pixels_of(values), prepared)


def test_palette_with_and_without_transparency():
    palette = Image.fromarray(PIXELS).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(pixels_of(encoded(palette, "PNG")), expected)
    np.testing.assert_array_equal(pixels_of(encoded(palette, "GIF")), expected)
    hidden = palette.getpixel((0, 0))
    prepared = pixels_of(encoded(palette, "PNG", transparency=hidden))
    assert (prepared[np.asarray(palette) == hidden] == 255).all()
    assert (prepared[np.asarray(palette) != hidden] == expected[np.asarray(palette) != hidden]).all()


@pytest.mark.parametrize("background, colour", [("#ffffff", (255, 255, 255)), ("#0080ff", (0, 128, 255))])
def test_alpha_is_composited_on_the_stated_colour(background, colour):
    config = EncoderConfig(image_size=32, patch_size=8, background=background)
    rgba = np.dstack([PIXELS, np.zeros((32, 32), np.uint8)])
    rgba[:16, :, 3] = 255
    for source in (rgba, Image.fromarray(rgba), encoded(Image.fromarray(rgba), "PNG")):
        prepared = pixels_of(source, config)
        np.testing.assert_array_equal(prepared[:16], PIXELS[:16])
        assert (prepared[16:] == colour).all(), "pixels hidden under alpha must not be encrypted"
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert (pixels_of(encoded(grey_alpha, "PNG"), config)[16:] == colour).all()


def test_cmyk():
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    expected = np.asarray(cmyk.convert("RGB")).astype(int)
    prepared = pixels_of(encoded(cmyk, "JPEG", quality=98))
    assert np.abs(prepared.astype(int) - expected).mean() < 8
    np.testing.assert_array_equal(pixels_of(encoded(cmyk, "TIFF")), expected)


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    animated = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels_of(animated), PIXELS)


# ----------------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_all_metadata_dropped(orientation):
    upright = Image.fromarray(PIXELS)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "Jane Roe"
    source = encoded(stored, "PNG", exif=exif, icc_profile=b"a profile")
    np.testing.assert_array_equal(pixels_of(source), PIXELS)
    image = to_rgb(Image.open(io.BytesIO(source)))
    png = to_png(np.array(image).transpose(2, 0, 1))
    assert b"Jane" not in png and b"profile" not in png
    assert Image.open(io.BytesIO(png)).info == {}


def test_damaged_exif_does_not_stop_an_image():
    source = encoded(Image.fromarray(PIXELS), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    np.testing.assert_array_equal(pixels_of(source), PIXELS)


# ----------------------------------------------------------------------------------------------------------- resizing


def test_resized_once_by_the_recorded_method():
    large = make_images(1, 100)[0]
    expected = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels_of(large, replace(CONFIG, resize="bilinear")), expected)
    assert np.abs(pixels_of(large).astype(int) - expected).max() <= 1
    wide = pixels_of(make_images(1, 100)[0][:40])
    assert wide.shape == (32, 32, 3)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3), (50, 1, 3), (3, 3), (2000, 2, 3)])
def test_odd_shapes(shape):
    assert (pixels_of(np.full(shape, 99, np.uint8)) == 99).all()


# ---------------------------------------------------------------------------------------------------------- bad input


GOOD_PNG = encoded(Image.fromarray(PIXELS), "PNG")
GOOD_JPEG = encoded(Image.fromarray(make_images(1, 64)[0]), "JPEG")


def bomb() -> bytes:
    """A PNG that claims 20,000 x 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return GOOD_PNG[:8] + chunk + GOOD_PNG[33:]


@pytest.mark.parametrize(
    "source, reason",
    [
        (None, "empty"),
        ({"bytes": None, "path": None}, "empty"),
        (b"", "supported format"),
        (b"not an image", "supported format"),
        (GOOD_PNG[:60], "truncated|decoded"),
        (GOOD_JPEG[: len(GOOD_JPEG) // 2], "truncated"),
        (GOOD_JPEG[:20], "supported format|decoded"),
        (GOOD_PNG.replace(b"IDAT", b"IDAX"), "supported format|truncated|decoded"),
        (GOOD_PNG[:45] + bytes(30) + GOOD_PNG[75:], "truncated|decoded"),
        (bomb(), "pixels"),
        (encoded(Image.fromarray(PIXELS), "ICO"), "supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "supported format"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "floating-point"),
        ("/no/such/file.png", "cannot be read"),
        ("https://example.com/cat.png", "never fetched"),
        ("nul\0byte.png", "not valid"),
        ("/", "cannot be read|regular"),
        (np.zeros((0, 5, 3), np.uint8), "shape"),
        (np.zeros((5, 5, 2), np.uint8), "shape"),
        (np.zeros((5,), np.uint8), "shape"),
        (np.zeros((1, 5, 5, 3), np.uint8), "shape"),
        (np.zeros((5, 5, 3), np.float32), "range"),
        (np.full((5, 5, 3), np.nan), "range"),
        (np.full((5, 5, 3), 256), "range"),
        (np.full((5, 5, 3), -1), "range"),
        (np.array([["a"]]), "range"),
        (7, "int is no image"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_images_are_refused_with_the_reason(source, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        prepare(source, CONFIG)
    assert "/no/such" not in str(caught.value), "a path may hold a person's name"


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_the_image_and_moved_versions_of_it(flip):
    """Every view is a window of the image, its edges reflected; mirrored only if asked for."""
    mirrored = 0
    for image in make_images(6, 32).transpose(0, 3, 1, 2):
        views = make_views(image, 5, flip)
        np.testing.assert_array_equal(views[0], image)
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), "reflect")
        windows = [padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
        for view in views[1:]:
            upright = any(np.array_equal(view, window) for window in windows)
            assert upright or any(np.array_equal(view[..., ::-1], window) for window in windows)
            mirrored += not upright
        assert len({view.tobytes() for view in views}) > 1
    assert 4 < mirrored < 20 if flip else mirrored == 0


def test_views_are_fixed():
    """Stored ciphertexts depend on them: the same image gives the same views for good."""
    image = make_images(1, 32)[0].transpose(2, 0, 1)
    views = np.stack(make_views(image, 4, flip=True)).transpose(0, 2, 3, 1)  # the digest is of rows of RGB pixels
    digest = hashlib.sha256(views.tobytes()).hexdigest()
    assert digest == "5db0ebf4d4efcec598575d9066b89c2342065a95b55a83ebba2ac913b946490d"
    assert make_views(image, 1)[0].shape == (3, 32, 32)


def test_pixel_limit_holds_for_arrays():
    huge = np.broadcast_to(np.uint8(0), (MAX_PIXELS // 10, 11))
    with pytest.raises(ImageError, match="refused"):
        prepare(huge, CONFIG)


# ------------------------------------------------------------------------------------------------------------ PNG out


@pytest.mark.parametrize("size", [8, 32, 224, 256])
def test_png_round_trip_and_structure(size):
    image = make_images(1, size)[0]
    png = to_png(image.transpose(2, 0, 1))
    decoded = Image.open(io.BytesIO(png))
    assert decoded.mode == "RGB" and decoded.info == {}
    np.testing.assert_array_equal(np.asarray(decoded), image)
    names, position = [], 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        names.append(png[position + 4 : position + 8])
        position += 12 + length
    assert names == [b"IHDR", b"IDAT", b"IEND"]
    assert len(png) < size * (3 * size + 1) + 100


def test_png_bytes_are_fixed():
    """Two platforms must write the same file; zlib's own level 0 need not cut its blocks alike."""
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    rows = b"".join(b"\0" + bytes(range(12 * row, 12 * row + 12)) for row in range(4))
    stream = b"\x78\x01\x01" + struct.pack("<HH", 52, 52 ^ 0xFFFF) + rows + struct.pack(">I", zlib.adler32(rows))
    assert stream in to_png(image.transpose(2, 0, 1))
