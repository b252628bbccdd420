"""Which columns of a dataset hold images and labels, and how labels go into the encrypted one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from hf_neuracrypt.data.record import seal_names
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.keys import SecretKey


IMAGE_COLUMNS = ("image", "img", "pixel_values")
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
        if name in (image, label) or name in ("image", "label"):
            raise DatasetError(f"column {name!r} cannot be kept beside the encrypted `image` and `label`")
    return Columns(image, label, tuple(kept))


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
                f"column {label!r} holds text, which a stream cannot be searched for: cast it, or --no-streaming"
            )
        values = {value for split in splits.values() for value in split.unique(label)}
        if None in values:
            raise DatasetError(f"column {label!r} has rows without a label")
        return sorted(values)
    if feature is not None and not str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
        raise DatasetError(f"column {label!r} holds {feature}, not class labels")
    return None


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
        if isinstance(value, bool) or not isinstance(value, int):
            raise DatasetError(f"the label is {type(value).__name__}, not a whole number or a name")
        if self.names is not None and not 0 <= value < len(self.names):
            raise DatasetError(f"the label {value} is not within 0 to {len(self.names) - 1}")
        return value if self.order is None else self.order[value]
