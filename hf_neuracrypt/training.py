"""What `Trainer` needs to learn from encrypted images: data with its records, a collator, accuracy, the stock model.

Nothing here holds a key. Ciphertext is never resized, cropped, flipped or normalised per image: the collator only maps
grey levels to [-1, 1], which is what the stock `ViTImageProcessor` saved beside the model does.
"""

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, IterableDatasetDict, concatenate_datasets
from PIL import Image as PILImage
from transformers import (
    AutoModelForImageClassification,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from hf_neuracrypt import images
from hf_neuracrypt.columns import Columns, find_columns
from hf_neuracrypt.configuration import EncoderConfig
from hf_neuracrypt.errors import DatasetError, ImageError, KeyMismatchError, NeuraCryptError
from hf_neuracrypt.prediction import load_model_config
from hf_neuracrypt.record import Record, records_of
from hf_neuracrypt.sources import load_source, stored_manifest
from hf_neuracrypt.store import TRAIN, views_of


@dataclass(frozen=True)
class Splits:
    """Splits to learn from.

    Args:
        data: their rows.
        columns: which of their columns are image and label.
        records: of their encryption; none: plain images.
        images: int64 (rows of the split `train`,), rising: rows of the same number are views of one image.
    """

    data: DatasetDict | IterableDatasetDict
    columns: Columns
    records: list[Record]
    images: np.ndarray

    @property
    def label_names(self) -> list[str]:
        """Names in the order of their ids. Raises DatasetError when there is nothing to learn."""
        split = next(iter(self.data.values()))
        if self.columns.label is None:
            raise DatasetError(f"there is no label column: the columns are {', '.join(split.column_names)}")
        feature = split.features[self.columns.label]
        if isinstance(feature, ClassLabel):
            return feature.names
        labels = {label for each in self.data.values() for label in each.unique(self.columns.label)}
        if not all(isinstance(label, int) and label >= 0 for label in labels):
            raise DatasetError(f"column {self.columns.label!r} does not hold class numbers from 0 on")
        return [str(index) for index in range(max(labels) + 1)]


def load_splits(
    names: str | Sequence[str], plain: bool = False, image_column: str | None = None, label_column: str | None = None
) -> Splits:
    """Load a dataset for training or evaluation.

    Args:
        names: folder or Hub id; several owners' datasets are put together, split by split.
        plain: the images are meant to be plain (a baseline); without it, a plain dataset is refused.
        image_column: default: guessed.
        label_column: default: guessed.

    Raises:
        DatasetError: not found, unfinished, plain although `plain` is off or the other way round, or several that do
            not fit together.
        HubError: it is on the Hub and cannot be read.
    """
    names = [names] if isinstance(names, str) else list(names)
    loaded, records, images = [], [], np.empty(0, np.int64)
    for name in names:
        data, found, views = _load_one(name)
        if not found and not plain:
            raise DatasetError(f"{name} is not encrypted: encrypt it first, or give --plain to train on plain images")
        if found and plain:
            raise DatasetError(f"{name} is encrypted (key {found[0].key_id}): leave --plain out")
        loaded.append(data)
        records += [record for record in found if record not in records]
        rows = np.arange(len(data[TRAIN]) if TRAIN in data else 0)
        images = np.append(images, rows // views + (images[-1] + 1 if len(images) else 0))
    data = loaded[0] if len(loaded) == 1 else _together(loaded, names)
    columns = find_columns(next(iter(data.values())).features, image_column, label_column)
    return Splits(data, columns, records, images)


def hold_out(splits: Splits, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """The split `train`, or the only one there is, in two: to learn from, and to evaluate on.

    Views of an image stay on one side; of those held out, only the image itself is evaluated.
    """
    split = splits.data[TRAIN] if TRAIN in splits.data else next(iter(splits.data.values()))
    images = splits.images if TRAIN in splits.data else np.arange(len(split))
    generator, count = np.random.default_rng(seed), int(images[-1]) + 1
    held = np.isin(images, generator.permutation(count)[: max(1, round(share * count))])
    first = np.diff(images, prepend=-1) > 0
    kept, evaluated = (generator.permutation(np.flatnonzero(rows)) for rows in (~held, held & first))
    return split.select(kept), split.select(evaluated)


def _load_one(name: str) -> tuple[DatasetDict, list[Record], int]:
    """A dataset, its records, which the data carries, or else the manifest beside it, and its views of an image."""
    manifest = stored_manifest(name)
    stored = Record.from_dict(manifest) if manifest else None
    data = load_source(name)
    records = records_of(data) or ([stored] if stored else [])
    if stored is not None and stored not in records:
        raise DatasetError(
            f"{name} contradicts itself: its data was encrypted with {records[0].key_id}, its neuracrypt.json says "
            f"{stored.key_id}, or another config"
        )
    return data, records, views_of(manifest, TRAIN)


def _together(loaded: list[DatasetDict], names: list[str]) -> DatasetDict:
    splits: dict[str, list[Dataset]] = {}
    for name, data in zip(names, loaded, strict=True):
        for split, rows in data.items():
            first = splits.setdefault(split, [rows])
            if first[0].features != rows.features:
                raise DatasetError(
                    f"{name} and {names[0]} cannot be put together: split {split} has {rows.features}, "
                    f"not {first[0].features}"
                )
            if first[-1] is not rows:
                first.append(rows)
    return DatasetDict({split: concatenate_datasets(rows) for split, rows in splits.items()})


def checked_records(splits: Splits, allow_mixed_keys: bool = False) -> list[Record]:
    """The records of encrypted splits, none for plain ones.

    Raises:
        KeyMismatchError: a mix of keys or configs that was not asked for, or one that no model can learn from.
    """
    records = splits.records
    if len(records) > 1:
        ids = ", ".join(record.key_id for record in records)
        if not allow_mixed_keys:
            raise KeyMismatchError(
                f"the dataset mixes images of several keys or configs: {ids} (--allow_mixed_keys, if that is meant)"
            )
        if len({record.config for record in records}) > 1:
            raise KeyMismatchError(f"the images of {ids} were encrypted with different configs: no model takes both")
        if any(record.sealed_labels for record in records):
            raise KeyMismatchError(
                f"class names of {ids} are hidden, each in another order: labels do not fit together"
            )
    return records


class Collator:
    """Rows of a dataset -> {"pixel_values": float32 (B, 3, S, S) in [-1, 1], "labels": int64 (B,)}.

    Patch representations go on as they are, float32 (B, N, width).

    Args:
        columns: where image and label are.
        size: of the model's input.
        plain: plain images are brought to `size` exactly as `encrypt` does before it encrypts.
    """

    def __init__(self, columns: Columns, size: int, plain: bool = False):
        self.columns, self.size, self.plain = columns, size, plain
        self.config = EncoderConfig(image_size=size, patch_size=8) if plain else None

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        stored = [row[self.columns.image] for row in rows]
        if self.plain or isinstance(stored[0], dict):
            pixels = torch.from_numpy(np.stack([self._pixels(image) for image in stored]))
            batch = {"pixel_values": pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)}
        else:  # patch representations
            batch = {"pixel_values": torch.from_numpy(np.asarray(stored, np.float32))}
        if self.columns.label is not None:
            batch["labels"] = torch.tensor([row[self.columns.label] for row in rows])
        return batch

    def _pixels(self, stored: dict) -> np.ndarray:
        if self.plain:
            return images.prepare(stored, self.config)
        pixels = np.array(PILImage.open(io.BytesIO(stored["bytes"]), formats=["PNG"]))
        if pixels.shape != (self.size, self.size, 3):
            raise ImageError(f"an encrypted image of shape {pixels.shape} does not fit a model of {self.size} pixels")
        return pixels


def undecoded(split: Dataset, columns: Columns) -> Dataset:
    """The split with its images left as bytes, for `Collator` to decode in the loader's workers."""
    if not isinstance(split.features[columns.image], Image):
        return split
    return split.cast_column(columns.image, Image(decode=False))


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """For `Trainer`: the share of images whose highest logit is the label's."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def load_model(
    name: str | None, config_name: str | None, label_names: list[str], size: int | None, records: Sequence[Record]
) -> PreTrainedModel:
    """A stock image classifier with a head for `label_names`, ready for images of `size`.

    Position embeddings are interpolated when `size` is not the one the model was trained at.

    Args:
        name: folder or Hub id of pre-trained weights; None to start from `config_name` with random weights.
        config_name: folder or Hub id of a config, by default that of `name`.
        label_names: in the order of their ids.
        size: None: the model's own.
        records: written into the model's config; their patch size must be the model's. None: plain images.

    Raises:
        NeuraCryptError: it cannot be loaded, or its patches are not those of the encryption.
    """
    config = load_model_config(config_name or name)
    if not hasattr(config, "image_size"):
        raise NeuraCryptError(f"{config_name or name} is a {config.model_type}, not a Vision Transformer of patches")
    for record in records:
        needed = record.config.model_patch_size
        if needed and getattr(config, "patch_size", needed) != needed:
            raise NeuraCryptError(
                f"the model has patches of {config.patch_size} pixels, the images were encrypted with "
                f"{needed}: encrypt with --patch-size {config.patch_size}"
            )
    if records and (records[0].config.representation or config.model_type == "neuracrypt-vit"):
        return _representation_model(name, config, label_names, records)
    config.num_labels = len(label_names)
    config.id2label, config.label2id = dict(enumerate(label_names)), {name: i for i, name in enumerate(label_names)}
    if name is None:
        config.image_size = size or config.image_size
        model = AutoModelForImageClassification.from_config(config)
    else:
        model = AutoModelForImageClassification.from_pretrained(name, config=config, ignore_mismatched_sizes=True)
        if size not in (None, config.image_size) and not hasattr(config, "patch_size"):
            raise NeuraCryptError(
                f"{name} is a {config.model_type} for images of {config.image_size} pixels, not of {size}"
            )
        if size not in (None, config.image_size):
            model = _at_size(model, size)
    model.config.neuracrypt = [record.to_dict() for record in records] or None
    return model


def _representation_model(
    name: str | None, config: PreTrainedConfig, label_names: list[str], records: Sequence[Record]
) -> PreTrainedModel:
    """A ViT on the patch representation of `records`; the layers of a stock ViT are taken over."""
    from hf_neuracrypt.models import NeuraCryptViTConfig, NeuraCryptViTForImageClassification

    encoding = records[0].config
    shape = encoding.representation
    if shape is None:
        raise NeuraCryptError(f"a neuracrypt-vit takes patch representations, {encoding.scheme} gives images")
    if config.model_type not in ("vit", "neuracrypt-vit") or config.hidden_size != shape[1]:
        raise NeuraCryptError(
            f"the encrypted patches have {shape[1]} values: they need a vit or neuracrypt-vit of that hidden_size, "
            f"not a {config.model_type}{f' of {config.hidden_size}' if hasattr(config, 'hidden_size') else ''}"
        )
    fields = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    labels = dict(enumerate(label_names))
    fields |= {"num_patches": shape[0], "positions": encoding.shuffle == "off", "id2label": labels}
    fields |= {"label2id": {label: number for number, label in labels.items()}}
    fitted = NeuraCryptViTConfig(**fields)
    if name is not None and config.model_type == "neuracrypt-vit":
        model = NeuraCryptViTForImageClassification.from_pretrained(name, config=fitted, ignore_mismatched_sizes=True)
    else:
        model = NeuraCryptViTForImageClassification(fitted)
        if name is not None:
            model.take_layers(AutoModelForImageClassification.from_pretrained(name))
    model.config.neuracrypt = [record.to_dict() for record in records]
    return model


def _at_size(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """The same weights in a model for images of `size` pixels, the grid of position embeddings interpolated."""
    config = copy.deepcopy(model.config)
    config.image_size = size
    resized = type(model)(config)
    weights, name = model.state_dict(), f"{model.base_model_prefix}.embeddings.position_embeddings"
    old, target = weights[name], size // config.patch_size
    grid = model.config.image_size // config.patch_size
    extra = old.shape[1] - grid**2  # the class token, and a distillation token if there is one
    patches = old[:, extra:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, (target, target), mode="bicubic", align_corners=False)
    weights[name] = torch.cat([old[:, :extra], patches.flatten(2).transpose(1, 2)], dim=1)
    resized.load_state_dict(weights)
    return resized


def stock_processor(size: int, plain: bool = False) -> ViTImageProcessorPil:
    """What is saved beside the model: encrypted images are taken as they are, never resized.

    The class without torchvision: it is saved under the plain name `ViTImageProcessor`, which loads everywhere.
    """
    half = [0.5, 0.5, 0.5]
    shape = {"height": size, "width": size}
    return ViTImageProcessorPil(do_resize=plain, size=shape, resample=2, image_mean=half, image_std=half)
