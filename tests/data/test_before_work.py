"""What is looked at before the first image is encrypted: splits, columns, labels, and what `datasets.map` would see."""

import io
import subprocess
import sys
import tarfile

import multiprocess
import numpy as np
import pytest
from datasets import (
    Array2D,
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    load_from_disk,
)
from PIL import Image as PILImage

from hf_neuracrypt import EncryptedView, encrypt_dataset, load_encoder
from hf_neuracrypt.data.dataset import make_plan, spawned_workers
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.data.summary import describe, remarks, rows_of
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.keys import SecretKey
from tests.commands import assert_one_line_error, encrypt
from tests.helpers import ROOT, SMALL, batch, encoded, make_dataset, make_images, pixels, stream_of


def expected(images: np.ndarray, encoder) -> np.ndarray:
    return encoder.encrypt(batch(images)).permute(0, 2, 3, 1).numpy()


# -------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("name", ["train-a", "a b", "train/a", "all", ".hidden", "a.", "neuracrypt.json", "x\n"])
def test_split_names_that_could_not_be_loaded_are_refused(name, small_encoder):
    with pytest.raises(DatasetError, match="split"):
        make_plan({name: make_dataset(3)}, small_encoder)
    assert make_plan({"größe_1.b": make_dataset(3)}, small_encoder)


def test_splits_rows_and_labels_are_said(small_encoder):
    splits = {"train": make_dataset(1200), "test": stream_of(make_dataset(3))}
    plan = make_plan(splits, small_encoder)
    said = describe(rows_of(splits), plan)
    assert said == "train 1,200 images, test a stream of images; 3 classes: cat, dog, horse"
    plain = {"train": make_dataset(2).remove_columns("label")}
    assert describe(rows_of(plain), make_plan(plain, small_encoder)) == "train 2 images; no labels"


# ------------------------------------------------------------------------------------------------------------- columns


def test_a_kept_column_of_two_types(small_encoder):
    ages = [make_dataset(3).add_column("age", [1, 2, 3]), make_dataset(3).add_column("age", [1.5, 2, 3])]
    with pytest.raises(DatasetError, match=r"'age' is .*float64.* in split test and .*int64.* in train: cast"):
        make_plan(DatasetDict(train=ages[0], test=ages[1]), small_encoder, keep_columns=["age"])


def test_a_column_kept_twice_is_kept_once(small_encoder):
    plain = make_dataset(3).add_column("age", [1, 2, 3])
    assert encrypt_dataset(plain, small_encoder, keep_columns=["age", "age"])["age"] == [1, 2, 3]


@pytest.mark.parametrize(
    "feature",
    [
        List(Image()), {"m": Image()}, List({"m": List(Image())}), {"a": {"b": Audio()}}, Value("binary"),
        List(Value("large_binary")), {"b": Value("binary"), "p": Value("string")}, Array2D((2, 2), "uint8"),
    ],
    ids=str,
)  # fmt: skip
def test_pictures_at_any_depth_are_not_kept(feature, small_encoder):
    features = Features({"image": Image(), "more": feature})
    plain = Dataset.from_dict({"image": [make_images(1, 20)[0]], "more": [None]}, features=features)
    for source in (plain, stream_of(plain)):
        with pytest.raises(DatasetError, match="stored in clear"):
            make_plan({"train": source}, small_encoder, keep_columns=["more"])


def test_pictures_of_a_stream_that_declares_nothing_are_not_kept(small_encoder):
    rows = [{"image": PILImage.fromarray(make_images(1, 20)[0]), "more": [b"\x89PNG"]}]
    with pytest.raises(DatasetError, match="stored in clear"):
        make_plan({"train": IterableDataset.from_generator(lambda: iter(rows))}, small_encoder, keep_columns=["more"])


# -------------------------------------------------------------------------------------------------- what map would see


def test_a_transform_is_not_left_out(small_encoder):
    """It may black out names that are burned into the pictures."""

    def black(rows):
        return {"img": [PILImage.new("RGB", image.size) for image in rows["img"]]}

    hidden = make_dataset(3).remove_columns("label").with_transform(black)
    for dataset in (hidden, DatasetDict(train=hidden)):
        with pytest.raises(DatasetError, match="has a transform"):
            encrypt_dataset(dataset, small_encoder)
    mapped = encrypt_dataset(hidden.map(lambda row: row).with_format(None), small_encoder)
    np.testing.assert_array_equal(pixels(mapped)[0], expected(np.zeros((1, 32, 32, 3), np.uint8), small_encoder)[0])
    assert EncryptedView(hidden, small_encoder)[0]["img"].tobytes() == mapped[0]["image"].tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_declared_mode_is_not_left_out(mode, small_encoder):
    declared = make_dataset(3).cast_column("img", Image(mode=mode))
    for dataset in (declared, stream_of(declared)):
        with pytest.raises(DatasetError, match="convert the images first"):
            encrypt_dataset(dataset, small_encoder)
    assert encrypt_dataset(declared.cast_column("img", Image()), small_encoder)


