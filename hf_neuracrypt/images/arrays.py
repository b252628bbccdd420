"""Arrays -> images. What a value means follows from the dtype, never from the values: 16 bits are scaled by 65,535."""

import numpy as np
from PIL import Image

from hf_neuracrypt.errors import ImageError


MAX_PIXELS = 100_000_000
WHOLE_NUMBERS = (np.uint8, np.int32, np.int64)


def as_array(source: object, dtype: str | None) -> object:
    """Lists of numbers as the array they were, with the dtype that their column declares; anything else as it is."""
    if dtype is None or not isinstance(source, list):
        return source
    try:
        return np.array(source, dtype)
    except (ValueError, TypeError, OverflowError):
        return source


def from_array(array: np.ndarray) -> Image.Image:
    """What `prepare` takes of arrays, with 8 bits. Raises ImageError for a shape or dtype that it does not take."""
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
        array = scale_to_8_bits(array)
    elif array.dtype in WHOLE_NUMBERS and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)  # lists of Python numbers come as these
    else:
        raise ImageError(f"an array of {array.dtype} has no known range of values: convert it to uint8 or uint16")
    return Image.fromarray(np.ascontiguousarray(array))


def scale_to_8_bits(values: np.ndarray, largest: int = 65535) -> np.ndarray:
    """0..largest -> 0..255, rounded. Pillow's own conversion would clip everything over 255 to white."""
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > largest:
        raise ImageError(f"its pixels leave the range 0 to {largest}")
    return ((values * 255 + largest // 2) // largest).astype(np.uint8)
