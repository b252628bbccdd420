"""Which columns of a dataset hold images and labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow
from datasets import Dataset, Features, Image, IterableDataset
from datasets.features.features import generate_from_arrow_type

from hf_neuracrypt.data.manifest import MANIFEST, REJECTED
from hf_neuracrypt.data.record import records_of
from hf_neuracrypt.errors import DatasetError, NeuraCryptError, printable


IMAGE_COLUMNS = ("image", "img", "pixel_values")
FIRST_ROWS = 5  # of a stream, for the types of its columns
LABEL_COLUMNS = ("label", "labels", "fine_label")


LabelColumns: TypeAlias = str | Sequence[str] | None  # None: guessed; an empty sequence: none


@dataclass(frozen=True)
class Columns:
    """Which columns are read: `image`, the `labels` (one, several that make a label together, or none), and `kept`.

    `others` are not read.
    """

    image: str
    labels: tuple[str, ...]
    kept: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def value(self, row: Mapping[str, Any]) -> Any:
        """The label in a row: of one column as it stands there, of several a dict, and None where there are none."""
        if len(self.labels) == 1:
            return row.get(self.labels[0])
        return {name: row.get(name) for name in self.labels} if self.labels else None


def find_columns(
    features: Mapping[str, Any], image: str | None, label: LabelColumns, kept: Sequence[str] = ()
) -> Columns:
    """Resolve column names, guessing those not given. Raises DatasetError naming what is there."""
    found = f"the columns are {', '.join(features)}"
    if label is None:
        labels = [name for name in LABEL_COLUMNS if name in features][:1]
    else:
        labels = [label] if isinstance(label, str) else list(label)
        structs = [name for name in LABEL_COLUMNS if isinstance(features.get(name), dict)]
        labels = [name for name in structs if labels and list(features[name]) == labels] or labels  # by its fields
    for name in (image, *labels, *kept):
        if name is not None and name not in features:
            raise DatasetError(f"there is no column {name!r}: {found} (--label-column and --image-column name others)")
    image = image or next((name for name in IMAGE_COLUMNS if name in features), None)
    if image is None:
        raise DatasetError(f"none of the columns {', '.join(IMAGE_COLUMNS)} is there: {found}; name it: --image-column")
    for name in kept:
        if kind := picture_like(features[name]):
            raise DatasetError(f"column {name!r} holds {kind}: kept columns are stored in clear, so it cannot be kept")
        if features[name] is None:
            raise DatasetError(f"column {name!r} of a stream has no type that is known, so it cannot be kept: cast it")
        if name in (image, *labels) or name in ("image", "label"):
            raise DatasetError(f"column {name!r} cannot be kept beside the encrypted `image` and `label`")
    others = tuple(name for name in features if name not in (image, *labels, *kept))
    return Columns(image, tuple(dict.fromkeys(labels)), tuple(dict.fromkeys(kept)), others)


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
    rows = first_rows(split, FIRST_ROWS)
    if not rows:
        raise DatasetError(f"the dataset is empty: a stream of the split {name} has no row")
    return Features({column: _feature_of([row.get(column) for row in rows]) for column in rows[0]})


def first_rows(split: IterableDataset, count: int) -> list[dict[str, Any]]:
    """Those of a stream. Raises DatasetError if its files are not all alike."""
    try:
        return list(split.take(count))
    except NeuraCryptError:
        raise
    except (ValueError, TypeError, KeyError) as error:  # of datasets' casts and Arrow's; its text may quote a cell
        raise DatasetError(
            f"the rows of the split {split.split} cannot be read ({type(error).__name__}): all files of a dataset need "
            "the same columns, of the same types"
        ) from None


def _feature_of(values: list) -> Any:
    try:
        kind = pyarrow.array(values).type
    except (pyarrow.ArrowException, TypeError, ValueError):  # a PIL image, say
        return None
    return None if pyarrow.types.is_null(kind) else generate_from_arrow_type(kind)


def common_columns(
    found: Mapping[str, Features], image: str | None, label: LabelColumns, kept: Sequence[str] = ()
) -> Columns:
    """The columns of all splits, by their features; a split may lack those of labels.

    Raises:
        DatasetError: splits differ otherwise, or as `find_columns`.
    """
    first_name, first = next(iter(found.items()))
    everything = {name: feature for features in reversed(list(found.values())) for name, feature in features.items()}
    columns = find_columns(everything, image, label, kept)
    for name, features in found.items():
        lacking = {columns.image, *columns.labels, *columns.kept} - set(features)
        other = set(LABEL_COLUMNS) & set(features) if label is None else set()
        if lacking and (lacking != set(columns.labels) or other):
            raise DatasetError(
                f"split {name} has other columns than the first one, {first_name}: {', '.join(features)}; remove or "
                "rename columns, or encrypt that split by itself"
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