@pytest.mark.parametrize("brightest", [255, 200 * 257])
@pytest.mark.parametrize("feature", [Array2D((32, 32), "uint16"), List(List(Value("uint16")))], ids=["array", "list"])
def test_arrays_have_the_range_of_their_dtype(feature, brightest, small_encoder):
    values = (make_images(1, 32)[0, :, :, 0].astype(int) * brightest // 255).astype(np.uint16)
    plain = Dataset.from_dict({"image": [values]}, features=Features({"image": feature}))
    grey = np.round(values / 65535 * 255).astype(np.uint8)[None, :, :, None].repeat(3, 3)
    for dataset in (plain, stream_of(plain)):
        np.testing.assert_array_equal(pixels(encrypt_dataset(dataset, small_encoder)), expected(grey, small_encoder))
    assert np.array_equal(EncryptedView(plain, small_encoder)[0]["image"], expected(grey, small_encoder)[0])


def test_splits_of_arrays_of_two_dtypes(small_encoder):
    both = {
        name: Dataset.from_dict({"image": [np.ones((8, 8))]}, features=Features({"image": Array2D((8, 8), dtype)}))
        for name, dtype in (("train", "uint16"), ("test", "uint8"))
    }
    with pytest.raises(DatasetError, match=r"'image' is .*uint8.* in split test and .*uint16.* in train: cast"):
        make_plan(both, small_encoder)


@pytest.mark.parametrize("dtype", ["uint32", "int16", "float32"])
def test_arrays_whose_dtype_says_no_range_are_refused(dtype, small_encoder):
    plain = Dataset.from_dict({"image": [np.ones((8, 8))]}, features=Features({"image": Array2D((8, 8), dtype)}))
    with pytest.raises(DatasetError, match=f"an array of {dtype} has no known range"):
        encrypt_dataset(plain, small_encoder)


SCRIPT = """
from datasets import load_from_disk
from hf_neuracrypt import SecretKey, encrypt_dataset, load_encoder
from hf_neuracrypt.schemes import EncoderConfig

encoder = load_encoder(EncoderConfig(image_size=32, patch_size=8, depth=2, width=64), SecretKey.load("test.key"))
print("run")
encrypt_dataset(load_from_disk("plain"), encoder, num_proc=2).save_to_disk("out")
"""


def test_workers_need_no_main_guard(tmp_path, key_file):
    make_dataset(6).save_to_disk(str(tmp_path / "plain"))
    (tmp_path / "script.py").write_text(SCRIPT)
    made = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert made.returncode == 0 and made.stdout == "run\n", made.stderr
    encoder = load_encoder(SMALL, SecretKey.load(key_file))
    np.testing.assert_array_equal(
        pixels(load_from_disk(str(tmp_path / "out"))), pixels(encrypt_dataset(make_dataset(6), encoder))
    )


@pytest.mark.parametrize("method", [None, "fork"])
def test_the_users_start_method_stays(method):
    before, main = multiprocess.get_start_method(allow_none=True), sys.modules["__main__"]
    try:
        multiprocess.set_start_method(method, force=True)
        with pytest.raises(KeyError), spawned_workers():
            assert multiprocess.get_start_method() == "spawn"
            raise KeyError
        assert multiprocess.get_start_method(allow_none=True) == method and sys.modules["__main__"] is main
    finally:
        multiprocess.set_start_method(before, force=True)


# -------------------------------------------------------------------------------------------------------------- labels


def test_labels_of_numpy_and_torch(small_encoder):
    import torch

    def rows():
        for number in (np.int64(1), np.uint8(0), torch.tensor(2)):
            yield {"image": PILImage.fromarray(make_images(1, 20)[0]), "label": number}

    encrypted = encrypt_dataset(IterableDataset.from_generator(rows), small_encoder)
    assert [row["label"] for row in encrypted] == [1, 0, 2]
    plan = make_plan({"train": make_dataset(3)}, small_encoder)
    for bad in (True, 1.0, np.float32(1)):
        with pytest.raises(DatasetError, match="not a whole number"):
            plan.labels.encode(bad)


@pytest.mark.parametrize(
    "features, label",
    [(List(Value("int64")), [0]), (ClassLabel(names=["a"]), -1)],
)
def test_labels_that_are_no_classes_say_what_to_do(features, label, small_encoder):
    features = Features({"image": Image(), "label": features})
    storage = {"image": [make_images(1, 20)[0]], "label": [label]}
    with pytest.raises(DatasetError, match="--no-labels"):
        encrypt_dataset(Dataset.from_dict(storage, features=features), small_encoder)


# ---------------------------------------------------------------------------------------------------------------- dark


def dark(largest: int, kind: str = "PNG") -> Dataset:
    values = [
        (make_images(1, 32, seed)[0, :, :, 0].astype(int) * largest // 255).astype(np.uint16) for seed in range(3)
    ]
    rows = [{"bytes": encoded(PILImage.fromarray(value), kind), "path": None} for value in values]
    return Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))


