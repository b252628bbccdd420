"""A metadata.csv among images: which rows it makes, of which types, and what is said where it does not fit."""

import json

import pytest
from datasets import ClassLabel, List, Value, load_from_disk
from PIL import Image as PILImage

from hf_neuracrypt.data.sources import plain_splits
from hf_neuracrypt.errors import DatasetError
from tests.commands import assert_one_line_error, command, encrypt
from tests.data.test_headers import WORD, archive, assert_nothing_of, folder, scan
from tests.helpers import encoded, make_images


PNG = encoded(PILImage.fromarray(make_images(1, 20)[0]), "PNG")


def table(path, column: str, rows: dict, kind: str = "csv") -> None:
    """A metadata file beside images: of each name the cells of its columns."""
    if kind == "jsonl":
        lines = [json.dumps({column: name} | cells) for name, cells in rows.items()]
    else:
        names = list(next(iter(rows.values())))
        lines = [",".join([column, *names]), *(f"{name},{','.join(map(str, c.values()))}" for name, c in rows.items())]
    (path / f"metadata.{kind}").write_text("\n".join([*lines, ""]))


# --------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("column", ["file_name", "SOPInstanceUID", "PatientID"])
@pytest.mark.parametrize("packed", [False, True])
def test_labels_by_file_instance_or_patient(column, packed, tmp_path, key_file):
    files = {f"{n:04d}": scan(n, PatientID=f"{n // 2:03d}") for n in range(6)}  # numbers that are no numbers
    names = {
        "file_name": list(files), "SOPInstanceUID": [f"1.2.826.0.1.{7000000 + n}" for n in range(6)],
        "PatientID": [f"{n:03d}" for n in range(3)],
    }[column]  # fmt: skip
    lines = [f"{name},{'ill' if n % 2 else 'well'},{n}" for n, name in enumerate(names)]
    files["metadata.csv"] = "\n".join([f"{column},label,age", *lines, ""]).encode()
    make = archive if packed else folder
    source = make(tmp_path / ("scans.tar" if packed else "scans"), files)
    splits, left_out = plain_splits(str(source))
    by_patient = ["well", "well", "ill", "ill", "well", "well"]
    assert splits["train"]["label"] == (by_patient if column == "PatientID" else ["well", "ill"] * 3) and not left_out
    assert column not in splits["train"].column_names
    made = encrypt(source, key_file, tmp_path / "out", "--keep-column", "age")
    assert made.returncode == 0 and "2 classes: ill, well" in made.stderr, made.stderr
    assert_nothing_of({"1": scan(0)}, tmp_path / "out")


def test_a_table_that_does_not_describe_the_images(tmp_path):
    files = {"a/1": scan(0), "a/2": scan(1)}
    for number, (text, reason) in enumerate([
        ("label\nwell\n", "has none of the columns file_name, SOPInstanceUID, PatientID"),
        ("file_name,label\n1,ill\n1,well\n", r"row 0 of a/metadata.csv names what another row names"),
        ("file_name,label\n1,ill\n3,well\n", r"row 1 of a/metadata.csv names a file that is not there"),
        ("PatientID,label\nnobody,ill\n", "describes none of the 2 images"),
        ("SOPInstanceUID,label\n1.2.826.0.1.7000000,ill\n", r"1 of 2 files .* are no rows: 1 \(no ending\) \(a/2\)"),
        ("file_name,label\n\0\xff", "cannot be read|names a file"),
    ]):  # fmt: skip
        root = folder(tmp_path / str(number), files | {"a/metadata.csv": text.encode("latin-1")})
        with pytest.raises(DatasetError, match=reason):
            plain_splits(str(root))


def test_images_that_metadata_does_not_name(tmp_path):
    root = str(folder(tmp_path / "photos [2024]", {"__x__/1.png": PNG, "2.png": PNG, "annotations.json": b"[]"}))
    table = tmp_path / "photos [2024]" / "metadata.csv"
    table.write_text("file_name,label\n__x__/1.png,cat\n2.png,dog\n")
    splits, left_out = plain_splits(root)
    assert splits["train"]["label"] == ["cat", "dog"] and not left_out
    table.write_text("file_name,label\n2.png,dog\n")
    reason = r"1 of 2 files .* are no rows: 1 \.png \(__x__/1\.png\); metadata\.csv does not name 1 of them; name them"
    with pytest.raises(DatasetError, match=reason):
        plain_splits(root)


