"""Which files a folder stands for, what is said of bad ones, and what is written."""

import csv
import json

import pytest
from PIL import Image

from hf_neuracrypt.errors import ImageError, NeuraCryptError
from hf_neuracrypt.prediction.classifier import Classifier
from hf_neuracrypt.prediction.files import answer_files, check_output, find_images, writer
from tests.helpers import make_images


@pytest.fixture
def photos(tmp_path):
    """21 photos, two of them damaged, and files that are none."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number, pixels in enumerate(make_images(21, 32)):
        Image.fromarray(pixels).save(tmp_path / "photos" / ("deep" if number % 2 else "") / f"{number:02d}.PNG")
    (tmp_path / "photos" / "deep" / "07.PNG").write_bytes(b"")
    (tmp_path / "photos" / "18.PNG").write_bytes(b"GIF89a")
    (tmp_path / "photos" / "Thumbs.db").write_bytes(b"x")
    return tmp_path / "photos"


@pytest.fixture
def classifier(small_encoder):
    """Says how bright the ciphertext is; labels are hidden."""

    def classify(encrypted, top_k):
        for pixels in small_encoder.stored.arrays(encrypted):
            yield [{"label": "class_0", "score": float(pixels.mean()) / 255}][:top_k]

    return Classifier(small_encoder, classify, {"class_0": "=cat, ill"})


def test_folders_are_searched_and_files_are_taken_as_they_are(photos, tmp_path):
    found = find_images([photos, tmp_path / "missing.jpg", photos / "Thumbs.db"])
    assert [file.name for file in found[-2:]] == ["missing.jpg", "Thumbs.db"]
    assert len(found) == 23 and found[:21] == sorted(found[:21])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no image in the folder"):
        find_images([tmp_path / "empty"])


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_good_images_are_answered_and_bad_ones_are_named(ending, photos, classifier, tmp_path, capfd):
    files, output = find_images([photos]), tmp_path / f"answers.{ending}"
    with writer(output, as_json=False) as show:
        assert answer_files(classifier, files, 5, show) == 2
    said = capfd.readouterr().err
    assert "07.PNG cannot be encrypted: it is" in said and "18.PNG cannot be encrypted" in said and "Asking" in said
    with open(output, newline="") as file:
        if ending == "csv":
            rows = [(row["image"], row["label"], float(row["score"])) for row in csv.DictReader(file)]
        else:
            lines = map(json.loads, file)
            rows = [(line["image"], line["predictions"][0]["label"], line["predictions"][0]["score"]) for line in lines]
    good = [file for file in files if file.name not in ("07.PNG", "18.PNG")]
    assert [row[0] for row in rows] == [str(file) for file in good]
    assert {row[1] for row in rows} == {"'=cat, ill" if ending == "csv" else "=cat, ill"}  # no formula
    # Each answer belongs to its image, over batches from which images were left out.
    for file, (_, _, score) in zip(good, rows):
        alone: list[tuple] = []
        answer_files(classifier, [file], 5, lambda *answer, alone=alone: alone.append(answer))
        assert alone[0][1][0]["score"] == score


def test_a_model_that_stops_leaves_what_it_said(photos, small_encoder, tmp_path):
    def classify(encrypted, top_k):
        yield [{"label": "cat", "score": 1.0}]
        raise NeuraCryptError("gone")

    with (
        pytest.raises(NeuraCryptError, match=r"gone \(1 of 21 images were answered"),
        writer(tmp_path / "a.jsonl", False) as show,
    ):
        answer_files(Classifier(small_encoder, classify), find_images([photos]), 1, show)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


def test_nothing_to_answer_is_an_error(photos, classifier, tmp_path):
    bad = [photos / "deep" / "07.PNG", photos / "18.PNG"]
    with pytest.raises(ImageError, match=r"07\.PNG cannot be encrypted: .*; nor can the other 1"):
        answer_files(classifier, bad, 5, print)
    for output, fragment in [("a.json", "neither .csv nor .jsonl"), ("photos/00.PNG", "neither"), ("b.csv", "exists")]:
        (tmp_path / "b.csv").write_text("precious")
        with pytest.raises(NeuraCryptError, match=fragment):
            check_output(tmp_path / output)


def test_what_may_be_an_image_in_a_folder_is_named_too(photos, classifier, capfd):
    """But not what macOS leaves beside images, nor text."""
    for name, content in {"IMG.HEIC": b"\0\0\0\x18ftypheic", "scan": bytes(128) + b"DICM", "k\udce9.png": b"x"}.items():
        (photos / name).write_bytes(content)
    for name in ("._00.PNG", "list.txt"):
        (photos / name).write_bytes(b"x")
    assert answer_files(classifier, find_images([photos]), 5, lambda *_: None) == 5
    said = capfd.readouterr().err
    assert "IMG.HEIC cannot be encrypted: it is HEIC" in said and "scan cannot be encrypted: it is DICOM" in said
    assert "._00" not in said and "list" not in said and "k\N{REPLACEMENT CHARACTER}.png cannot be encrypted" in said
