"""An image, ready to be encrypted, and views of it.

Plain images are resized once, before encryption, by the config's method. Views, too, are made before, and follow from
the image's own pixels: the same on any machine, in any order.
"""

import hashlib

import numpy as np
import torch
from PIL import Image

from hf_neuracrypt.images.read import open_image, to_rgb
from hf_neuracrypt.schemes import SchemeConfig


def prepare(source: object, config: SchemeConfig) -> np.ndarray:
    """A user's image, ready to be encrypted: uint8 RGB (3, image_size, image_size).

    Args:
        source: what `datasets` and people have: a PIL image, a path, encoded bytes, `{"bytes": …, "path": …}`, or an
            array: uint8, uint16 or bool (H, W), (H, W, 1), (H, W, 3), (H, W, 4), or channels first.
        config: says the size, the resize method, the background, and how DICOM is shown.

    Raises:
        ImageError: unreadable, truncated, too large, or a kind of array whose range is not known.
    """
    image = open_image(source, config.window, config.burned_in)
    return resize(to_rgb(image, config.background), config.image_size, config.resize)


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
