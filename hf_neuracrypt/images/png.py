"""The PNG files of ciphertexts.

The pixels are stored uncompressed in blocks laid out here (`push` compresses them), so a file's bytes depend on the
ciphertext alone, not on a version of Pillow or zlib.
"""

import struct
import zlib

import numpy as np


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
