"""Labels of every kind in an encrypted dataset: how they are stored, hidden, left out, and refused with their row."""

import math

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDatasetDict, List, Value, load_from_disk

from hf_neuracrypt import encrypt_dataset
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.labels import Labels
from hf_neuracrypt.data.record import Record, records_of
from hf_neuracrypt.data.summary import describe, rows_of
from hf_neuracrypt.data.targets import LABELS, PROBABILITIES, Target
from hf_neuracrypt.errors import DatasetError
from tests.commands import assert_one_line_error, command, encrypt
from tests.helpers import SMALL, make_dataset, make_images, problems, stream_of


FINDINGS = ["effusion", "mass", "nodule"]
IDS = [[0], [], [2, 1], [0, 2]]
CELLS = {"effusion": [1.0, 0.0, None, -1.0], "mass": [0, 1, 1, 0], "nodule": [None, None, 1.0, math.nan]}


def dataset(**columns: tuple) -> Dataset:
    """Images beside columns, each its type and values."""
    count = len(next(iter(columns.values()))[1])
    features = Features({"image": Image()} | {name: kind for name, (kind, _) in columns.items()})
    rows = {"image": list(make_images(count, 20))} | {name: values for name, (_, values) in columns.items()}
    return Dataset.from_dict(rows, features=features)


def cells() -> Dataset:
    return dataset(**{name: (Value("float64"), values) for name, values in CELLS.items()})


