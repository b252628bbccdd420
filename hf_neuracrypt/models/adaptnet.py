"""Adaptation networks in front of ShakeDrop, which learn to undo a block-wise cipher: `adaptnet-shakedrop`.

Madono et al. 2020 (arXiv 2001.07761; github.com/MADONOKOUKI/Block-wise-Scrambled-Image-Recognition). A block of B x B
pixels becomes 16 B^2 features, which a pixel shuffle lays out as 16 channels at the block's place. LE-AdaptNet treats
all blocks alike; ELE-AdaptNet has weights for each block, and a matrix that may learn to put the blocks back.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from hf_neuracrypt.errors import ConfigError
from hf_neuracrypt.models.shakedrop import PyramidNet, ShakeDropConfig, ShakeDropPreTrainedModel


FEATURES = 16  # channels of an adaptation network's output
SMOOTHED = 3  # of them, those that the published code smooths


class AdaptNetShakeDropConfig(ShakeDropConfig):
    """Config of `AdaptNetShakeDropForImageClassification`.

    Args:
        adaptation: "le" or "ele"; "ele" is the published one, 29.3 million parameters with the default classifier.
        block_size: that of the cipher, in pixels.
        permutation_weight, smoothness_weight: of the two regularisers of "ele" in the loss.
    """

    model_type = "adaptnet-shakedrop"

    adaptation: str = "ele"
    block_size: int = 4
    permutation_weight: float = 0.001
    smoothness_weight: float = 0.1


class LEAdaptNet(nn.Module):
    """One convolution for all blocks, batch norm, leaky ReLU, pixel shuffle: (B, C, S, S) -> (B, 16, S, S).

    The published code normalises the blocks of one position after the other. Its running statistics are then those of
    the last positions, the lower right corner, and what was learned with others is tested with them.
    """

    def __init__(self, config: AdaptNetShakeDropConfig):
        super().__init__()
        block, width = config.block_size, FEATURES * config.block_size**2
        self.convolution = nn.Conv2d(config.num_channels, width, block, stride=block, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pixel_shuffle = nn.PixelShuffle(block)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.pixel_shuffle(nn.functional.leaky_relu(self.norm(self.convolution(images)), 0.1))


class ELEAdaptNet(nn.Module):
    """A spectrally normalised convolution and batch norm for each block, leaky ReLU, a matrix over the blocks.

    (B, C, S, S) -> (B, 16, S, S). The N convolutions of one block each are one product; batch norm of N x 16 B^2
    features that each occur once an image is that of N separate ones.
    """

    def __init__(self, config: AdaptNetShakeDropConfig):
        super().__init__()
        self.block, self.grid = config.block_size, config.image_size // config.block_size
        count, width = self.grid**2, FEATURES * self.block**2
        self.weight = nn.Parameter(torch.empty(count, width, config.num_channels * self.block**2))
        self.left: torch.Tensor
        self.register_buffer("left", nn.functional.normalize(torch.randn(count, width), dim=1))
        self.norm = nn.BatchNorm1d(count * width)
        self.permutation = nn.Parameter(torch.empty(count, count))
        self.pixel_shuffle = nn.PixelShuffle(self.block)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        blocks = nn.functional.unfold(images, self.block, stride=self.block)  # (B, C B^2, N), values (c, dy, dx)
        h = torch.einsum("bkn,nok->bno", blocks, self.normalised_weight())
        h = nn.functional.leaky_relu(self.norm(h.flatten(1)), 0.2).view_as(h)
        h = torch.einsum("bno,nm->bom", h, self.permutation)
        return self.pixel_shuffle(h.reshape(len(images), -1, self.grid, self.grid))

    def normalised_weight(self) -> torch.Tensor:
        """The weights, each block's divided by its largest singular value: a power iteration in each training step."""
        with torch.no_grad():
            right = nn.functional.normalize(torch.einsum("nok,no->nk", self.weight, self.left), dim=1)
            left = nn.functional.normalize(torch.einsum("nok,nk->no", self.weight, right), dim=1)
            if self.training:
                self.left.copy_(left)
        return self.weight / torch.einsum("no,nok,nk->n", left, self.weight, right)[:, None, None]


class AdaptNetShakeDropForImageClassification(ShakeDropPreTrainedModel):
    """`adaptnet-shakedrop`: an adaptation network, then PyramidNet with ShakeDrop. Raises ConfigError."""

    config_class = AdaptNetShakeDropConfig

    def __init__(self, config: AdaptNetShakeDropConfig):
        super().__init__(config)
        if config.adaptation not in ("le", "ele"):
            raise ConfigError(f"adaptation {config.adaptation!r} is not supported: choose from le, ele")
        if config.image_size % config.block_size:
            raise ConfigError(f"image_size {config.image_size} is not a multiple of block_size {config.block_size}")
        self.adaptation = (LEAdaptNet if config.adaptation == "le" else ELEAdaptNet)(config)
        self.network = PyramidNet(config, FEATURES)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        """float32 (B, C, S, S), int64 (B,) -> logits (B, num_labels) and the loss.

        The loss is the cross entropy; "ele" adds its regularisers while training.
        """
        features = self.adaptation(pixel_values)
        logits = self.network(features)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        if loss is not None and self.training and isinstance(self.adaptation, ELEAdaptNet):
            loss = loss + self.config.permutation_weight * permutation_penalty(self.adaptation.permutation)
            loss = loss + self.config.smoothness_weight * smoothness_penalty(features)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ELEAdaptNet):
            init.normal_(module.weight, std=math.sqrt(2 / module.weight.shape[1] / module.block**2))
            init.kaiming_uniform_(module.permutation, a=math.sqrt(5))


def permutation_penalty(matrix: torch.Tensor) -> torch.Tensor:
    """Mean over an (N, N) matrix's rows and columns of |.|_1 - |.|_2, by N^2: 0 if each has one entry at most."""
    norms = sum((matrix.norm(1, dim) - matrix.norm(2, dim)).sum() for dim in (0, 1))
    return norms / matrix.numel()


def smoothness_penalty(features: torch.Tensor) -> torch.Tensor:
    """Squared differences of neighbours in the first 3 channels of (B, 16, S, S), scaled as the published code does."""
    batch, channels, height, width = features.shape
    x = features[:, :SMOOTHED]
    inner = x[:, :, :-1, :-1]
    differences = (x[:, :, 1:, :-1] - inner).square() + (x[:, :, :-1, 1:] - inner).square()
    return differences.sum() / ((height - 1) * width * channels * batch)
