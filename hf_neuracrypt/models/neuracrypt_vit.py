"""A Vision Transformer on a patch representation, `neuracrypt-vit`: the row "NeuraCrypt" of the paper's table.

The encodings of NeuraCrypt go straight into the encoder of a ViT: there is no patch embedding, and no position
embedding where the patches are shuffled. A pre-trained ViT gives its layers, and nothing of it helps the input.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ViTConfig
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention
from transformers.models.vit.modeling_vit import ViTLayer

from hf_neuracrypt.errors import ConfigError


class NeuraCryptViTConfig(ViTConfig):
    """Config of `NeuraCryptViTForImageClassification`: a ViT's, `hidden_size` being the width of the representation.

    Args:
        num_patches: of a representation.
        positions: add a trained position embedding; off where patches are shuffled.
    """

    model_type = "neuracrypt-vit"

    num_patches: int = 256
    positions: bool = False


class NeuraCryptViTForImageClassification(PreTrainedModel):
    """The layers of a ViT on patch representations, class token first."""

    config_class = NeuraCryptViTConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: NeuraCryptViTConfig):
        super().__init__(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = (
            nn.Parameter(torch.zeros(1, 1 + config.num_patches, config.hidden_size)) if config.positions else None
        )
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 0)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        """float32 (B, num_patches, hidden_size), int64 (B,) -> logits (B, num_labels) and the cross entropy.

        The input bears the name that `Trainer` gives to a classifier's input. Raises ConfigError for another shape.
        """
        if pixel_values.shape[1:] != (self.config.num_patches, self.config.hidden_size):
            raise ConfigError(
                f"a representation of shape {tuple(pixel_values.shape[1:])} does not fit a model of "
                f"{self.config.num_patches} patches of {self.config.hidden_size} values"
            )
        h = torch.cat([self.cls_token.expand(len(pixel_values), -1, -1), pixel_values], dim=1)
        if self.position_embeddings is not None:
            h = h + self.position_embeddings
        for layer in self.layers:
            h = layer(h)
        logits = self.classifier(self.layernorm(h)[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    def take_layers(self, vit: PreTrainedModel) -> None:
        """Copy class token, layers and last norm of a pre-trained ViT. Raises ConfigError if they have other sizes."""
        body: Any = vit.base_model
        try:
            self.layers.load_state_dict(body.layers.state_dict())
            self.layernorm.load_state_dict(body.layernorm.state_dict())
            with torch.no_grad():
                self.cls_token.copy_(body.embeddings.cls_token)
        except RuntimeError:
            raise ConfigError("the layers of the pre-trained model have other sizes") from None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NeuraCryptViTForImageClassification):
            for token in (module.cls_token, module.position_embeddings):
                if token is not None:
                    init.trunc_normal_(token, std=self.config.initializer_range)
