"""What is to be learned of an image: one class, several labels, probabilities of classes, or numbers.

The types of the label columns say which (`find_target`), and of several columns their values: the table in README.md.
A label is read as the number of a class, or as a vector in which NaN is unknown.
"""

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, IterableDataset

from hf_neuracrypt.data.columns import FIRST_ROWS, Columns, first_rows
from hf_neuracrypt.errors import DatasetError


CLASSES, LABELS, PROBABILITIES, NUMBERS = "classes", "labels", "probabilities", "numbers"
UNKNOWN = -1  # the class of an image without one, as `datasets` has it
MAX_CLASSES = 1_000_000
Splits = Mapping[str, Dataset | IterableDataset]


@dataclass(frozen=True)
class Target:
    """What is to be learned.

    Args:
        kind: CLASSES, LABELS, PROBABILITIES or NUMBERS.
        feature: of the label column; of several columns, a dict of theirs.
        names: of classes, labels or numbers, in the order of their ids; None: classes are numbers without names.
    """

    kind: str
    feature: Any
    names: tuple[str, ...] | None

    @property
    def by_ids(self) -> bool:
        """Whether a label is a list of those that an image has."""
        return self.kind == LABELS and _dtype(_inner(self.feature)) in ("int64", "string", "large_string")

    def describe(self) -> str:
        """In words: "3 classes"."""
        count = len(self.names or ())
        what = {CLASSES: ("class", "classes"), PROBABILITIES: ("class", "classes"), LABELS: ("label", "labels")}
        text = f"{count:,} {what.get(self.kind, ('number', 'numbers'))[count != 1]}"
        several = ", several an image" if count > 1 else ", yes or no"
        return text + {LABELS: several, PROBABILITIES: ", by probability", NUMBERS: " an image"}.get(self.kind, "")

    def read(self, value: Any) -> int | np.ndarray:
        """A label as it stands in a row: the number of a class or -1; else float64 (names,), NaN for what is unknown.

        Raises:
            DatasetError: it is out of range, or of another kind.
        """
        if self.kind == CLASSES:
            return UNKNOWN if value is None or (isinstance(value, str) and not value) else self._number_of(value)
        count = len(self.names or ())
        if isinstance(self.feature, dict):
            value = value if isinstance(value, Mapping) else dict.fromkeys(self.feature, value)
            cells = [value.get(name) for name in self.feature]
        elif self.kind == NUMBERS or value is None:
            cells = [value] * count
        elif not isinstance(value, list | tuple | np.ndarray):
            raise DatasetError(f"the label is {type(value).__name__}, not a list")
        elif self.by_ids:
            return self._from_ids(value, count)
        elif len(value) != count:
            raise DatasetError(f"the label is a list of {len(value):,} values, not of {count:,}")
        else:
            cells = list(value)
        row = np.array([_number(cell) for cell in cells])
        if self.kind == LABELS:
            row[row == UNKNOWN] = np.nan
            if not np.isin(row[~np.isnan(row)], (0, 1)).all():
                raise DatasetError("one of the labels is none of 0, 1, -1 (uncertain) and empty (unknown)")
        if self.kind == PROBABILITIES and value is not None and not (row.min() >= 0 and abs(row.sum() - 1) < 0.01):
            raise DatasetError(f"the label's probabilities are not from 0 up with a sum of 1 (it is {row.sum():.4g})")
        return row

    def is_known(self, row: int | np.ndarray) -> bool:
        """Whether a label that was read says anything."""
        return bool(row != UNKNOWN) if self.kind == CLASSES else not np.isnan(row).all()

    def _from_ids(self, ids: Any, count: int) -> np.ndarray:
        ids = [each for each in ids if not isinstance(each, str) or each]  # which splitting an empty text gives
        if len(ids) > count:
            raise DatasetError(f"the label lists {len(ids):,} labels, and there are {count:,}")
        numbers = [self._number_of(each) for each in ids]
        if UNKNOWN in numbers:
            raise DatasetError("the label -1 is in a list: leave unknown labels out, or give columns of 0, 1 and empty")
        if len(set(numbers)) < len(numbers):
            raise DatasetError("a label is twice in one list; lists of zeros and ones are cast to List(Value('bool'))")
        row = np.zeros(count)
        row[numbers] = 1
        return row

    def _number_of(self, value: object) -> int:
        """The number of a class, or -1."""
        if isinstance(value, str):
            if self.names is None or value not in self.names:
                # Its text is not shown: it may be a diagnosis, or hold a person's name.
                raise DatasetError(f"the label is a text that is none of the {len(self.names or [])} class names")
            return self.names.index(value)
        try:
            number = operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
        except TypeError:
            raise DatasetError(f"the label is {type(value).__name__}, not a whole number or a name") from None
        last = (MAX_CLASSES if self.names is None else len(self.names)) - 1
        if not UNKNOWN <= number <= last:
            raise DatasetError(f"the label {number} is not within 0 to {last:,}: remove these rows, or the column")
        return number


