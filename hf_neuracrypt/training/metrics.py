"""Figures of a trained model on a dataset: those of `tasks`. Of a stranger's dataset, PNG bytes alone are read.

`evaluate.evaluator("image-classification")` of evaluate 0.4.6 asks for `transformers.TFPreTrainedModel`, which
transformers 5 no longer has, and `evaluate.load("accuracy")` fetches code at run time. So both are written here.
"""

import sys
import time
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.metadata import distribution
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_neuracrypt.data.batches import use_own_cores
from hf_neuracrypt.data.targets import CLASSES, PROBABILITIES, Target, read_labels
from hf_neuracrypt.errors import DatasetError, KeyMismatchError, printable
from hf_neuracrypt.models.embeddings import side
from hf_neuracrypt.models.load import load_classifier, load_model_config, model_records, one_line
from hf_neuracrypt.training.data import Splits, load_splits, reader, sample, undecoded
from hf_neuracrypt.training.progress import mistakes
from hf_neuracrypt.training.tasks import figures, figures_of_each


def _evaluate() -> Any:
    """The library `evaluate`, from where it is installed: a plain import would give scripts/evaluate.py to itself."""
    spec = PathFinder.find_spec("evaluate", [str(distribution("evaluate").locate_file(""))])
    assert spec is not None and spec.loader is not None
    module = sys.modules["evaluate"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


evaluate = _evaluate()


class Accuracy(evaluate.Metric):  # type: ignore[name-defined]
    """The share of predictions that equal their reference; `compute()` gives {"accuracy": float}."""

    def _info(self) -> Any:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=datasets.Features(features))

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        equal = sum(guess == truth for guess, truth in zip(predictions, references))
        return {"accuracy": equal / len(references)}


def evaluate_model(
    model: str,
    dataset: str,
    split: str | None = None,
    *,
    batch_size: int = 32,
    max_samples: int | None = None,
    any_key: bool = False,
    plain: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on a split of a dataset.

    Args:
        model: folder or Hub id.
        dataset: encrypted: folder or Hub id.
        split: default: test, else validation.
        batch_size: images at a time.
        max_samples: only so many images, always the same ones, of the whole split.
        any_key: do not refuse images of a key or config that the model was not trained under.
        plain: model and dataset are plain.

    Returns:
        The figures of `tasks.FIGURES`, "samples" (those with a label), "seconds" (without loading), what was evaluated,
        by its last name, and "worst_classes", or the figures of "each" label or number.

    Raises:
        KeyMismatchError: see `any_key`.
        DatasetError: there is no such split, or the dataset cannot be used; NeuraCryptError: nor can the model.
    """
    logging.disable_progress_bar()
    splits = load_splits(dataset, plain)
    if not any_key:
        _check_keys(model, splits, dataset)
    split, data = _labelled(splits, split)
    data = sample(data, max_samples, seed=0)
    target, config, found = splits.to_learn, load_model_config(model), []
    use_own_cores()
    classifier, read = load_classifier(model), reader(splits.records, side(config, "image_size"))
    start = time.perf_counter()
    with tqdm(total=len(data), desc="Evaluating", unit=" images") as bar, one_line(model, "use"):
        for batch in undecoded(data, splits.columns).iter(batch_size):
            found.append(_logits(classifier, read(batch[splits.columns.image])))
            bar.update(len(found[-1]))
        answers = [str(dict[Any, str](classifier.config.id2label or {})[index]) for index in range(found[-1].shape[1])]
    seconds = round(time.perf_counter() - start, 3)
    logits, labels = np.concatenate(found), np.array(list(read_labels(data, splits.columns, target)))
    compare = _classes if target.kind in (CLASSES, PROBABILITIES) else _each
    measured, more = compare(target, logits, labels, answers)
    about = {"model": Path(model).name, "dataset": Path(dataset).name, "split": split}
    key_ids = [record.key_id for record in splits.records]
    return measured | {"samples": len(data), "seconds": seconds} | about | {"key_ids": key_ids} | more


def _labelled(splits: Splits, name: str | None) -> tuple[str, Dataset]:
    """A split and its rows that have a label: that of the name, else the first of test and validation that has some."""
    names = [name] if name else [each for each in ("test", "validation", "val") if each in splits.data]
    if not names or names[0] not in splits.data:
        raise DatasetError(f"there is no split {name!r}: choose --split from {', '.join(splits.data)}")
    for each in names:
        if len(rows := splits.labelled(each)):
            return each, rows
    raise DatasetError(f"no row of the split {names[0]} has a label: choose another --split")


def _classes(
    target: Target, logits: np.ndarray, labels: np.ndarray, answers: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Accuracy, by the names of classes: one that the dataset does not know counts as wrong. And the worst classes."""
    names, guesses = list(target.names or ()), [answers[best] for best in logits.argmax(-1)]
    truths = (labels if labels.ndim == 1 else labels.argmax(-1)).tolist()
    predictions = [names.index(guess) if guess in names else -1 for guess in guesses]
    measured = Accuracy().compute(predictions=predictions, references=truths)
    return measured, {"worst_classes": mistakes(names, truths, guesses)}


def _each(
    target: Target, logits: np.ndarray, labels: np.ndarray, answers: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """The mean figures, and those of each label or number, by their names."""
    names = list(target.names or ())
    if missing := [name for name in names if name not in answers]:
        raise DatasetError(f"the model answers nothing named {printable(missing[0])}, which the dataset has")
    logits = logits[:, [answers.index(name) for name in names]]
    rows = zip(names, (~np.isnan(labels)).sum(0).tolist(), figures_of_each(target.kind, logits, labels))
    each = [{"label": name, "images": count} | row for name, count, row in rows]
    return figures(target.kind, logits, labels), {"each": each}


def _check_keys(model: str, splits: Splits, dataset: str) -> None:
    known = {(record.key_id, record.config) for record in model_records(load_model_config(model))}
    for record in splits.records:
        if (record.key_id, record.config) not in known:
            trained = ", ".join(key_id for key_id, _ in known) or "no key: it is a model of plain images"
            raise KeyMismatchError(
                f"{dataset} was encrypted with key {record.key_id}, {model} was trained under {trained} "
                "(--any_key evaluates all the same)"
            )


@torch.inference_mode()
def _logits(classifier: PreTrainedModel, pixel_values: torch.Tensor) -> np.ndarray:
    return classifier(pixel_values=pixel_values).logits.float().numpy()
