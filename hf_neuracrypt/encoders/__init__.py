"""The encoders, one file a family of schemes: uint8 RGB batch in, encoded batch out, stateless."""

import torch

from hf_neuracrypt import schemes
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.encoders.blockwise import ELE, LE, PE, EtC, ViTBlockwise
from hf_neuracrypt.encoders.color_neuracrypt import ColorNeuraCrypt
from hf_neuracrypt.encoders.neuracrypt import ColorNeuraCryptFloat, NeuraCrypt
from hf_neuracrypt.errors import ConfigError, first_line
from hf_neuracrypt.keys import SecretKey


ENCODERS: dict[type[schemes.SchemeConfig], type[Encoder]] = {
    schemes.EncoderConfig: ColorNeuraCrypt,
    schemes.LEConfig: LE,
    schemes.PEConfig: PE,
    schemes.EtCConfig: EtC,
    schemes.ELEConfig: ELE,
    schemes.ViTBlockwiseConfig: ViTBlockwise,
    schemes.FloatConfig: ColorNeuraCryptFloat,
    schemes.NeuraCryptConfig: NeuraCrypt,
}


def load_encoder(config: schemes.SchemeConfig, key: SecretKey, device: str | torch.device = "cpu") -> Encoder:
    """The encoder of `config`, keyed; its `encrypt` takes a uint8 batch (B, 3, S, S) and gives one back
    (`neuracrypt`: float32 patches).

    Args:
        config: public parameters; their class says which scheme.
        key: the secret key.
        device: where the encoder computes; the bytes are the same everywhere, but for the float32 schemes.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device it lacks
        raise ConfigError(f"device {device} cannot be used here: {first_line(error)}") from None
    return ENCODERS[type(config)](config, key, device)