def _number(cell: Any) -> float:
    if cell is None:
        return math.nan
    try:
        number = math.inf if isinstance(cell, str | bytes) else float(cell)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise DatasetError(f"the label has {cell if isinstance(cell, float) else type(cell).__name__}, not a number")
    return number


def _inner(feature: Any) -> Any:
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", ""))


def label_rows(split: Dataset | IterableDataset, columns: Columns) -> Iterator[Any]:
    """The labels of a split as they stand in its rows (of a stream, its first rows); none if it has no such column."""
    names = list(columns.labels)
    if isinstance(split, Dataset):
        if names and set(names) <= set(split.column_names):
            for batch in split.with_format(None).select_columns(names).iter(1000):
                for cells in zip(*(batch[name] for name in names)):
                    yield columns.value(dict(zip(names, cells)))
    elif names:
        for row in first_rows(split.select_columns(names), FIRST_ROWS):
            yield columns.value(row)


def read_labels(split: Dataset, columns: Columns, target: Target) -> Iterator[int | np.ndarray]:
    """`Target.read` of each row. Raises DatasetError, naming the row."""
    for number, value in enumerate(label_rows(split, columns)):
        try:
            yield target.read(value)
        except DatasetError as error:
            raise DatasetError(f"row {number}: {error}") from None


def find_target(splits: Splits, found: Mapping[str, Features], columns: Columns) -> Target | None:
    """What is to be learned of the images; None without label columns. Raises DatasetError for what is no label.

    Args:
        splits: of which at least one has the columns.
        found: their features.
        columns: of which the labels are looked at.
    """
    if not columns.labels:
        return None
    having = {name: splits[name] for name, features in found.items() if set(columns.labels) <= set(features)}
    types = [{name: found[split][name] for name in columns.labels} for split in having]
    typed = [each for each in types if None not in each.values() and "null" not in map(_dtype, each.values())]
    first = (typed or types)[0]
    rows = (row for split in having.values() for row in label_rows(split, columns))
    is_finding = len(first) == 1 and _is_finding(first[columns.labels[0]], rows)
    feature = first if len(first) > 1 or is_finding else first[columns.labels[0]]
    what = f"column {columns.labels[0]!r} holds {feature}"
    if isinstance(feature, dict):
        for each in types:
            _check_cells(each if feature is first else each[columns.labels[0]])
        kind = LABELS if is_finding or _are_zeros_and_ones(feature, rows) else NUMBERS
        return Target(kind, feature, tuple(feature))
    if isinstance(feature, ClassLabel):
        return Target(CLASSES, feature, tuple(feature.names))
    if _dtype(feature).startswith(("int", "uint")) or feature is None:
        return Target(CLASSES, feature, None)
    if _dtype(feature) in ("string", "large_string"):
        return Target(CLASSES, feature, _texts(having, columns))
    if _dtype(feature).startswith("float"):
        return Target(NUMBERS, feature, columns.labels)
    inner = _inner(feature)
    if isinstance(inner, ClassLabel):
        return Target(LABELS, feature, tuple(inner.names))
    if _dtype(inner) in ("string", "large_string"):
        return Target(LABELS, feature, _texts(having, columns))
    if _dtype(inner) == "bool" or _dtype(inner).startswith("float"):
        kind = LABELS if _dtype(inner) == "bool" else PROBABILITIES
        return Target(kind, feature, tuple(map(str, range(_length(feature, having, columns)))))
    raise DatasetError(
        f"{what}, no labels: cast the column (lists of class numbers to List(ClassLabel) or texts, of zeros and ones "
        "to List(Value('bool'))), name another --label-column, or leave labels out with --no-labels"
    )


