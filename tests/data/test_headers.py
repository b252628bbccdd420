"""Folders and archives of DICOM files the whole way: rows, splits and labels by headers, of which nothing stays."""

import io
import json
import tarfile

import numpy as np
import pydicom
import pytest
from datasets import Dataset, Features, Image, load_from_disk

from hf_neuracrypt import EncryptedView, SecretKey, encrypt_dataset, load_encoder
from hf_neuracrypt.audit.load import load_pairs
from hf_neuracrypt.data.manifest import read_manifest
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.data.sources import load_source, plain_splits
from hf_neuracrypt.errors import DatasetError, ImageError
from hf_neuracrypt.images import open_image, prepare
from hf_neuracrypt.prediction.classifier import Classifier
from hf_neuracrypt.prediction.files import find_images
from tests.commands import assert_one_line_error, command, encrypt
from tests.helpers import SMALL, make_dicom, pixels


WORD = "Zyxwvut"  # in every text of the headers


def scan(number: int, frames: int = 0, **header) -> bytes:
    """A grey picture of 12 bits, different for each number."""
    shape = (frames, 20, 24) if frames else (20, 24)
    values = np.random.default_rng(number).integers(0, 4096, shape).astype(np.uint16)
    given = {
        "PatientName": f"{WORD}^Jane{number}", "PatientID": f"{WORD}-{number // 2:04d}", "PatientBirthDate": "19481231",
        "SOPInstanceUID": f"1.2.826.0.1.{7000000 + number}", "InstitutionName": f"St. {WORD}", "BitsStored": 12,
        "StudyDescription": f"{WORD} thorax", "AccessionNumber": f"{WORD}{number}", "WindowCenter": "2000",
        "WindowWidth": "3000", "RescaleSlope": "1", "RescaleIntercept": "-7", "HighBit": 11,
    }  # fmt: skip
    return make_dicom(values, **given | header)


