"""Color-NeuraCrypt in exact 8-bit integer arithmetic: algorithm `color-neuracrypt/v1`.

Fig. 2b of the paper (Qi, MaungMaung, Kiya), written down completely. All sums are int32 and no sum of products leaves
(-2^24, 2^24), so int8, float32, TF32 and bf16 matrix products give the same integers: the same key gives the same bytes
on any device, at any batch size, thread count and torch version.

    x    uint8 RGB (B, 3, S, S) -> patches in pixel-shuffle order (c, dy, dx), minus 128           (B * N, 3 P^2)
    h    depth + 1 times: clamp(rshift(h W^T + b, s), 0, 127)                                      (B * N, width)
    h    clamp(h + E[position], 0, 127)
    y    clamp(rshift(h W^T + b, s), -128, 127) + 128 -> pixel shuffle -> uint8 RGB (B, 3, S, S)

rshift(v, s) = floor((v + 2^(s-1)) / 2^s). W is (out, in), b is (out,), E is (N, width): keyed integers, drawn by
`SecretKey.integers` under the purposes "layer/0/weight", "layer/0/bias", ..., "projection/weight", "projection/bias"
and "position", with the canonical JSON of the config as the public text. b is 127 times the drawn integers (PyTorch's
default bias at the scale of a unit input). The constants below fix the number of bits and the shifts.

No batch norm: the original's uses the statistics of the batch, so that an image's ciphertext depends on its neighbours.
No patch shuffle: section 3.2 removes it, and it hides nothing (the position embedding gives the positions away).
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.encoders.kernels import KERNELS, Layer, fastest
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EncoderConfig


UNIT = 127  # int8 stands for [-1, 1]
POSITION_BITS = 5  # E in [-15, 15]: about three quarters of the ciphertext's variance is then positional
PIXEL_MEAN_SQUARE = 64**2  # of (pixel - 128) on natural photos; measured 63 to 64 rms on photos and on CIFAR-10
LAYER_MEAN_SQUARE = 36**2  # the most a layer is expected to reach: then under 2 % of its values saturate

GPU_CHUNK_VALUES = 1 << 27  # values a GPU works on at a time: half a GiB of int32 sums


def weight_bits(fan_in: int) -> int:
    """Bits of a keyed weight: 8, fewer where `fan_in` products with |h| <= 128 could leave 2^24."""
    return 8 if fan_in <= 1024 else 7 if fan_in <= 2048 else 6


@dataclass(frozen=True)
class Network:
    """The keyed network: `depth + 1` hidden layers, `position` int8 (num_patches, width), and the projection."""

    hidden: list[Layer]
    position: np.ndarray
    projection: Layer


def expand(config: EncoderConfig, key: SecretKey) -> Network:
    """Derive the network of (config, key); some 20 ms for the default config."""
    public, patch_values = config.to_json(), 3 * config.patch_size**2

    def draw(purpose: str, out: int, fan_in: int, mean_square: Fraction, zero: int) -> tuple[Layer, Fraction]:
        """The layer, and the mean square expected after it, given that before it."""
        bits, hidden = weight_bits(fan_in), purpose != "projection"
        largest = (1 << (bits - 1)) - 1
        # Uniform integers on [-m, m] have variance m (m + 1) / 3; ReLU halves a symmetric mean square.
        expected = (mean_square * fan_in + UNIT**2) * Fraction(largest * (largest + 1), 6 if hidden else 3)
        shift = 1
        while expected / 4**shift > LAYER_MEAN_SQUARE:
            shift += 1
        weight = key.integers(public, f"{purpose}/weight", (out, fan_in), bits)
        bias = UNIT * key.integers(public, f"{purpose}/bias", (out,), bits).astype(np.int32)
        return Layer(weight, bias, shift, zero, hidden), expected / 4**shift

    hidden, fan_in, mean_square = [], patch_values, Fraction(PIXEL_MEAN_SQUARE)
    for index in range(config.depth + 1):
        layer, mean_square = draw(f"layer/{index}", config.width, fan_in, mean_square, 0 if index else 128)
        hidden.append(layer)
        fan_in = config.width
    position = key.integers(public, "position", (config.num_patches, config.width), POSITION_BITS)
    largest = (1 << (POSITION_BITS - 1)) - 1
    mean_square += Fraction(largest * (largest + 1), 6)
    projection, _ = draw("projection", patch_values, config.width, mean_square, 0)
    return Network(hidden, position, projection)


class ColorNeuraCrypt(Encoder):
    """The encoder: stateless, the same bytes for an image whatever batch it comes in.

    Args:
        config: public parameters.
        key: the secret key. The object holds the network derived from it and is as secret as the key.
        device: where the network lives; images are moved there and their ciphertexts back.
        kernel: "fused", "int8" or "float32" (see `kernels`). All give the same bytes; default: the fastest here.

    Attributes:
        layers: the kernels, hidden ones and the projection: uint8 (rows, in) -> uint8 (rows, out).
    """

    config: EncoderConfig

    def __init__(
        self,
        config: EncoderConfig,
        key: SecretKey,
        device: str | torch.device = "cpu",
        kernel: str | None = None,
    ):
        super().__init__(config, key, device)
        if kernel is not None and kernel not in KERNELS:
            raise NeuraCryptError(f"kernel {kernel!r} is not supported: choose from {', '.join(KERNELS)}")
        self.kernel = kernel or fastest(self.device.type)
        network, make = expand(config, key), KERNELS[self.kernel]
        self.layers = [make(layer, self.device) for layer in (*network.hidden, network.projection)]
        # clamp(h + E, 0, 127) without leaving int8: clamp h to what E can be added to, then add.
        position = torch.from_numpy(network.position).to(self.device)
        self._position = position, (-position).clamp(min=0), 127 - position.clamp(min=0)
        values = GPU_CHUNK_VALUES if self.device.type == "cuda" else make.chunk_values
        self._chunk = max(1, values // (config.num_patches * max(config.width, 3 * config.patch_size**2)))

    def secrets(self) -> list[np.ndarray]:
        network = expand(self.config, self.key)
        return [layer.weight for layer in (*network.hidden, network.projection)]

    @torch.inference_mode()
    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        self._check(images)
        encrypted = torch.empty(images.shape, dtype=torch.uint8, device=self.device)
        for start in range(0, len(images), self._chunk):
            plain = images[start : start + self._chunk].to(self.device).contiguous()
            self._encrypt_chunk(plain, out=encrypted[start : start + self._chunk])
        return encrypted.to(images.device)

    def _encrypt_chunk(self, images: torch.Tensor, out: torch.Tensor) -> None:
        *hidden, projection = self.layers
        h = to_patches(images, self.config.patch_size)
        for layer in hidden:
            h = layer(h)
        position, low, high = self._position
        by_position = h.view(torch.int8).view(-1, *position.shape)
        torch.clamp(by_position, low, high, out=by_position).add_(position)
        pixel_shuffle(projection(h), self.config.patch_size, out)

    def __reduce__(self) -> tuple:
        # The key goes as a reference to its file; the worker derives the network again.
        return ColorNeuraCrypt, (self.config, self.key, str(self.device), self.kernel)


def to_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, 3, S, S) uint8 -> (B * N, 3 P^2) uint8, patches in row-major order, values in (c, dy, dx) order."""
    return _by_patch(images, patch).contiguous().view(torch.uint8).view(-1, 3 * patch * patch)


def pixel_shuffle(rows: torch.Tensor, patch: int, out: torch.Tensor) -> None:
    """Write (B * N, 3 P^2) uint8 into `out`, (B, 3, S, S) uint8: the inverse of `to_patches`, as nn.PixelShuffle(P)."""
    by_patch = _by_patch(out, patch)
    by_patch.copy_(rows.view(by_patch.dtype).view(by_patch.shape))


def _by_patch(images: torch.Tensor, patch: int) -> torch.Tensor:
    """View (B, 3, S, S) as (B, S/P, S/P, 3, P, words), a row of a patch as the widest integers that divide it.

    Copying words is several times faster than copying bytes.
    """
    word = torch.int64 if patch % 8 == 0 else torch.int16
    batch, channels, size = images.shape[:3]
    words = images.view(word).view(batch, channels, size // patch, patch, size // patch, patch // word.itemsize)
    return words.permute(0, 2, 4, 1, 3, 5)
