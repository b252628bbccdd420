"""Loading a stock image classifier: to be trained on ciphertexts, or to be asked. No code of a repository runs."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTImageProcessorPil,
)
from transformers.utils import logging as transformers_logging

from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import ConfigError, HubError, NeuraCryptError, first_line
from hf_neuracrypt.hub import explain, may_be_repository, may_have_files, offline, read_small_file
from hf_neuracrypt.models.embeddings import at_size, side, vision
from hf_neuracrypt.models.neuracrypt_vit import NeuraCryptViTConfig, NeuraCryptViTForImageClassification


MAX_CONFIG_BYTES = 10_000_000
WEIGHTS = ["model.safetensors", "model.safetensors.index.json"]
MAX_LAYERS, MAX_SIZE = 1_000, 1_000_000
MAX_MODULES, MAX_PARAMETERS = 20_000, 3_000_000_000
SILENT = logging.CRITICAL + 1
HEAD = re.compile(r"classifier|\.(pooler|head|fc)\.")  # names of weights that may be new to a task
OURS: dict[str, Any] = {  # whatever a base model's config says
    "return_dict": True, "output_hidden_states": False, "output_attentions": False,
    "architectures": [],  # of several classes the first: DeiT's with a teacher cannot be trained
}  # fmt: skip


def load_model_config(model: str) -> PreTrainedConfig:
    """The `config.json` of a model, by folder or Hub id.

    Raises:
        NeuraCryptError: in one line; HubError if it is on the Hub and cannot be read.
    """
    if not Path(model).exists():
        if not may_be_repository(model):
            raise NeuraCryptError(f"cannot load the model {model}: there is no such folder")
        if read_small_file(model, "config.json", "model", None, MAX_CONFIG_BYTES) is None:
            raise HubError(offline(model) or f"{model} is no model: it has no config.json")
    with one_line(model):
        _check_bounds(PreTrainedConfig.get_config_dict(model)[0])  # as it stands, before anything is made of it
        return AutoConfig.from_pretrained(model, trust_remote_code=False)


def _check_bounds(fields: object, name: str = "") -> None:
    """A stranger's config must not make a model of more layers or larger ones than anybody trains."""
    if isinstance(fields, dict):
        for key, value in fields.items():
            _check_bounds(value, str(key))
    elif isinstance(fields, list | tuple):
        for value in fields[:10_000]:
            _check_bounds(value, name)
    elif type(fields) is int and fields > (MAX_LAYERS if "layer" in name or "depth" in name else MAX_SIZE):
        raise ValueError(f"its config has {name} {fields}, more than any model of images needs")


def model_records(config: PreTrainedConfig) -> list[Record]:
    """The encryption records in a model's config: none for a model of plain images. Raises ConfigError."""
    stored = getattr(config, "neuracrypt", None) or []
    if not isinstance(stored, list):
        raise ConfigError("the model's config holds something else than a list under `neuracrypt`")
    return [Record.from_dict(record) for record in stored]


def load_classifier(model: str) -> PreTrainedModel:
    """The model alone, in evaluation mode, from safetensors alone. Raises NeuraCryptError."""
    if not Path(model).exists() and not may_have_files(model, WEIGHTS):
        raise HubError(f"cannot load the model {model}: it has no weights in safetensors files")
    with one_line(model):
        loaded, absent = _from_pretrained(AutoModelForImageClassification, model, load_model_config(model))
        if absent:
            raise ValueError(f"its files lack {len(absent)} of its weights, {min(absent)} among them")
        return loaded.eval()


def _from_pretrained(
    model_class: Any, name: str, config: PreTrainedConfig, **how: Any
) -> tuple[PreTrainedModel, set[str]]:
    """The model in float32, and which of its weights are in no file, or have another shape there: these are random."""
    _check_parameters(model_class, config)
    safe = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    model, found = model_class.from_pretrained(name, config=config, dtype=torch.float32, **safe, **how)
    return model, set(found["missing_keys"]) | {entry[0] for entry in found["mismatched_keys"]}


def _check_parameters(model_class: Any, config: PreTrainedConfig) -> None:
    """Each size may be harmless, and what they make together not: counted while it is built, without its memory."""
    built = {"layers": 0, "weights": 0}

    def count(what: str, more: int, limit: int) -> None:
        built[what] += more
        if built[what] > limit:
            raise ValueError(f"its config makes more than {limit:,} {what}, which no model of images needs")

    module = torch.nn.modules.module
    hooks = [
        module.register_module_module_registration_hook(lambda *_: count("layers", 1, MAX_MODULES)),
        module.register_module_parameter_registration_hook(
            lambda _, __, weight: count("weights", 0 if weight is None else weight.numel(), MAX_PARAMETERS)
        ),
    ]
    try:
        with torch.device("meta"):
            getattr(model_class, "from_config", model_class)(config)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def one_line(model: str, verb: str = "load") -> Iterator[None]:
    """Whatever goes wrong with a model that may be a stranger's, in one line, unlike what transformers logs of it.

    Raises:
        NeuraCryptError: for every error.
    """
    loudness = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(SILENT)
    try:
        yield
    except NeuraCryptError:
        raise
    except Exception as error:  # transformers raises whatever it stumbles over
        raise NeuraCryptError(
            explain(error, model) or f"cannot {verb} the model {model}: {first_line(error)}"
        ) from None
    finally:
        transformers_logging.set_verbosity(loudness)


