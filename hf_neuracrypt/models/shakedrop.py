"""PyramidNet with ShakeDrop: the classifier of the block-wise ciphers (Madono et al. 2020), `shakedrop`.

PyramidNet (Han et al. 2017) widens a little in every unit; ShakeDrop (Yamada et al. 2018) disturbs the residual branch
of a unit at random while training. The settings are those behind the published figures: depth 110, widening 270, basic
units, probability growing linearly to 0.5. Their training saw pixels in [0, 1]; ours are in [-1, 1] like those of all
models here, which the first convolution absorbs.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class ShakeDropConfig(PreTrainedConfig):
    """Config of `ShakeDropForImageClassification`; the defaults are the published ones, 28.5 million parameters.

    Args:
        image_size: of the input, a multiple of 4.
        num_channels: of the input.
        depth: 6 n + 2, for n units in each of three stages.
        widening: channels that all units together add to the first `width`.
        width: channels of the first convolution.
        drop_probability: of the last unit to be shaken; that of the first is near 0.
    """

    model_type = "shakedrop"

    image_size: int = 32
    num_channels: int = 3
    depth: int = 110
    widening: int = 270
    width: int = 16
    drop_probability: float = 0.5

    @classmethod
    def small(cls, **changes):
        """For a CPU: 20 layers, three hundred thousand parameters."""
        return cls(**({"depth": 20, "widening": 48} | changes))


class ShakeDrop(nn.Module):
    """The residual branch h (B, C, H, W), shaken: forward and backward pass are scaled by different random numbers.

    Training: one gate for the batch. With `probability` it closes, and each image's branch becomes alpha h, alpha
    uniform on [-1, 1], while its gradient is scaled by beta, uniform on [0, 1]. Evaluation: the expectation,
    (1 - probability) h.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return (1 - self.probability) * h
        if torch.rand(()) >= self.probability:  # on the CPU: reading a GPU's number would wait for it in every unit
            return h
        alpha = torch.empty(len(h), 1, 1, 1, device=h.device, dtype=h.dtype).uniform_(-1, 1)
        beta = torch.rand_like(alpha)
        return beta * h + ((alpha - beta) * h).detach()


class PyramidUnit(nn.Module):
    """Batch norm, 3x3 convolution, batch norm, ReLU, 3x3 convolution, batch norm; new channels start at zero."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, probability: float):
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shake_drop = ShakeDrop(probability)
        self.shortcut = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.new_channels = out_channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = nn.functional.pad(self.shortcut(x), (0, 0, 0, 0, 0, self.new_channels))
        return shortcut + self.shake_drop(self.branch(x))


class PyramidNet(nn.Module):
    """(B, in_channels, S, S) -> logits (B, num_labels)."""

    def __init__(self, config: ShakeDropConfig, in_channels: int):
        super().__init__()
        units = (config.depth - 2) // 6
        total = 3 * units
        channels = [config.width + math.ceil(config.widening * done / total) for done in range(total + 1)]
        self.first = nn.Sequential(nn.Conv2d(in_channels, config.width, 3, padding=1), nn.BatchNorm2d(config.width))
        self.units = nn.Sequential(
            *(
                PyramidUnit(
                    channels[number],
                    channels[number + 1],
                    stride=2 if number in (units, 2 * units) else 1,
                    probability=config.drop_probability * (number + 1) / total,
                )
                for number in range(total)
            )
        )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.classifier = nn.Linear(channels[-1], config.num_labels or 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.units(self.first(x))))
        return self.classifier(h.mean((2, 3)))


class ShakeDropPreTrainedModel(PreTrainedModel):
    """What transformers asks of the models of this file: their config, and how weights begin."""

    config_class = ShakeDropConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            init.normal_(module.weight, std=math.sqrt(2 / (height * width * module.out_channels)))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.in_channels * height * width)
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            state = module.state_dict(keep_vars=True)
            for name in ("weight", "running_var"):
                init.ones_(state[name])
            for name in ("bias", "running_mean", "num_batches_tracked"):
                init.zeros_(state[name])


class ShakeDropForImageClassification(ShakeDropPreTrainedModel):
    """`shakedrop`: PyramidNet with ShakeDrop on images, plain or encrypted."""

    def __init__(self, config: ShakeDropConfig):
        super().__init__(config)
        self.network = PyramidNet(config, config.num_channels)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        """float32 (B, C, S, S), int64 (B,) -> logits (B, num_labels) and the cross entropy."""
        logits = self.network(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
