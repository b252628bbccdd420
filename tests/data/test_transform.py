"""`EncryptTransform`: what `encrypt_dataset` would store, made when it is needed, by workers too."""

import pickle

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

import hf_neuracrypt
from hf_neuracrypt import EncryptTransform, SecretKey, encrypt_dataset, load_encoder
from hf_neuracrypt.errors import DatasetError, ImageError
from hf_neuracrypt.publish.guard import find_key
from hf_neuracrypt.schemes import make_config
from tests.helpers import SMALL, encoded, make_dataset, make_images, pixels


def test_the_same_bytes_as_stored_ones(small_encoder):
    plain = make_dataset(7, size=40)
    seen = plain.with_transform(EncryptTransform(small_encoder))
    stored = encrypt_dataset(plain, small_encoder)
    assert np.array_equal(np.stack([np.asarray(image) for image in seen[:]["img"]]), pixels(stored))
    assert seen[3]["img"].tobytes() == stored[3]["image"].tobytes() and seen[3]["label"] == stored[3]["label"]
    assert plain[3]["img"].size == (40, 40)  # the dataset itself is as it was


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
    seen = plain.with_transform(EncryptTransform(small_encoder, image_column="scan"))[:]
    stored = encrypt_dataset(plain, small_encoder, image_column="scan")
    assert [image.tobytes() for image in seen["scan"]] == [row["image"].tobytes() for row in stored]
    assert seen["age"] == list(range(6))


def test_a_representation_is_given_as_it_is(insecure_key):
    encoder = load_encoder(make_config("neuracrypt", {"image_size": 32, "patch_size": 8, "width": 32}), insecure_key)
    plain = make_dataset(3)
    seen = plain.with_transform(EncryptTransform(encoder))[:]["img"]
    stored = encrypt_dataset(plain, encoder).with_format("numpy")[:]["image"]
    assert np.array_equal(np.stack(seen), np.asarray(stored))


def test_it_travels_as_the_path_of_the_key(key_file, small_encoder):
    """The workers of a DataLoader get it by pickle; nothing of the key is in there."""
    key = SecretKey.load(key_file)
    transform = EncryptTransform(load_encoder(SMALL, key))
    sent = pickle.dumps(transform)
    assert not find_key(key, sent, sent) and str(key_file).encode() in sent
    batch = make_dataset(2)[:]
    again = pickle.loads(sent)(batch)["img"]
    assert [image.tobytes() for image in again] == [image.tobytes() for image in transform(batch)["img"]]
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(EncryptTransform(small_encoder))


def test_errors_name_the_place(small_encoder):
    with pytest.raises(ImageError, match="image 1 of the batch cannot be encrypted"):
        EncryptTransform(small_encoder)({"image": [make_images(1, 32)[0], b"x"]})
    with pytest.raises(DatasetError, match="no column 'scan': the columns are image"):
        EncryptTransform(small_encoder, "scan")({"image": []})
    with pytest.raises(DatasetError, match="none of the columns"):
        EncryptTransform(small_encoder)({"x": []})


def test_it_is_a_public_name():
    assert "EncryptTransform" in hf_neuracrypt.__all__
