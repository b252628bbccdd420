"""The other way to keep images from a cloud: features of a frozen model, computed at home, and a small head on them."""

import numpy as np
import torch
from fine_tune import autocast, to_float
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_neuracrypt.training.aligned import head_inputs


NEIGHBOURS = 20
HOME_SIZE = 224  # pixels of the images that soft labels are made of
SOFT_FOLDS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1)  # of the head's regularisation, inverse; chosen by three folds of the training images


def features_of(model: PreTrainedModel, images: torch.Tensor) -> np.ndarray:
    """What the model gives its head: uint8 (B, 3, S, S) -> float32 (B, D)."""
    with autocast():
        parts = [head_inputs(model, to_float(part)).float() for part in tqdm(images.split(100), "Features at home")]
    return torch.cat(parts).numpy()


def at_home(
    model: PreTrainedModel, images: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor
) -> dict[str, float]:
    """Accuracy of a linear head, and of the nearest neighbours, on the features of a frozen model.

    Args:
        model: pre-trained, with a `classifier`, which is not used.
        images, test: plain, uint8 (B, 3, S, S).
        labels, test_labels: int64 (B,).

    Returns:
        "linear" and "neighbours".
    """
    known, asked, linear = features_of(model, images), features_of(model, test), linear_head()
    nearest = KNeighborsClassifier(min(NEIGHBOURS, len(known)), weights="distance", metric="cosine")
    return {
        name: round(float(head.fit(known, labels.numpy()).score(asked, test_labels.numpy())), 4)
        for name, head in (("linear", linear), ("neighbours", nearest))
    }


def linear_head() -> GridSearchCV:
    """A logistic regression."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    return GridSearchCV(linear, {"logisticregression__C": STRENGTHS}, cv=KFold(3, shuffle=True, random_state=0))


def soft_labels(model: PreTrainedModel, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What linear heads on a frozen model's features say of plain images, each a head that has not learned from it.

    Args:
        model, images, labels: as in `at_home`; every class is among the labels.

    Returns:
        Probabilities, float32 (B, classes).
    """
    folds = KFold(SOFT_FOLDS, shuffle=True, random_state=0)
    known, wanted = features_of(model, images), labels.numpy()
    return torch.from_numpy(cross_val_predict(linear_head(), known, wanted, cv=folds, method="predict_proba")).float()
