"""Queries of the owner: encrypt here, let a model classify ciphertexts (here; elsewhere: `remote`), name labels here.

The model's `config.json` says how its training images were encrypted; a key or config that does not match is an error
before any work, not chance accuracy after it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError

from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import ConfigError, HubError, ImageError, KeyMismatchError, NeuraCryptError, first_line
from hf_neuracrypt.hub import explain, may_be_repository, offline, read_small_file
from hf_neuracrypt.images import prepare
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.record import Record
from hf_neuracrypt.transform import encrypt_prepared


MAX_CONFIG_BYTES = 10_000_000


def load_model_config(model: str) -> object:
    """The `config.json` of a model, by folder or Hub id, read without running any code it may bring.

    Raises:
        NeuraCryptError: in one line; HubError if it is on the Hub and cannot be read.
    """
    from transformers import AutoConfig

    import hf_neuracrypt.models  # noqa: F401 - AutoConfig knows them from here on

    if not Path(model).exists():
        if not may_be_repository(model):
            raise NeuraCryptError(f"cannot load the model {model}: there is no such folder")
        if read_small_file(model, "config.json", "model", None, MAX_CONFIG_BYTES) is None:
            raise HubError(offline(model) or f"{model} is no model: it has no config.json")
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, StrictDataclassError) as error:
        raise NeuraCryptError(f"cannot load the model {model}: {first_line(error)}") from None


def load_pipeline(model: str) -> object:
    """The stock `pipeline("image-classification")`: no code of the repository runs, no pickle is opened.

    Raises:
        NeuraCryptError: in one line.
    """
    from transformers import pipeline

    with _one_line(model):
        return pipeline(
            "image-classification", model=model, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )


@contextmanager
def _one_line(model: str) -> Iterator[None]:
    """What transformers has against a model, in one line."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise NeuraCryptError(explain(error, model) or f"cannot load the model {model}: {first_line(error)}") from None


def model_records(config: object) -> list[Record]:
    """The encryption records in a model's config: none for a model of plain images."""
    stored = getattr(config, "neuracrypt", None) or []
    if not isinstance(stored, list):
        raise ConfigError("the model's config holds something else than a list under `neuracrypt`")
    return [Record.from_dict(record) for record in stored]


def matching_record(records: Sequence[Record], key_id: str, what: str) -> Record:
    """The record of `key_id`. Raises KeyMismatchError naming the ids there are."""
    for record in records:
        if record.key_id == key_id:
            return record
    if not records:
        raise KeyMismatchError(f"{what} was not trained on encrypted images, so encrypted queries mean nothing to it")
    known = ", ".join(record.key_id for record in records)
    raise KeyMismatchError(f"{what} was trained under the key {known}; this key is {key_id}")


def model_record(model: str, key: SecretKey) -> Record:
    """How the images a model learned from were encrypted, if that was with this key.

    Raises:
        KeyMismatchError: it was trained under other keys, or on plain images.
        NeuraCryptError: it cannot be read, or contradicts itself.
    """
    config = load_model_config(model)
    record = matching_record(model_records(config), key.id, model)
    if not record.config.representation and getattr(config, "image_size", None) != record.config.image_size:
        raise ConfigError(f"{model} contradicts itself: its input is not as large as the images it learned from")
    return record


def encrypt_images(
    images: Sequence[object], encoder: Encoder, names: Sequence[str]
) -> list[Image.Image] | torch.Tensor:
    """Encrypt a few images: PIL images that the stock pipeline takes, or patch representations.

    Raises:
        ImageError: naming the image by its entry in `names`.
    """
    plain = []
    for image, name in zip(images, names, strict=True):
        try:
            plain.append(prepare(image, encoder.config))
        except ImageError as error:
            raise ImageError(f"{name} cannot be encrypted: {error}") from None
    return encrypt_prepared(plain, encoder)


@dataclass(frozen=True)
class Classifier:
    """Both sides of a query: the owner's encoder and label names, and a model that sees ciphertexts alone.

    Args:
        encoder: of the config and key that the model's images were encrypted with.
        true_names: of hidden labels, by the names the model has for them; empty if nothing is hidden.
        classify: the model, here or elsewhere: (ciphertexts, top_k) -> for each, `{"label": str, "score": float}` by
            falling score.
    """

    encoder: Encoder
    true_names: dict[str, str]
    classify: Callable[[list[Image.Image] | torch.Tensor, int], Iterable[list[dict]]]

    @classmethod
    def of(cls, record: Record, key: SecretKey, classify: Callable) -> "Classifier":
        """Raises NeuraCryptError if the record's label names were sealed with another key."""
        names = json.loads(key.unseal(record.sealed_labels, "label names")) if record.sealed_labels else {}
        return cls(load_encoder(record.config, key), names, classify)

    def answer(self, encrypted: list[Image.Image] | torch.Tensor, top_k: int) -> Iterator[list[dict]]:
        """What the model says of ciphertexts, one by one; hidden labels by their true names."""
        for answer in self.classify(encrypted, top_k):
            yield [{**entry, "label": self.true_names.get(entry["label"], entry["label"])} for entry in answer]


def local_classifier(model: str, key: SecretKey) -> Classifier:
    """A model, by folder or Hub id, that runs on this machine. Raises as `model_record`, before any work."""
    record = model_record(model, key)
    if record.config.representation:  # no pipeline takes what is no image
        return Classifier.of(record, key, representation_classifier(model))
    stock = load_pipeline(model)
    return Classifier.of(record, key, lambda encrypted, top_k: stock(encrypted, top_k=top_k))


def predict(
    model: str, key: SecretKey, images: Sequence[object], names: Sequence[str], top_k: int = 5
) -> list[list[dict]]:
    """Classify plain images with a model that was trained on encrypted ones.

    Args:
        model: folder or Hub id.
        key: the key its training images were encrypted with.
        images: paths, PIL images, arrays or encoded bytes.
        names: what to call them in an error.
        top_k: how many labels for each image.

    Returns:
        For each image, `{"label": str, "score": float}` by falling score; hidden labels are shown by their true names.
    """
    classifier = local_classifier(model, key)
    return list(classifier.answer(encrypt_images(images, classifier.encoder, names), top_k))


def representation_classifier(model: str) -> Callable[[torch.Tensor, int], list[list[dict]]]:
    """What the pipeline is for images, for patch representations: (float32 (B, N, width), top_k) -> answers."""
    from transformers import AutoModelForImageClassification

    with _one_line(model):
        classifier = AutoModelForImageClassification.from_pretrained(
            model, trust_remote_code=False, use_safetensors=True
        ).eval()
    names = classifier.config.id2label

    @torch.no_grad()
    def classify(representations: torch.Tensor, top_k: int) -> list[list[dict]]:
        scores = classifier(pixel_values=representations).logits.softmax(-1)
        best = scores.topk(min(top_k, scores.shape[1]))
        return [
            [{"label": names[index], "score": score} for score, index in zip(*row)]
            for row in zip(best.values.tolist(), best.indices.tolist())
        ]

    return classify
