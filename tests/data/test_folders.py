"""Folders of images and of tables, with names chosen to hurt: every file is a row, or is named and stops the job."""

import os

import numpy as np
import pytest
from datasets import Image, load_from_disk
from PIL import Image as PILImage

from hf_neuracrypt.data.sources import load_source, plain_splits
from hf_neuracrypt.errors import DatasetError
from tests.commands import assert_one_line_error, encrypt
from tests.helpers import encoded, make_dataset, make_images


PNG = encoded(PILImage.fromarray(make_images(1, 20)[0]), "PNG")


def folder(root, names) -> str:
    """A folder with these files: a PNG each, or the bytes that are given."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(names[name] if isinstance(names, dict) else PNG)
    return str(root)


def found(name: str) -> dict:
    """Of each split, the files and their classes, or how many files there are without."""
    splits, left_out = plain_splits(name)
    assert not left_out
    return {
        split: len(rows)
        if "label" not in rows.features
        else [rows.features["label"].names[number] if number >= 0 else None for number in rows["label"]]
        for split, rows in splits.items()
    }


@pytest.mark.parametrize(
    "names, expected",
    [
        (["1.png", "2.png", "train.png"], {"train": 3}),
        (["test.png", "valid.jpg", "dev-1.png"], {"train": 3}),
        (["cat/1.png", "cat/test_3.png", "dog/train.png", "dog/2.png"], {"train": ["cat", "cat", "dog", "dog"]}),
        (["invalid/1.png", "valid/2.png"], {"train": ["invalid", "valid"]}),
        (["car/1.png", "train/2.png", "bus/3.png"], {"train": ["bus", "car", "train"]}),
        (["__background__/1.png", "cat/2.png"], {"train": ["__background__", "cat"]}),
        (["test/cat/1.png", "test/dog/2.png"], {"test": ["cat", "dog"]}),
        (["train/1.png", "train/2.png", "test/3.png"], {"train": 2, "test": 1}),
        (["Train/a/1.png", "Train/test/2.png", "VAL/a/3.png"], {"train": ["a", "test"], "validation": ["a"]}),
        (["train2017/1.png", "val2017/2.png"], {"train": 1, "validation": 1}),
        (["images/train/1.png", "images/dev/2.png", "labels/train/1.txt"], {"train": 1, "validation": 1}),
        (["train/h1/a/1.png", "train/h2/b/2.png", "test/h1/a/3.png"], {"train": ["a", "b"], "test": ["a"]}),
        (["train/a/1.png", "train/b/2.png", "val/b/3.png"], {"train": ["a", "b"], "validation": ["b"]}),
        (["photos/1.png", "photos/2.JPG", "photos/3.Tif"], {"train": 3}),
        (["a/1.csv.png", "a/2.zip.jpg", "b/tar.tar.png"], {"train": ["a", "a", "b"]}),
        (["train/images/1.png", "test/images/2.png"], {"train": 1, "test": 1}),
        (["train/a/1.png", "train/b/2.png", "test/3.png"], {"train": ["a", "b"], "test": [None]}),
        (
            ["train/h/a/1.png", "train/i/b/2.png", "val/h/a/3.png", "test/4.png"],
            {"train": ["a", "b"], "validation": ["a"], "test": [None]},
        ),
        (["a[1]/x.png", "b*?/y.png", "größe 🙂/z.png"], {"train": ["a[1]", "b*?", "größe 🙂"]}),
        (["a/1.png", "b/2.png", "._1.png", "__MACOSX/a/3.png", ".git/4.png", "Thumbs.db"], {"train": ["a", "b"]}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_layout_gives_every_image(names, expected, tmp_path):
    root = folder(tmp_path / "photos [2024]", {n: b"text" if n.endswith((".txt", ".db")) else PNG for n in names})
    assert found(root) == expected
    streams = dict(load_source(root, streaming=True))
    counts = {split: labels if isinstance(labels, int) else len(labels) for split, labels in expected.items()}
    assert {split: sum(1 for _ in rows) for split, rows in streams.items()} == counts


@pytest.mark.parametrize(
    "names, reason",
    [
        (["train/a/1.png", "train/b/2.png", "test/images/3.png"], "split test lie in test/images, which is no class"),
        (["cat/1.png", "dog/2.png", "dog/old/3.png"], "different depths"),
        (["cat/1.png", "dog/2.png", "3.png"], "different depths"),
        (["train/a/1.png", "test/a/2.png", "extra/a/3.png"], "beside the splits test, train lies extra"),
        (["train/a/1.png", "train/b/1.png", "logo.png"], "beside the splits train lies logo.png"),
        (["test 1/1.png", "test 2/2.png"], "both named after the split test"),
        (["val/1.png", "valid/2.png"], "both named after the split validation"),
        (["a/k\udce9.png", "b/1.png"], "not UTF-8"),
    ],
    ids=lambda value: ascii(value) if isinstance(value, list) else "",
)
def test_a_layout_that_can_be_read_in_two_ways_is_refused(names, reason, tmp_path):
    with pytest.raises(DatasetError, match=reason):
        load_source(folder(tmp_path / "photos", names))


OTHERS = {
    "a/IMG_1.HEIC": b"\0\0\0\x18ftypheic" + bytes(40),
    "a/x.jxl": b"\xff\x0a" + bytes(20),
    "b/scan.dcm": bytes(132),  # by its name alone
    "b/IM0001": PNG,
    "b/more.zip": b"PK\x03\x04" + bytes(30),
    "b/drawing.svg": b"<svg/>",
    "b/drawing.EPS": b"%!PS-Adobe-3.0 EPSF-3.0",
    "b/scan.nii.gz": b"\x1f\x8b\x08" + bytes(9),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_file_that_may_be_an_image_and_is_no_row_stops_the_job(other, tmp_path):
    beside = {"README": b"what this is", "list.txt": "größe".encode("latin-1"), "a/1.json": b"{}", "b/.keep": b""}
    root = folder(tmp_path / "photos", {"a/1.png": PNG, "b/2.png": PNG} | beside)
    assert found(root) == {"train": ["a", "b"]}
    folder(tmp_path / "photos", {other: OTHERS[other]})
    with pytest.raises(
        DatasetError, match=f"1 of 3 files .* are no rows: 1 .*{other.split('/')[1]}.*--max-bad-fraction"
    ):
        plain_splits(root)
    splits, left_out = plain_splits(root, max_bad_fraction=0.4)
    assert len(splits["train"]) == 2 and left_out.startswith("1 of 3 files")
    with pytest.raises(DatasetError, match="1 of 3 files"):
        plain_splits(root, max_bad_fraction=0.3)


def test_a_folder_of_nothing_that_is_read(tmp_path):
    root = folder(tmp_path / "photos", {"a/IMG_1.HEIC": OTHERS["a/IMG_1.HEIC"], "b/scan": OTHERS["b/scan.dcm"]})
    with pytest.raises(DatasetError, match=r"no image that is read, but 1 \.HEIC, 1 \(no ending\) .*magick"):
        plain_splits(root)


def test_what_is_left_out_is_said_and_no_name_is_stored(tmp_path, key_file):
    names = {f"{label}/{n}.png": PNG for label in ("ill", "well") for n in range(3)}
    root = folder(tmp_path / "photos", names | {"ill/jane_roe.heic": OTHERS["a/IMG_1.HEIC"]})
    assert_one_line_error(
        encrypt(root, key_file, tmp_path / "out"), "1 of 7 files", "1 .heic (ill/jane_roe.heic)", "magick"
    )
    assert not (tmp_path / "out").exists()
    made = encrypt(root, key_file, tmp_path / "out", "--max-bad-fraction", "0.2")
    assert made.returncode == 3 and "jane_roe.heic" in made.stderr
    assert "Found train 6 images; 2 classes: ill, well." in made.stderr
    assert "Encrypted 6 images (train 6 images; 2 classes: ill, well)" in made.stderr
    assert not any(b"jane" in file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())


def test_splits_without_labels_say_so(tmp_path, key_file):
    made = encrypt(
        folder(tmp_path / "photos", ["train/1.png", "train/2.png", "test/3.png"]), key_file, tmp_path / "out"
    )
    assert made.returncode == 0 and "(train 2 images, test 1 image; no labels)" in made.stderr
    assert {name: len(split) for name, split in load_from_disk(str(tmp_path / "out")).items()} == {
        "train": 2,
        "test": 1,
    }


# --------------------------------------------------------------------------------------------------------------- links


def test_linked_folders_and_files_are_followed_once(tmp_path):
    folder(tmp_path / "elsewhere", ["2.png", "3.png"])
    root = folder(tmp_path / "photos", ["a/1.png"])
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "b")
    os.symlink(tmp_path / "elsewhere" / "2.png", tmp_path / "photos" / "a" / "4.png")
    assert found(root) == {"train": ["a", "a", "b", "b"]}
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "c")
    with pytest.raises(DatasetError, match="are the same folder"):
        load_source(root)
    (tmp_path / "photos" / "c").unlink()
    os.mkfifo(tmp_path / "photos" / "a" / "pipe")
    assert len(load_source(root)["train"]) == 4
    os.symlink(tmp_path / "photos", tmp_path / "photos" / "a" / "loop")
    with pytest.raises(DatasetError, match="are the same folder"):
        load_source(root)


def test_a_link_to_nothing_stops(tmp_path, key_file):
    root = folder(tmp_path / "photos", ["a/1.png", "b/2.png"])
    os.symlink(tmp_path / "gone.png", tmp_path / "photos" / "a" / "3.png")
    assert_one_line_error(encrypt(root, key_file, tmp_path / "out"), "row 1 cannot be encrypted", "No such file")
    os.rename(tmp_path / "photos" / "a" / "3.png", tmp_path / "photos" / "a" / "3")
    assert_one_line_error(encrypt(root, key_file, tmp_path / "out"), "1 of 3 files", "a/3")


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    "names, expected",
    [
        (["a.parquet", "b.parquet"], {"train": 2}),
        (["train.parquet", "test-1.PARQUET", "test-2.parquet"], {"train": 1, "test": 2}),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], {"train": 2}),
        (["fold1-00000-of-00001.parquet", "fold2-00000-of-00001.parquet"], {"fold1": 1, "fold2": 1}),
        (["train/0.parquet", "val/0.parquet"], {"train": 1, "validation": 1}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_tables_by_their_names(names, expected, tmp_path):
    make_dataset(1).to_parquet(tmp_path / "one.parquet")
    content = (tmp_path / "one.parquet").read_bytes()
    root = folder(tmp_path / "tables [1]", dict.fromkeys(names, content) | {"README.md": b"# what this is"})
    splits, left_out = plain_splits(root)
    assert {split: sum(1 for _ in rows) for split, rows in splits.items()} == expected and not left_out


@pytest.mark.parametrize("name", ["metadata.parquet", "data/metadata.parquet", "metadata.csv"])
def test_a_table_called_metadata_alone_is_a_table(name, tmp_path):
    (tmp_path / "tables" / name).parent.mkdir(parents=True)
    if name.endswith(".csv"):
        make_dataset(2).remove_columns("img").to_csv(tmp_path / "tables" / name)
    else:
        make_dataset(2).to_parquet(tmp_path / "tables" / name)
    splits, left_out = plain_splits(str(tmp_path / "tables"))
    assert [row["label"] for row in splits["train"]] == [1, 0] and not left_out


def test_tables_whose_names_lose_rows_or_images_beside_them(tmp_path):
    make_dataset(1).to_parquet(tmp_path / "one.parquet")
    content = (tmp_path / "one.parquet").read_bytes()
    root = folder(tmp_path / "tables", {"train.parquet": content, "more.parquet": content})
    with pytest.raises(DatasetError, match=r"say their split and those of others do not: more\.parquet"):
        plain_splits(root)
    root = folder(tmp_path / "mixed", {"a.parquet": content, "b.parquet": content, "c.png": PNG, "d.zip": b"PK\3\4"})
    with pytest.raises(DatasetError, match=r"2 of 4 files .* are no rows"):
        plain_splits(root)


def test_image_folders_do_not_touch_the_cache(tmp_path, monkeypatch):
    """File names are no business of a cache, either."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    table = {"2.png": PNG, "metadata.csv": b"file_name,label\n2.png,a\n"}
    assert load_source(folder(tmp_path / "described", table))["train"][0]["label"] == "a"
    loaded = load_source(folder(tmp_path / "photos", ["a/1.png", "b/2.png"]))["train"]
    np.testing.assert_array_equal(np.asarray(loaded[0]["image"]), make_images(1, 20)[0])
    assert isinstance(loaded.features["image"], Image) and not (tmp_path / "cache").exists()
