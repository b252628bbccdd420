"""A DICOM file -> 8-bit pixels, as a viewer shows them. It needs `pip install 'hf-neuracrypt[dicom]'`.

Notable decisions
- The order is the standard's (PS3.3 C.11): modality LUT or rescale, then the config's window, or the file's VOI LUT or
  window, then 8 bits, and MONOCHROME1 inverted. Without any window, black and white are the ends of what the header's
  bits and rescale allow, never those of the values.
- pydicom reads, GDCM alone decompresses: which other decoders are installed does not change a pixel.
- A file is hostile: sizes are bounded before anything is allocated, those that a compressed frame claims, too.
- No value of a header goes on, into an error neither: errors are stored in `rejected.jsonl`.
"""

import io
import logging
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hf_neuracrypt.errors import ImageError, without_warnings
from hf_neuracrypt.images.arrays import MAX_PIXELS, scale_to_8_bits


MAX_FRAMES = 100_000
MAX_UNPACKED = 4 * MAX_PIXELS  # bytes of a deflated file
FRAME_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG and JPEG-LS that a size follows
RESCALE = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
SIZE_OF_JPEG2000 = b"\xff\x4f\xff\x51"


@dataclass(frozen=True)
class Header:
    """What a header says of rows: whose image it is, which, and how many frames it has. None of it is ever stored."""

    patient: str
    instance: str
    frames: int


def is_dicom(start: bytes) -> bool:
    """Whether a file that begins like this is DICOM, whatever its name is."""
    return start[128:132] == b"DICM"


def read_header(content: bytes) -> Header:
    """Of the first part of a file, up to its pixels. Raises ImageError if it cannot be read."""
    with _in_one_line():
        tags = ["PatientID", "SOPInstanceUID", "NumberOfFrames"]
        found = _library().dcmread(_Content(content), stop_before_pixels=True, specific_tags=tags)
        patient, instance = (str(found.get(name) or "").strip(" \0") for name in ("PatientID", "SOPInstanceUID"))
        return Header(patient, instance, _frames(found))


def decode(content: bytes, window: str = "", burned_in: bool = False, frame: int = 0) -> np.ndarray:
    """The pixels of a file.

    Args:
        content: the whole file.
        window: "CENTER,WIDTH", in the modality's units (Hounsfield, for CT), of grey images; "": the file's own.
        burned_in: read files whose header declares that something is written into their pixels.
        frame: which one.

    Returns:
        uint8 (H, W) or (H, W, 3).

    Raises:
        ImageError: it holds no picture, or one that is too large, damaged, or coded in a way that is not read.
    """
    with _in_one_line():
        data = _library().dcmread(_Content(content))
        _check(data, burned_in, frame)
        decoder = _decoder(data, frame)
        coded = data.file_meta.TransferSyntaxUID.is_encapsulated
        plugin = "gdcm" if coded and "gdcm" in decoder.available_plugins else ""
        pixels, properties = decoder.as_array(data, index=frame, decoding_plugin=plugin)
        kind = properties["photometric_interpretation"]
        if kind in ("MONOCHROME1", "MONOCHROME2") and pixels.ndim == 2:
            grey = _grey(pixels, data, frame, window)
            return 255 - grey if kind == "MONOCHROME1" else grey
        if kind == "PALETTE COLOR" and pixels.ndim == 2:
            return np.stack([_coloured(pixels, data, colour) for colour in ("Red", "Green", "Blue")], axis=-1)
        if kind == "RGB" and pixels.ndim == 3:
            eight = pixels.dtype == np.uint8 and data.BitsStored == 8
            return pixels if eight else scale_to_8_bits(pixels, 2**data.BitsStored - 1)
        raise ImageError("its colours are coded in a way that is not read: export it as PNG")


