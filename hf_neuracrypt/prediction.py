"""Queries of the owner: encrypt here, classify with the stock pipeline, name the labels here.

The model's `config.json` says how its training images were encrypted; a key or config that does not match is an error
before any work, not chance accuracy after it.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.errors import ConfigError, ImageError, KeyMismatchError, NeuraCryptError, first_line
from hf_neuracrypt.images import prepare
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.record import Record


def load_model_config(model: str) -> object:
    """The `config.json` of a model, by folder or Hub id. Raises NeuraCryptError in one line."""
    from transformers import AutoConfig

    import hf_neuracrypt.models  # noqa: F401 - AutoConfig knows them from here on

    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise NeuraCryptError(f"cannot load the model {model}: {first_line(error)}") from None


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
    from transformers import pipeline

    record = matching_record(model_records(load_model_config(model)), key.id, model)
    true_names = json.loads(key.unseal(record.sealed_labels, "label names")) if record.sealed_labels else {}
    encrypted = encrypt_images(images, record, key, names)
    if record.config.representation:  # no pipeline takes what is no image
        answers = representation_classifier(model)(encrypted, top_k)
    else:
        answers = pipeline("image-classification", model=model)(encrypted, top_k=top_k)
    return [
        [{**entry, "label": true_names.get(entry["label"], entry["label"])} for entry in answer] for answer in answers
    ]


def representation_classifier(model: str) -> Callable[[torch.Tensor, int], list[list[dict]]]:
    """What the pipeline is for images, for patch representations: (float32 (B, N, width), top_k) -> answers."""
    from transformers import AutoModelForImageClassification

    classifier = AutoModelForImageClassification.from_pretrained(model).eval()
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
