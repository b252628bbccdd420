"""How labels go into an encrypted dataset: which type their column gets, and how they are hidden."""

import json
import math
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset, List, Value

from hf_neuracrypt.data.columns import Columns
from hf_neuracrypt.data.record import seal_names
from hf_neuracrypt.data.targets import CLASSES, LABELS, NUMBERS, PROBABILITIES, Target, label_rows
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.keys import SecretKey


def is_by_class(split: Dataset | IterableDataset, columns: Columns) -> bool:
    """Whether rows come class by class, or by rising labels, as those of a folder of images do."""
    if not isinstance(split, Dataset):
        return False
    runs: dict[tuple, None] = {}
    last, count = None, 0
    for key in map(_key, label_rows(split, columns)):
        count += 1
        if key != last and key in runs:
            return False
        runs[key], last = None, key
    return len(runs) > 1 and (len(runs) < count or list(runs) == sorted(runs))  # one row of each: in their order


def _key(value: Any) -> tuple:
    """A label that can be compared: what is unknown comes first."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return tuple(_key(each) for each in value)
    return (0, "") if value is None or value != value else (1, value)


class Labels:
    """How labels go into the encrypted dataset: by their names or, if `hidden`, under a keyed permutation.

    `salt` tells datasets apart, so that two of the same classes under the same key do not share their permutation.
    """

    def __init__(self, target: Target, hidden: bool, key: SecretKey, salt: str = ""):
        self.target, names = target, target.names
        self.sealed: str | None = None
        self.order: list[int] | None = None
        if hidden:
            if target.kind == NUMBERS:
                raise DatasetError("numbers to be learned cannot be hidden: leave --hide-labels out")
            if names is None:
                raise DatasetError("labels can only be hidden when they have names: cast the column to ClassLabel")
            width = len(str(len(names) - 1))
            self.order = key.permutation(json.dumps([names, salt]), "labels", len(names))
            neutral = tuple(f"class_{index:0{width}d}" for index in range(len(names)))
            stored = names if target.kind == PROBABILITIES else neutral  # whose names are numbers
            true_names = {name: names[self.order.index(i)] for i, name in enumerate(stored)}
            self.sealed = seal_names(key, true_names, salt)
            names = stored
        self.names = names
        self.feature = self._feature()

    def _feature(self) -> Any:
        """The type of the stored column."""
        kind, names = self.target.kind, self.names
        if names is None:
            return Value("int64")
        if kind == CLASSES or self.target.by_ids:
            classes = ClassLabel(names=list(names))
            return classes if kind == CLASSES else List(classes)
        if kind == PROBABILITIES:
            return List(Value("float32"), length=len(names))
        each = Value("bool" if kind == LABELS else "float64")
        return each if kind == NUMBERS and not isinstance(self.target.feature, dict) else dict.fromkeys(names, each)

    def encode(self, value: Any, without: bool = False) -> Any:
        """The stored label of a source label.

        Args:
            value: as it stands in a row; None: there is none.
            without: the row is of a split without labels.

        Raises:
            DatasetError: it is out of range, or missing in a split that has labels, or the other way round.
        """
        row = self.target.read(value)
        known = self.target.is_known(row)
        if known and without:
            raise DatasetError("the label is there, and the first rows of its split have none: sort them apart")
        if not known and not without and not isinstance(self.target.feature, dict):
            raise DatasetError("the label is missing, and other rows of its split have one")
        if isinstance(row, int):
            return row if self.order is None or not known else self.order[row]
        if self.order is not None:
            row = row[np.argsort(self.order)]
        return self._stored(row, known)

    def _stored(self, row: np.ndarray, known: bool) -> Any:
        kind, feature = self.target.kind, self.feature
        if isinstance(feature, dict):
            cells = (None if math.isnan(cell) else bool(cell) if kind == LABELS else float(cell) for cell in row)
            return dict(zip(feature, cells))
        if not known:
            return None
        return row.item() if kind == NUMBERS else np.flatnonzero(row).tolist() if kind == LABELS else row.tolist()