@lru_cache(1)
def _library() -> Any:
    """pydicom, which says nothing by itself: what it warns of may be a value of a header."""
    try:
        import gdcm
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ModuleNotFoundError:
        raise ImageError("it is DICOM: pip install 'hf-neuracrypt[dicom]' lets it be read") from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    for tell in (gdcm.Trace.ErrorOff, gdcm.Trace.WarningOff, gdcm.Trace.DebugOff):
        tell()
    return pydicom


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        with without_warnings():
            yield
    except ImageError:
        raise
    except Exception as error:  # pydicom raises whatever it stumbles over, and its texts quote the header
        raise ImageError(f"it is DICOM that is damaged or cannot be decoded ({type(error).__name__})") from None


class _Content(io.BytesIO):
    """A file of which pydicom reads all that is left only to inflate it, however large it becomes."""

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if size is None or size < 0:
            unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
            unpacking.decompress(content, MAX_UNPACKED)
            if unpacking.unconsumed_tail:
                raise ImageError(f"it is DICOM that is larger than {MAX_UNPACKED:,} bytes when inflated")
        return content


def _frames(data: Any) -> int:
    """How many there are, as the header says."""
    return max(1, int(data.get("NumberOfFrames") or 1))


def _check(data: Any, burned_in: bool, frame: int) -> None:
    """Raises ImageError for what is not to be decoded."""
    if "FloatPixelData" in data or "DoubleFloatPixelData" in data:
        raise ImageError("it has floating-point pixels, whose range is not known: save it with 8 or 16 bits")
    if "PixelData" not in data:
        kind = data.get("SOPClassUID")
        known = kind is not None and kind.name != str(kind)  # by the standard's own list: no value of the header
        raise ImageError(f"it is DICOM without pixels{f' ({kind.name})' if known else ''}")
    if str(data.get("BurnedInAnnotation", "")).strip().upper() == "YES" and not burned_in:
        raise ImageError(
            "its header declares text burned into the pixels, a name perhaps (--scheme-option burned_in=true takes it)"
        )
    rows, columns, samples = (int(data[name].value) for name in ("Rows", "Columns", "SamplesPerPixel"))
    if not 0 < rows * columns <= MAX_PIXELS:
        raise ImageError(f"it has {columns} x {rows} pixels; more than {MAX_PIXELS:,}, or none, are refused")
    if samples not in (1, 3) or not 0 < data.BitsStored <= data.BitsAllocated <= 32:
        raise ImageError("its pixels are of a depth, or a number of colours, that is not read: export it as PNG")
    if not frame < _frames(data) <= MAX_FRAMES:
        raise ImageError(f"it has fewer frames, or says that it has more than {MAX_FRAMES:,}")


def _decoder(data: Any, frame: int) -> Any:
    """What decodes its pixels. Raises ImageError if nothing does, or a compressed frame is not of the header's size."""
    pydicom, syntax = _library(), data.file_meta.get("TransferSyntaxUID")
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        raise ImageError("its header does not say how its pixels are coded, or in a way that is not known") from None
    if not syntax.is_encapsulated:
        return decoder
    if not {"gdcm", "pydicom"}.intersection(decoder.available_plugins) or (
        syntax == pydicom.uid.JPEGExtended12Bit and data.BitsStored != 8
    ):
        raise ImageError(f"it is compressed as {syntax.name}, which is not read: decompress it (`gdcmconv --raw`)")
    if syntax != pydicom.uid.RLELossless:
        stream = pydicom.encaps.get_frame(data.PixelData, frame, number_of_frames=_frames(data))
        if _coded_size(stream) != (data.Rows, data.Columns, data.SamplesPerPixel):
            raise ImageError("its compressed pixels are damaged, or not of the size that its header says")
    return decoder


def _coded_size(stream: bytes) -> tuple[int, ...] | None:
    """(rows, columns, samples) that a JPEG, JPEG-LS or JPEG 2000 says of itself."""
    at = stream.find(SIZE_OF_JPEG2000, 0, 4096)
    if at >= 0:
        width, height, left, top, *_, samples = struct.unpack_from(">8IH", stream, at + 8)
        return height - top, width - left, samples
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] in FRAME_SIZES:
            return struct.unpack_from(">HHB", stream, at + 5)
        at += 2 + int.from_bytes(stream[at + 2 : at + 4])
    return None


