"""Queries of the owner: encrypt here, classify with the stock pipeline, name the labels here.

The model's `config.json` says how its training images were encrypted; a key or config that does not match is an error
before any work, not chance accuracy after it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError

from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.errors import ConfigError, HubError, ImageError, KeyMismatchError, NeuraCryptError, first_line
from hf_neuracrypt.hub import explain, may_be_repository, offline, read_small_file
from hf_neuracrypt.images import prepare
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.record import Record


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


def encrypt_images(
    images: Sequence[object], record: Record, key: SecretKey, names: Sequence[str]
) -> list[Image.Image] | torch.Tensor:
    """Encrypt a few images as `record` says: PIL images that the stock pipeline takes, or patch representations.

    Raises:
        ImageError: naming the image by its entry in `names`.
    """
    plain = []
    for image, name in zip(images, names, strict=True):
        try:
            plain.append(prepare(image, record.config))
        except ImageError as error:
            raise ImageError(f"{name} cannot be encrypted: {error}") from None
    encrypted = load_encoder(record.config, key).encrypt(torch.from_numpy(np.stack(plain)).permute(0, 3, 1, 2))
    if record.config.representation:
        return encrypted
    return [Image.fromarray(pixels) for pixels in encrypted.permute(0, 2, 3, 1).contiguous().numpy()]


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
    config = load_model_config(model)
    record = matching_record(model_records(config), key.id, model)
    if not record.config.representation and getattr(config, "image_size", None) != record.config.image_size:
        raise ConfigError(f"{model} contradicts itself: its input is not as large as the images it learned from")
    true_names = json.loads(key.unseal(record.sealed_labels, "label names")) if record.sealed_labels else {}
    encrypted = encrypt_images(images, record, key, names)
    if record.config.representation:  # no pipeline takes what is no image
        answers = representation_classifier(model)(encrypted, top_k)
    else:
        answers = load_pipeline(model)(encrypted, top_k=top_k)
    return [
        [{**entry, "label": true_names.get(entry["label"], entry["label"])} for entry in answer] for answer in answers
    ]


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