def folder(root, files: dict[str, bytes]):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def archive(path, files: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def wards(count: int = 24) -> dict[str, bytes]:
    """Names as scanners give them: a UID, with and without an ending, or a number."""
    names = ("{ward}/1.2.826.{n}", "{ward}/1.2.826.{n}.dcm", "{ward}/IM{n:06d}", "{ward}/{n:04d}")
    return {names[n % 4].format(ward=("ill", "well")[n % 2], n=n): scan(n) for n in range(count)}


def values_of(files: dict[str, bytes]) -> set[bytes]:
    """Every value of the headers, of four letters or more, but for the pixels."""
    found = set()
    for content in files.values():
        if content[128:132] == b"DICM":
            data = pydicom.dcmread(io.BytesIO(content))
            each = [*data.iterall(), *data.file_meta.iterall()]
            found |= {str(element.value).encode() for element in each if element.keyword != "PixelData"}
    return {value for value in found if len(value) >= 4}


def assert_nothing_of(files: dict[str, bytes], out) -> None:
    searched = [path for path in out.rglob("*") if path.is_file()]
    assert len(searched) > 4
    for path in searched:
        content = path.read_bytes()
        assert not [value for value in values_of(files) if value in content and value not in KNOWN], path
        assert WORD.encode() not in content and b"1.2.826" not in content and b"IM0000" not in content


KNOWN = {b"3000", b"2000"}  # digits that occur in a file of ciphertexts by chance


# ------------------------------------------------------------------------------------------------------------ the way


def test_every_door_takes_the_same_pixels_and_no_header_goes_on(tmp_path, key_file):
    files = wards(8)
    scans, tar = folder(tmp_path / "scans", files), archive(tmp_path / "scans.tar", files)
    for source, out in ((scans, tmp_path / "out"), (tar, tmp_path / "out-tar")):
        made = encrypt(source, key_file, out, "--window", "-100.5,3000")
        assert made.returncode == 0, made.stderr
        assert "Found train 8 images; 2 classes: ill, well." in made.stderr and WORD not in made.stderr
        assert_nothing_of(files, out)
    config = Record.from_dict(read_manifest(tmp_path / "out")).config
    assert config.window == "-100.5,3000" and config.to_dict() == SMALL.to_dict() | {"window": "-100.5,3000"}
    encoder = load_encoder(config, SecretKey.load(key_file))
    sources = [scans / name for name in sorted(files)]
    plain = np.stack([prepare(source, config) for source in sources])
    stored = pixels(load_from_disk(str(tmp_path / "out"))["train"])
    np.testing.assert_array_equal(
        sorted_rows(stored), sorted_rows(pixels(load_from_disk(str(tmp_path / "out-tar"))["train"]))
    )
    rows = Dataset.from_dict({"image": list(map(str, sources))}, features=Features({"image": Image()}))
    np.testing.assert_array_equal(sorted_rows(pixels(encrypt_dataset(rows, encoder))), sorted_rows(stored))
    view = EncryptedView(load_source(str(tar))["train"], encoder)
    np.testing.assert_array_equal(sorted_rows(pixels([view[n] for n in range(8)])), sorted_rows(stored))
    asked = []
    Classifier(encoder, lambda ciphertexts, top_k: asked.extend(ciphertexts) or [[]] * len(ciphertexts)).predict(
        sources
    )
    shown = [encoder.stored.shown(each) for each in asked]
    np.testing.assert_array_equal(sorted_rows(np.stack([np.asarray(each) for each in shown])), sorted_rows(stored))
    for source in (scans, tar):
        pairs = load_pairs(tmp_path / "out", str(source), encoder, 8, 0)
        assert not pairs.wrong and len(pairs) == 8
        np.testing.assert_array_equal(sorted_rows(pairs.plain), sorted_rows(plain))


def sorted_rows(images: np.ndarray) -> np.ndarray:
    return np.stack(sorted(images, key=lambda image: image.tobytes()))


def test_another_window_is_another_job(tmp_path, key_file):
    scans = folder(tmp_path / "scans", wards(8) | {"ill/9": scan(9)[:-400]})
    assert_one_line_error(encrypt(scans, key_file, tmp_path / "out", "--window", "0,400"), "row 2 cannot be encrypted")
    assert_one_line_error(encrypt(scans, key_file, tmp_path / "out", "--window", "0,500"), "with another config")
    (scans / "ill" / "9").write_bytes(scan(9, frames=3))
    assert_one_line_error(encrypt(scans, key_file, tmp_path / "out", "--all-frames"), "another source")
    for window in ("400", "0,0", "a,b", "0,-5", "1e3,400", "0,400,1"):
        assert_one_line_error(encrypt(scans, key_file, tmp_path / "new", "--window", window), "is not CENTER,WIDTH")


# ------------------------------------------------------------------------------------------------- frames and refusals


def test_frames_are_rows_if_asked_for(tmp_path, key_file):
    files = {"a/1": scan(0, frames=3), "a/2": scan(1), "b/3.dcm": scan(2, frames=2)}
    for source in (folder(tmp_path / "scans", files), archive(tmp_path / "scans.tar", files)):
        splits, left_out = plain_splits(str(source))
        assert len(splits["train"]) == 3 and not left_out
        splits, left_out = plain_splits(str(source), all_frames=True)
        assert splits["train"]["label"] == [0, 0, 0, 0, 1, 1] and not left_out
        found = [np.asarray(open_image(row)) for row in splits["train"]["image"]]
        np.testing.assert_array_equal(found[1], np.asarray(open_image({"bytes": files["a/1"], "frame": 1})))
        assert len({image.tobytes() for image in found}) == 6
    made = encrypt(tmp_path / "scans", key_file, tmp_path / "first")
    assert "Note: the DICOM files of train have up to 3 frames" in made.stderr and "--all-frames" in made.stderr
    made = encrypt(tmp_path / "scans", key_file, tmp_path / "out", "--all-frames", "--hide-labels")
    assert "Note: the DICOM files" not in made.stderr
    assert made.returncode == 0 and read_manifest(tmp_path / "out")["dicom"] == {
        "all_frames": True,
        "by_patient": False,
    }
    encoder = load_encoder(SMALL, SecretKey.load(key_file))
    assert not load_pairs(tmp_path / "out", str(tmp_path / "scans"), encoder, 6, 0).wrong
    SecretKey.generate().save(tmp_path / "new.key")
    again = ("--dataset", tmp_path / "scans", "--key-file", tmp_path / "new.key", "--output", tmp_path / "again")
    assert_one_line_error(
        command("encrypt", "--like", tmp_path / "out", *again, "--all-frames"), "leave these options out"
    )
    made = command("encrypt", "--like", tmp_path / "out", *again)
    assert made.returncode == 0 and read_manifest(tmp_path / "again")["dicom"]["all_frames"], made.stderr


def test_a_file_of_more_frames_than_any_is_refused(tmp_path):
    folder(tmp_path / "scans", {"1": scan(0, NumberOfFrames=2**31 - 1), "2": scan(1)})
    splits, _ = plain_splits(str(tmp_path / "scans"), all_frames=True)
    assert len(splits["train"]) == 2
    with pytest.raises(ImageError, match="more than 100,000"):
        open_image(tmp_path / "scans" / "1")


def test_what_is_refused_is_listed_without_its_header(tmp_path, key_file):
    files = wards(20)
    names = sorted(files)
    report = {"PixelData": None, "SOPClassUID": pydicom.uid.BasicTextSRStorage}
    files |= {names[3]: scan(3, BurnedInAnnotation="YES"), names[7]: scan(7, **report), names[9]: scan(9)[:300]}
    scans = folder(tmp_path / "scans", files | {"DICOMDIR": bytes(128) + b"DICM", "list.txt": b"of patients"})
    assert_one_line_error(encrypt(scans, key_file, tmp_path / "stop"), "cannot be encrypted", "pixels")
    made = encrypt(scans, key_file, tmp_path / "out", "--max-bad-fraction", "0.2")
    assert made.returncode == 3, made.stderr
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(entry["row"] for entry in rejected) == [3, 7, 9]
    assert_nothing_of(files, tmp_path / "out")
    made = encrypt(scans, key_file, tmp_path / "more", "--max-bad-fraction", "0.2", "--scheme-option", "burned_in=true")
    assert made.returncode == 3 and read_manifest(tmp_path / "more")["rows"] == {"train": 18}
    assert_one_line_error(encrypt(scans, key_file, tmp_path / "less", "--max-bad-fraction", "0.1"), "allows fewer")


# ------------------------------------------------------------------------------------------------------------ patients


def test_a_patient_is_in_one_split_alone(tmp_path):
    files = wards(48)
    scans, tar = folder(tmp_path / "scans", files), archive(tmp_path / "scans.tar", files)
    keys = [SecretKey(bytes([number]) * 32) for number in range(2)]
    found = []
    for key in keys:
        splits, left_out = plain_splits(str(scans), patients=key)
        patients = {
            split: [
                pydicom.dcmread(row["path"]).PatientID
                for row in rows.cast_column("image", Image(decode=False))["image"]
            ]
            for split, rows in splits.items()
        }
        assert sum(map(len, patients.values())) == 48 and not left_out
        assert not set(patients["train"]) & set(patients["test"]) and 1 <= len(set(patients["test"])) <= 12
        assert [plain_splits(str(tar), patients=key)[0][split]["label"] for split in splits] == [
            rows["label"] for rows in splits.values()
        ]
        found.append(set(patients["test"]))
    assert found[0] != found[1]
    later = folder(tmp_path / "later", {f"{name}x": content for name, content in files.items() if "IM" in name})
    again = plain_splits(str(later), patients=keys[0])[0]["test"].cast_column("image", Image(decode=False))["image"]
    assert {pydicom.dcmread(row["path"]).PatientID for row in again} <= found[0]  # of this key, wherever
    keys[0].save(tmp_path / "insecure.key")
    made = encrypt(scans, tmp_path / "insecure.key", tmp_path / "out", "--group-by-patient")
    assert made.returncode == 0, made.stderr
    assert_nothing_of(files, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["dicom"] == {"all_frames": False, "by_patient": True}
    assert not load_pairs(tmp_path / "out", str(scans), load_encoder(SMALL, keys[0]), 48, 0).wrong


def test_where_patients_cannot_decide(tmp_path, insecure_key, plain_folder):
    few = folder(tmp_path / "few", {"1": scan(0), "2": scan(1)})
    nameless = folder(tmp_path / "nameless", {"1": scan(0), "2": scan(2, PatientID="")})
    split = folder(tmp_path / "split", {"train/1": scan(0), "test/2": scan(2)})
    for source, reason in (
        (few, "all of so few patients into one split"), (nameless, "2 has no PatientID"),
        (split, "there are splits already"), (plain_folder, "holds no DICOM files"),
    ):  # fmt: skip
        with pytest.raises(DatasetError, match=reason):
            plain_splits(str(source), patients=insecure_key)


# ------------------------------------------------------------------------------------------------------------ archives


def test_archives_of_splits_and_parts(tmp_path):
    archive(tmp_path / "one" / "train.tar", {"ill/1": scan(0), "well/2": scan(1)})
    archive(tmp_path / "one" / "test.tar", {"ill/1": scan(2)})
    splits, left_out = plain_splits(str(tmp_path / "one"))
    assert {split: rows["label"] for split, rows in splits.items()} == {"train": [0, 1], "test": [0]} and not left_out
    archive(
        tmp_path / "two" / "part-0.tar", {"ill/1": scan(0), "well/2": scan(1), ".hidden": scan(5), "DICOMDIR": b"x"}
    )
    archive(tmp_path / "two" / "part-1.tar", {"ill/3": scan(2)})
    assert plain_splits(str(tmp_path / "two"))[0]["train"]["label"] == [0, 0, 1]
    archive(tmp_path / "two" / "part-2.tar", {"ill/3": scan(3)})
    with pytest.raises(DatasetError, match="ill/3 is there twice"):
        plain_splits(str(tmp_path / "two"))
    with pytest.raises(ImageError, match="a tar of DICOM files: unpack it"):
        find_images([tmp_path / "one"])
    beside = archive(tmp_path / "web.tar", {"1.dcm": scan(0), "1.cls": b"1"})
    with pytest.raises(DatasetError, match="labels beside its DICOM files"):
        plain_splits(str(beside))
    other = archive(tmp_path / "more.tar", {"1.dcm": scan(0), "scan.nii": b"\x5c\x01" + bytes(20)})
    with pytest.raises(DatasetError, match=r"1 of 2 files .* are no rows: 1 \.nii"):
        plain_splits(str(other))


def test_a_table_of_dicom_files_is_read_too(tmp_path, key_file):
    rows = [{"image": {"bytes": scan(n), "path": None}, "label": n % 2} for n in range(4)]
    Dataset.from_list(rows).to_parquet(tmp_path / "scans.parquet")
    made = encrypt(tmp_path / "scans.parquet", key_file, tmp_path / "out")
    assert made.returncode == 0, made.stderr
    with pytest.raises(ImageError, match="an address, not a file"):
        open_image({"path": "https://somewhere/scan.dcm", "frame": 1})
