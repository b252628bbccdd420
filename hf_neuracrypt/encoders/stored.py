"""How ciphertexts are stored in a dataset and read back: as PNG images, or as float32 patches. It needs no key.

A stored ciphertext is what a row holds in its column `image`: {"bytes": PNG, "path": None}, or an array of patches.
Nothing else in the package asks which of the two it is.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Array2D, Image
from PIL import Image as PILImage

from hf_neuracrypt.errors import ConfigError, ImageError
from hf_neuracrypt.images import to_png
from hf_neuracrypt.schemes import SchemeConfig


# Neighbouring pixels of a photo are nearly equal, those of a ciphertext of a keyed random network are not.
MAX_NEIGHBOUR_CORRELATION = 0.5


class Stored(Protocol):
    """What both kinds can do; `feature` is the column's, `row_bytes` about what a row takes on disk."""

    feature: Image | Array2D
    row_bytes: int
    is_image: bool

    def rows(self, ciphertexts: torch.Tensor) -> list[Any]:
        """What `encrypt` gives, (B, ...) -> B stored ciphertexts."""

    def arrays(self, stored: Sequence[Any]) -> np.ndarray:
        """The inverse of `rows`, as NumPy has it. Raises ImageError for what does not fit the config."""

    def pixel_values(self, stored: Sequence[Any]) -> torch.Tensor:
        """What a model is given: float32, images (B, 3, S, S) in [-1, 1], patches (B, N, D) as they are."""

    def shown(self, stored: Any) -> Any:
        """What a user meets in a row: a PIL image, or float32 patches (N, D)."""

    def png(self, stored: Any) -> bytes:
        """The file that goes to an endpoint. Raises ConfigError if it is no image."""

    def problem(self, stored: Any) -> str | None:
        """What is wrong with a stored ciphertext that is to be published: not what `rows` writes, or plain-looking."""


class StoredImages:
    """uint8 (B, 3, S, S) as PNG files that `images.to_png` writes."""

    is_image = True

    def __init__(self, config: SchemeConfig):
        self.size, self.random = config.image_size, config.symbol_bits is None
        self.feature, self.row_bytes = Image(), 3 * config.image_size**2 + 100

    def rows(self, ciphertexts: torch.Tensor) -> list[dict]:
        return [{"bytes": to_png(image), "path": None} for image in ciphertexts.cpu().numpy()]

    def arrays(self, stored: Sequence[dict]) -> np.ndarray:
        images = np.empty((len(stored), 3, self.size, self.size), np.uint8)
        for place, row in enumerate(stored):
            pixels = _unfiltered(row["bytes"], self.size)
            images[place] = read_png(row["bytes"], self.size) if pixels is None else pixels
        return images

    def pixel_values(self, stored: Sequence[dict]) -> torch.Tensor:
        return torch.from_numpy(self.arrays(stored)).float().div_(127.5).sub_(1)

    def shown(self, stored: dict) -> PILImage.Image:
        return PILImage.open(io.BytesIO(stored["bytes"]), formats=["PNG"])

    def png(self, stored: dict) -> bytes:
        return stored["bytes"]

    def problem(self, stored: dict | None) -> str | None:
        if stored is None or stored["bytes"] is None:
            return "has no image bytes, only a path or nothing"
        if stored["path"] is not None:
            return "keeps the path of its image, which may hold a person's name"
        pixels = _written_pixels(stored["bytes"], self.size)
        if pixels is None:
            return "is not an image that `encrypt` wrote (plain, re-coded, or with metadata)"
        if self.random and _looks_plain(pixels):
            return "looks like a plain image: its neighbouring pixels are nearly equal"
        return None


class StoredPatches:
    """float32 (B, N, D), as nested lists of numbers: they have no path and no metadata."""

    is_image = False

    def __init__(self, config: SchemeConfig):
        self.scheme, self.shape = config.scheme, config.patch_shape or (0, 0)
        self.feature, self.row_bytes = Array2D(self.shape, "float32"), 4 * self.shape[0] * self.shape[1] + 100

    def rows(self, ciphertexts: torch.Tensor) -> list[np.ndarray]:
        return list(ciphertexts.cpu().numpy())

    def arrays(self, stored: Sequence[Any]) -> np.ndarray:
        patches = np.asarray(stored, np.float32).reshape(len(stored), *np.shape(stored)[1:])
        if len(stored) and patches.shape[1:] != self.shape:
            raise ImageError(f"encrypted patches of shape {patches.shape[1:]} are not of shape {self.shape}")
        return patches

    def pixel_values(self, stored: Sequence[Any]) -> torch.Tensor:
        return torch.from_numpy(self.arrays(stored))

    def shown(self, stored: Any) -> np.ndarray:
        return np.asarray(stored, np.float32)

    def png(self, stored: Any) -> bytes:
        raise ConfigError(f"ciphertexts of {self.scheme} are no images, which is all that an endpoint takes")

    def problem(self, stored: Any) -> str | None:
        return None


def stored_as(config: SchemeConfig) -> Stored:
    """How ciphertexts under `config` are stored."""
    return StoredPatches(config) if config.patch_shape else StoredImages(config)


def read_png(content: bytes, size: int) -> np.ndarray:
    """uint8 (3, size, size) of a PNG that may be a stranger's, its size looked at before it is decoded.

    Raises:
        ImageError: it is no PNG, damaged, or of another size.
    """
    try:
        image = PILImage.open(io.BytesIO(content), formats=["PNG"])
        if image.size != (size, size) or image.mode != "RGB":
            raise ImageError(
                f"an encrypted image of {image.width} x {image.height} pixels, {image.mode}, does not fit a model of "
                f"{size} pixels"
            )
        return np.asarray(image).transpose(2, 0, 1)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ImageError(f"an encrypted image is damaged ({type(error).__name__})") from None


def _unfiltered(png: bytes, size: int) -> np.ndarray | None:
    """uint8 (3, size, size) of a PNG that stores rows of RGB as they are, as `images.to_png` does, in a third of the
    time that Pillow takes; None for any other bytes."""
    length, header = size * (1 + 3 * size), struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(memoryview(png)[png.find(b"IDAT") + 4 :], length + 1)  # to the end, where a sum is
    except zlib.error:
        return None
    if png[16:29] != header or not stream.eof or len(rows) != length:
        return None
    values = np.frombuffer(rows, np.uint8).reshape(size, 1 + 3 * size)  # each row starts with its filter type
    return None if values[:, 0].any() else values[:, 1:].reshape(size, size, 3).transpose(2, 0, 1)


def _written_pixels(png: bytes, size: int) -> np.ndarray | None:
    """uint8 (3, size, size) of a PNG as `images.to_png` writes it; None for any other bytes."""
    pixels = _unfiltered(png, size)
    return pixels if pixels is not None and to_png(pixels) == png else None


def _looks_plain(pixels: np.ndarray) -> bool:
    rows = pixels[:, :: max(1, pixels.shape[1] // 16)].astype(np.float32)
    left, right = (part - part.mean() for part in (rows[..., :-1], rows[..., 1:]))
    scale = np.sqrt((left**2).mean() * (right**2).mean())
    return bool(scale == 0 or (left * right).mean() / scale > MAX_NEIGHBOUR_CORRELATION)
