"""DICOM: what a viewer shows, against pixels worked out by hand from the standard; whatever else is refused."""

import sys
import warnings
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from hf_neuracrypt.errors import ImageError, without_warnings
from hf_neuracrypt.images import MAX_PIXELS, dicom, open_image, prepare
from hf_neuracrypt.schemes import EncoderConfig
from tests.commands import assert_one_line_error, command
from tests.helpers import make_dicom


SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
GREY = np.arange(-2000, 2000, 10, dtype=np.int16).reshape(20, 20)
RLE, JPEG_2000, DEFLATED = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.1.99"


def shown(content: bytes, window: str = "", **options) -> np.ndarray:
    return np.asarray(open_image(content, window, **options))


def windowed(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, value by value."""
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    inside = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.where(values <= low, 0, np.where(values > high, 255, np.floor(inside + 0.5))).astype(np.uint8)


def table(first: int, entries: list[int], bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return item


def item_of(**values) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


# -------------------------------------------------------------------------------------------------------------- pixels


def test_rescale_and_window():
    header = {
        "RescaleSlope": "2",
        "RescaleIntercept": "-1024",
        "WindowCenter": ["40", "0"],
        "WindowWidth": ["400", "9"],
    }
    content = make_dicom(GREY, **header)
    np.testing.assert_array_equal(shown(content), windowed(GREY * 2.0 - 1024, 40, 400))
    np.testing.assert_array_equal(shown(content, "-600.5,1500"), windowed(GREY * 2.0 - 1024, -600.5, 1500))
    inverted = make_dicom(GREY, PhotometricInterpretation="MONOCHROME1", **header)
    np.testing.assert_array_equal(shown(inverted), 255 - windowed(GREY * 2.0 - 1024, 40, 400))


def test_without_a_window_the_header_says_the_range_never_the_values():
    np.testing.assert_array_equal(shown(make_dicom(GREY)), np.floor((GREY + 32768.0) / 65535 * 255 + 0.5))
    twelve = GREY.view(np.uint16) % 4096
    content = make_dicom(twelve, BitsStored=12, HighBit=11, RescaleSlope="-1", RescaleIntercept="100")
    np.testing.assert_array_equal(shown(content), np.floor((4095.0 - twelve) / 4095 * 255 + 0.5))
    wide = GREY.astype(np.int32).view(np.uint32) // 2
    np.testing.assert_array_equal(shown(make_dicom(wide)), np.floor(wide / (2**32 - 1) * 255 + 0.5))
    np.testing.assert_array_equal(
        shown(make_dicom(wide, RescaleSlope="1e-6"), "1000,900"), windowed(wide / 1e6, 1000, 900)
    )
    junk = make_dicom(twelve | 0xA000, BitsStored=12, HighBit=11)  # an old overlay in the bits that are not used
    np.testing.assert_array_equal(shown(junk), np.floor(twelve / 4095 * 255 + 0.5))


def test_functions_of_windows():
    window = {"WindowCenter": "100", "WindowWidth": "500"}
    exact = np.clip((GREY - 100) / 500 + 0.5, 0, 1) * 255
    np.testing.assert_array_equal(
        shown(make_dicom(GREY, VOILUTFunction="LINEAR_EXACT", **window)), np.floor(exact + 0.5)
    )
    curved = 255 / (1 + np.exp(-4 * (GREY - 100) / 500))
    np.testing.assert_array_equal(shown(make_dicom(GREY, VOILUTFunction="SIGMOID", **window)), np.floor(curved + 0.5))
    np.testing.assert_array_equal(
        shown(make_dicom(GREY, VOILUTFunction="SIGMOID", **window), "0,9"), windowed(GREY, 0, 9)
    )


def test_tables():
    """More entries than an entry has bits, and values below and above the table."""
    values = np.arange(0, 4096, 11, dtype=np.uint16)[:361].reshape(19, 19)
    curve = [round(255 * (index / 2999) ** 0.5) for index in range(3000)]
    voi = make_dicom(
        values, BitsStored=12, HighBit=11, VOILUTSequence=[table(500, curve, 8)], WindowCenter=1, WindowWidth=2
    )
    np.testing.assert_array_equal(shown(voi), np.array(curve)[np.clip(values.astype(int) - 500, 0, 2999)])
    np.testing.assert_array_equal(shown(voi, "1000,200"), windowed(values, 1000, 200))
    steps = [4 * index for index in range(1024)]
    modality = make_dicom(values // 4, BitsStored=12, HighBit=11, ModalityLUTSequence=[table(0, steps, 12)])
    np.testing.assert_array_equal(shown(modality), np.floor(values // 4 * 4 / 4095 * 255 + 0.5))


def test_frames_with_windows_of_their_own():
    frames = np.stack([GREY, GREY[::-1]])
    groups = [item_of(FrameVOILUTSequence=[item_of(WindowCenter=c, WindowWidth=200)]) for c in ("0", "500")]
    shared = item_of(PixelValueTransformationSequence=[item_of(RescaleSlope="1", RescaleIntercept="-50")])
    header = {"PerFrameFunctionalGroupsSequence": groups, "SharedFunctionalGroupsSequence": [shared]}
    content = make_dicom(frames, **header)
    np.testing.assert_array_equal(shown(content), windowed(GREY - 50.0, 0, 200))
    np.testing.assert_array_equal(shown({"bytes": content, "frame": 1}), windowed(GREY[::-1] - 50.0, 500, 200))
    with pytest.raises(ImageError, match="fewer frames"):
        shown({"bytes": content, "frame": 2})


def test_colours():
    colours = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    np.testing.assert_array_equal(shown(make_dicom(colours)), colours)
    np.testing.assert_array_equal(shown(make_dicom(colours), "1,2"), colours)  # windows are for grey images
    planes = make_dicom(colours, PlanarConfiguration=1, PixelData=colours.transpose(2, 0, 1).tobytes())
    np.testing.assert_array_equal(shown(planes), colours)
    np.testing.assert_array_equal(shown(make_dicom(colours * np.uint16(257))), colours)
    y, cb, cr = (colours[..., c].astype(float) for c in range(3))
    rgb = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    got = shown(make_dicom(colours, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(got - np.clip(np.stack(rgb, -1), 0, 255)).max() <= 1
    with pytest.raises(ImageError, match="colours are coded in a way that is not read"):
        shown(make_dicom(colours, PhotometricInterpretation="YBR_PARTIAL_422"))


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(bits):
    indices = np.random.default_rng(0).integers(0, 256, (8, 12), np.uint8)
    entries = np.random.default_rng(1).integers(0, 2**bits, (3, 200))
    header = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, row in zip(("Red", "Green", "Blue"), entries):
        header[f"{colour}PaletteColorLookupTableDescriptor"] = [200, 10, bits]
        header[f"{colour}PaletteColorLookupTableData"] = row.astype(f"<u{bits // 8}").tobytes()
    chosen = entries[:, np.clip(indices.astype(int) - 10, 0, 199)].transpose(1, 2, 0)
    np.testing.assert_array_equal(shown(make_dicom(indices, **header)), np.round(chosen / (2**bits - 1) * 255))
    with pytest.raises(ImageError, match="segmented palette"):
        shown(make_dicom(indices, **header | {"GreenPaletteColorLookupTableData": None}))


def test_compressed_files_give_what_uncompressed_ones_do():
    """Of what pydicom ships: the same picture, losslessly, in every syntax."""
    plain = shown((SHIPPED / "MR_small.dcm").read_bytes())
    stored = pydicom.dcmread(SHIPPED / "MR_small.dcm")
    raw = np.frombuffer(stored.PixelData, np.int16).reshape(64, 64)
    np.testing.assert_array_equal(plain, windowed(raw, stored.WindowCenter, stored.WindowWidth))
    for name in ("RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"):
        np.testing.assert_array_equal(shown((SHIPPED / f"MR_small_{name}.dcm").read_bytes()), plain)
    colours = shown((SHIPPED / "SC_rgb_rle.dcm").read_bytes())
    for name in ("gdcm_KY", "jpeg_gdcm"):  # JPEG 2000, JPEG lossless
        np.testing.assert_array_equal(shown((SHIPPED / f"SC_rgb_{name}.dcm").read_bytes()), colours)
    for name in ("jpeg_dcmtk", "jls_lossy_line", "dcmtk_+eb+cy+s4", "dcmtk_+eb+cr"):
        assert np.abs(shown((SHIPPED / f"SC_rgb_{name}.dcm").read_bytes()).astype(int) - colours).mean() < 4


def test_all_that_pydicom_ships_is_read_or_refused_without_a_word_of_its_header(capfd):
    read, errors = {}, {}
    with warnings.catch_warnings(record=True) as said:
        for path in sorted(SHIPPED.glob("*.dcm")):
            try:
                read[path.name] = shown(path.read_bytes())
            except ImageError as error:
                errors[path] = str(error)
    assert not said and capfd.readouterr() == ("", "")
    for path, error in errors.items():
        with without_warnings():
            values = {str(each.value) for each in pydicom.dcmread(path, force=True).iterall() if each.VR != "SQ"}
        assert not [value for value in values if len(value) > 4 and value in error], error
    assert len(read) > 45 and {"examples_palette.dcm", "liver_1frame.dcm", "image_dfl.dcm"} < set(read)


# ------------------------------------------------------------------------------------------------------------- refused


REFUSED = {
    "burned in": ({"BurnedInAnnotation": "YES"}, "declares text burned into the pixels.*burned_in=true"),
    "report": ({"PixelData": None, "SOPClassUID": pydicom.uid.BasicTextSRStorage}, r"without pixels \(Basic Text SR"),
    "pdf": (
        {"PixelData": None, "SOPClassUID": pydicom.uid.EncapsulatedPDFStorage},
        r"without pixels \(Encapsulated PDF",
    ),
    "private": ({"PixelData": None, "SOPClassUID": "1.2.3.4.5.6.7"}, "it is DICOM without pixels$"),
    "float": ({"PixelData": None, "FloatPixelData": bytes(1600)}, "floating-point"),
    "huge": ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels; more than 100,000,000"),
    "nothing": ({"Rows": 0}, "or none, are refused"),
    "short": ({"PixelData": bytes(10)}, "damaged"),
    "frames": ({"NumberOfFrames": 2}, "damaged"),
    "too many frames": ({"NumberOfFrames": 2**31 - 1}, "more than 100,000"),
    "depth": ({"BitsStored": 17}, "depth"),
    "samples": ({"SamplesPerPixel": 4}, "number of colours"),
    "no rows": ({"Rows": None}, "damaged"),
    "window": ({"WindowCenter": "40", "WindowWidth": "0"}, "window of no width"),
    "rescale": ({"RescaleSlope": "inf"}, "rescale or a window that is no number"),
    "syntax": ({"syntax": "1.2.3.4.5.6.7"}, "coded in a way that is not known|does not say how"),
    "12-bit JPEG": (
        {"syntax": "1.2.840.10008.1.2.4.51", "PixelData": encapsulate([bytes(9)])},
        "JPEG Extended.*gdcmconv",
    ),
    "empty JPEG 2000": ({"syntax": JPEG_2000, "PixelData": encapsulate([bytes(90)])}, "not of the size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    header, reason = REFUSED[name]
    with pytest.raises(ImageError, match=reason):
        shown(make_dicom(GREY, **header))


def test_a_window_that_is_given_takes_the_place_of_a_broken_one():
    content = make_dicom(GREY, WindowCenter="40", WindowWidth="0")
    np.testing.assert_array_equal(shown(content, "40,400"), windowed(GREY, 40, 400))


def test_burned_in_annotation_is_read_if_asked_for():
    content = make_dicom(GREY, BurnedInAnnotation="YES")
    np.testing.assert_array_equal(shown(content, burned_in=True), shown(make_dicom(GREY)))
    config = EncoderConfig(image_size=32, burned_in=True, window="0,400")
    np.testing.assert_array_equal(
        prepare(content, config), prepare(make_dicom(GREY), EncoderConfig(image_size=32, window="0,400"))
    )
    assert shown(make_dicom(GREY, BurnedInAnnotation="NO")).shape == (20, 20)


@pytest.mark.parametrize(
    "name", ["MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_dcmtk"]
)
def test_a_frame_that_claims_another_size_is_not_decoded(name):
    content = (SHIPPED / f"{name}.dcm").read_bytes()
    data = pydicom.dcmread(SHIPPED / f"{name}.dcm")
    width, height = (side.to_bytes(4 if "jp2k" in name else 2) for side in (data.Columns, data.Rows))
    size = width + height if "jp2k" in name else height + width
    at = content.index(size, content.index(b"\xff\x51" if "jp2k" in name else b"\xff\xd8\xff"))
    huge = content[:at] + b"\0\0\x7f\xff"[-len(width) :] * 2 + content[at + len(size) :]
    assert shown(content).shape[:2] == (data.Rows, data.Columns)
    with mock.patch.object(pydicom.pixels.decoders.base.Decoder, "as_array", side_effect=AssertionError):
        with pytest.raises(ImageError, match="not of the size that its header says"):
            shown(huge)


def test_a_deflated_file_is_not_unpacked_without_bound():
    content = make_dicom(GREY, syntax=DEFLATED)
    np.testing.assert_array_equal(shown(content), shown(make_dicom(GREY)))
    start = content.index(b"1.2.840.10008.1.2.1.99")
    meta = content[: 144 + int.from_bytes(content[140:144], "little")]
    assert start < len(meta)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(40)) + packer.flush()
    with mock.patch.object(dicom, "MAX_UNPACKED", 2**24), pytest.raises(ImageError, match="when inflated"):
        shown(meta + bomb)
    assert dicom.MAX_UNPACKED == 4 * MAX_PIXELS


@pytest.mark.parametrize(
    "name", ["CT_small", "MR_small_RLE", "examples_palette", "MR_small_jp2klossless", "SC_rgb_jpeg_gdcm"]
)
def test_a_damaged_file_is_refused_or_read_and_nothing_else(name):
    content = (SHIPPED / f"{name}.dcm").read_bytes()
    chance = np.random.default_rng(0)
    for cut in chance.integers(132, len(content), 12):
        with pytest.raises(ImageError):
            shown(content[:cut])
    for places in chance.integers(132, min(len(content), 2500), (25, 3)):
        damaged = bytearray(content)
        for place in places:
            damaged[place] ^= 0x5A
        try:
            assert shown(bytes(damaged)).dtype == np.uint8
        except ImageError:
            pass


def test_without_the_extra_one_line_names_it(tmp_path, key_file):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "1").write_bytes(make_dicom(GREY))
    dicom._library.cache_clear()
    with mock.patch.dict(sys.modules, {"pydicom": None}):
        words = ("--dataset", tmp_path / "scans", "--key-file", key_file, "--output", tmp_path / "out")
        assert_one_line_error(command("encrypt", *words), "pip install 'hf-neuracrypt[dicom]'")
    assert shown(make_dicom(GREY)).shape == (20, 20)


def test_rle_is_read_by_pydicom_itself():
    data = pydicom.dcmread(SHIPPED / "SC_rgb_rle_2frame.dcm")
    assert data.file_meta.TransferSyntaxUID == RLE
    content = (SHIPPED / "SC_rgb_rle_2frame.dcm").read_bytes()
    first, second = (shown({"bytes": content, "frame": frame}) for frame in range(2))
    np.testing.assert_array_equal(first, pydicom.pixels.pixel_array(data, index=0))
    np.testing.assert_array_equal(second, pydicom.pixels.pixel_array(data, index=1))
