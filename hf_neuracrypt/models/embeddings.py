"""Edits of a Vision Transformer's embeddings, which leave it a stock model: for another image size, for a map of
patches (of an alignment, or fitted on pairs: `audit.adapted`), for the ciphertexts of `vit-blockwise`.

The last, `adapt`, is an owner's step, with the key. Kiya, Iijima 2023 send such a model encrypted queries; Nagamori,
Shiota, Kiya (arXiv 2401.05126) fine-tune it on encrypted images ("domain adaptation"). The patch embedding sums weight
times value over the values of a patch, so permuting both alike changes nothing; the tokens are a set but for their
position embeddings, which move with the patches. So the adapted model gives for a ciphertext the logits that the plain
one gives for the image.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_neuracrypt.alignment.patches import PatchMap
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.encoders.blockwise import ViTBlockwise
from hf_neuracrypt.errors import NeuraCryptError


MODEL_TYPES = ("vit", "deit")

WARNING = (
    "THE ADAPTED MODEL GIVES THE KEY'S CIPHER AWAY. Its embeddings are those of the plain model in another order: who "
    "also has the plain model (everybody, if it is public) reads that order off by comparing the two, and decrypts "
    "every image under this key, exactly. Keep the adapted model to yourself, or train its embeddings on first."
)


def vision(config: PreTrainedConfig) -> Any:
    """The part of a model's config that says how it sees: CLIP's and SigLIP's have one of text, too."""
    return getattr(config, "vision_config", None) or config


def side(config: PreTrainedConfig, field: str) -> Any:
    """`image_size` or `patch_size`: one number where both sides are alike, as they mostly are."""
    value = getattr(vision(config), field, None)
    return value[0] if isinstance(value, list | tuple) and value and len(set(value)) == 1 else value


def at_size(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """The same weights in a model for images of `size` pixels, the grid of position embeddings interpolated.

    Raises:
        NeuraCryptError: other weights than such a grid depend on the size, or the model knows no patches.
    """
    old, patch, config = side(model.config, "image_size"), side(model.config, "patch_size"), copy.deepcopy(model.config)
    vision(config).image_size = size if isinstance(vision(config).image_size, int) else [size, size]
    resized, weights, fits = type(model)(config), model.state_dict(), patch is not None
    for name, target in resized.state_dict().items():
        if fits and weights[name].shape != target.shape:
            extra, grids = weights[name].shape[-2] - (old // patch) ** 2, (old // patch, size // patch)  # class tokens
            if fits := extra >= 0 and target.shape[-2] == extra + grids[1] ** 2:
                weights[name] = _resized(weights[name], extra, *grids).view(target.shape)
    if not fits:
        kind = model.config.model_type
        raise NeuraCryptError(
            f"this model is a {kind} for images of {old} pixels, not of {size}: encrypt with --image-size {old}"
        )
    resized.load_state_dict(weights)
    return resized


def _resized(positions: torch.Tensor, extra: int, old: int, new: int) -> torch.Tensor:
    """(…, extra + old^2, D) -> (1, extra + new^2, D), bicubic."""
    rows = positions.reshape(1, extra + old**2, -1)
    grid = rows[:, extra:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return torch.cat([rows[:, :extra], grid.flatten(2).transpose(1, 2)], dim=1)


def patch_embedding(model: PreTrainedModel) -> tuple[torch.nn.Conv2d, torch.nn.Parameter | None]:
    """The one linear map that every patch goes through, and the position embeddings (…, M, D), if they are added to it.

    Raises:
        NeuraCryptError: patches go through something else.
    """
    patch = side(model.config, "patch_size")
    square = [
        (name.split(".patch_embed")[0], module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == module.stride == (patch, patch)
    ]
    if len(square) != 1 or square[0][1].in_channels != 3:
        raise NeuraCryptError(f"a {model.config.model_type} has no linear embedding of patches: it cannot be aligned")
    ((place, projection),) = square
    parts = model.get_submodule(place).named_parameters()
    return projection, next((weight for name, weight in parts if name.startswith("position_embedding")), None)


def fold(model: PreTrainedModel, found: PatchMap) -> None:
    """Give the model embeddings that see through the encryption: on ciphertexts, what it had on decrypted patches.

    The map goes into the weights of the patch embedding, the means of each position into the position embeddings; of a
    model without them, the mean of all positions into the bias.
    """
    projection, positions = patch_embedding(model)
    old = projection.weight.detach().flatten(1)
    new = old @ found.to_plain.T
    shift = found.plain_mean @ old.T - found.cipher_mean @ new.T  # before `old`, a view, is overwritten
    with torch.no_grad():
        projection.weight.copy_(new.reshape(projection.weight.shape))
        if positions is not None:
            positions[..., -len(shift) :, :] += shift
        elif projection.bias is not None:
            projection.bias += shift.mean(0)


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
