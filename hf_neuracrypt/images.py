"""Any image a user has -> uint8 RGB of the right size, with its metadata gone; an encrypted array -> PNG bytes.

Arrays are channels first, (3, S, S), here and everywhere else.

Notable decisions
- EXIF orientation is read and applied to the pixels; only these go on: EXIF, ICC profiles, comments and file names
  never do, and no EXIF is ever written.
- What a value means follows from the file's own tags, or from an array's dtype, never from the values: 16 bits are
  scaled by 65,535, 12 by 4,095, WhiteIsZero is inverted, and what Pillow would read wrongly is refused.
- 16-bit images are scaled, not clipped; transparent pixels are composited on the config's background (what an editor
  hid under alpha would otherwise be encrypted, and come back out of a known-plaintext attack); animations and
  multi-page files give their first frame.
- Plain images are resized once, before encryption, by the config's method.
- Views, too, are made before encryption, and follow from the image's own pixels: the same on any machine, in any order.
- The PNG writer stores the pixels uncompressed in blocks laid out here (`push` compresses them), so a file's bytes
  depend on the ciphertext alone, not on a version of Pillow or zlib.
"""

import hashlib
import io
import os
import re
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.schemes import SchemeConfig


# Pillow can open some 40 formats; every decoder more is a way in for a hostile file. These are what cameras, scanners,
# browsers and image editors write.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
ENDINGS = {ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
OTHER_ENDINGS = {*Image.registered_extensions(), ".svg"} - ENDINGS  # of images that are not read
MAX_PIXELS = 100_000_000
_WARNINGS = threading.Lock()  # images are decoded on several threads; warning filters belong to all of them
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
WHOLE_NUMBERS = (np.uint8, np.int32, np.int64)
TIFF_BITS, TIFF_COMPRESSION, TIFF_PHOTOMETRIC, TIFF_SAMPLES, TIFF_PLANAR = 258, 259, 262, 277, 284
TIFF_PALETTE, TIFF_FORMAT = 320, 339
WHITE_IS_ZERO, YCBCR = 0, 6  # photometric interpretations
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNREAD = {  # what a file begins with, from the given byte on
    "HEIC or AVIF": (4, rb"ftyp(hei|hev|mif1|msf1|avif|avis)"),
    "JPEG 2000": (0, rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "JPEG XL": (0, rb"\xff\x0a|\0\0\0\x0cJXL "),
    "DICOM": (128, rb"DICM"),
    "a TIFF of an unusual depth or kind of colours": (0, rb"II\*\0|MM\0\*"),
}


def prepare(source: object, config: SchemeConfig) -> np.ndarray:
    """A user's image, ready to be encrypted: uint8 RGB (3, image_size, image_size).

    Args:
        source: what `datasets` and people have: a PIL image, a path, encoded bytes, `{"bytes": …, "path": …}`, or an
            array: uint8, uint16 or bool (H, W), (H, W, 1), (H, W, 3), (H, W, 4), or channels first.
        config: says the size, the resize method and the background.

    Raises:
        ImageError: unreadable, truncated, too large, or a kind of array whose range is not known.
    """
    return resize(to_rgb(open_image(source), config.background), config.image_size, config.resize)


def resize(image: Image.Image, size: int, method: str) -> np.ndarray:
    """RGB -> uint8 (3, size, size); the same bytes on every processor."""
    if image.size == (size, size):
        return np.asarray(image).transpose(2, 0, 1)
    if method == "bilinear":
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return resized[0].numpy()


def make_views(image: np.ndarray, count: int, flip: bool = False) -> list[np.ndarray]:
    """The image, and versions of it to learn from: moved by up to an eighth of its side, and some of them mirrored.

    Args:
        image: uint8 RGB (3, S, S), from `prepare`.
        count: how many, the image itself among them; it is the first.
        flip: half of the others are mirrored, left to right: wrong for digits, text, and sides of a body.

    Returns:
        uint8 arrays of the image's shape; what an edge leaves empty is reflected.
    """
    size, reach = image.shape[1], image.shape[1] // 8
    chance = hashlib.shake_256(image.transpose(1, 2, 0).tobytes()).digest(3 * count)  # of rows of RGB pixels
    padded, views = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), "reflect"), [image]
    for top, left, side in zip(*(chance[start : 3 * (count - 1) : 3] for start in range(3))):
        top, left = (value * (2 * reach + 1) >> 8 for value in (top, left))
        view = padded[:, top : top + size, left : left + size]
        views.append(view[..., ::-1] if flip and side % 2 else view)
    return views


def to_rgb(image: Image.Image, background: str = "#ffffff") -> Image.Image:
    """8-bit RGB, upright, composited on `background`: a new image without metadata."""
    _load(image)
    values = _values(image)
    turn = TURNS.get(_orientation(image))
    if values is not None:
        image = Image.fromarray(values)
    elif image.mode == "F":
        raise ImageError("it has floating-point pixels, whose range is not known: save it with 8 or 16 bits")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, ImageColor.getrgb(background))
        image = Image.alpha_composite(canvas, image)
    image = image.convert("RGB")
    image.info = {}
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF says nothing about the pixels, and Pillow raises whatever it stumbles over
        return 1


def _values(image: Image.Image) -> np.ndarray | None:
    """uint8 (H, W) of an image whose values Pillow leaves at 16 bits; None: of any other."""
    if image.mode not in SIXTEEN_BIT_MODES:
        return None
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = max(tags.get(TIFF_BITS, (16,)))
    values = _scale_16_bits(np.asarray(image), 2**bits - 1)
    return 255 - values if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO else values


