"""The dataset of pieces of photos: what is public shares nothing with what is encrypted, and labels are right."""

import numpy as np
import pytest
from datasets import load_dataset

from tests.commands import assert_one_line_error, command, load_script


@pytest.fixture(scope="module")
def photos():
    """scripts/experiments/photos.py as a module."""
    pytest.importorskip("skimage")
    return load_script("photos")


def test_white_and_black_fields_share_no_pixel_and_are_the_whole_photo(photos):
    photo = np.arange(41 * 50 * 3).reshape(41, 50, 3)
    white, black = (photos.fields(photo, black=colour) for colour in (False, True))
    assert len(white) == len(black) == 8
    seen = np.concatenate([field.reshape(-1) for field in white + black])
    assert sorted(seen) == list(range(photo.size))
    assert white[0][0, 0, 0] == 0 and white[1][0, 0, 0] == 3 * (13 + 13)  # the first and the third of the first row


def test_a_label_names_the_field_that_a_square_is_from(photos, monkeypatch):
    """A photo whose fields are each of one brightness: a square's brightness says where it is from."""
    grey = np.repeat(np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4), 40, axis=0), 40, axis=1)
    monkeypatch.setattr(photos, "PHOTOS", ("one",))
    monkeypatch.setattr(photos, "read_photo", lambda name: np.stack([10 * grey] * 3, axis=2))
    rows = photos.places(32, seed=0)
    names = rows.features["label"].names
    assert names == [f"one {number}" for number in range(8)] and len({*rows["label"]}) == 8
    brightness = dict(enumerate([0, 20, 50, 70, 80, 100, 130, 150]))
    for image, label in zip(rows["image"], rows["label"]):
        assert image.size == (photos.SIZE, photos.SIZE) and (np.asarray(image) == brightness[label]).all()
    black = photos.places(16, seed=0, black=True)
    assert {*black["label"]} == {-1}
    assert {np.asarray(image).mean() for image in black["image"]} == {10, 30, 40, 60, 90, 110, 120, 140}


def test_the_command_writes_labelled_rows_first_and_public_ones_last(tmp_path):
    pytest.importorskip("skimage")
    result = command("scripts/experiments/photos.py", tmp_path / "photos")
    assert result.returncode == 0, result.stderr
    rows = load_dataset(str(tmp_path / "photos"), cache_dir=str(tmp_path / "cache"))
    labels, tested = rows["train"]["label"], rows["test"]["label"]
    assert len(labels) == 4000 and {*labels[:2000]} == {*tested} == {*range(48)} and {*labels[2000:]} == {-1}
    first, other = (np.asarray(rows[split][0]["image"]) for split in ("train", "test"))
    assert first.shape == (112, 112, 3) and not np.array_equal(first, other)
    again = command("scripts/experiments/photos.py", tmp_path / "photos")
    assert_one_line_error(again, "photos")  # what is there stays
