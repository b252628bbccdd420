"""Color-NeuraCrypt in float32, to be read beside Fig. 2b of the paper: what the exact encoder is tested against.

The same keyed weights, in units of grey levels; no rounding and no upper limit. It is slower, and its last digits
depend on device and batch size, so nothing is ever encrypted with it.
"""

import torch
from torch import nn

from hf_neuracrypt.encoders.color_neuracrypt import expand
from hf_neuracrypt.encoders.kernels import Layer
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EncoderConfig


class ColorNeuraCryptReference(nn.Module):
    """float32 images (B, 3, S, S) with values 0 to 255 -> float32 (B, 3, S, S), mostly within 0 to 255."""

    def __init__(self, config: EncoderConfig, key: SecretKey):
        super().__init__()
        network = expand(config, key)
        grid, patch = config.image_size // config.patch_size, config.patch_size
        first, *rest = network.hidden
        self.patch_embedding = _convolution(first, 3, patch)
        self.blocks = nn.Sequential(*(nn.Sequential(_convolution(layer, config.width, 1), nn.ReLU()) for layer in rest))
        position = torch.from_numpy(network.position).float()
        self.register_buffer("position_embedding", position.t().reshape(config.width, grid, grid))
        self.projection = _convolution(network.projection, config.width, 1)
        self.pixel_shuffle = nn.PixelShuffle(patch)
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.patch_embedding(images - 128))
        h = self.blocks(h)
        h = torch.relu(h + self.position_embedding)
        return self.pixel_shuffle(self.projection(h)) + 128


def _convolution(layer: Layer, channels: int, kernel: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, len(layer.weight), kernel, stride=kernel)
    scale = 2.0**-layer.shift
    weight = torch.from_numpy(layer.weight).float().reshape(convolution.weight.shape)
    convolution.weight = nn.Parameter(weight * scale)
    convolution.bias = nn.Parameter(torch.from_numpy(layer.bias).float() * scale)
    return convolution
