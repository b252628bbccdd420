"""encrypt_dataset: every kind of dataset, what is kept, fingerprints, labels, errors that name the row."""

import io

import numpy as np
import pytest
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    Value,
    concatenate_datasets,
)
from PIL import Image as PILImage

from hf_neuracrypt import EncoderConfig, SecretKey, encrypt_dataset, load_encoder
from hf_neuracrypt.data.dataset import EncryptRows, make_plan
from hf_neuracrypt.data.record import Record, records_of
from hf_neuracrypt.errors import ConfigError, DatasetError
from hf_neuracrypt.images import prepare
from tests.helpers import KEY_ID, SMALL, batch, make_dataset, make_images, pixels


def test_pixels_are_those_of_the_encoder(small_encoder):
    plain = make_dataset(10)
    encrypted = encrypt_dataset(plain, small_encoder)
    prepared = np.stack([prepare(image, SMALL) for image in plain["img"]])
    expected = small_encoder.encrypt(torch.from_numpy(prepared)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pixels(encrypted), expected)
    assert encrypted["label"] == plain["label"]
    assert encrypted.features["label"].names == ["cat", "dog", "horse"]


def test_every_kind_of_dataset_gives_the_same_rows(small_encoder, key_file):
    plain = make_dataset(10)
    expected = encrypt_dataset(plain, small_encoder)
    splits = encrypt_dataset(DatasetDict({"train": plain, "test": plain.select([2, 3])}), small_encoder)
    assert isinstance(splits, DatasetDict)
    np.testing.assert_array_equal(pixels(splits["train"]), pixels(expected))
    np.testing.assert_array_equal(pixels(splits["test"]), pixels(expected)[2:4])
    stream = encrypt_dataset(plain.to_iterable_dataset(), small_encoder, batch_size=3)
    assert isinstance(stream, IterableDataset)
    np.testing.assert_array_equal(pixels(stream), pixels(expected))
    generated = IterableDataset.from_generator(lambda: iter(plain))
    np.testing.assert_array_equal(pixels(encrypt_dataset(generated, small_encoder)), pixels(expected))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_does_not_matter(batch_size, small_encoder):
    one, other = (encrypt_dataset(make_dataset(10), small_encoder, batch_size=size) for size in (64, batch_size))
    assert [row["image"] for row in one.cast_column("image", Image(decode=False))] == [
        row["image"] for row in other.cast_column("image", Image(decode=False))
    ]


def test_worker_processes_give_the_same_rows(key_file):
    encoder = load_encoder(SMALL, SecretKey.load(key_file))
    plain = make_dataset(10)
    alone, together = encrypt_dataset(plain, encoder), encrypt_dataset(plain, encoder, num_proc=2)
    np.testing.assert_array_equal(pixels(together), pixels(alone))
    assert together["label"] == alone["label"]


# ------------------------------------------------------------------------------------------------------- what is kept


def test_decoding_on_several_threads_keeps_the_order(small_encoder):
    """Good and bad rows, on one thread and on four."""
    images = list(make_images(70, 20))
    images[5] = images[69] = np.zeros((20, 20, 2), np.uint8)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            function = make_plan({"train": make_dataset(1)}, small_encoder).rows("train", rejected=[])
            results.append((function({"img": images, "label": [0] * 70}, list(range(70))), function.rejected))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]
    assert [each["row"] for each in results[0][1]] == [5, 69] and len(results[0][0]["image"]) == 68


def test_columns_are_an_allow_list(small_encoder, tmp_path):
    exif = PILImage.Exif()
    exif[0x010E] = "Jane Roe"
    path = tmp_path / "jane_roe.png"
    PILImage.fromarray(make_images(1, 20)[0]).save(path, exif=exif)
    features = Features({"image": Image(), "patient": Value("string"), "age": Value("int64"), "thumb": Image()})
    rows = {"image": [str(path)], "patient": ["Jane Roe"], "age": [41], "thumb": [str(path)]}
    plain = Dataset.from_dict(rows, features=features)
    encrypted = encrypt_dataset(plain, small_encoder, keep_columns=["age"])
    assert encrypted.column_names == ["image", "age"]
    stored = encrypted.cast_column("image", Image(decode=False))[0]["image"]
    assert stored["path"] is None
    encrypted.save_to_disk(str(tmp_path / "saved"))
    for file in (tmp_path / "saved").iterdir():
        content = file.read_bytes()
        assert b"Jane" not in content and b"jane" not in content, file
    with pytest.raises(DatasetError, match="stored in clear"):
        encrypt_dataset(plain, small_encoder, keep_columns=["thumb"])


def test_nothing_of_the_source_info_survives(small_encoder):
    plain = make_dataset(3)
    plain.info.description, plain.info.homepage = "Ward 7", "https://intranet.example"
    plain.info.download_checksums = {"/home/jane/secret-study/a.png": {"num_bytes": 1, "checksum": None}}
    encrypted = encrypt_dataset(plain, small_encoder)
    assert (
        "Ward" not in str(encrypted.info)
        and "jane" not in str(encrypted.info)
        and "intranet" not in str(encrypted.info)
    )
    assert plain.info.description == "Ward 7"