def load_model(
    name: str | None,
    config_name: str | None,
    label_names: list[str],
    size: int | None,
    records: Sequence[Record],
    problem_type: Any = None,
) -> PreTrainedModel:
    """A stock image classifier with a head for `label_names`, in float32, to be trained on images of `size`.

    Position embeddings are interpolated when `size` is not the one the model was trained at. Of its config, what says
    how another task was trained decides nothing.

    Args:
        name: folder or Hub id of pre-trained weights; None to start from `config_name` with random weights.
        config_name: folder or Hub id of a config, by default that of `name`.
        label_names: in the order of their ids.
        size: None: the model's own.
        records: written into the model's config; their patch size must be the model's. None: plain images.
        problem_type: what the stock pipeline makes of the logits; None: probabilities of classes.

    Raises:
        NeuraCryptError: it cannot be loaded, its files lack weights of more than the head, or its patches are not
            those of the encryption.
    """
    source = config_name or name
    if source is None:
        raise NeuraCryptError("give the name of a model, or of a config")
    config = load_model_config(source)
    if config.model_type == "vit_mae":  # the encoder is a ViT, and its weights are named so
        config = ViTConfig(
            **{field: value for field, value in config.to_dict().items() if field in ViTConfig().to_dict()}
        )
    if not hasattr(vision(config), "image_size"):
        raise NeuraCryptError(f"{source} is a {config.model_type}, not a Vision Transformer for images of one size")
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        kind = config.model_type
        raise NeuraCryptError(
            f"{source} is a {kind}, of which transformers has no image classifier: take a ViT, DeiT, DINOv2 or SigLIP"
        )
    check_patches(config, records)
    for field, value in OURS.items():
        setattr(config, field, value)
    config.problem_type = problem_type
    with one_line(source):
        if (records and records[0].config.patch_shape) or isinstance(config, NeuraCryptViTConfig):
            model, absent = _patch_model(name, config, label_names, records)
        else:
            model, absent = _image_model(name, config, label_names, size)
    if body := sorted(weight for weight in absent if not HEAD.search(weight)):
        raise NeuraCryptError(
            f"the weights of {name} do not fit the config of {source}: {len(body)} are in no file of that shape, "
            f"{body[0]} among them; only the head may be new"
        )
    model.config.neuracrypt = [record.to_dict() for record in records] or None
    return model


def check_patches(config: PreTrainedConfig, records: Sequence[Record]) -> None:
    """Where an encryption works on a model's patches, they must be of one size. Raises NeuraCryptError."""
    for scheme in (record.config for record in records):
        own = side(config, "patch_size") if hasattr(vision(config), "patch_size") else scheme.tile
        if scheme.fits_patches and own != scheme.tile:
            advice = f"encrypt with --patch-size {own}"
            try:
                replace(scheme, patch_size=own)  # type: ignore[call-arg]
            except ConfigError:  # Swin, ConvNeXt: 4
                advice = f"a ciphertext is noise to it; take a model of patches of {scheme.tile}"
            raise NeuraCryptError(
                f"the model has patches of {own} pixels, the images were encrypted with {scheme.tile}: {advice}"
            )


def _image_model(
    name: str | None, config: PreTrainedConfig, label_names: list[str], size: int | None
) -> tuple[PreTrainedModel, set[str]]:
    config.num_labels = len(label_names)
    config.id2label, config.label2id = dict(enumerate(label_names)), {name: i for i, name in enumerate(label_names)}
    if name is None:
        vision(config).image_size = size or vision(config).image_size
        _check_parameters(AutoModelForImageClassification, config)
        return AutoModelForImageClassification.from_config(config, trust_remote_code=False), set()
    model, absent = _from_pretrained(AutoModelForImageClassification, name, config, ignore_mismatched_sizes=True)
    return model if size in (None, side(config, "image_size")) else at_size(model, size), absent


def _patch_model(
    name: str | None, config: PreTrainedConfig, label_names: list[str], records: Sequence[Record]
) -> tuple[PreTrainedModel, set[str]]:
    """A ViT on the float32 patches of `records`; the layers of a stock ViT are taken over."""
    scheme = records[0].config if records else None
    shape = scheme.patch_shape if scheme else None
    if scheme is None or shape is None:
        given = f"{scheme.scheme} gives images" if scheme else "plain images have none"
        raise NeuraCryptError(f"a neuracrypt-vit takes patch representations, {given}")
    if config.model_type not in ("vit", "neuracrypt-vit") or config.hidden_size != shape[1]:
        raise NeuraCryptError(
            f"the encrypted patches have {shape[1]} values: they need a vit or neuracrypt-vit of that hidden_size, "
            f"not a {config.model_type}{f' of {config.hidden_size}' if hasattr(config, 'hidden_size') else ''}"
        )
    fields = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    labels = dict(enumerate(label_names))
    fields |= {"num_patches": shape[0], "positions": not scheme.shuffles, "id2label": labels}
    fields |= {"label2id": {label: number for number, label in labels.items()}}
    fitted = NeuraCryptViTConfig(**fields)
    if name is not None and isinstance(config, NeuraCryptViTConfig):
        return _from_pretrained(NeuraCryptViTForImageClassification, name, fitted, ignore_mismatched_sizes=True)
    _check_parameters(NeuraCryptViTForImageClassification, fitted)
    model = NeuraCryptViTForImageClassification(fitted)
    if name is None:
        return model, set()
    stock, absent = _from_pretrained(AutoModelForImageClassification, name, config)
    model.take_layers(stock)
    return model, absent


def stock_processor(size: int, plain: bool = False) -> ViTImageProcessorPil:
    """What is saved beside the model: encrypted images are taken as they are, never resized.

    The class without torchvision: it is saved under the plain name `ViTImageProcessor`, which loads everywhere.
    """
    half = [0.5, 0.5, 0.5]
    shape = {"height": size, "width": size}
    return ViTImageProcessorPil(do_resize=plain, size=shape, resample=2, image_mean=half, image_std=half)
