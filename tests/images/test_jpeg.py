"""JPEG files give the same pixels, the same way up, with simplejpeg and without, and are refused alike."""

import io

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as PILImage

from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.images import jpeg, open_image, to_rgb
from tests.helpers import make_images


simplejpeg = pytest.importorskip("simplejpeg")
PHOTO = PILImage.fromarray(make_images(1, 64)[0]).resize((151, 83))
KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "4:1:1": {"subsampling": "4:1:1"},
    "progressive": {"progressive": True},
    "RGB": {"keep_rgb": True},
    "restarts": {"restart_marker_blocks": 2},
    "coarse": {"quality": 5},
}


def saved(image: PILImage.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def both(content: bytes, monkeypatch) -> list[np.ndarray | str]:
    """The pixels, or the error, with simplejpeg and without."""
    found: list[np.ndarray | str] = []
    for module in (simplejpeg, None):
        monkeypatch.setattr(jpeg, "simplejpeg", module)
        try:
            found.append(np.asarray(to_rgb(open_image(content))))
        except ImageError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pixels(kind, mode, monkeypatch):
    for size in (PHOTO.size, (7, 9), (1, 1)):
        ours, pillows = both(saved(PHOTO.convert(mode).crop((0, 0, *size)), **KINDS[kind]), monkeypatch)
        assert isinstance(ours, np.ndarray) and np.array_equal(ours, pillows)


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_same_way_up(turn, monkeypatch):
    exif = PILImage.Exif()
    exif[ExifTags.Base.Orientation] = turn
    ours, pillows = both(saved(PHOTO, exif=exif), monkeypatch)
    assert np.array_equal(ours, pillows) and ours.shape[:2] == (PHOTO.size if turn > 4 else PHOTO.size[::-1])


def test_damaged_files_are_judged_alike(monkeypatch):
    """Cut off, with a bit turned, with bytes behind the end: the same pixels, or the same words."""
    whole = saved(PHOTO)
    cases = [whole[:cut] for cut in range(1, len(whole), len(whole) // 20)] + [whole + b"more"]
    for place in range(2, len(whole), len(whole) // 60):
        cases.append(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
    for case in cases:
        ours, pillows = both(case, monkeypatch)
        assert type(ours) is type(pillows) and np.array_equal(ours, pillows)


def test_simplejpeg_is_used_and_reads_no_more_than_was_allowed(monkeypatch):
    seen = []

    class Counting:
        @staticmethod
        def decode_jpeg(content: bytes, space: str, buffer: np.ndarray) -> np.ndarray:
            seen.append((space, buffer.size))
            return simplejpeg.decode_jpeg(content, space, buffer=buffer)

    monkeypatch.setattr(jpeg, "simplejpeg", Counting)
    for mode in ("RGB", "L", "CMYK"):
        open_image(saved(PHOTO.convert(mode)))
    assert seen == [("RGB", 151 * 83 * 3), ("GRAY", 151 * 83)]