def test_png_is_stored_uncompressed_and_without_path(small_encoder):
    stored = encrypt_dataset(make_dataset(1), small_encoder).cast_column("image", Image(decode=False))[0]["image"]
    assert stored["path"] is None and len(stored["bytes"]) > 32 * 32 * 3
    assert PILImage.open(io.BytesIO(stored["bytes"])).format == "PNG"


@pytest.mark.parametrize(
    "image, label", [("image", "label"), ("img", "fine_label"), ("pixel_values", "labels"), ("scan", "diagnosis")]
)
def test_column_names(image, label, small_encoder):
    plain = make_dataset(4).rename_columns({"img": image, "label": label})
    given = {"image_column": image, "label_column": label} if image == "scan" else {}
    assert encrypt_dataset(plain, small_encoder, **given).column_names == ["image", "label"]


def test_other_image_features(small_encoder):
    images = make_images(3, 32)
    expected = small_encoder.encrypt(batch(images)).permute(0, 2, 3, 1).numpy()
    nested = Dataset.from_dict({"image": images.tolist()})
    undecoded = make_dataset(3).cast_column("img", Image(decode=False))
    np.testing.assert_array_equal(pixels(encrypt_dataset(nested, small_encoder)), expected)
    np.testing.assert_array_equal(
        pixels(encrypt_dataset(undecoded, small_encoder)), pixels(encrypt_dataset(make_dataset(3), small_encoder))
    )
    formatted = make_dataset(3).with_format("numpy")
    np.testing.assert_array_equal(
        pixels(encrypt_dataset(formatted, small_encoder)), pixels(encrypt_dataset(make_dataset(3), small_encoder))
    )


# -------------------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_follows_source_config_and_key_only(small_encoder, key_file):
    plain = make_dataset(4)
    once, again = (encrypt_dataset(plain, small_encoder)._fingerprint for _ in range(2))
    assert once == again
    assert encrypt_dataset(plain, small_encoder, batch_size=1)._fingerprint == once
    others = {
        encrypt_dataset(plain.select([0, 1, 2]), small_encoder)._fingerprint,
        encrypt_dataset(plain, load_encoder(SMALL, SecretKey.load(key_file)))._fingerprint,
        encrypt_dataset(
            plain, load_encoder(EncoderConfig(image_size=32, patch_size=8), small_encoder.key)
        )._fingerprint,
        encrypt_dataset(plain, small_encoder, hide_labels=True)._fingerprint,
    }
    assert len(others | {once}) == 5


def test_nothing_hashes_or_pickles_the_function_in_one_process(small_encoder, monkeypatch):
    """`datasets` would compute a fingerprint from a pickle of the function, and so of what it holds."""
    monkeypatch.setattr(EncryptRows, "__reduce_ex__", lambda *args: pytest.fail("the function was pickled"))
    encrypt_dataset(make_dataset(4), small_encoder)


# --------------------------------------------------------------------------------------------------------- the record


def test_record_travels_and_keeps_owners_apart(small_encoder, key_file, tmp_path):
    other = load_encoder(SMALL, SecretKey.load(key_file))
    mine, theirs = encrypt_dataset(make_dataset(4), small_encoder), encrypt_dataset(make_dataset(4), other)
    assert records_of(mine) == [Record(SMALL, small_encoder.key.id)]
    both = concatenate_datasets([mine, theirs])
    assert [record.key_id for record in records_of(both)] == [small_encoder.key.id, other.key.id]
    assert [record.key_id for record in records_of(both.shuffle(seed=0).select([1]))] == [
        small_encoder.key.id,
        other.key.id,
    ]
    assert records_of(make_dataset(2)) == []


@pytest.mark.parametrize(
    "values",
    [
        None, {}, {"neuracrypt": 2}, {"neuracrypt": 1, "key_id": 3}, Record(SMALL, "nck1-0").to_dict(),
        {"neuracrypt": 1, "key_id": KEY_ID, "config": {"depth": 4}},
    ],
)  # fmt: skip
def test_hostile_records_are_refused(values):
    with pytest.raises(ConfigError):
        Record.from_dict(values)


def test_encrypting_twice_is_an_error(small_encoder, key_file):
    encrypted = encrypt_dataset(make_dataset(4), small_encoder)
    for again in (
        encrypted,
        encrypted.select([0]),
        encrypt_dataset(make_dataset(4).to_iterable_dataset(), small_encoder),
    ):
        with pytest.raises(DatasetError, match=f"already encrypted .key {small_encoder.key.id}"):
            encrypt_dataset(again, load_encoder(SMALL, SecretKey.load(key_file)))


# ------------------------------------------------------------------------------------------------------------- labels