def _check_kind(image: Image.Image) -> None:
    """Raises ImageError for what Pillow opens and reads wrongly, or whose range is not known."""
    tile = getattr(image, "tile", None)  # what is to be decoded, if that is still to be done
    raw = tile[0].args if tile else ""
    if raw in ("L;2", "L;4", "I;16B", "RGB;16B") and "transparency" in image.info:
        raise ImageError("it is a PNG with a transparent colour of 2, 4 or 16 bits: save it with an alpha channel")
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    bits, compressed = max(tags.get(TIFF_BITS, (1,))), tags.get(TIFF_COMPRESSION, 1) != 1
    planes = tags.get(TIFF_PLANAR, 1) == 2 and tags.get(TIFF_SAMPLES, 1) > 1
    if image.mode in SIXTEEN_BIT_MODES and (bits > 16 or max(tags.get(TIFF_FORMAT, (1,))) != 1):
        raise ImageError(f"it has signed or {bits}-bit pixels, whose range is not known: save it with 8 or 16 bits")
    if planes and (bits > 8 or image.mode not in ("RGB", "RGBA", "CMYK")):
        raise ImageError(f"it is a TIFF of separate planes of {bits} bits ({image.mode}): save it as PNG")
    if tags.get(TIFF_PHOTOMETRIC) == YCBCR and not compressed:
        raise ImageError("it is an uncompressed TIFF in YCbCr, which is not read: save it as PNG")
    if 0 < max(tags.get(TIFF_PALETTE, (0,))) < 256:
        raise ImageError("it is a TIFF whose palette has 8 bits instead of 16: save it as PNG")


def to_png(image: np.ndarray) -> bytes:
    """uint8 RGB (3, H, W) -> a PNG file, pixels stored uncompressed; no chunk but IHDR, IDAT and IEND."""
    _, height, width = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row starts with its filter type, 0: none
    rows[:, 1:] = image.transpose(1, 2, 0).reshape(height, 3 * width)
    pixels = rows.tobytes()
    stream = [b"\x78\x01"]  # zlib header: 32 KiB window, fastest
    for start in range(0, len(pixels), 65535):
        block = pixels[start : start + 65535]
        final = start + 65535 >= len(pixels)
        stream += [struct.pack("<BHH", final, len(block), len(block) ^ 0xFFFF), block]
    stream.append(struct.pack(">I", zlib.adler32(pixels)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"".join(stream)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def as_array(source: object, dtype: str | None) -> object:
    """Lists of numbers as the array they were, with the dtype that their column declares; anything else as it is."""
    if dtype is None or not isinstance(source, list):
        return source
    try:
        return np.array(source, dtype)
    except (ValueError, TypeError, OverflowError):
        return source


def open_image(source: object) -> Image.Image:
    """What `prepare` takes, decoded. Raises ImageError."""
    if isinstance(source, dict) and {"bytes", "path"} & set(source):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise ImageError("it is empty: neither bytes nor a path")
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray | list):
        try:
            return _from_array(np.asarray(source))
        except ValueError:
            raise ImageError("its rows have different lengths") from None
    elif isinstance(source, bytes):
        image = _decode(io.BytesIO(source))
    elif isinstance(source, str | Path):
        image = _decode(_local_file(source))
    else:
        raise ImageError(f"a {type(source).__name__} is no image")
    _check_kind(image)
    _load(image)
    return image


def _local_file(path: str | Path) -> io.BytesIO:
    if "://" in str(path):
        raise ImageError("it is an address, not a file: images are never fetched while encrypting")
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, a device never ends
            raise ImageError("it is not a regular file")
        with open(path, "rb") as file:
            return io.BytesIO(file.read())
    except OSError as error:
        where = "" if os.path.isabs(path) else " (its path is relative: to the folder where this runs)"
        raise ImageError(f"its file cannot be read: {error.strerror}{where}") from None
    except ValueError:
        raise ImageError("its file name is not valid") from None


def _decode(file: io.BytesIO) -> Image.Image:
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is checked below
            image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        start = file.getvalue()[:160]
        if kind := next((kind for kind, (at, begin) in UNREAD.items() if re.match(begin, start[at:])), None):
            raise ImageError(f"it is {kind}, which is not read: make a PNG (`magick mogrify -format png`)") from None
        raise ImageError(
            f"it is not an image of a supported format ({', '.join(FORMATS)}), or its header is damaged"
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ImageError(f"it cannot be decoded ({type(error).__name__})") from None
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"it has {image.width} x {image.height} pixels; more than {MAX_PIXELS:,} are refused")
    return image


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ImageError(f"it is truncated or damaged ({type(error).__name__})") from None


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"an array of shape {array.shape} is no image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"it has {array.shape[1]} x {array.shape[0]} pixels; more than {MAX_PIXELS:,} are refused")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = _scale_16_bits(array)
    elif array.dtype in WHOLE_NUMBERS and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)  # lists of Python numbers come as these
    else:
        raise ImageError(f"an array of {array.dtype} has no known range of values: convert it to uint8 or uint16")
    return Image.fromarray(np.ascontiguousarray(array))


def _scale_16_bits(values: np.ndarray, largest: int = 65535) -> np.ndarray:
    """0..largest -> 0..255, rounded. Pillow's own conversion would clip everything over 255 to white."""
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > largest:
        raise ImageError(f"its pixels leave the range 0 to {largest}")
    return ((values * 255 + largest // 2) // largest).astype(np.uint8)
