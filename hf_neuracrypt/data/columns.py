"""Which columns of a dataset hold images and labels, and how labels go into the encrypted one."""

import itertools
import json
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from datasets.features.features import generate_from_arrow_type

from hf_neuracrypt.data.manifest import MANIFEST, REJECTED
from hf_neuracrypt.data.record import records_of, seal_names
from hf_neuracrypt.errors import DatasetError, printable
from hf_neuracrypt.keys import SecretKey


IMAGE_COLUMNS = ("image", "img", "pixel_values")
FIRST_ROWS = 5  # of a stream, for the types of its columns
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class Columns:
    """Which columns are read: `image`, `label` (or None), and those that are `kept` as they are."""

    image: str
    label: str | None
    kept: tuple[str, ...]


def find_columns(
    features: Mapping[str, Any], image: str | None, label: str | None, kept: Sequence[str] = ()
) -> Columns:
    """Resolve column names, guessing those not given. Raises DatasetError naming what is there."""
    found = f"the columns are {', '.join(features)}"
    for name in (image, label, *kept):
        if name is not None and name not in features:
            raise DatasetError(f"there is no column {name!r}: {found}")
    image = image or next((name for name in IMAGE_COLUMNS if name in features), None)
    if image is None:
        raise DatasetError(f"none of the columns {', '.join(IMAGE_COLUMNS)} is there: {found}; name it: --image-column")
    label = label or next((name for name in LABEL_COLUMNS if name in features), None)
    for name in kept:
        if kind := picture_like(features[name]):
            raise DatasetError(f"column {name!r} holds {kind}: kept columns are stored in clear, so it cannot be kept")
        if features[name] is None:
            raise DatasetError(f"column {name!r} of a stream has no type that is known, so it cannot be kept: cast it")
        if name in (image, label) or name in ("image", "label"):
            raise DatasetError(f"column {name!r} cannot be kept beside the encrypted `image` and `label`")
    return Columns(image, label, tuple(dict.fromkeys(kept)))


def check_splits(splits: Mapping[str, Dataset | IterableDataset]) -> None:
    """Before work, each split by itself.

    Raises:
        DatasetError: one is encrypted already, or has a transform, which would be left out; or it has a name that
            `load_from_disk` or the Hub refuses, or that a file of the folder has.
    """
    for name, split in splits.items():
        if records := records_of(split):
            raise DatasetError(
                f"split {name} is already encrypted (key {records[0].key_id}): encrypt the plain images instead"
            )
        if isinstance(split, Dataset) and split.format["type"] == "custom":
            raise DatasetError(
                f"split {name} has a transform (set_transform), which would not be applied: apply it with map, or take "
                "it off with reset_format()"
            )
        if not re.fullmatch(r"\w+(\.\w+)*", name) or name == "all":
            raise DatasetError(
                f"the split name {printable(name)!r} is refused by load_from_disk and the Hub: rename the split, to "
                "letters, digits and underscores"
            )
        if name in (MANIFEST, REJECTED, "dataset_dict.json"):
            raise DatasetError(f"the split {name} has the name of a file of an encrypted folder: rename it")


def features_of(name: str, split: Dataset | IterableDataset) -> Features:
    """The features of a split; of a stream that declares none, as its first rows have them, or None for a column."""
    if split.features is not None:
        return split.features
    rows = list(split.take(FIRST_ROWS))
    if not rows:
        raise DatasetError(f"the dataset is empty: a stream of the split {name} has no row")
    return Features({column: _feature_of([row.get(column) for row in rows]) for column in rows[0]})


def _feature_of(values: list) -> Any:
    try:
        kind = pyarrow.array(values).type
    except (pyarrow.ArrowException, TypeError, ValueError):  # a PIL image, say
        return None
    return None if pyarrow.types.is_null(kind) else generate_from_arrow_type(kind)


def common_columns(
    found: Mapping[str, Features], image: str | None, label: str | None, kept: Sequence[str] = ()
) -> Columns:
    """The columns of all splits, by their features. Raises DatasetError where splits differ, or as `find_columns`."""
    first_name, first = next(iter(found.items()))
    columns = find_columns(first, image, label, kept)
    for name, features in found.items():
        if find_columns(features, image, label, kept) != columns:
            raise DatasetError(
                f"split {name} has other columns than the first one, {first_name}: {', '.join(features)}; remove or "
                "rename columns, or encrypt that split by itself"
            )
        if columns.label and features[columns.label] != first[columns.label]:
            raise DatasetError(
                f"the labels of split {name} are not those of the first one: {features[columns.label]}; cast the column"
            )
        arrays = array_dtype(features[columns.image]) != array_dtype(first[columns.image])
        for column in (*([columns.image] if arrays else []), *columns.kept):
            if features[column] != first[column]:
                raise DatasetError(
                    f"column {column!r} is {features[column]} in split {name} and {first[column]} in {first_name}: "
                    "cast one of them, or leave it out"
                )
        if getattr(features[columns.image], "mode", None):
            raise DatasetError(
                f"column {columns.image!r} is declared {features[columns.image]}, and how `datasets` converts is not "
                "applied here: convert the images first, with map, or cast_column to a plain Image()"
            )
    return columns