def test_hidden_labels_are_a_keyed_permutation_that_the_key_undoes(small_encoder, key_file):
    plain = make_dataset(30)
    hidden = encrypt_dataset(plain, small_encoder, hide_labels=True)
    assert hidden.features["label"].names == ["class_0", "class_1", "class_2"]
    assert "horse" not in str(hidden.info)
    (record,) = records_of(hidden)
    names, order = record.true_names(small_encoder.key), hidden_plan(plain, small_encoder).order("dataset", 30)
    undone = [names[hidden.features["label"].int2str(label)] for label in hidden["label"]]
    assert undone == [plain.features["label"].int2str(plain["label"][row]) for row in order]
    permutations = set()
    for seed in range(20):
        encoder = load_encoder(SMALL, SecretKey(bytes([seed] * 32)))
        permutations.add(tuple(hidden_plan(plain, encoder).labels.encode(label) for label in range(3)))
    assert len(permutations) > 3, "other keys, other permutations"


def hidden_plan(plain, encoder):
    return make_plan({"dataset": plain}, encoder, hide_labels=True)


def test_two_datasets_of_one_owner_hide_the_same_classes_apart(small_encoder):
    """Who learns the names of one must not have those of the other."""
    plans = [hidden_plan(make_dataset(6, seed=seed), small_encoder) for seed in range(20)]
    assert len({tuple(plan.labels.encode(label) for label in range(3)) for plan in plans}) > 3
    assert len({plan.labels.sealed for plan in plans}) == 20


def test_text_labels_become_classes(small_encoder):
    plain = Dataset.from_dict({"image": make_images(4, 20).tolist(), "label": ["dog", "cat", "dog", "ant"]})
    encrypted = encrypt_dataset(plain, small_encoder)
    assert encrypted.features["label"] == ClassLabel(names=["ant", "cat", "dog"])
    assert encrypted["label"] == [2, 1, 2, 0]


def test_no_labels_and_integer_labels(small_encoder):
    assert encrypt_dataset(make_dataset(3).remove_columns("label"), small_encoder).column_names == ["image"]
    integers = encrypt_dataset(make_dataset(3).cast_column("label", Value("int32")), small_encoder)
    assert integers.features["label"] == Value("int64") and integers["label"] == [1, 0, 2]


@pytest.mark.parametrize("bad", [None, -1, 3])
def test_a_bad_label_names_its_row(bad, small_encoder):
    labels = [0, 1, 2, bad]
    storage = Dataset.from_dict({"image": make_images(4, 20).tolist(), "label": labels})
    plain = Dataset(storage.data, info=None).cast(
        Features({"image": storage.features["image"], "label": Value("int64")})
    )
    # A ClassLabel feature checks nothing when a table is read from a file.
    plain.info.features["label"] = ClassLabel(names=["a", "b", "c"])
    with pytest.raises(DatasetError, match="row 3 cannot be encrypted: the label"):
        encrypt_dataset(plain, small_encoder)


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_bad_image_names_its_row_and_never_its_path(small_encoder, tmp_path):
    PILImage.fromarray(make_images(1, 20)[0]).save(tmp_path / "good.png")
    (tmp_path / "jane_roe.png").write_bytes(b"not an image")
    paths = [str(tmp_path / name) for name in ("good.png", "good.png", "jane_roe.png")]
    plain = Dataset.from_dict({"image": paths}).cast_column("image", Image())
    with pytest.raises(DatasetError, match="row 2 cannot be encrypted") as caught:
        encrypt_dataset(plain, small_encoder)
    assert "jane" not in str(caught.value)


def test_columns_that_are_not_there(small_encoder):
    plain = make_dataset(3)
    for options in ({"image_column": "x"}, {"label_column": "x"}, {"keep_columns": ["x"]}):
        with pytest.raises(DatasetError, match="no column 'x': the columns are img, label"):
            encrypt_dataset(plain, small_encoder, **options)
    with pytest.raises(DatasetError, match="name it: --image-column"):
        encrypt_dataset(plain.rename_column("img", "scan"), small_encoder)
    with pytest.raises(DatasetError, match="no label column to hide"):
        encrypt_dataset(plain.remove_columns("label"), small_encoder, hide_labels=True)


def test_empty_and_uneven_splits(small_encoder):
    with pytest.raises(DatasetError, match="empty"):
        encrypt_dataset(make_dataset(3).select([]), small_encoder)
    with pytest.raises(DatasetError, match="empty"):
        encrypt_dataset(DatasetDict(), small_encoder)
    other = make_dataset(3).cast_column("label", ClassLabel(names=["dog", "cat", "horse"]))
    with pytest.raises(DatasetError, match="labels of split test are not those"):
        encrypt_dataset(DatasetDict({"train": make_dataset(3), "test": other}), small_encoder)
    with pytest.raises(DatasetError, match="split test has other columns"):
        encrypt_dataset(
            DatasetDict({"train": make_dataset(3), "test": make_dataset(3).remove_columns("img")}), small_encoder
        )
