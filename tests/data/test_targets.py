"""What is to be learned, by the types and values of label columns; each label read, or refused in a line."""

import math

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_neuracrypt.data.columns import Columns
from hf_neuracrypt.data.targets import CLASSES, LABELS, NUMBERS, PROBABILITIES, Target, find_target
from hf_neuracrypt.errors import DatasetError
from tests.helpers import stream_of


AB = ClassLabel(names=["a", "b"])
IDS = Target(LABELS, List(AB), ("a", "b"))
CELLS = Target(LABELS, {"a": Value("int8"), "b": Value("int8")}, ("a", "b"))
SOFT = Target(PROBABILITIES, List(Value("float32")), ("0", "1"))
ONE = Target(NUMBERS, Value("float32"), ("age",))
TWO = Target(NUMBERS, {"x": Value("float32"), "y": Value("int64")}, ("x", "y"))
NAN = math.nan


def target_of(columns: dict[str, tuple], streamed: bool = False) -> Target | None:
    """Of one split with these columns: their type (None: as it is inferred) and values."""
    typed = all(kind is not None for kind, _ in columns.values())
    features = Features({name: kind for name, (kind, _) in columns.items()}) if typed else None
    split = Dataset.from_dict({name: values for name, (_, values) in columns.items()}, features=features)
    splits = {"train": stream_of(split) if streamed else split}
    return find_target(splits, {"train": split.features}, Columns("image", tuple(columns)))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("columns", "kind", "names"),
    [
        ({"label": (AB, [0, 1])}, CLASSES, ("a", "b")),
        ({"label": (Value("int32"), [3])}, CLASSES, None),
        ({"label": (List(AB), [[0, 1], []])}, LABELS, ("a", "b")),
        ({"label": (List(Value("bool")), [[True, False, True]])}, LABELS, ("0", "1", "2")),
        ({"a": (Value("int64"), [0, 1]), "b": (Value("float64"), [NAN, -1.0])}, LABELS, ("a", "b")),
        ({"label": ({"a": Value("bool"), "b": Value("bool")}, [{"a": True, "b": None}])}, LABELS, ("a", "b")),
        ({"mass": (Value("bool"), [True, None])}, LABELS, ("mass",)),
        ({"mass": (Value("float64"), [NAN, 0.0, 1.0, -1.0])}, LABELS, ("mass",)),
        ({"mass": (Value("float64"), [NAN, 0.0, 1.0, 2.0])}, NUMBERS, ("mass",)),
        ({"mass": (Value("float64"), [NAN, 0.0])}, NUMBERS, ("mass",)),
        ({"label": (List(Value("float32")), [[0.5, 0.5]])}, PROBABILITIES, ("0", "1")),
        ({"label": (List(Value("float32"), length=3), [None])}, PROBABILITIES, ("0", "1", "2")),
        ({"age": (Value("float32"), [1.0])}, NUMBERS, ("age",)),
        ({"x": (Value("int64"), [0, 7]), "y": (Value("float64"), [1.0, 0.0])}, NUMBERS, ("x", "y")),
    ],
)  # fmt: skip
def test_the_kind_follows_from_types_and_of_several_columns_from_values(columns, kind, names, streamed):
    target = target_of(columns, streamed)
    assert (target.kind, target.names) == (kind, names)


def test_texts_are_classes_or_labels_by_what_is_there():
    assert target_of({"label": (None, ["dog", "cat", "dog", ""])}).names == ("cat", "dog")
    lists = {"label": (None, [["flu"], [""], ["cold", "flu"]])}  # "".split("|") is [""]
    assert (target_of(lists).kind, target_of(lists).names) == (LABELS, ("cold", "flu"))
    with pytest.raises(DatasetError, match="--no-streaming"):
        target_of(lists, streamed=True)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"label": (List(Value("int64")), [[0, 1, 1]])}, "zeros and ones to List"),
        ({"a": (Value("int64"), [1]), "b": (Value("string"), ["yes"])}, "column 'b' holds"),
    ],
)  # fmt: skip
def test_what_is_no_label_says_what_to_do(columns, reason):
    with pytest.raises(DatasetError, match=reason):
        target_of(columns)


@pytest.mark.parametrize(
    ("target", "value", "expected"),
    [
        (IDS, [1], [0, 1]), (IDS, [], [0, 0]), (IDS, None, [NAN, NAN]), (IDS, np.array([0, 1]), [1, 1]),
        (CELLS, {"a": 1.0, "b": None}, [1, NAN]), (CELLS, {"a": -1, "b": False}, [NAN, 0]), (CELLS, None, [NAN, NAN]),
        (SOFT, [0.25, 0.75], [0.25, 0.75]), (SOFT, None, [NAN, NAN]),
        (ONE, -1.0, [-1]), (ONE, NAN, [NAN]), (TWO, {"x": 0.5, "y": None}, [0.5, NAN]),
    ],
)  # fmt: skip
def test_a_label_is_a_vector_with_nan_for_what_is_unknown(target, value, expected):
    np.testing.assert_array_equal(target.read(value), expected)
    assert target.is_known(target.read(value)) is not all(map(math.isnan, expected))


@pytest.mark.parametrize(
    ("target", "value", "reason"),
    [
        (IDS, [0] * 10**6, "1,000,000 labels, and there are 2"), (IDS, [2], "not within 0 to 1"),
        (IDS, [-1], "-1 is in"),
        (IDS, [0, 0], "twice in one list"), (IDS, ["c"], "none of the 2"), (IDS, "ab", "not a list"),
        (CELLS, {"a": 2, "b": 0}, "none of 0, 1, -1"), (CELLS, {"a": 0.5, "b": 0}, "none of 0, 1, -1"),
        (CELLS, {"a": "1", "b": 0}, "str, not a number"),
        (SOFT, [0.5, 0.4], "sum of 1"), (SOFT, [1.5, -0.5], "from 0 up"), (SOFT, [NAN, 1.0], "sum of 1"),
        (SOFT, [1.0, 0.0, 0.0], "3 values, not of 2"), (SOFT, [], "0 values, not of 2"), (SOFT, [math.inf, 0], "inf"),
        (ONE, math.inf, "inf, not a number"), (TWO, {"x": NAN, "y": -math.inf}, "-inf, not a number"),
        (Target(CLASSES, Value("int64"), None), 10**12, "not within 0 to 999,999"),
    ],
)  # fmt: skip
def test_what_no_label_can_be_is_one_line(target, value, reason):
    with pytest.raises(DatasetError, match=reason) as caught:
        target.read(value)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)
