"""Ways to compute one exact layer, clamp(rshift((x - zero) W^T + b, s), low, high) + offset, all to the same integers.

Activations are unsigned, as the 8-bit dot products of processors are made for: pixels are uint8 with zero = 128, hidden
values are 0 to 127, and the ciphertext is uint8 again, with offset = 128.

| name | how | where |
|---|---|---|
| `fused` | oneDNN's u8 x s8 linear, which rounds and saturates in registers | CPUs with VNNI, AVX-VNNI or AMX |
| `int8` | `torch._int_mm` to int32, then shift and clamp | CUDA |
| `float32` | float32 product (TF32 and bf16 inputs allowed: sums stay under 2^24), then the same | anywhere |

Exactness is checked on the machine, not assumed (`fastest`): 8-bit multiply-add instructions of older processors
saturate at 16 bits. ARM's dot products go the same way, untested.
"""

import functools
import time
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Layer:
    """`weight` int8 (out, in), `bias` int32 (out,), the right shift s >= 1, and the zero point of what comes in.

    A hidden layer ends in a ReLU and gives 0 to 127; the last one gives -128 to 127 and is stored with 128 added.
    """

    weight: np.ndarray
    bias: np.ndarray
    shift: int
    zero: int
    hidden: bool


class FusedKernel:
    """oneDNN computes round(((x - zero) W^T + b + 1/2) / 2^s), and saturates: to int8 after a ReLU, or, with 128 added,
    to uint8.

    The half makes ties impossible, so rounding to nearest is floor((v + 2^(s-1)) / 2^s). The sum is a float32: exact
    below 2^23, and far beyond what saturates above.
    """

    chunk_values = 1 << 22  # bytes a layer holds at a time: what stays in a CPU's second-level cache

    def __init__(self, layer: Layer, device: torch.device):
        if device.type != "cpu":
            raise RuntimeError("oneDNN computes on the CPU")
        self.weight = torch.ops.onednn.qlinear_prepack(torch.from_numpy(layer.weight), None)
        self.bias = torch.from_numpy(layer.bias).float() + 0.5
        self.scale, self.zero = float(1 << layer.shift), layer.zero
        self.end = (0, torch.int8, "relu") if layer.hidden else (128, torch.uint8, "none")
        self.ones = torch.ones(len(layer.weight))
        self.zeros = torch.zeros(len(layer.weight), dtype=torch.int32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 (rows, in) -> uint8 (rows, out)."""
        offset, dtype, activation = self.end
        y = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, self.zero, self.weight, self.ones, self.zeros, self.bias, self.scale, offset, dtype, activation,
            [], "",
        )  # fmt: skip
        return y.view(torch.uint8)


class Int8Kernel:
    """`torch._int_mm`, then add, shift and clamp in int32."""

    chunk_values = 1 << 19
    dtype = torch.int8

    def __init__(self, layer: Layer, device: torch.device):
        self.weight = torch.from_numpy(layer.weight).to(device, self.dtype).t()
        # The rounding of rshift, 2^(s-1), is added once, to the bias.
        self.bias = torch.from_numpy(layer.bias).to(device) + (1 << (layer.shift - 1))
        self.shift, self.zero = layer.shift, layer.zero
        self.low, self.offset = (0, 0) if layer.hidden else (-128, 128)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 (rows, in) -> uint8 (rows, out)."""
        # In place: three temporaries a layer would cost half as much again.
        sums = self.sums(x).add_(self.bias).bitwise_right_shift_(self.shift).clamp_(self.low, 127)
        return sums.add_(self.offset).to(torch.uint8)

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """(x - zero) W^T, int32."""
        h = x.bitwise_xor(128).view(torch.int8) if self.zero else x.view(torch.int8)  # uint8 - 128, as int8
        if len(h) <= 16 or h.shape[1] % 8 or self.weight.shape[1] % 8:  # CUDA's _int_mm refuses these
            return torch.mm(h.float(), self.weight.float()).int()
        return torch._int_mm(h, self.weight)


class Float32Kernel(Int8Kernel):
    """The same with a float32 product: every partial sum is a whole number below 2^24, in whatever order."""

    dtype = torch.float32

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x.float().sub_(self.zero), self.weight).int()


Kernel = FusedKernel | Int8Kernel
KERNELS: dict[str, type[FusedKernel] | type[Int8Kernel]] = {
    "fused": FusedKernel,
    "int8": Int8Kernel,
    "float32": Float32Kernel,
}


@functools.cache
def fastest(device: str) -> str:
    """The name of the fastest kernel that is exact on this machine, found in some milliseconds."""
    layers, inputs = _worst_case()
    expected = [Float32Kernel(layer, torch.device(device))(x.to(device)) for layer, x in zip(layers, inputs)]
    times = {}
    for name in ("fused", "float32") if device == "cpu" else ("int8", "float32"):
        try:
            kernels = [KERNELS[name](layer, torch.device(device)) for layer in layers]
            found = [kernel(x.to(device)) for kernel, x in zip(kernels, inputs)]
            if all(map(torch.equal, found, expected)):
                times[name] = _seconds(kernels[-1], inputs[-1].to(device))
        except (RuntimeError, AttributeError):  # this torch or this device does not have it
            continue
    return min(times, key=times.__getitem__)


def _worst_case() -> tuple[list[Layer], list[torch.Tensor]]:
    """A first, a hidden and a last layer, and rows for them, with the largest sums there can be."""
    generator, size = np.random.default_rng(0), 256  # numbers for a check and a timing, nothing secret
    layers, inputs = [], []
    for zero, hidden, high in ((128, True, 256), (0, True, 128), (0, False, 128)):
        weight = generator.integers(-127, 128, (size, size), np.int8)
        rows = generator.integers(0, high, (32, size), np.uint8)
        weight[0], weight[1], rows[0], rows[1] = 127, -127, high - 1, 0
        bias = generator.integers(-(127**2), 127**2, size, np.int32)
        layers.append(Layer(weight, bias, 10, zero, hidden))
        inputs.append(torch.from_numpy(rows))
    return layers, inputs


def _seconds(kernel: Kernel, x: torch.Tensor) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        kernel(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
