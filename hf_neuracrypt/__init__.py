"""hf_neuracrypt: encrypt image datasets with a secret key, and train a stock Vision Transformer on the ciphertexts.

The public names are `SecretKey`, `EncoderConfig`, `load_encoder`, `encrypt_dataset`, `EncryptedView` and
`Classifier`; they are imported when first used, so that `import hf_neuracrypt` and `hf-neuracrypt --help` do not wait
for torch.
"""

import importlib
from typing import TYPE_CHECKING

from hf_neuracrypt.errors import NeuraCryptError


if TYPE_CHECKING:
    from hf_neuracrypt.data.dataset import encrypt_dataset
    from hf_neuracrypt.data.view import EncryptedView
    from hf_neuracrypt.encoders import load_encoder
    from hf_neuracrypt.keys import SecretKey
    from hf_neuracrypt.prediction.classifier import Classifier
    from hf_neuracrypt.schemes import EncoderConfig

__version__ = "0.1.0"
__all__ = [
    "Classifier", "EncoderConfig", "EncryptedView", "NeuraCryptError", "SecretKey", "__version__", "encrypt_dataset",
    "load_encoder",
]  # fmt: skip

_HOMES = {
    "Classifier": "prediction.classifier",
    "EncoderConfig": "schemes",
    "EncryptedView": "data.view",
    "SecretKey": "keys",
    "encrypt_dataset": "data.dataset",
    "load_encoder": "encoders",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_neuracrypt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hf_neuracrypt.{_HOMES[name]}"), name)