def _check_cells(features: Mapping[str, Any]) -> None:
    for name, feature in features.items():
        if feature is not None and not _dtype(feature).startswith(("int", "uint", "float", "bool", "null")):
            raise DatasetError(f"column {name!r} holds {feature}: several label columns hold 0 and 1, or numbers")


def _is_finding(feature: Any, cells: Iterable[Any]) -> bool:
    """Whether a single column says yes, no or unknown of each image: by bool, or by 0.0 and 1.0 and no other number."""
    if not _dtype(feature).startswith("float"):
        return _dtype(feature) == "bool"
    found = {UNKNOWN if cell is None or cell != cell else cell for cell in cells}
    return {0, 1} <= found <= {0, 1, UNKNOWN}


def _are_zeros_and_ones(features: Mapping[str, Any], rows: Iterable[Any]) -> bool:
    if all(_dtype(feature) == "bool" for feature in features.values()):
        return True
    cells = (cell for row in rows for cell in (row or {}).values())
    return all(cell is None or cell != cell or cell in (0, 1, UNKNOWN) for cell in cells)


def _texts(splits: Splits, columns: Columns) -> tuple[str, ...]:
    """The class names of a column of texts, or of lists of them: all that are there, sorted."""
    if not all(isinstance(split, Dataset) for split in splits.values()):
        raise DatasetError(
            f"column {columns.labels[0]!r} holds text, which a stream cannot be searched for: cast it, or "
            "--no-streaming (then `datasets` keeps a copy in its cache)"
        )
    rows = (row for split in splits.values() for row in label_rows(split, columns))
    names = {name for row in rows for name in ([row] if isinstance(row, str) else row or ())}
    return tuple(sorted(name for name in names if isinstance(name, str) and name))


def _length(feature: Any, splits: Splits, columns: Columns) -> int:
    """How many values each list of a column has: as its type says, or its first row."""
    if getattr(feature, "length", -1) > 0:
        return feature.length
    rows = (row for split in splits.values() for row in label_rows(split, columns))
    return len(next((row for row in rows if row is not None), ()))


def splits_without(splits: Splits, found: Mapping[str, Features], columns: Columns, target: Target) -> frozenset[str]:
    """The splits none of whose rows has a label (of a stream, of its first rows), as test splits often are.

    Raises:
        DatasetError: that is all of them, or the others have labels of several types.
    """
    without = frozenset(
        name
        for name, split in splits.items()
        if set(columns.labels) - set(found[name]) or not any(map(_is_there(target), label_rows(split, columns)))
    )
    labelled = [name for name in splits if name not in without]
    if not labelled:
        streams = any(isinstance(split, IterableDataset) for split in splits.values())
        who, way = (f"none of the first {FIRST_ROWS} rows", "shuffle the rows, or ") if streams else ("no row", "")
        what = ", ".join(columns.labels)
        raise DatasetError(f"{who} has a label in {what}: {way}leave the column out with --no-labels")
    for name in labelled if len(columns.labels) == 1 else ():
        other = found[name][columns.labels[0]]
        if isinstance(target.feature, dict) and not isinstance(other, dict):
            _check_cells({columns.labels[0]: other})
        elif other != target.feature:
            raise DatasetError(
                f"the labels of split {name} are not those of the first one: {other}; cast the column, or, in a table "
                "of text, give each row a label of the same kind"
            )
    return without


def _is_there(target: Target) -> Any:
    def there(value: Any) -> bool:
        try:
            return target.is_known(target.read(value))
        except DatasetError:  # the job will name its row
            return True

    return there
