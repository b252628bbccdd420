"""The encoders, one file a scheme: uint8 RGB batch in, encoded batch out, stateless."""

import torch

from hf_neuracrypt.configuration import EncoderConfig
from hf_neuracrypt.encoders.color_neuracrypt import ColorNeuraCrypt
from hf_neuracrypt.errors import ConfigError, first_line
from hf_neuracrypt.keys import SecretKey


ENCODERS = {"color-neuracrypt/v1": ColorNeuraCrypt}


def load_encoder(
    config: EncoderConfig, key: SecretKey, device: str | torch.device = "cpu", compile: bool = False
) -> ColorNeuraCrypt:
    """The encoder of `config`, keyed; its `encrypt` takes a uint8 batch (B, 3, S, S) and gives one back.

    Args:
        config: public parameters.
        key: the secret key.
        device: where the encoder computes; the bytes are the same everywhere.
        compile: use torch.compile where the products are not fused; worth its start-up time for long jobs.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device it lacks
        raise ConfigError(f"device {device} cannot be used here: {first_line(error)}") from None
    return ENCODERS[config.algorithm](config, key, device=device, compile=compile)
