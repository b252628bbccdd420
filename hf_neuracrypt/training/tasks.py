"""How each kind of label is learned and measured: the loss, the same for every model, and the figures of an evaluation.

AUROC and average precision are a few lines of NumPy here: scikit-learn and SciPy would double what the cloud installs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import EvalPrediction, TrainingArguments

from hf_neuracrypt.data.targets import CLASSES, LABELS, NUMBERS, PROBABILITIES
from hf_neuracrypt.errors import NeuraCryptError


PROBLEM_TYPES = {  # as a model's config has them, and the stock pipeline reads them
    CLASSES: "single_label_classification",
    PROBABILITIES: "single_label_classification",
    LABELS: "multi_label_classification",
    NUMBERS: "regression",
}
FIGURES = {  # the first decides which model is the best
    CLASSES: ("accuracy",),
    PROBABILITIES: ("accuracy",),
    LABELS: ("auroc", "average_precision"),
    NUMBERS: ("mae", "r2"),
}
ALL_FIGURES = tuple(dict.fromkeys(name for names in FIGURES.values() for name in names))


def loss_of(kind: str, weight: torch.Tensor | None = None, smoothing: float = 0.0) -> Callable:
    """For `Trainer(compute_loss_func=…)`, whatever the model's own loss would be.

    Cross-entropy of classes and of probabilities; of labels binary cross-entropy, of numbers the squared error, both as
    a mean over those of an image that are known, so that each image counts the same.

    Args:
        kind: of `data.targets`.
        weight: of each class.
        smoothing: of classes.
    """

    def loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        logits, weights = outputs["logits"].float(), None if weight is None else weight.to(labels.device)
        if kind in (CLASSES, PROBABILITIES):
            each = functional.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=smoothing)
        else:
            known, truths = ~labels.isnan(), labels.nan_to_num()
            if kind == LABELS:
                losses = functional.binary_cross_entropy_with_logits(logits, truths, reduction="none")
            else:
                losses = functional.mse_loss(logits, truths, reduction="none")
            each = (losses * known).sum(1) / known.sum(1).clamp(min=1)
        if num_items_in_batch is None:
            return each.mean()
        # With gradient accumulation, Trainer says how many values the labels of the whole step have.
        return each.sum() * (labels.numel() / len(labels)) / num_items_in_batch

    return loss


def settle(kind: str, args: TrainingArguments, class_weights: bool, labels: Sequence[Any]) -> None:
    """Before training: what decides which model is the best, by the kind of labels; `labels` are those to evaluate on.

    Raises:
        NeuraCryptError: for a figure, or an option, that labels of this kind do not have.
    """
    measure = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if measure == "accuracy":  # the default of --early_stopping
        measure = FIGURES[kind][0]
    if measure not in ("loss", *FIGURES[kind]):
        known = " or ".join(("loss", *FIGURES[kind]))
        raise NeuraCryptError(f"there is no --metric_for_best_model {measure} of such labels: choose {known}")
    if class_weights and kind != CLASSES:
        raise NeuraCryptError("--class_weights are for images of one class each: leave them out")
    if args.label_smoothing_factor and kind in (LABELS, NUMBERS):
        raise NeuraCryptError("--label_smoothing_factor is for classes: leave it out")
    if args.metric_for_best_model and measure != "loss":
        truths = np.array(labels)
        if kind in (LABELS, NUMBERS) and measure not in figures(kind, np.zeros(truths.shape), truths):
            raise NeuraCryptError(f"{measure} is not defined on these evaluation images: give more, or choose loss")
    if args.metric_for_best_model:
        args.metric_for_best_model = measure
    if measure == "mae":  # which `TrainingArguments` does not know
        args.greater_is_better = False


def balanced(labels: list[int], classes: int) -> torch.Tensor:
    """Weights of classes by which each counts the same, however rare; of one without images: 0."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes).float()
    return torch.where(counts > 0, len(labels) / (counts.count_nonzero() * counts.clamp(min=1)), 0)


def metrics_of(kind: str) -> Callable[[EvalPrediction], dict[str, float]]:
    """For `Trainer(compute_metrics=…)`."""
    return lambda found: figures(kind, np.asarray(found.predictions), np.asarray(found.label_ids))


def figures(kind: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The figures of FIGURES; one that is not defined, as that of a label without a negative image, is left out.

    Args:
        logits: (N, names).
        labels: (N,) class numbers, or (N, names) with NaN for what is unknown.
    """
    if kind in (CLASSES, PROBABILITIES):
        truths = labels if labels.ndim == 1 else labels.argmax(-1)
        return {"accuracy": float((logits.argmax(-1) == truths).mean())}
    each = figures_of_each(kind, logits, labels)
    found = {name: np.array([one[name] for one in each], float) for name in FIGURES[kind]}
    return {name: float(np.nanmean(values)) for name, values in found.items() if not np.isnan(values).all()}


def figures_of_each(kind: str, logits: np.ndarray, labels: np.ndarray) -> list[dict[str, float | None]]:
    """The figures of each label or number, over the images in which it is known; None: it has none."""
    rows = []
    for scores, truths in zip(logits.T, labels.T):
        known = ~np.isnan(truths)
        scores, truths = scores[known].astype(float), truths[known].astype(float)
        row: dict[str, float | None] = dict.fromkeys(FIGURES[kind])
        if kind == LABELS and 0 < truths.sum() < len(truths):
            row = {"auroc": auroc(scores, truths > 0), "average_precision": average_precision(scores, truths > 0)}
        elif kind == NUMBERS and len(truths):
            spread = ((truths - truths.mean()) ** 2).sum()
            row["mae"] = float(np.abs(scores - truths).mean())
            row["r2"] = float(1 - ((scores - truths) ** 2).sum() / spread) if spread else None
        rows.append(row)
    return rows


def auroc(scores: np.ndarray, truths: np.ndarray) -> float:
    """The share of pairs of a positive and a negative in which the positive has the higher score; equal: half.

    Args:
        scores: float (N,).
        truths: bool (N,), of both kinds.
    """
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[places]
    positive = int(truths.sum())
    above = ranks[truths].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(truths) - positive)))


def average_precision(scores: np.ndarray, truths: np.ndarray) -> float:
    """The mean, over positives, of the precision among all that score as high; see `auroc`."""
    _, places = np.unique(-scores, return_inverse=True)
    hits, total = np.bincount(places, truths), np.bincount(places)
    return float((hits.cumsum() / total.cumsum() * hits).sum() / truths.sum())
