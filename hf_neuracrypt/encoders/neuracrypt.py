"""The random network as published, in float32: `neuracrypt/v1` and `color-neuracrypt-float/v1`, for comparison.

NeuraCrypt (Yala et al. 2021, arXiv 2106.02484; class PrivateEncoder of github.com/yala/NeuraCrypt), and what
Color-NeuraCrypt (section 3.2) makes of it:

    x    uint8 RGB -> [-1, 1], or normalised grey -> patches (c, dy, dx)                              (B, N, C P^2)
    h    ReLU(x W^T + b), then depth times ReLU(batch norm(h W^T + b))                                (B, N, width)
    y    ReLU(h + E[position]) W^T + b                                                                (B, N, out)

For NeuraCrypt out = width, y is the ciphertext, and its patches are shuffled. For Color-NeuraCrypt out = 3 P^2, and a
pixel shuffle makes an image of y. W and b are uniform on +-1/sqrt(fan in), as
torch's default is, E is normal, all drawn from the key's stream instead of torch's generator.

Notable decisions
- Batch norm of the original never keeps statistics: "batch" repeats that, and the same image has another ciphertext in
  another batch. "frozen" normalises by the statistics of 64 images drawn from the key, so that nothing depends on
  neighbours and no owner's data is needed to make a network; the paper does not say which of them it used.
- Float32 sums depend on the processor in their last digits, so a stored byte may differ by one between machines. Only
  `color-neuracrypt` promises bytes.
- NeuraCrypt's shuffle is new for each image and each call, and forgotten. Ours follows from key and image, so that an
  image has one ciphertext.
- The paper says nothing of storage: y is stored as clamp(round(scale * y) + 128, 0, 255), `scale` being public.
"""

import hashlib
import math
import warnings

import numpy as np
import torch
from einops import rearrange

from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import FloatConfig, NetworkConfig, NeuraCryptConfig


EPSILON = 1e-5  # of nn.BatchNorm2d
GREY_MEAN, GREY_STD = 43.9, 63.2  # of the original's chest X-rays
CALIBRATION_IMAGES = 64
CHUNK_IMAGES = 16  # images a network works on at a time, where the batch does not matter
Linear = tuple[torch.Tensor, torch.Tensor]  # weight (out, in), bias (out,)