KINDS = {
    "ids": (dataset(label=(List(ClassLabel(names=FINDINGS)), IDS)), None, [[0], [], [1, 2], [0, 2]]),
    "columns": (
        cells(), FINDINGS,
        [
            {"effusion": True, "mass": False, "nodule": None}, {"effusion": False, "mass": True, "nodule": None},
            {"effusion": None, "mass": True, "nodule": True}, {"effusion": None, "mass": False, "nodule": None},
        ],
    ),
    "probabilities": (dataset(label=(List(Value("float64")), [[0.25, 0.75], [1, 0]])), None, [[0.25, 0.75], [1, 0]]),
    "number": (dataset(age=(Value("float32"), [0.5, -100])), "age", [0.5, -100]),
    "numbers": (
        dataset(x=(Value("float64"), [0.5, math.nan]), y=(Value("int32"), [3, 4])), ["x", "y"],
        [{"x": 0.5, "y": 3}, {"x": None, "y": 4}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_each_kind_are_stored(kind, streamed, small_encoder):
    plain, column, expected = KINDS[kind]
    encrypted = encrypt_dataset(stream_of(plain) if streamed else plain, small_encoder, label_column=column)
    order = make_plan({"dataset": plain}, small_encoder, label_column=column).order("dataset", len(plain))
    assert [row["label"] for row in encrypted] == (expected if streamed else [expected[row] for row in order])
    assert set(encrypted.features) == {"image", "label"}


@pytest.mark.parametrize("kind", ["ids", "columns", "probabilities"])
def test_hidden_labels_are_permuted_and_their_names_sealed(kind, small_encoder):
    plain, column, expected = KINDS[kind]
    plan = make_plan({"dataset": plain}, small_encoder, label_column=column, hide_labels=True)
    hidden = encrypt_dataset(plain, small_encoder, label_column=column, hide_labels=True)
    (record,) = records_of(hidden)
    true = record.true_names(small_encoder.key)
    assert sorted(true.values()) == (["0", "1"] if kind == "probabilities" else FINDINGS)
    found = []
    for label in hidden["label"]:
        if kind == "ids":
            names = hidden.features["label"].feature.names
            assert label == sorted(label) and all(name.startswith("class_") for name in names)
            found.append(sorted(FINDINGS.index(true[names[each]]) for each in label))
        elif kind == "columns":
            assert all(name.startswith("class_") for name in label)
            found.append({true[name]: value for name, value in label.items()})
        else:
            found.append([label[int(place)] for place, _ in sorted(true.items(), key=lambda pair: pair[1])])
    assert found == [expected[row] for row in plan.order("dataset", len(plain))]


def test_every_permutation_is_undone_by_the_sealed_names(insecure_key):
    target = Target(LABELS, dict.fromkeys("abcd", Value("int8")), tuple("abcd"))
    soft = Target(PROBABILITIES, List(Value("float32")), tuple("0123"))
    orders = set()
    for salt in map(str, range(20)):
        labels = Labels(target, True, insecure_key, salt)
        true = Record(SMALL, insecure_key.id, labels.sealed).true_names(insecure_key)
        stored = labels.encode({"a": 1, "b": 0, "c": None, "d": 1})
        assert {true[name]: cell for name, cell in stored.items()} == {"a": True, "b": False, "c": None, "d": True}
        labels = Labels(soft, True, insecure_key, salt)
        true = Record(SMALL, insecure_key.id, labels.sealed).true_names(insecure_key)
        stored = labels.encode([0.1, 0.2, 0.3, 0.4])
        assert [round(stored[place], 3) for place in sorted(range(4), key=lambda i: true[str(i)])] == [
            0.1,
            0.2,
            0.3,
            0.4,
        ]
        orders.add(tuple(labels.order))
    assert len(orders) > 5


@pytest.mark.parametrize("kind", ["number", "numbers"])
def test_numbers_cannot_be_hidden(kind, small_encoder):
    with pytest.raises(DatasetError, match="numbers to be learned cannot be hidden"):
        make_plan({"train": KINDS[kind][0]}, small_encoder, label_column=KINDS[kind][1], hide_labels=True)


def test_a_test_split_without_labels(small_encoder):
    """None, -1, another type without values, or no column; and in a stream."""
    train, empty = make_dataset(6), make_dataset(4, seed=1).remove_columns("label")
    for tested in (
        empty,
        empty.add_column("label", [-1] * 4).cast_column("label", train.features["label"]),
        empty.add_column("label", [None] * 4),
    ):
        for make, into in ((lambda split: split, DatasetDict), (stream_of, IterableDatasetDict)):
            splits = into({"train": make(train), "test": make(tested)})
            encrypted = encrypt_dataset(splits, small_encoder)
            assert [row["label"] for row in encrypted["test"]] == [-1] * 4
            assert [row["label"] for row in encrypted["train"]] == train["label"]
            said = describe(rows_of(splits), make_plan(splits, small_encoder))
            assert said.endswith("images without labels; 3 classes: cat, dog, horse") and said.count("without") == 1
    with pytest.raises(DatasetError, match=r"no row has a label in label: .*--no-labels"):
        encrypt_dataset(empty.add_column("label", [-1] * 4), small_encoder)


def test_findings_that_a_test_split_does_not_have(small_encoder):
    splits = DatasetDict({"train": cells(), "test": cells().remove_columns(FINDINGS)})
    assert encrypt_dataset(splits, small_encoder, label_column=FINDINGS)["test"][0]["label"] == dict.fromkeys(FINDINGS)
    splits["test"] = cells().remove_columns("mass")
    with pytest.raises(DatasetError, match="split test has other columns"):
        encrypt_dataset(splits, small_encoder, label_column=FINDINGS)


def test_labels_that_begin_late_in_a_stream_are_not_lost(small_encoder):
    splits = {"train": dataset(label=(Value("int64"), [0])), "test": dataset(label=(Value("int64"), [-1] * 8 + [1]))}
    streams = IterableDatasetDict({name: stream_of(split) for name, split in splits.items()})
    with pytest.raises(DatasetError, match=r"row 8 .*first rows of its split have none"):
        list(encrypt_dataset(streams, small_encoder)["test"])


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        (List(ClassLabel(names=FINDINGS)), [[0], [1, 1]], "twice"),
        (List(Value("float32")), [[0.5, 0.5], [0.9, 0.9]], "sum of 1"),
        (List(Value("float32")), [[0.5, 0.5], [0.5]], "1 values, not of 2"),
        (Value("float32"), [0.5, math.inf], "inf, not a number"),
        (Value("float32"), [0.5, math.nan], "missing, and other rows"),
    ],
)  # fmt: skip
def test_a_label_that_cannot_be_names_its_row(column, values, reason, small_encoder):
    with pytest.raises(DatasetError, match=f"row 1 cannot be encrypted: .*{reason}"):
        encrypt_dataset(dataset(label=(column, values)), small_encoder)


@pytest.mark.parametrize(
    ("kind", "values", "by_class"),
    [
        (List(ClassLabel(names=FINDINGS)), [[0], [0], [0, 1], [1]], True),
        (List(ClassLabel(names=FINDINGS)), [[0], [1], [0], [1]], False),
        (List(Value("float32")), [[1, 0], [1, 0], [0, 1]], True),
        (Value("float32"), [0.1, 0.2, 0.3], True),
        (Value("float32"), [0.3, 0.1, 0.2], False),
    ],
)  # fmt: skip
def test_rows_sorted_by_their_labels_are_stored_in_the_keys_order(kind, values, by_class, small_encoder):
    assert make_plan({"train": dataset(label=(kind, values))}, small_encoder).keyed_order is by_class


def test_findings_sorted_by_patients_without_one(small_encoder):
    columns = {"mass": (Value("float64"), [None, None, 0, 1, 1]), "nodule": (Value("int64"), [0, 0, 0, 0, 0])}
    assert make_plan({"train": dataset(**columns)}, small_encoder, label_column=list(columns)).keyed_order


def test_the_command(key_file, tmp_path):
    """Findings by several options, hidden, in two processes; nothing of them with --no-labels; and what is refused."""
    DatasetDict({"train": cells()}).save_to_disk(str(tmp_path / "plain"))
    flags = [word for name in FINDINGS for word in ("--label-column", name)]
    made = encrypt(tmp_path / "plain", key_file, tmp_path / "out", *flags, "--hide-labels")
    assert made.returncode == 0 and "train 4 images; 3 labels, several an image: effusion, mass, nodule" in made.stderr
    assert set(load_from_disk(str(tmp_path / "out"))["train"][0]["label"]) == {"class_0", "class_1", "class_2"}
    assert not problems(tmp_path / "out")
    silent = encrypt(tmp_path / "plain", key_file, tmp_path / "none")
    assert "no labels (left out: effusion, mass, nodule; --label-column)" in silent.stderr
    none = encrypt(tmp_path / "plain", key_file, tmp_path / "without", "--no-labels")
    assert none.returncode == 0 and load_from_disk(str(tmp_path / "without"))["train"].column_names == ["image"]
    refused = encrypt(tmp_path / "plain", key_file, tmp_path / "x", "--no-labels", "--hide-labels")
    assert_one_line_error(refused, "--no-labels stores none")


def test_a_new_key_keeps_the_findings(key_file, tmp_path):
    DatasetDict({"train": cells()}).save_to_disk(str(tmp_path / "plain"))
    flags = [word for name in FINDINGS for word in ("--label-column", name)]
    assert encrypt(tmp_path / "plain", key_file, tmp_path / "old", *flags).returncode == 0
    assert encrypt(tmp_path / "plain", key_file, tmp_path / "hidden", *flags, "--hide-labels").returncode == 0
    assert command("keygen", tmp_path / "new.key").returncode == 0

    def again(old: str, *words: object):
        given = ("--dataset", tmp_path / "plain", "--key-file", tmp_path / "new.key", "--output", tmp_path / f"{old}-2")
        return command("encrypt", "--like", tmp_path / old, *given, *words)

    assert again("old").returncode == 0
    old, new = (load_from_disk(str(tmp_path / name))["train"] for name in ("old", "old-2"))
    assert old["label"] == new["label"] and old.features == new.features
    assert_one_line_error(again("hidden"), "no label column to hide")
    assert again("hidden", *flags).returncode == 0


def test_an_array_of_findings_in_a_stream(small_encoder):
    """As NumPy makes them, which `datasets` gives back as lists."""
    rows = dataset(label=(List(Value("float32"), length=2), list(np.array([[0, 1], [0.5, 0.5]]))))
    assert [row["label"] for row in encrypt_dataset(stream_of(rows), small_encoder)] == [[0, 1], [0.5, 0.5]]