def array_dtype(feature: Any) -> str | None:
    """The dtype of a column of arrays, which `datasets` gives back as lists; None: it holds none."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return None if feature is None or isinstance(feature, Image) else str(getattr(feature, "dtype", "")) or None


def picture_like(feature: Any) -> str | None:
    """What a column holds, at any depth, that may be pictures in clear; None: nothing of the kind."""
    if isinstance(feature, dict):
        inner = list(feature.values())
    elif isinstance(feature, list):
        inner = feature
    else:
        inner = [feature.feature] if hasattr(feature, "feature") else []
    name, dtype = type(feature).__name__, str(getattr(feature, "dtype", ""))
    if name in ("Image", "Audio", "Video", "Pdf", "Nifti") or "binary" in dtype or name.startswith("Array"):
        return {"Image": "images", "Audio": "audio", "Video": "videos"}.get(name, "binary data")
    return next((kind for each in inner if (kind := picture_like(each))), None)


def label_names(
    splits: Mapping[str, Dataset | IterableDataset], features: Features, label: str | None
) -> list[str] | None:
    """Names of a ClassLabel; of a text column, its sorted values; of integers, none. Raises DatasetError."""
    if label is None:
        return None
    feature = features[label]
    if isinstance(feature, ClassLabel):
        return feature.names
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        if not all(isinstance(split, Dataset) for split in splits.values()):
            raise DatasetError(
                f"column {label!r} holds text, which a stream cannot be searched for: cast it, or --no-streaming (then "
                "`datasets` keeps a copy in its cache)"
            )
        values = {value for split in splits.values() for value in split.unique(label)}
        if None in values:
            raise DatasetError(
                f"column {label!r} has rows without a label: remove them, or name another --label-column"
            )
        return sorted(values)
    if feature is not None and not str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
        raise DatasetError(
            f"column {label!r} holds {feature}, not class labels: cast it to whole numbers, name another "
            "--label-column, or remove the column"
        )
    return None


def is_by_class(split: Dataset | IterableDataset, label: str | None) -> bool:
    """Whether rows come class by class, as those of a folder of images do."""
    if label is None or not isinstance(split, Dataset):
        return False
    values = split.with_format(None)[label][:]
    runs = [value for value, _ in itertools.groupby(values)]
    if None in runs or not 1 < len(runs) == len(set(runs)):
        return False
    return len(runs) < len(values) or runs == sorted(runs)  # one row of each: in the order of their names


class Labels:
    """How labels go into the encrypted dataset: by their names or, if `hidden`, under a keyed permutation.

    `salt` tells datasets apart, so that two of the same classes under the same key do not share their permutation.
    """

    def __init__(self, names: list[str] | None, hidden: bool, key: SecretKey, salt: str = ""):
        self.feature: ClassLabel | Value = Value("int64") if names is None else ClassLabel(names=names)
        self.names = names
        self.sealed: str | None = None
        self.order: list[int] | None = None
        if hidden:
            if names is None:
                raise DatasetError("labels can only be hidden when they have names: cast the column to ClassLabel")
            width = len(str(len(names) - 1))
            self.order = key.permutation(json.dumps([names, salt]), "labels", len(names))
            neutral = [f"class_{index:0{width}d}" for index in range(len(names))]
            self.feature = ClassLabel(names=neutral)
            true_names = {name: names[self.order.index(i)] for i, name in enumerate(neutral)}
            self.sealed = seal_names(key, true_names, salt)

    def encode(self, value: object) -> int:
        """The stored label of a source label. Raises DatasetError for none, or one that is out of range."""
        if isinstance(value, str):
            if self.names is None or value not in self.names:
                # Its text is not shown: it may be a diagnosis, or hold a person's name.
                raise DatasetError(f"the label is a text that is none of the {len(self.names or [])} class names")
            value = self.names.index(value)
        try:
            value = operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
        except TypeError:
            raise DatasetError(f"the label is {type(value).__name__}, not a whole number or a name") from None
        if self.names is not None and not 0 <= value < len(self.names):
            raise DatasetError(
                f"the label {value} is not within 0 to {len(self.names) - 1}: remove these rows, or the column"
            )
        return value if self.order is None else self.order[value]
