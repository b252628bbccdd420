"""Accuracy of a trained model on a dataset, as an `evaluate.Metric`. Of a stranger's dataset, PNG bytes alone are read.

`evaluate.evaluator("image-classification")` of evaluate 0.4.6 asks for `transformers.TFPreTrainedModel`, which
transformers 5 no longer has, and `evaluate.load("accuracy")` fetches code at run time. So both are written here.
"""

import sys
import time
from importlib.machinery import PathFinder
from importlib.metadata import distribution
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_neuracrypt.data.batches import use_own_cores
from hf_neuracrypt.errors import DatasetError, KeyMismatchError
from hf_neuracrypt.models.embeddings import side
from hf_neuracrypt.models.load import load_classifier, load_model_config, model_records, one_line
from hf_neuracrypt.training.data import Splits, load_splits, reader, sample, undecoded
from hf_neuracrypt.training.progress import mistakes


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
        "accuracy", "samples", "seconds" (without loading), what was evaluated, by its last name, and "worst_classes".

    Raises:
        KeyMismatchError: see `any_key`.
        DatasetError: there is no such split, or the dataset cannot be used; NeuraCryptError: nor can the model.
    """
    logging.disable_progress_bar()
    splits = load_splits(dataset, plain)
    if not any_key:
        _check_keys(model, splits, dataset)
    split = split or next((name for name in ("test", "validation", "val") if name in splits.data), None)
    if split not in splits.data:
        raise DatasetError(f"there is no split {split!r}: choose --split from {', '.join(splits.data)}")
    data = sample(splits.data[split], max_samples, seed=0)
    names, metric, config = splits.label_names, Accuracy(), load_model_config(model)
    guesses: list[str] = []
    use_own_cores()
    classifier, read = load_classifier(model), reader(splits.records, side(config, "image_size"))
    start = time.perf_counter()
    with tqdm(total=len(data), desc="Evaluating", unit=" images") as bar, one_line(model, "use"):
        for batch in undecoded(data, splits.columns).iter(batch_size):
            answers = _labels(classifier, read(batch[splits.columns.image]))
            guesses += answers
            # A label the dataset does not know counts as wrong.
            predictions = [names.index(answer) if answer in names else -1 for answer in answers]
            metric.add_batch(references=batch[splits.columns.label], predictions=predictions)
            bar.update(len(answers))
    return {
        "accuracy": metric.compute()["accuracy"],
        "samples": len(data),
        "seconds": round(time.perf_counter() - start, 3),
        "model": Path(model).name,
        "dataset": Path(dataset).name,
        "split": split,
        "key_ids": [record.key_id for record in splits.records],
        "worst_classes": mistakes(names, data[splits.columns.label], guesses),
    }


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
def _labels(classifier: PreTrainedModel, pixel_values: torch.Tensor) -> list[str]:
    config: Any = classifier.config
    return [config.id2label[best] for best in classifier(pixel_values=pixel_values).logits.argmax(-1).tolist()]
