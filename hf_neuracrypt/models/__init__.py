"""Image classifiers that transformers does not have. Importing this makes its `Auto…` and `pipeline` know them."""

from transformers import AutoConfig, AutoModelForImageClassification

from hf_neuracrypt.models.adaptnet import AdaptNetShakeDropConfig, AdaptNetShakeDropForImageClassification
from hf_neuracrypt.models.neuracrypt_vit import NeuraCryptViTConfig, NeuraCryptViTForImageClassification
from hf_neuracrypt.models.shakedrop import ShakeDropConfig, ShakeDropForImageClassification


for _config, _model in (
    (ShakeDropConfig, ShakeDropForImageClassification),
    (AdaptNetShakeDropConfig, AdaptNetShakeDropForImageClassification),
    (NeuraCryptViTConfig, NeuraCryptViTForImageClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)

__all__ = [
    "AdaptNetShakeDropConfig",
    "AdaptNetShakeDropForImageClassification",
    "NeuraCryptViTConfig",
    "NeuraCryptViTForImageClassification",
    "ShakeDropConfig",
    "ShakeDropForImageClassification",
]