def test_a_note_on_images_that_use_little_of_16_bits(small_encoder, key_file, tmp_path):
    splits = {"train": dark(4095), "test": dark(60000)}
    for kind in (lambda split: split, stream_of):
        chosen = {name: kind(split) for name, split in splits.items()}
        (note,) = remarks(chosen, make_plan(chosen, small_encoder))
        assert "images of train are nearly black: none of 3 looked at is over 16 of 255" in note
    DatasetDict(splits).save_to_disk(str(tmp_path / "plain"))
    made = encrypt(tmp_path / "plain", key_file, tmp_path / "out")
    assert made.returncode == 0 and made.stderr.count("nearly black") == 1


# ------------------------------------------------------------------------------------------------------- unclear errors


def test_a_file_or_archive_that_is_not_read_says_what_to_do(tmp_path, key_file):
    for name in ("photos.zip", "list.tsv", "scan.xyz"):
        (tmp_path / name).write_bytes(b"PK\3\4")
        assert_one_line_error(encrypt(tmp_path / name, key_file, tmp_path / "out"), name, "unpack", "save")


def test_an_archive_of_mixed_images_says_what_to_do(tmp_path, key_file):
    with tarfile.open(tmp_path / "web.tar", "w") as tar:
        for name in ("a.png", "a.txt", "b.jpg", "b.txt"):
            tar.addfile(tarfile.TarInfo(name))
    assert_one_line_error(encrypt(tmp_path / "web.tar", key_file, tmp_path / "out"), "web.tar", "unpack it")


def test_a_relative_path_in_a_table(tmp_path, key_file):
    (tmp_path / "list.csv").write_text("image,label\nphotos/1.png,0\n")
    made = encrypt(tmp_path / "list.csv", key_file, tmp_path / "out")
    assert_one_line_error(made, "row 0", "No such file", "relative", "--max-bad-fraction")


def test_text_labels_of_a_streamed_csv(tmp_path, key_file):
    PILImage.fromarray(make_images(1, 20)[0]).save(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text(f"image,label\n{tmp_path}/1.png,cat\n")
    assert_one_line_error(encrypt(tmp_path / "list.csv", key_file, tmp_path / "out"), "holds text", "--no-streaming")
    assert encrypt(tmp_path / "list.csv", key_file, tmp_path / "out", "--no-streaming").returncode == 0


def test_splits_of_a_stream_whose_types_differ(tmp_path, key_file):
    (tmp_path / "tables").mkdir()
    for split, labels in {"train": [0, 1], "test": ["flu", "cold"]}.items():
        plain = make_dataset(2).remove_columns("label").add_column("label", labels)
        plain.to_parquet(str(tmp_path / "tables" / f"{split}.parquet"))
    result = encrypt(tmp_path / "tables", key_file, tmp_path / "out")
    assert_one_line_error(result, "the rows of the split test cannot be read", "the same columns, of the same types")


def test_an_empty_split_is_named(tmp_path):
    DatasetDict(train=make_dataset(3), test=make_dataset(3).select([])).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(DatasetError, match="split test is empty"):
        load_source(str(tmp_path / "plain"))


@pytest.mark.parametrize("extra", [{}, {"path": None, "size": 3}])
def test_a_struct_that_has_bytes_is_an_image(extra, small_encoder):
    file = io.BytesIO()
    PILImage.fromarray(make_images(1, 32)[0]).save(file, "PNG")
    plain = Dataset.from_list([{"image": {"bytes": file.getvalue()} | extra}])
    np.testing.assert_array_equal(
        pixels(encrypt_dataset(plain, small_encoder)), expected(make_images(1, 32), small_encoder)
    )
