"""The encoders, one file a family of schemes: uint8 RGB batch in, encoded batch out, stateless."""

import torch

from hf_neuracrypt.configuration import PublicConfig
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.encoders.blockwise import ELE, LE, PE, EtC, ViTBlockwise
from hf_neuracrypt.encoders.color_neuracrypt import ColorNeuraCrypt
from hf_neuracrypt.encoders.neuracrypt import ColorNeuraCryptFloat, NeuraCrypt
from hf_neuracrypt.errors import ConfigError, first_line
from hf_neuracrypt.keys import SecretKey


ENCODERS: dict[str, type[Encoder]] = {
    "color-neuracrypt/v1": ColorNeuraCrypt,
    "le/v1": LE,
    "pe/v1": PE,
    "etc/v1": EtC,
    "ele/v1": ELE,
    "vit-blockwise/v1": ViTBlockwise,
    "color-neuracrypt-float/v1": ColorNeuraCryptFloat,
    "neuracrypt/v1": NeuraCrypt,
}


def load_encoder(
    config: PublicConfig, key: SecretKey, device: str | torch.device = "cpu", compile: bool = False
) -> Encoder:
    """The encoder of `config`, keyed; its `encrypt` takes a uint8 batch (B, 3, S, S) and gives one back
    (`neuracrypt`: float32 patches).

    Args:
        config: public parameters; their class says which scheme.
        key: the secret key.
        device: where the encoder computes; the bytes are the same everywhere, but for the float32 schemes.
        compile: for Color-NeuraCrypt: use torch.compile where the products are not fused; worth its start-up time for
            long jobs.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device it lacks
        raise ConfigError(f"device {device} cannot be used here: {first_line(error)}") from None
    encoder = ENCODERS[config.algorithm]
    return encoder(config, key, device, **({"compile": True} if compile and encoder is ColorNeuraCrypt else {}))
