"""Ways to compute one exact layer, clamp(rshift(h W^T + b, s), low, 127), which all give the same integers.

| name | how | where |
|---|---|---|
| `fused` | oneDNN's int8 linear, which rounds and saturates in registers | CPUs with VNNI or AMX |
| `int8` | `torch._int_mm` to int32, then shift and clamp | CUDA, CPUs |
| `float32` | float32 product (TF32 and bf16 inputs allowed: sums stay under 2^24), then the same | anywhere |

Exactness is checked on the machine, not assumed (`fastest`): 8-bit multiply-add instructions of older processors
saturate at 16 bits.
"""

import functools
import time
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Layer:
    """`weight` int8 (out, in), `bias` int32 (out,), the right shift s >= 1, and whether a ReLU follows (low = 0)."""

    weight: np.ndarray
    bias: np.ndarray
    shift: int
    rectified: bool

    @property
    def low(self) -> int:
        return 0 if self.rectified else -128


class FusedProduct:
    """oneDNN computes round((h W^T + b + 1/2) / 2^s), saturates to int8, and takes ReLU before that.

    The half makes ties impossible, so rounding to nearest is floor((v + 2^(s-1)) / 2^s). The sum is a float32: exact
    below 2^23, and far beyond what saturates above.
    """

    chunk_values = 1 << 22  # int8 values a layer holds at a time: what stays in a CPU's second-level cache

    def __init__(self, layer: Layer, device: torch.device, compile: bool = False):
        if device.type != "cpu":
            raise RuntimeError("oneDNN computes on the CPU")
        self.weight = torch.ops.onednn.qlinear_prepack(torch.from_numpy(layer.weight), None)
        self.bias = torch.from_numpy(layer.bias).float() + 0.5
        self.scale = float(1 << layer.shift)
        self.activation = "relu" if layer.rectified else "none"
        self.ones = torch.ones(len(layer.weight))
        self.zeros = torch.zeros(len(layer.weight), dtype=torch.int32)

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            h, 1.0, 0, self.weight, self.ones, self.zeros, self.bias, self.scale, 0, torch.int8, self.activation, [], ""
        )  # fmt: skip


class Int8Product:
    """`torch._int_mm`, then add, shift and clamp in int32 (one fused kernel with `compile`)."""

    chunk_values = 1 << 19
    dtype = torch.int8

    def __init__(self, layer: Layer, device: torch.device, compile: bool = False):
        self.weight = torch.from_numpy(layer.weight).to(device, self.dtype).t()
        # The rounding of rshift, 2^(s-1), is added once, to the bias.
        self.bias = torch.from_numpy(layer.bias).to(device) + (1 << (layer.shift - 1))
        self.shift, self.low = layer.shift, layer.low
        self.rescale = torch.compile(_rescale_fused, dynamic=True) if compile else _rescale

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        return self.rescale(self.sums(h), self.bias, self.shift, self.low)

    def sums(self, h: torch.Tensor) -> torch.Tensor:
        if h.is_cuda and (len(h) <= 16 or h.shape[1] % 8 or self.weight.shape[1] % 8):  # _int_mm refuses these on CUDA
            return torch.mm(h.float(), self.weight.float()).int()
        return torch._int_mm(h, self.weight)


class Float32Product(Int8Product):
    """The same with a float32 product: every partial sum is a whole number below 2^24, in whatever order."""

    dtype = torch.float32

    def sums(self, h: torch.Tensor) -> torch.Tensor:
        return torch.mm(h.float(), self.weight).int()


def _rescale(sums: torch.Tensor, bias: torch.Tensor, shift: int, low: int) -> torch.Tensor:
    # In place: three temporaries a layer would cost half as much again.
    return sums.add_(bias).bitwise_right_shift_(shift).clamp_(low, 127).to(torch.int8)


def _rescale_fused(sums: torch.Tensor, bias: torch.Tensor, shift: int, low: int) -> torch.Tensor:
    return ((sums + bias) >> shift).clamp(low, 127).to(torch.int8)


PRODUCTS = {"fused": FusedProduct, "int8": Int8Product, "float32": Float32Product}


@functools.cache
def fastest(device: str) -> str:
    """The name of the fastest product that is exact on this machine."""
    generator = np.random.default_rng(0)  # numbers for a check and a timing, nothing secret
    weight = generator.integers(-127, 128, (768, 768), np.int8)
    rows = generator.integers(-128, 128, (64, 768), np.int8)
    weight[0], weight[1], rows[0], rows[1] = 127, -127, 127, -128  # the largest sums there can be
    bias = generator.integers(-(127**2), 127**2, 768, np.int32)
    layer = Layer(weight, bias, 11, rectified=False)
    h = torch.from_numpy(rows).to(device)
    expected = Float32Product(layer, h.device)(h)
    times = {}
    for name, product in PRODUCTS.items():
        try:
            compute = product(layer, h.device)
            if torch.equal(compute(h), expected):
                times[name] = _best_time(compute, h)
        except (RuntimeError, AttributeError):  # this torch or this device does not have it
            continue
    return min(times, key=times.__getitem__)


def _best_time(compute, h: torch.Tensor) -> float:
    times = []
    for _ in range(2):
        start = time.perf_counter()
        compute(h)
        if h.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
