"""Losses and figures of each kind of label: what is unknown counts for nothing, and AUROC is that of scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score
from transformers import TrainingArguments

from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.training.tasks import auroc, average_precision, figures, figures_of_each, loss_of, settle


@pytest.mark.parametrize("levels", [3, 1000])
def test_figures_are_those_of_scikit_learn_with_ties_and_without(levels):
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = generator.integers(0, levels, 40) / levels
        truths = np.append(generator.random(38) < 0.3, [True, False])
        assert auroc(scores, truths) == pytest.approx(roc_auc_score(truths, scores))
        assert average_precision(scores, truths) == pytest.approx(average_precision_score(truths, scores))


def test_labels_are_measured_where_they_are_known():
    logits = np.array([[3.0, 0, 1], [2, 5, 1], [1, 9, 1], [0, 1, 1]])
    labels = np.array([[1, math.nan, 0], [0, 1, 0], [1, math.nan, 0], [0, 0, 0]])
    first, second, third = figures_of_each("labels", logits, labels)
    assert first == {"auroc": 0.75, "average_precision": pytest.approx(5 / 6)}
    assert second == {"auroc": 1, "average_precision": 1} and third == {"auroc": None, "average_precision": None}
    assert figures("labels", logits, labels)["auroc"] == 0.875
    assert figures("labels", logits, np.zeros((4, 3))) == {}


def test_numbers_are_measured_where_they_are_known():
    logits, labels = np.array([[1.0, 2], [2, 2], [4, 9]]), np.array([[1, 2], [3, 2], [5, math.nan]])
    first, second = figures_of_each("numbers", logits, labels)
    assert first == {"mae": pytest.approx(2 / 3), "r2": pytest.approx(r2_score([1, 3, 5], [1, 2, 4]))}
    assert second == {"mae": 0, "r2": None}
    assert figures("numbers", logits, labels) == {"mae": pytest.approx(1 / 3), "r2": first["r2"]}


def test_probabilities_are_measured_by_the_likeliest_class():
    assert figures("probabilities", np.eye(2), np.array([[0.6, 0.4], [0.9, 0.1]])) == {"accuracy": 0.5}


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_what_is_unknown_teaches_nothing(kind):
    logits = torch.tensor([[0.3, -2.0], [1.0, 0.5]], requires_grad=True)
    labels = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    of_one = {"labels": torch.nn.functional.binary_cross_entropy_with_logits, "numbers": torch.nn.functional.mse_loss}
    each = of_one[kind](logits, labels.nan_to_num(), reduction="none")
    loss = loss_of(kind)({"logits": logits}, labels)
    torch.testing.assert_close(loss, (each[0, 0] + each[1].mean()) / 2)
    loss.backward()
    assert logits.grad[0, 1] == 0 and (logits.grad.abs() > 0).sum() == 3
    # As Trainer counts the values of a whole step, and gives it in two halves:
    halves = sum(loss_of(kind)({"logits": logits[i : i + 1]}, labels[i : i + 1], labels.numel()) for i in range(2))
    torch.testing.assert_close(halves, loss)


def test_probabilities_that_are_certain_are_classes():
    logits, classes = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    certain = torch.nn.functional.one_hot(classes).float()
    whole = loss_of("classes")({"logits": logits}, classes, 5)
    torch.testing.assert_close(loss_of("probabilities")({"logits": logits}, certain, certain.numel()), whole)


@pytest.mark.parametrize(
    ("kind", "asked", "expected"),
    [
        ("classes", "accuracy", ("accuracy", True)), ("labels", "accuracy", ("auroc", True)),
        ("numbers", "accuracy", ("mae", False)), ("numbers", "eval_r2", ("r2", True)),
        ("labels", "loss", ("loss", False)),
    ],
)  # fmt: skip
def test_the_best_model_is_that_of_the_kinds_first_figure(kind, asked, expected, tmp_path):
    args = TrainingArguments(str(tmp_path), metric_for_best_model=asked, report_to="none", use_cpu=True)
    settle(kind, args, False, [[0.0], [1.0]])
    assert (args.metric_for_best_model, args.greater_is_better) == expected


@pytest.mark.parametrize(
    ("kind", "options", "weights", "reason"),
    [
        ("labels", {"metric_for_best_model": "mae"}, False, "choose loss or auroc or average_precision"),
        ("labels", {"metric_for_best_model": "auroc"}, False, "auroc is not defined"),
        ("labels", {"label_smoothing_factor": 0.1}, False, "for classes"),
        ("probabilities", {}, True, "one class each"),
    ],
)
def test_what_a_kind_does_not_have_is_refused(kind, options, weights, reason, tmp_path):
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **options)
    with pytest.raises(NeuraCryptError, match=reason):
        settle(kind, args, weights, [[0.0], [0.0]])
