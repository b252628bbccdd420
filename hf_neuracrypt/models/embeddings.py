"""Edits of a Vision Transformer's embeddings, which leave it a stock model: for another image size, for an alignment,
for the ciphertexts of `vit-blockwise`.

The last, `adapt`, is an owner's step, with the key. Kiya, Iijima 2023 send such a model encrypted queries; Nagamori,
Shiota, Kiya (arXiv 2401.05126) fine-tune it on encrypted images ("domain adaptation"). The patch embedding sums weight
times value over the values of a patch, so permuting both alike changes nothing; the tokens are a set but for their
position embeddings, which move with the patches. So the adapted model gives for a ciphertext the logits that the plain
one gives for the image.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_neuracrypt.alignment import Alignment
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.encoders.blockwise import ViTBlockwise
from hf_neuracrypt.errors import NeuraCryptError


MODEL_TYPES = ("vit", "deit")

WARNING = (
    "THE ADAPTED MODEL GIVES THE KEY'S CIPHER AWAY. Its embeddings are those of the plain model in another order: who "
    "also has the plain model (everybody, if it is public) reads that order off by comparing the two, and decrypts "
    "every image under this key, exactly. Keep the adapted model to yourself, or train its embeddings on first."
)


def at_size(model: PreTrainedModel, size: int) -> PreTrainedModel:
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


def fold(model: PreTrainedModel, alignment: Alignment) -> None:
    """Give the model embeddings that see through the encryption: on ciphertexts, what it had on decrypted patches.

    The map goes into the weights of the patch embedding, the means of each position into the position embeddings.
    """
    embeddings: Any = model.base_model.embeddings
    weight, positions = embeddings.patch_embeddings.projection.weight, embeddings.position_embeddings
    old = weight.detach().flatten(1)
    new = old @ alignment.to_plain.T
    shift = alignment.plain_mean @ old.T - alignment.cipher_mean @ new.T  # before `old`, a view, is overwritten
    with torch.no_grad():
        weight.copy_(new.reshape(weight.shape))
        positions[:, -len(shift) :] += shift


@torch.no_grad()
def adapt(model: PreTrainedModel, encoder: Encoder) -> PreTrainedModel:
    """Permute the patch and position embeddings of `model`, in place, as `encoder` permutes images.

    Args:
        model: a ViT or DeiT for images of the encoder's size and patches, normalised alike in all three colours.
        encoder: of the scheme `vit-blockwise`.

    Returns:
        `model`. Published beside the model it was made from, it reveals the cipher: see `WARNING`.

    Raises:
        NeuraCryptError: another kind of model or scheme, or sizes that differ.
    """
    config = model.config
    if not isinstance(encoder, ViTBlockwise):
        raise NeuraCryptError(f"only the scheme vit-blockwise has an adapted model, not {encoder.config.scheme}")
    if config.model_type not in MODEL_TYPES:
        raise NeuraCryptError(
            f"a model of type {config.model_type} cannot be adapted, only {' and '.join(MODEL_TYPES)}"
        )
    if (config.image_size, config.patch_size) != (encoder.config.image_size, encoder.config.patch_size):
        raise NeuraCryptError(
            f"the model takes images of {config.image_size} pixels in patches of {config.patch_size}, the encryption's "
            f"are {encoder.config.image_size} and {encoder.config.patch_size}"
        )
    embeddings: Any = model.base_model.embeddings
    weight = embeddings.patch_embeddings.projection.weight  # (hidden, 3, P, P)
    pixels = torch.from_numpy(encoder.pixel_order).to(weight.device)
    weight.copy_(weight.flatten(1)[:, pixels].view_as(weight))
    position = embeddings.position_embeddings  # (1, class tokens + N, hidden)
    patches = torch.from_numpy(encoder.patch_order).to(position.device)
    first = position.shape[1] - len(patches)
    position[:, first:] = position[:, first:][:, patches]
    return model
