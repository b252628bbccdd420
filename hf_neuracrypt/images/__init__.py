"""Any image a user has -> uint8 RGB of the right size, with its metadata gone; an encrypted array -> PNG bytes.

Arrays are channels first, (3, S, S), here and everywhere else.

prepare.py  an image, ready to be encrypted, and views of it
read.py     files and what else people have -> a PIL image; that -> RGB
jpeg.py     JPEG files, faster than Pillow reads them
dicom.py    a DICOM file -> 8-bit pixels, as a viewer shows them
arrays.py   arrays -> images, by the range of their dtype
png.py      the PNG files of ciphertexts
"""

from hf_neuracrypt.images.arrays import MAX_PIXELS, as_array
from hf_neuracrypt.images.png import to_png
from hf_neuracrypt.images.prepare import make_views, prepare, resize
from hf_neuracrypt.images.read import ENDINGS, OTHER_ENDINGS, open_image, to_rgb


__all__ = [
    "ENDINGS", "MAX_PIXELS", "OTHER_ENDINGS", "as_array", "make_views", "open_image", "prepare", "resize", "to_png",
    "to_rgb",
]  # fmt: skip
