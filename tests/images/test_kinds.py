"""Every format x mode x depth x photometric that people have, written by hand, against pixels known without Pillow:
read right, or refused with the reason, and nothing in between."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image as PILImage

from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.images import open_image, to_rgb
from tests.helpers import encoded, make_images


RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 6, 13
BACKGROUND = (0, 128, 255)


def samples(bits: int, channels: int = 1, opaque: bool = False) -> np.ndarray:
    """(H, W, channels) whole numbers of so many bits, both ends among them."""
    values = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, channels))
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    if opaque:
        values[:, :, -1] = 2**bits - 1
    return values


def eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """(H, W, 3), as a screen shows grey or RGB of so many bits."""
    scaled = np.round(values / (2**bits - 1) * 255).astype(int)
    return scaled.repeat(3, 2) if scaled.shape[2] == 1 else scaled[:, :, :3]


def packed(rows: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of values, each filled up to whole bytes."""
    if bits in (8, 16, 32):
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    lines = ("".join(format(value, f"0{bits}b") for value in row) for row in rows.tolist())
    return b"".join(int(line + "0" * (-len(line) % 8), 2).to_bytes((len(line) + 7) // 8, "big") for line in lines)


def tiff(
    values: np.ndarray,
    bits: int,
    photometric: int,
    order: str = "<",
    planes: bool = False,
    deflate: bool = False,
    **tags,
) -> bytes:
    """A TIFF of one strip, or of one for each plane; `tags`: t338=[2] and so on."""
    height, width, channels = values.shape
    parts = [values[:, :, c] for c in range(channels)] if planes else [values.reshape(height, -1)]
    strips = [packed(part, bits, order) for part in parts]
    strips = [zlib.compress(strip) if deflate else strip + bytes(len(strip) % 2) for strip in strips]
    strips = [strip + bytes(len(strip) % 2) for strip in strips]
    starts = [8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    entries = {
        256: [width], 257: [height], 258: [bits] * channels, 259: [8 if deflate else 1], 262: [photometric],
        273: starts, 277: [channels], 278: [height], 279: [len(strip) for strip in strips], 284: [1 + planes],
    }  # fmt: skip
    entries |= {int(name[1:]): value for name, value in tags.items()}
    directory = 8 + sum(map(len, strips))
    beyond, table, extra = directory + 6 + 12 * len(entries), struct.pack(order + "H", len(entries)), b""
    for tag, value in sorted(entries.items()):
        kind = 4 if tag in (273, 279) else 3
        content = struct.pack(f"{order}{len(value)}{'I' if kind == 4 else 'H'}", *value)
        head = struct.pack(order + "HHI", tag, kind, len(value))
        if len(content) > 4:
            table, extra = table + head + struct.pack(order + "I", beyond + len(extra)), extra + content
        else:
            table += head + content.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", directory)
    return start + b"".join(strips) + table + bytes(4) + extra


def png(values: np.ndarray, bits: int, kind: int, palette: np.ndarray | None = None, transparent: bytes = b"") -> bytes:
    height, width, channels = values.shape
    rows = values.reshape(height, width * channels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        (b"PLTE", b"" if palette is None else palette.astype(np.uint8).tobytes()),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress(b"".join(b"\0" + packed(row[None], bits, ">") for row in rows))),
    ]
    filled = [(name, data) for name, data in chunks if data] + [(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in filled
    )


def pnm(values: np.ndarray, largest: int) -> bytes:
    kind = 5 if values.shape[2] == 1 else 6
    return f"P{kind} {WIDTH} {HEIGHT} {largest}\n".encode() + values.astype(">u2" if largest > 255 else "u1").tobytes()


def tiffs():
    for order in "<>":
        for deflate in (False, True):
            name = f"tiff {order} {'deflate' if deflate else 'raw'}"
            options = {"order": order, "deflate": deflate}
            for bits in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16):
                values = samples(bits)
                grey = eight_bits(values, bits)
                yield f"{name} grey {bits}", tiff(values, bits, 1, **options), grey, 0, bits in (1, 2, 4, 8, 16)
                yield (
                    f"{name} white is zero {bits}",
                    tiff(values, bits, 0, **options),
                    255 - grey,
                    0,
                    bits in (1, 2, 4, 8),
                )
            for bits in (8, 16):
                for planes in (False, True):
                    kind, sure = f"{name} {bits}{' planes' if planes else ''}", bits == 8 or not planes
                    values, four, two = samples(bits, 3), samples(bits, 4, opaque=True), samples(bits, 2, opaque=True)
                    near = int(bits == 16)
                    yield (
                        f"{kind} rgb",
                        tiff(values, bits, 2, planes=planes, **options),
                        eight_bits(values, bits),
                        near,
                        sure,
                    )
                    rgba = tiff(four, bits, 2, planes=planes, t338=[2], **options)
                    yield f"{kind} rgba", rgba, eight_bits(four, bits), near, sure
                    la = tiff(two, bits, 1, planes=planes, t338=[2], **options)
                    yield f"{kind} la", la, eight_bits(two[:, :, :1], bits), near, False
                    cmyk = samples(bits, 4) / (2**bits - 1)
                    expected = (1 - cmyk[:, :, :3]) * (1 - cmyk[:, :, 3:]) * 255
                    stored = np.round(cmyk * (2**bits - 1)).astype(int)
                    yield f"{kind} cmyk", tiff(stored, bits, 5, planes=planes, **options), expected, 2, sure
            for bits in (1, 2, 4, 8):
                values, colours = samples(bits), RNG.integers(0, 65536, (3, 2**bits))
                made = tiff(values, bits, 3, t320=colours.ravel().tolist(), **options)
                yield f"{name} palette {bits}", made, colours.T[values[:, :, 0]] / 257, 1, True
            values, colours = samples(8), RNG.integers(0, 256, (3, 256))
            old = tiff(values, 8, 3, t320=colours.ravel().tolist(), **options)
            yield f"{name} palette of 8-bit colours", old, colours.T[values[:, :, 0]], 0, False
            values = samples(8, 3)
            light, blue, red = (values[:, :, c].astype(float) for c in range(3))
            expected = np.stack(
                [
                    light + 1.402 * (red - 128),
                    light - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
                    light + 1.772 * (blue - 128),
                ],
                2,
            ).clip(0, 255)
            yield f"{name} ycbcr", tiff(values, 8, 6, t530=[1, 1], **options), expected, 2, False
            signed = tiff(samples(15), 16, 1, t339=[2], **options)
            yield f"{name} signed", signed, None, 0, False
            yield f"{name} grey 32", tiff(samples(16), 32, 1, **options), None, 0, False


def others():
    for bits in (1, 2, 4, 8, 16):
        values = samples(bits)
        grey = eight_bits(values, bits)
        yield f"png grey {bits}", png(values, bits, 0), grey, 0, True
        through = grey.copy()
        through[values[:, :, 0] == values[2, 3, 0]] = BACKGROUND
        colour = struct.pack(">H", int(values[2, 3, 0]))
        yield f"png grey {bits} transparent", png(values, bits, 0, transparent=colour), through, 0, bits in (1, 8)
        if bits <= 8:
            colours = RNG.integers(0, 256, (2**bits, 3))
            yield f"png palette {bits}", png(values, bits, 3, colours), colours[values[:, :, 0]], 0, True
            colours[0] = BACKGROUND
            through = png(values, bits, 3, np.vstack([[[9, 9, 9]], colours[1:]]), b"\0")
            yield f"png palette {bits} transparent", through, colours[values[:, :, 0]], 0, True
    for bits in (8, 16):
        values, near = samples(bits, 3), int(bits == 16)
        yield f"png rgb {bits}", png(values, bits, 2), eight_bits(values, bits), near, True
        through = eight_bits(values, bits)
        through[2, 3] = BACKGROUND
        colour = struct.pack(">HHH", *values[2, 3].tolist())
        yield f"png rgb {bits} transparent", png(values, bits, 2, transparent=colour), through, near, bits == 8
        for kind, channels in ((4, 2), (6, 4)):
            values = samples(bits, channels)
            values[:, :, -1] = RNG.choice([0, 2**bits - 1], (HEIGHT, WIDTH))
            seen = np.where(values[:, :, -1:] > 0, eight_bits(values[:, :, : channels - 1], bits), BACKGROUND)
            yield f"png {channels} channels {bits}", png(values, bits, kind), seen, near, True
    for largest in (1, 3, 100, 255, 256, 4095, 65535):
        for channels in (1, 3):
            values = RNG.integers(0, largest + 1, (HEIGHT, WIDTH, channels))
            expected = np.round(values / largest * 255)
            yield (
                f"pnm {channels} {largest}",
                pnm(values, largest),
                expected.repeat(4 - channels if channels == 1 else 1, 2),
                0,
                True,
            )


CASES = {name: case for name, *case in [*tiffs(), *others()]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_pixels_are_right_or_the_image_is_refused(name):
    """The last of a case says whether it must be read; the one before, by how many levels a pixel may be off."""
    content, expected, near, must = CASES[name]
    try:
        pixels = np.asarray(to_rgb(open_image(content), "#0080ff")).astype(int)
    except ImageError as error:
        assert not must and any(word in str(error) for word in ("PNG", "8 or 16 bits", "alpha channel")), str(error)
        return
    assert expected is not None and np.abs(pixels - expected).max() <= near


def test_12_bit_tiff_is_read():
    values = samples(12)
    pixels = np.asarray(to_rgb(open_image(tiff(values, 12, 1))))
    np.testing.assert_array_equal(pixels, eight_bits(values, 12))


# --------------------------------------------------------------------------------------------------------- orientation

TURNED = {  # what brings stored pixels (H, W, C) upright
    2: lambda pixels: pixels[:, ::-1], 3: lambda pixels: pixels[::-1, ::-1], 4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1), 6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1), 8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}  # fmt: skip
ODD_TAGS = {  # beside a readable Orientation: what Pillow reads, and cannot write again
    "resolution -1/0": struct.pack("<HHIIii", 0x11A, 10, 1, 38, -1, 0),
    "unit as text": struct.pack("<HHI4s", 0x128, 2, 2, b"2\0\0\0"),
    "width as text": struct.pack("<HHI4s", 0x100, 2, 4, b"wide"),
    "unknown type": struct.pack("<HHII", 0x9999, 77, 1, 5),
    "beyond the end": struct.pack("<HHII", 0x10F, 2, 400, 9999),
    "nothing odd": b"",
}


def with_orientation(image: np.ndarray, orientation: int, odd: bytes) -> bytes:
    entries = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0) + odd[:12]
    body = struct.pack("<H", len(entries) // 12) + entries + bytes(4) + odd[12:]
    exif = b"II*\0" + struct.pack("<I", 8) + body
    return encoded(PILImage.fromarray(image), "PNG", exif=exif)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ODD_TAGS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_whatever_stands_beside_it(orientation, odd):
    stored = make_images(1, 32)[0][:24]
    pixels = np.asarray(to_rgb(open_image(with_orientation(stored, orientation, ODD_TAGS[odd]))))
    np.testing.assert_array_equal(pixels, TURNED.get(orientation, lambda same: same)(stored))


# ------------------------------------------------------------------------------------------------- what is not decoded


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
        (b"\xff\x4f\xff\x51" + bytes(40), "JPEG 2000"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
    ],
)
def test_formats_that_are_not_read_are_named(content, kind):
    with pytest.raises(ImageError, match=f"it is .*{kind}.*make a PNG"):
        open_image(content)