def _grey(pixels: np.ndarray, data: Any, frame: int, window: str) -> np.ndarray:
    """uint8 of the stored values of a grey image; each of up to 16 bits is worked out once."""
    bits, signed = data.BitsStored, data.PixelRepresentation == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends, pixels = np.array([low, high], np.float64), np.clip(pixels, low, high)
    if bits > 16:
        return np.stack([_shown(row.astype(np.float64), ends, data, frame, window) for row in pixels])
    return _shown(np.arange(low, high + 1.0), ends, data, frame, window)[pixels.astype(np.int32) - low]


def _shown(values: np.ndarray, ends: np.ndarray, data: Any, frame: int, window: str) -> np.ndarray:
    """Stored values -> uint8; `ends` are the least and the largest that there may be."""
    modality = _group(data, frame, "PixelValueTransformationSequence")
    voi = _group(data, frame, "FrameVOILUTSequence")
    if modality.get("ModalityLUTSequence"):
        values, ends = _look_up(values, modality.ModalityLUTSequence[0])
    else:
        slope, intercept = (_number(modality.get(name), default) for name, default in RESCALE.items())
        values, ends = values * slope + intercept, ends * slope + intercept
    function, center, width = "LINEAR", 0.0, None
    if window:
        center, width = map(float, window.split(","))
    elif voi.get("VOILUTSequence"):
        values, ends = _look_up(values, voi.VOILUTSequence[0])
    else:
        center, width = _window(voi.get("WindowCenter"), voi.get("WindowWidth"))
        function = str(voi.get("VOILUTFunction") or function).strip()
    if width is None:
        share = (values - ends.min()) / (ends.max() - ends.min() or 1)
    elif function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - center) / width))
    elif function == "LINEAR_EXACT":
        share = (values - center) / width + 0.5
    else:
        share = (values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5
    return np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


def _group(data: Any, frame: int, name: str) -> Any:
    """Where the header of a file, or of one of its frames, says how values are to be shown."""
    for groups, place in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = data.get(groups) or ()
        if len(items) > place and items[place].get(name):
            return items[place][name][0]
    return data


def _number(value: Any, default: float) -> float:
    """A number of the header. Raises ImageError for one that nothing can be worked out with."""
    number = default if value is None or value == "" else float(value)
    if not math.isfinite(number):
        raise ImageError("its header has a rescale or a window that is no number")
    return number


def _window(center: Any, width: Any) -> tuple[float, float | None]:
    """The first of the file's windows; no width: it has none."""
    first = [value[0] if isinstance(value, Sequence) and value else value for value in (center, width)]
    if any(value is None or value == "" for value in first):
        return 0.0, None
    center, width = (_number(value, 0) for value in first)
    if width < 1:
        raise ImageError("its header has a window of no width: give --window CENTER,WIDTH")
    return center, width


def _look_up(values: np.ndarray, table: Any, prefix: str = "LUT") -> tuple[np.ndarray, np.ndarray]:
    """Values through a table of the header, and the ends of what comes out."""
    count, first, bits = (int(value) for value in table[f"{prefix}Descriptor"].value)
    entries, count = table[f"{prefix}Data"].value, count or 65536
    if isinstance(entries, bytes):
        order = "<" if table.is_little_endian in (None, True) else ">"
        entries = np.frombuffer(entries, "u1" if len(entries) < 2 * count else f"{order}u2")
    entries = np.asarray(entries, np.int64)[:count]
    place = np.clip(np.floor(values + 0.5).astype(np.int64) - first, 0, len(entries) - 1)
    return entries[place].astype(np.float64), np.array([0.0, 2**bits - 1])


def _coloured(pixels: np.ndarray, data: Any, colour: str) -> np.ndarray:
    prefix = f"{colour}PaletteColorLookupTable"
    if f"{prefix}Data" not in data:
        raise ImageError("it has a segmented palette, which is not read: export it as PNG")
    values, ends = _look_up(pixels, data, prefix)
    return scale_to_8_bits(values, int(ends[1]))
