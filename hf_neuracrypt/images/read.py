"""Files, and what else people have, -> a PIL image; that -> 8-bit RGB without metadata.

Notable decisions
- EXIF orientation is read and applied to the pixels; only these go on: EXIF, ICC profiles, comments and file names
  never do, and no EXIF is ever written.
- What a value means follows from the file's own tags, never from the values: 16 bits are scaled by 65,535, 12 by 4,095,
  WhiteIsZero is inverted, and what Pillow would read wrongly is refused.
- 16-bit images are scaled, not clipped; transparent pixels are composited on the config's background (what an editor
  hid under alpha would otherwise be encrypted, and come back out of a known-plaintext attack); animations and
  multi-page files give their first frame.
"""

import io
import os
import re
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from hf_neuracrypt.errors import ImageError, without_warnings
from hf_neuracrypt.images import dicom, jpeg
from hf_neuracrypt.images.arrays import MAX_PIXELS, from_array, scale_to_8_bits


# Pillow can open some 40 formats; every decoder more is a way in for a hostile file. These are what cameras, scanners,
# browsers and image editors write.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
ENDINGS = {ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
OTHER_ENDINGS = {*Image.registered_extensions(), ".svg"} - ENDINGS  # of images that are not read
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
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
    "a TIFF of an unusual depth or kind of colours": (0, rb"II\*\0|MM\0\*"),
}


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
    values = scale_to_8_bits(np.asarray(image), 2**bits - 1)
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


def open_image(source: object, window: str = "", burned_in: bool = False) -> Image.Image:
    """What `prepare` takes, decoded; for the other arguments see `dicom.decode`. Raises ImageError."""
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray | list):
        try:
            return from_array(np.asarray(source))
        except ValueError:
            raise ImageError("its rows have different lengths") from None
    else:
        content = read_bytes(source)
        if dicom.is_dicom(content[:132]):
            frame = source.get("frame") if isinstance(source, dict) else None
            return Image.fromarray(dicom.decode(content, window, burned_in, frame or 0))
        image = jpeg.with_pixels(_decode(content), content)
    _check_kind(image)
    _load(image)
    return image


def read_bytes(source: object) -> bytes:
    """A file: given as it is, by its path, or by `{"bytes": …, "path": …}`, which may also say `offset` and `size` of
    the part of another file that it is. Raises ImageError."""
    part: tuple[int, int] = (0, -1)
    if isinstance(source, dict) and {"bytes", "path"} & set(source):
        part = source.get("offset") or 0, source.get("size") or -1
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise ImageError("it is empty: neither bytes nor a path")
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        return _local_file(source, *part)
    raise ImageError(f"a {type(source).__name__} is no image")


def _local_file(path: str | Path, offset: int, size: int) -> bytes:
    if "://" in str(path):
        raise ImageError("it is an address, not a file: images are never fetched while encrypting")
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, a device never ends
            raise ImageError("it is not a regular file")
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        where = "" if os.path.isabs(path) else " (its path is relative: to the folder where this runs)"
        raise ImageError(f"its file cannot be read: {error.strerror}{where}") from None
    except ValueError:
        raise ImageError("its file name is not valid") from None


def _decode(content: bytes) -> Image.Image:
    try:
        with without_warnings():  # MAX_PIXELS is checked below
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        start = content[:160]
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