class RandomNetwork(Encoder):
    """The keyed layers in float32.

    Args:
        config: public parameters.
        key: the secret key.
        device: where the network lives.
        channels: 1, grey, or 3.
        out: values a patch becomes.
    """

    config: NetworkConfig

    def __init__(self, config: NetworkConfig, key: SecretKey, device: str | torch.device, channels: int, out: int):
        super().__init__(config, key, device)
        self.channels, fan_in = channels, channels * config.patch_size**2
        self.hidden = []
        for index in range(config.depth + 1):
            self.hidden.append(self._linear(f"layer/{index}", config.width, fan_in))
            fan_in = config.width
        normal = math.sqrt(2) * torch.erfinv(self._uniform("position", (config.num_patches, config.width)))
        self.position = normal.float().to(self.device)
        self.projection = self._linear("projection", out, config.width)
        self._frozen = None
        if config.batch_norm == "batch":
            warnings.warn("batch_norm batch: a ciphertext depends on the images it is encrypted with", stacklevel=3)
        elif config.batch_norm == "frozen":
            self._frozen = self._calibrate()

    def secrets(self) -> list[np.ndarray]:
        return [weight.cpu().numpy() for weight, _ in (*self.hidden, self.projection)]

    @torch.no_grad()  # not inference_mode: a representation may go straight into training
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, S, S) -> float32 (B, N, out) on the encoder's device."""
        images = images.to(self.device)
        if self.config.batch_norm == "batch" or len(images) <= CHUNK_IMAGES:
            return self._forward(images, self._frozen)[0]
        return torch.cat([self._forward(part, self._frozen)[0] for part in images.split(CHUNK_IMAGES)])

    def _forward(self, images: torch.Tensor, statistics: list[Linear] | None) -> tuple[torch.Tensor, list[Linear]]:
        """(y, mean and variance of each normalised layer); statistics None: those of this batch."""
        first, *blocks = self.hidden
        h = torch.relu(torch.nn.functional.linear(self._patches(images), *first))
        used = []
        for index, layer in enumerate(blocks):
            h = torch.nn.functional.linear(h, *layer)
            if self.config.batch_norm != "none" and h.numel():
                mean, variance = statistics[index] if statistics else (h.mean((0, 1)), h.var((0, 1), correction=0))
                used.append((mean, variance))
                h = (h - mean) / torch.sqrt(variance + EPSILON)
            h = torch.relu(h)
        return torch.nn.functional.linear(torch.relu(h + self.position), *self.projection), used

    def _patches(self, images: torch.Tensor) -> torch.Tensor:
        if self.channels == 1:
            red, green, blue = images.float().unbind(1)
            values = ((0.299 * red + 0.587 * green + 0.114 * blue - GREY_MEAN) / GREY_STD)[:, None]
        else:
            values = images.float() / 127.5 - 1
        patch = self.config.patch_size
        return rearrange(values, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)

    @torch.no_grad()
    def _calibrate(self) -> list[Linear]:
        """The statistics of keyed synthetic images: large areas of one colour, and a little noise."""
        size, public = self.config.image_size, self.config.to_json()
        coarse = self.key.integers(public, "calibration", (CALIBRATION_IMAGES, 3, 4, 4)).astype(np.float32)
        noise = self.key.integers(public, "calibration/noise", (CALIBRATION_IMAGES, 3, size, size), 5)
        images = torch.nn.functional.interpolate(torch.from_numpy(coarse), (size, size), mode="bilinear")
        images = (images + torch.from_numpy(noise) + 128).clamp(0, 255).byte()
        return self._forward(images.to(self.device), None)[1]

    def _linear(self, purpose: str, out: int, fan_in: int) -> Linear:
        bound = 1 / math.sqrt(fan_in)
        weight, bias = self._uniform(f"{purpose}/weight", (out, fan_in)), self._uniform(f"{purpose}/bias", (out,))
        return (bound * weight).float().to(self.device), (bound * bias).float().to(self.device)

    def _uniform(self, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Keyed float64 numbers, uniform on (-1, 1): three digits of base 255, from -127 to 127 each."""
        digits = self.key.integers(self.config.to_json(), purpose, (*shape, 3)).astype(np.int64)
        whole = digits[..., 0] * 255**2 + digits[..., 1] * 255 + digits[..., 2]
        return torch.from_numpy(whole / (255**3 / 2))


class ColorNeuraCryptFloat(RandomNetwork):
    """Color-NeuraCrypt as published: a patch representation of 3 P^2 values a patch, pixel-shuffled to an image."""

    config: FloatConfig

    def __init__(self, config: FloatConfig, key: SecretKey, device: str | torch.device = "cpu"):
        super().__init__(config, key, device, channels=3, out=3 * config.patch_size**2)

    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 RGB (B, 3, image_size, image_size) -> uint8 RGB of the same shape; see `Encoder.encrypt`."""
        self._check(images)
        patch, grid = self.config.patch_size, self.config.image_size // self.config.patch_size
        y = (self.encode(images) * self.config.scale).round().add(128).clamp(0, 255).byte().to(images.device)
        return rearrange(y, "b (h w) (c p q) -> b c (h p) (w q)", h=grid, p=patch, q=patch).contiguous()


class NeuraCrypt(RandomNetwork):
    """NeuraCrypt as published: a patch representation of `width` values a patch, not an image."""

    config: NeuraCryptConfig

    def __init__(self, config: NeuraCryptConfig, key: SecretKey, device: str | torch.device = "cpu"):
        super().__init__(config, key, device, config.channels, config.width)

    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 RGB (B, 3, image_size, image_size) -> float32 (B, patches, width). Raises ImageError."""
        y = self.encrypt_in_place(images)
        if self.config.shuffles:
            for number, image in enumerate(images):
                y[number] = y[number, self.shuffle_order(image)]
        return y

    def encrypt_in_place(self, images: torch.Tensor) -> torch.Tensor:
        self._check(images)
        return self.encode(images).to(images.device)

    def shuffle_order(self, image: torch.Tensor) -> list[int]:
        if not self.config.shuffles:
            return super().shuffle_order(image)
        digest = hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).hexdigest()
        return self.key.permutation(self.config.to_json(), f"shuffle/{digest}", self.config.num_patches)
