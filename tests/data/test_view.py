"""`EncryptedView`: what `encrypt_dataset` would store, made when rows are read, by workers too; never written."""

import pickle

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_neuracrypt import EncryptedView, SecretKey, encrypt_dataset, load_encoder
from hf_neuracrypt.errors import ConfigError, DatasetError, ImageError, NeuraCryptError
from hf_neuracrypt.schemes import make_config
from tests.helpers import SMALL, encoded, leaks, make_dataset, make_images, pixels, secret_of


def test_the_same_bytes_as_stored_ones(small_encoder):
    plain = make_dataset(7, size=40)
    seen, stored = EncryptedView(plain, small_encoder), encrypt_dataset(plain, small_encoder)
    assert len(seen) == 7
    assert np.array_equal(np.stack([np.asarray(row["img"]) for row in seen]), pixels(stored))
    assert seen[3]["img"].tobytes() == stored[3]["image"].tobytes() and seen[3]["label"] == stored[3]["label"]
    assert plain[3]["img"].size == (40, 40)  # the dataset itself is as it was
    with pytest.raises(IndexError):
        seen[7]


def test_images_with_more_than_pixels(small_encoder):
    """EXIF that turns, alpha, a palette, 16 bits: decoded by `datasets` here, by us there, with one result."""
    photo = PILImage.fromarray(make_images(1, 48)[0]).crop((0, 0, 48, 30))
    turned = PILImage.Exif()
    turned[0x0112] = 6
    files = [
        encoded(photo, "PNG", exif=turned), encoded(photo, "JPEG", exif=turned), encoded(photo.quantize(16), "PNG"),
        encoded(PILImage.merge("RGBA", (*photo.split(), photo.convert("L"))), "PNG"),
        encoded(PILImage.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70), "PNG"),
        encoded(photo.convert("CMYK"), "JPEG"),
    ]  # fmt: skip
    rows = {"scan": [{"bytes": file, "path": None} for file in files], "age": list(range(6))}
    plain = Dataset.from_dict(rows, features=Features({"scan": Image(), "age": Value("int64")}))
    seen = list(EncryptedView(plain, small_encoder, image_column="scan"))
    stored = encrypt_dataset(plain, small_encoder, image_column="scan")
    assert [row["scan"].tobytes() for row in seen] == [row["image"].tobytes() for row in stored]
    assert [row["age"] for row in seen] == list(range(6))


def test_patches_are_given_as_they_are(insecure_key):
    config = make_config("neuracrypt", {"image_size": 32, "patch_size": 8, "width": 64})
    encoder, plain = load_encoder(config, insecure_key), make_dataset(4)
    stored = encrypt_dataset(plain, encoder).with_format("numpy")[:]["image"]
    seen = np.stack([row["img"] for row in EncryptedView(plain, encoder)])
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, np.asarray(stored), atol=1e-4)


def test_what_happens_to_the_plain_image_happens_before(small_encoder):
    """An augmentation is given a batch of rows, and called again each time they are read."""
    calls = []

    def mirrored(batch):
        calls.append(len(batch["img"]))
        return batch | {"img": [image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT) for image in batch["img"]]}

    plain = make_dataset(4, size=32)
    seen = EncryptedView(plain, small_encoder, augment=mirrored)
    images = [image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT) for image in plain["img"]]
    expected = encrypt_dataset(Dataset.from_dict({"image": images}), small_encoder)
    assert [row["img"].tobytes() for row in seen] == [row["image"].tobytes() for row in expected]
    assert seen[0]["img"].tobytes() == expected[0]["image"].tobytes() and len(calls) == 5


def test_it_goes_to_workers_as_the_path_of_the_key(key_file, small_encoder):
    plain = make_dataset(6)
    view = EncryptedView(plain, load_encoder(SMALL, SecretKey.load(key_file)))
    sent = pickle.dumps(view)
    assert not leaks(secret_of(key_file), sent) and str(key_file).encode() in sent
    expected = [row["img"].tobytes() for row in view]
    assert [row["img"].tobytes() for row in pickle.loads(sent)] == expected
    batches = DataLoader(view, batch_size=4, collate_fn=list)
    assert [row["img"].tobytes() for rows in batches for row in rows] == expected
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(EncryptedView(plain, small_encoder))


@pytest.mark.parametrize("name", ["push_to_hub", "to_parquet", "to_csv", "to_iterable_dataset", "save_to_disk"])
def test_nothing_plain_is_written(name, small_encoder):
    view = EncryptedView(make_dataset(4), small_encoder)
    assert not isinstance(view, Dataset)
    with pytest.raises(NeuraCryptError, match=f"{name} would write plain images.*use encrypt_dataset"):
        getattr(view, name)
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        view.frobnicate  # noqa: B018


def test_rows_hold_no_other_picture_in_clear(small_encoder):
    """A mask or a thumbnail, which whatever is made of the rows would publish; an augmentation may look at them."""
    photos = [PILImage.fromarray(pixels) for pixels in make_images(3, 32)]
    features = Features(
        {"image": Image(), "mask": Image(), "views": List(Image()), "raw": Value("binary"), "age": Value("int64")}
    )
    rows = {
        "image": photos,
        "mask": photos,
        "views": [[photo] for photo in photos],
        "raw": [b"x"] * 3,
        "age": [1, 2, 3],
    }
    asked = []
    view = EncryptedView(
        Dataset.from_dict(rows, features=features),
        small_encoder,
        augment=lambda batch: asked.append(set(batch)) or batch,
    )
    assert [set(row) for row in view] == [{"image", "age"}] * 3 and asked[0] == set(features)
    assert Dataset.from_list(list(view)).column_names == ["image", "age"]


def test_errors_name_the_row(small_encoder):
    plain = Dataset.from_dict({"image": [encoded(PILImage.fromarray(make_images(1, 32)[0]), "PNG"), b"x", b"y"]})
    view = EncryptedView(plain.cast_column("image", Image(decode=False)), small_encoder)
    assert view[0]["image"].size == (32, 32)
    with pytest.raises(ImageError, match="row 2 cannot be encrypted"):
        view[2]
    with pytest.raises(DatasetError, match="no column 'scan': the columns are image"):
        EncryptedView(plain, small_encoder, "scan")
    with pytest.raises(DatasetError, match="none of the columns"):
        EncryptedView(Dataset.from_dict({"x": [1]}), small_encoder)


def test_what_hides_next_to_nothing_is_refused(insecure_key):
    with pytest.raises(ConfigError, match="hides next to nothing"):
        EncryptedView(make_dataset(4), load_encoder(make_config("le", {"block_size": 1}), insecure_key))
