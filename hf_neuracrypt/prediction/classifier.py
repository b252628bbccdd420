"""Queries of the owner: images are encrypted here, a model classifies the ciphertexts, hidden labels are named here.

The owner's encoder decides how queries are encrypted, never a model: one that says it was trained on images of another
key, scheme or config is an error before any work, not chance accuracy or a weaker cipher after it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_neuracrypt.data.batches import encrypt_rows, use_own_cores
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import ConfigError, ImageError, KeyMismatchError
from hf_neuracrypt.models.embeddings import side
from hf_neuracrypt.models.load import check_patches, load_classifier, load_model_config, model_records, one_line
from hf_neuracrypt.schemes import check_floor


Answer = list[dict[str, Any]]  # {"label": str, "score": float}, by falling score


@dataclass(frozen=True)
class Classifier:
    """Both sides of a query: the owner's encoder and label names, and a model that sees ciphertexts alone.

    Args:
        encoder: of the config and key that the model's images were encrypted with.
        classify: the model, here or elsewhere: (stored ciphertexts, top_k) -> an `Answer` for each.
        true_names: of hidden labels, by the names the model has for them; empty if nothing is hidden.

    Example:
        >>> encoder = load_encoder(EncoderConfig(), SecretKey.load("hospital.key"))
        >>> Classifier.from_pretrained("model/", encoder).predict(["photo.jpg"])
        [[{"label": "cat", "score": 0.98}, {"label": "dog", "score": 0.02}]]
    """

    encoder: Encoder
    classify: Callable[[Sequence[Any], int], Iterable[Answer]]
    true_names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_pretrained(cls, model: str, encoder: Encoder, record: Record | None = None) -> "Classifier":
        """A model that runs on this machine.

        Args:
            model: folder or Hub id.
            encoder: from `load_encoder`.
            record: of the dataset it was trained on, for the names of hidden labels; default: as the model carries it.

        Raises:
            KeyMismatchError: it was trained on plain images, or under another key or config.
            NeuraCryptError: it cannot be loaded, or its label names were sealed with another key.
        """
        check_floor(encoder.config)
        own = model_record(model, encoder)
        names = (record or own).true_names(encoder.key)
        return cls(encoder, LocalModel(model, encoder), names)

    @property
    def gives_numbers(self) -> bool:
        """Whether scores are predicted numbers (regression), not probabilities; of an endpoint nobody knows."""
        return getattr(self.classify, "gives_numbers", False)

    def predict(self, images: Sequence[object], top_k: int = 5) -> list[Answer]:
        """Classify plain images: paths, PIL images, arrays or encoded bytes.

        Returns:
            For each image, `{"label": str, "score": float}` by falling score, at most `top_k`. A score is the
            probability of a class; of a label, that the image has it; or, of a model of numbers, the number.

        Raises:
            ImageError: one of them cannot be used; it is named by its place.
        """
        stored = []
        for place, rows in enumerate(encrypt_rows(self.encoder, images)):
            if isinstance(rows, ImageError):
                raise ImageError(f"image {place} cannot be encrypted: {rows}")
            stored += rows
        return list(self.answer(stored, top_k))

    def answer(self, stored: Sequence[Any], top_k: int) -> Iterator[Answer]:
        """What the model says of stored ciphertexts, one by one; hidden labels by their true names."""
        for answer in self.classify(stored, top_k):
            yield [{**entry, "label": self.true_names.get(entry["label"], entry["label"])} for entry in answer]


class LocalModel:
    """A model on this machine, given what it was trained on: the same pixels as by the stock pipeline."""

    def __init__(self, model: str, encoder: Encoder):
        use_own_cores()
        self.name, self.model, self.stored = model, load_classifier(model), encoder.stored
        self.gives_numbers = self.model.config.problem_type == "regression"

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        """What the stock pipeline makes of logits: probabilities of classes, of each label by itself, or numbers."""
        if self.gives_numbers:
            return logits
        by_itself = self.model.config.problem_type == "multi_label_classification" or self.model.config.num_labels == 1
        return logits.sigmoid() if by_itself else logits.softmax(-1)

    @torch.inference_mode()
    def __call__(self, stored: Sequence[Any], top_k: int) -> list[Answer]:
        pixel_values = self.stored.pixel_values(stored)
        with one_line(self.name, "use"):
            scores = self._scores(self.model(pixel_values=pixel_values).logits.float())
            if not scores.isfinite().all():
                raise ValueError("its scores are no numbers")
            best, names = scores.topk(min(top_k, scores.shape[1])), dict(self.model.config.id2label or {})
            return [
                [{"label": str(names[index]), "score": score} for score, index in zip(*row)]
                for row in zip(best.values.tolist(), best.indices.tolist())
            ]


def model_record(model: str, encoder: Encoder) -> Record:
    """The record that a model carries of its training images, if they were encrypted as `encoder` encrypts.

    Raises:
        KeyMismatchError: it was trained under other keys or configs, or on plain images.
        NeuraCryptError: it cannot be read, or contradicts itself.
    """
    config = load_model_config(model)
    records = model_records(config)
    if not records:
        raise KeyMismatchError(f"{model} was not trained on encrypted images, so encrypted queries mean nothing to it")
    of_key = [record for record in records if record.key_id == encoder.key.id]
    if not of_key:
        known = ", ".join(record.key_id for record in records)
        raise KeyMismatchError(f"{model} was trained under the key {known}; this key is {encoder.key.id}")
    if of_key[0].config != encoder.config:
        raise KeyMismatchError(
            f"{model} says it was trained on images of another config: {of_key[0].config.to_json()}, yours is "
            f"{encoder.config.to_json()}; nothing was encrypted"
        )
    if encoder.config.patch_shape is None and side(config, "image_size") != encoder.config.image_size:
        raise ConfigError(f"{model} contradicts itself: its input is not as large as the images it learned from")
    check_patches(config, of_key[:1])
    return of_key[0]