@pytest.mark.parametrize("content", [PNG, scan(0)], ids=["png", "dicom"])
def test_splits_with_one_table_or_their_own_or_none(content, tmp_path):
    names = ["train/1.png", "train/2.png", "test/3.png"]
    files = {name if content == PNG else name[:-4]: content for name in names}
    root, names = folder(tmp_path / "photos", files), list(files)
    table(root, "file_name", {name: {"label": "cat"} for name in names})
    splits, _ = plain_splits(str(root))
    assert {split: rows["label"][:] for split, rows in splits.items()} == {"train": ["cat"] * 2, "test": ["cat"]}
    table(root, "file_name", {name: {"label": "cat"} for name in names[:2]})
    with pytest.raises(DatasetError, match=r"describes none of the 1 images with test/3.*empty cells"):
        plain_splits(str(root))
    (root / "metadata.csv").unlink()
    table(root / "test", "file_name", {names[2][5:]: {"label": "dog"}})
    with pytest.raises(DatasetError, match="describes none of the 2 images with train/1"):
        plain_splits(str(root))
    (root / "test" / "metadata.csv").unlink()
    table(root / "train", "file_name", {name[6:]: {"label": "cat"} for name in names[:2]})
    splits, left_out = plain_splits(str(root))
    assert splits["test"].column_names == ["image"] and splits["train"]["label"][:] == ["cat"] * 2 and not left_out


def test_an_empty_cell_does_not_turn_classes_into_numbers(tmp_path):
    root = folder(tmp_path / "photos", {f"{ward}/{n}.png": PNG for ward in "ab" for n in range(3)})
    for ward, grades in {"a": [0, 4, 1], "b": ["", "", 2]}.items():  # the types of one table would not be the other's
        cells = {f"{n}.png": {"grade": grade, "Mass": 1 if ward == "a" else ""} for n, grade in enumerate(grades)}
        table(root / ward, "file_name", cells)
    splits, _ = plain_splits(str(root))
    assert splits["train"].features["grade"] == Value("int64")
    assert splits["train"]["grade"][:] == [0, 4, 1, None, None, 2]
    assert splits["train"]["Mass"][:] == [1, 1, 1, None, None, None]


