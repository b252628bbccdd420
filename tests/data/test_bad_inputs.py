"""What people really feed to `encrypt`, made in code. Each case has one documented outcome: it is encrypted correctly,
or the job stops with one line naming row and reason; with a `max_bad_fraction`, the row is listed and the rest goes on.
"""

import json
import os
import struct
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value, load_from_disk
from PIL import Image as PILImage

from hf_neuracrypt import encrypt_dataset
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.manifest import MANIFEST, REJECTED
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.images import prepare
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from tests.helpers import SMALL, batch, encoded, make_images


PIXELS = make_images(1, 32)[0]
PHOTO = PILImage.fromarray(PIXELS)


PNG, JPEG = encoded(PHOTO, "PNG"), encoded(PILImage.fromarray(make_images(1, 96)[0]), "JPEG", quality=95)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_size(width: int, height: int) -> bytes:
    return PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + PNG[33:]


def sixteen_bit_rgb() -> bytes:
    """A PNG with 16 bits a channel, written by hand: Pillow has no such mode."""
    rows = b"".join(b"\0" + (row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in PIXELS)
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_gps() -> bytes:
    exif = PILImage.Exif()
    exif[0x010F], exif.get_ifd(0x8825)[2] = "Jane's camera", (48.0, 8.0, 0.0)
    return encoded(PHOTO, "PNG", exif=exif)


GOOD_FILES = {
    "png": PNG,
    "png with gps": with_gps(),
    "png with a large profile": encoded(PHOTO, "PNG", icc_profile=b"p" * 500_000),
    "16-bit rgb png": sixteen_bit_rgb(),
    "bmp": encoded(PHOTO, "BMP"),
    "tiff": encoded(PHOTO, "TIFF"),
    "tiff, compressed": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "tiff, pages": encoded(PHOTO, "TIFF", save_all=True, append_images=[PILImage.new("RGB", (32, 32))]),
    "webp": encoded(PHOTO, "WEBP", lossless=True),
    "webp, animated": encoded(
        PHOTO, "WEBP", lossless=True, save_all=True, append_images=[PILImage.new("RGB", (32, 32))]
    ),
    "apng": encoded(PHOTO, "PNG", save_all=True, append_images=[PILImage.new("RGB", (32, 32))]),
    "ppm": encoded(PHOTO, "PPM"),
    "png with junk behind": PNG + b"junk" * 100,
}
CLOSE_FILES = {
    "jpeg": encoded(PHOTO, "JPEG", quality=98, subsampling=0),
    "jpeg, progressive": encoded(PHOTO, "JPEG", quality=98, subsampling=0, progressive=True),
    "jpeg with junk behind": encoded(PHOTO, "JPEG", quality=98, subsampling=0) + b"junk" * 100,
    "jpeg, cmyk": encoded(PHOTO.convert("CMYK"), "JPEG", quality=98),
    "mpo": encoded(PHOTO, "MPO", quality=98, subsampling=0, save_all=True, append_images=[PHOTO]),
}
BAD_FILES = {
    "nothing": b"",
    "text": b"a shopping list",
    "html": b"<!doctype html><title>404</title>",
    "png, cut in the header": PNG[:20],
    "png, cut in the pixels": PNG[: len(PNG) // 2],
    "png, wrong checksum": PNG[:50] + bytes([PNG[50] ^ 255]) + PNG[51:],
    "png whose profile is a bomb": encoded(PHOTO, "PNG", icc_profile=b"p" * 30_000_000),
    "png, no pixels": PNG[:33] + PNG[-12:],
    "png of 0 pixels": png_of_size(0, 0),
    "png that claims 10 gigapixels": png_of_size(100_000, 100_000),
    "png that claims 120 megapixels": png_of_size(12_000, 10_000),
    "jpeg, cut in the header": JPEG[:100],
    "jpeg, cut in the pixels": JPEG[: len(JPEG) * 2 // 3],
    "float tiff": encoded(PILImage.fromarray(np.zeros((8, 8), np.float32)), "TIFF"),
    "pdf": b"%PDF-1.7\n1 0 obj\n",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "fits": b"SIMPLE  =                    T" + b" " * 5000,
    "ico": encoded(PHOTO, "ICO"),
    "jpeg 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "gzip": b"\x1f\x8b\x08" + bytes(60),
}
GOOD_ARRAYS = {
    "rows of lists": PIXELS.tolist(),
    "channels first": PIXELS.transpose(2, 0, 1).tolist(),
}
BAD_STORED = {
    "none": None,
    "missing file": {"bytes": None, "path": "/no/such/jane.png"},
    "address": {"bytes": None, "path": "https://example.com/jane.png"},
    "file address": {"bytes": None, "path": "file:///etc/passwd"},
    "no image": {"bytes": None, "path": "/etc/passwd"},
    "pipe": "made by the test",
    "folder": {"bytes": None, "path": "/tmp"},
    "device": {"bytes": None, "path": "/dev/zero"},
    "empty pair": {"bytes": None, "path": None},
}


def dataset_of(images: list, labels: list | None = None) -> Dataset:
    """A dataset with these stored images, whatever they are, between good ones."""
    stored = [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in images]
    storage = pyarrow.array(stored, type=pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    features = Features({"image": Image(), "label": Value("int64")})
    table = pyarrow.table({"image": storage, "label": labels or list(range(len(images)))[::-1]})
    return Dataset(table.replace_schema_metadata(None).cast(features.arrow_schema))


def expected(images: np.ndarray, encoder) -> np.ndarray:
    return encoder.encrypt(batch(images)).permute(0, 2, 3, 1).numpy()


# --------------------------------------------------------------------------------------------------------- image files


@pytest.mark.parametrize("name", GOOD_FILES)
def test_good_files_are_encrypted_correctly(name, small_encoder):
    encrypted = encrypt_dataset(dataset_of([GOOD_FILES[name]]), small_encoder)
    np.testing.assert_array_equal(np.asarray(encrypted[0]["image"]), expected(PIXELS[None], small_encoder)[0])
    stored = encrypted.cast_column("image", Image(decode=False))[0]["image"]
    assert stored["path"] is None and b"Jane" not in stored["bytes"]


@pytest.mark.parametrize("name", CLOSE_FILES)
def test_lossy_files_are_close(name):
    assert np.abs(prepare(CLOSE_FILES[name], SMALL).transpose(1, 2, 0).astype(int) - PIXELS).mean() < 8


@pytest.mark.parametrize("stored", [*BAD_FILES, *BAD_STORED])
def test_bad_files_stop_or_are_listed(stored, small_encoder, tmp_path):
    image = BAD_FILES[stored] if stored in BAD_FILES else BAD_STORED[stored]
    if stored == "pipe":
        os.mkfifo(tmp_path / "pipe")
        image = {"bytes": None, "path": str(tmp_path / "pipe")}
    splits = {"train": dataset_of([PNG, PNG, image, PNG])}
    plan = make_plan(splits, small_encoder)
    with pytest.raises(DatasetError, match="row 2 cannot be encrypted: ") as caught:
        run(Job(splits, plan, tmp_path / "stopped"))
    assert "jane" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "stopped" / MANIFEST).exists()
    assert run(Job(splits, plan, tmp_path / "skipped", max_bad_fraction=0.5))
    encrypted = load_from_disk(str(tmp_path / "skipped"))["train"]
    assert encrypted["label"] == [3, 2, 0]
    for row in encrypted:
        np.testing.assert_array_equal(np.asarray(row["image"]), expected(PIXELS[None], small_encoder)[0])
    (line,) = (tmp_path / "skipped" / REJECTED).read_text().splitlines()
    rejected = json.loads(line)
    assert (rejected["split"], rejected["row"]) == ("train", 2) and rejected["reason"] and "jane" not in line


def test_wrong_and_odd_file_names(small_encoder, tmp_path):
    names = ["photo.txt", "größe.png", "🙂.png", "two  spaces.png", "n" * 200 + ".png", "-rf.png"]
    for name in names:
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "link.png").symlink_to(tmp_path / "photo.txt")
    stored = [{"bytes": None, "path": str(tmp_path / name)} for name in [*names, "link.png"]]
    encrypted = encrypt_dataset(dataset_of(stored), small_encoder)
    for row in encrypted:
        np.testing.assert_array_equal(np.asarray(row["image"]), expected(PIXELS[None], small_encoder)[0])


# -------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("name", GOOD_ARRAYS)
def test_arrays_of_lists(name, small_encoder):
    encrypted = encrypt_dataset(Dataset.from_dict({"image": [GOOD_ARRAYS[name]]}), small_encoder)
    np.testing.assert_array_equal(np.asarray(encrypted[0]["image"]), expected(PIXELS[None], small_encoder)[0])


@pytest.mark.parametrize(
    "array",
    [
        PIXELS[::-1],  # negative strides
        np.asfortranarray(PIXELS),
        np.broadcast_to(PIXELS[:1, :1], (32, 32, 3)),  # read-only, no memory of its own
        PIXELS.astype(object).astype(np.uint8),
    ],
    ids=["flipped", "fortran", "broadcast", "object"],
)
def test_odd_memory(array):
    array.flags.writeable = False
    np.testing.assert_array_equal(prepare(array, SMALL), np.array(array).transpose(2, 0, 1))


@pytest.mark.parametrize("values", [[[0.5, 0.1]], [[float("nan")]], [[-1]], [[256]], [["a"]], [[1, 2], [3]], []])
def test_arrays_without_a_known_range_stop(values, small_encoder):
    with pytest.raises(DatasetError, match="row 0 cannot be encrypted"):
        encrypt_dataset(Dataset.from_dict({"image": [values]}), small_encoder)


# -------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("label", [None, -1, 2, 10**12])
def test_labels_out_of_range_stop_or_are_listed(label, small_encoder, tmp_path):
    plain = dataset_of([PNG, PNG, PNG], [0, label, 1])
    plain.info.features["label"] = ClassLabel(names=["healthy", "ill"])  # a file's metadata may claim anything
    splits = {"train": plain}
    plan = make_plan(splits, small_encoder)
    with pytest.raises(DatasetError, match="row 1 cannot be encrypted: the label"):
        run(Job(splits, plan, tmp_path / "stopped"))
    assert run(Job(splits, plan, tmp_path / "skipped", max_bad_fraction=0.5))
    assert load_from_disk(str(tmp_path / "skipped"))["train"]["label"] == [0, 1]


def test_label_text_is_never_printed(small_encoder):
    """A label may be a diagnosis beside a name; class order is by name, whatever order rows come in."""
    rows = {"image": list(make_images(3, 20)), "label": ["b", "a", "b"]}
    features = Features({"image": Image(), "label": Value("string")})
    encrypted = encrypt_dataset(Dataset.from_dict(rows, features=features), small_encoder)
    assert encrypted.features["label"].names == ["a", "b"] and encrypted["label"] == [1, 0, 1]
    plan = make_plan({"train": Dataset.from_dict(rows, features=features)}, small_encoder)
    with pytest.raises(DatasetError, match="none of the 2 class names") as caught:
        plan.labels.encode("Jane Roe, melanoma")
    assert "Jane" not in str(caught.value)
    stream = Dataset.from_dict(rows, features=features).to_iterable_dataset()
    with pytest.raises(DatasetError, match="stream cannot be searched"):
        encrypt_dataset(stream, small_encoder)


def test_one_class_only(small_encoder):
    features = Features({"image": Image(), "label": ClassLabel(names=["only"])})
    plain = Dataset.from_dict({"image": list(make_images(2, 20)), "label": [0, 0]}, features=features)
    for hide, names in ((False, ["only"]), (True, ["class_0"])):
        encrypted = encrypt_dataset(plain, small_encoder, hide_labels=hide)
        assert encrypted.features["label"].names == names and encrypted["label"] == [0, 0]