def test_rows_are_in_the_order_of_the_table(tmp_path):
    root = folder(tmp_path / "photos", {f"{n}.png": PNG for n in range(12)})
    table(root, "file_name", {f"{n}.png": {"label": n} for n in reversed(range(12))})
    assert plain_splits(str(root))[0]["train"]["label"][:] == list(reversed(range(12)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"file_name;label\n1.png;cat\n", r"it has file_name;label \(separated by commas\)"),
        (b"filename,label\n1.png,cat\n", "it has filename, label"),
        ("file_name,label\n1.png,Größe\n".encode("latin-1"), "UnicodeDecodeError.*in UTF-8"),
        (b"", "separated by commas, in UTF-8"),
        (b"file_name,label\n1.png,a\n2.png,b\n3.png,c\n", "row 1 .* not there, and 1 others do: remove"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_says_how_to_save_it(content, reason, tmp_path):
    root = folder(tmp_path / "photos", {"1.png": PNG, "metadata.csv": content})
    with pytest.raises(DatasetError, match=reason):
        plain_splits(str(root))


def test_two_tables_in_one_folder(tmp_path):
    root = folder(tmp_path / "photos", {"1.png": PNG, "2.png": PNG})
    table(root, "file_name", {"1.png": {"label": "cat"}})
    table(root, "file_name", {"2.png": {"label": "cat"}}, "jsonl")
    with pytest.raises(DatasetError, match="two lie in one folder"):
        plain_splits(str(root))


# --------------------------------------------------------------------------------------------------------- every label


def test_hidden_findings_of_patients_who_are_grouped(tmp_path, insecure_key):
    """Under one key: with another, so few patients may all be in one split."""
    key_file = tmp_path / "fixed.key"
    insecure_key.save(key_file)
    scans = folder(tmp_path / "scans", {f"IM{n:04d}": scan(n, frames=2 if n == 5 else 0) for n in range(16)})
    cells = {f"{WORD}-{p:04d}": {"Cardiomegaly": ("1", "0", "")[p % 3], "Infiltration": p % 2} for p in range(8)}
    table(scans, "PatientID", cells)
    flags = ("--label-column", "Cardiomegaly", "--label-column", "Infiltration", "--hide-labels", "--group-by-patient")
    made = encrypt(scans, key_file, tmp_path / "out", *flags, "--all-frames")
    assert made.returncode == 0 and "2 labels, several an image: Cardiomegaly, Infiltration" in made.stderr, made.stderr
    stored = load_from_disk(str(tmp_path / "out"))
    assert {split: rows.column_names for split, rows in stored.items()} == {
        split: ["image", "label"] for split in stored
    }
    assert sum(map(len, stored.values())) == 17
    assert_nothing_of({name: (scans / name).read_bytes() for name in ("IM0000", "IM0005")}, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or not any(word in path.read_bytes() for word in (b"Cardiomegaly", b"Infiltration"))


@pytest.mark.parametrize(
    ("cells", "stored"),
    [
        ([{"label": ["x"]}, {"label": []}, {"label": ["x", "y"]}], List(ClassLabel(names=["x", "y"]))),
        ([{"label": [0.25, 0.75]}] * 3, List(Value("float32"), length=2)),
        ([{"label": {"x": 1, "y": None}}] * 3, {"x": Value("bool"), "y": Value("bool")}),
        ([{"label": True}, {"label": False}, {"label": None}], {"label": Value("bool")}),
        ([{"label": 0.5}] * 3, Value("float64")),
    ],
)  # fmt: skip
def test_labels_of_every_kind_beside_images_and_again_under_a_new_key(cells, stored, tmp_path, key_file):
    root = folder(tmp_path / "mixed", {"0.png": PNG, "1": scan(1), "2.dcm": scan(2)})
    table(root, "file_name", dict(zip(("0.png", "1", "2.dcm"), cells)), "jsonl")
    assert encrypt(root, key_file, tmp_path / "out").returncode == 0
    assert load_from_disk(str(tmp_path / "out"))["train"].features["label"] == stored
    assert command("keygen", tmp_path / "new.key").returncode == 0
    words = ("--dataset", root, "--key-file", tmp_path / "new.key", "--output", tmp_path / "new")
    again = command("encrypt", *words, "--like", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    labels = [load_from_disk(str(tmp_path / name))["train"]["label"] for name in ("out", "new")]
    assert sorted(map(str, labels[0])) == sorted(map(str, labels[1]))


# ------------------------------------------------------------------------------------------------------- another name


@pytest.mark.parametrize("name", ["labels.csv", "train.csv", "Data_Entry_2017.csv", "Metadata.CSV", "list.xlsx"])
def test_a_list_of_another_name_is_not_left_out_silently(name, tmp_path, key_file):
    root = folder(tmp_path / "photos", {"1.png": PNG, "2.png": PNG, name: b"Image Index,Finding\n1.png,0\n2.png,1\n"})
    made = encrypt(root, key_file, tmp_path / "out")
    assert made.returncode == 0 and "no labels" in made.stderr
    assert f"{name} is not read" in made.stderr and "metadata.csv, with a column file_name" in made.stderr
    asked = encrypt(root, key_file, tmp_path / "asked", "--label-column", "Finding")
    assert_one_line_error(asked, "there is no column 'Finding'")
    assert f"{name} is not read" in asked.stderr
    told = encrypt(root, key_file, tmp_path / "none", "--no-labels")
    assert told.returncode == 0 and "is not read" not in told.stderr


def test_a_list_beside_folders_of_classes_is_no_matter(tmp_path, key_file):
    root = folder(tmp_path / "photos", {"a/1.png": PNG, "b/2.png": PNG, "labels.csv": b"x\n"})
    assert "is not read" not in encrypt(root, key_file, tmp_path / "out").stderr
