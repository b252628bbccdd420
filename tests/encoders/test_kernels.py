"""Every way to compute a layer gives the same integers, and one that does not on this machine is never chosen."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from hf_neuracrypt.encoders import kernels
from hf_neuracrypt.encoders.color_neuracrypt import ColorNeuraCrypt, expand
from hf_neuracrypt.encoders.kernels import KERNELS, Layer
from hf_neuracrypt.schemes import EncoderConfig
from tests.helpers import GOLDEN, ROOT, batch, golden_image, make_images


CIPHERTEXTS = json.loads((GOLDEN / "ciphertexts.json").read_text())["ciphertexts"]


def is_exact_here(name: str) -> bool:
    """8-bit multiply-adds of older processors saturate at 16 bits, which two products of 255 and 127 exceed."""
    layer = Layer(np.full((32, 64), 127, np.int8), np.zeros(32, np.int32), 7, 128, True)
    x = torch.full((32, 64), 255, dtype=torch.uint8)
    try:
        return bool((KERNELS[name](layer, x.device)(x) == 127).all())
    except (RuntimeError, AttributeError):
        return False


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_gives_the_same_bytes(name, insecure_key):
    if not is_exact_here(name):
        pytest.skip(f"the kernel {name} is not exact on this machine, so it is never chosen")
    config = EncoderConfig(image_size=64)
    images = np.concatenate([make_images(5, 64), golden_image("white", 64)[None], golden_image("black", 64)[None]])
    expected = ColorNeuraCrypt(config, insecure_key, kernel="float32").encrypt(batch(images))
    assert torch.equal(ColorNeuraCrypt(config, insecure_key, kernel=name).encrypt(batch(images)), expected)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_float32_products_are_exact_at_any_precision(precision, insecure_key):
    """ "high" allows TF32 and "medium" bf16 inputs, where the hardware has them."""
    images, before = batch(make_images(4, 224)), torch.get_float32_matmul_precision()
    expected = ColorNeuraCrypt(EncoderConfig(), insecure_key).encrypt(images)
    try:
        torch.set_float32_matmul_precision(precision)
        encrypted = ColorNeuraCrypt(EncoderConfig(), insecure_key, kernel="float32").encrypt(images)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(encrypted, expected)


def test_bf16_inputs_lose_nothing(insecure_key):
    """Every int8 is a bf16 number, so products of bf16 inputs summed in float32 are the same integers."""
    network = expand(EncoderConfig(), insecure_key)
    weight = torch.from_numpy(network.hidden[1].weight)
    h = torch.randint(0, 128, (50, 768), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weight.bfloat16().to(torch.int8), weight) and torch.equal(h.bfloat16().to(torch.int8), h)
    summed = torch.mm(h.bfloat16().float(), weight.bfloat16().float().t())
    assert torch.equal(summed.long(), h.long() @ weight.long().t())


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_processors_without_vnni_give_the_golden_bytes(isa):
    """Their 8-bit multiply-adds saturate; the machine's own check must keep such products away."""
    script = (
        "import sys\n"
        "from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder\n"
        "from tests.helpers import batch, golden_image, sha256\n"
        "config = EncoderConfig(**eval(sys.argv[1]))\n"
        "encoder = load_encoder(config, SecretKey(bytes.fromhex(sys.argv[2])))\n"
        "for name in sys.argv[3:]:\n"
        "    print(sha256(encoder.encrypt(batch(golden_image(name, config.image_size)[None]))[0]))\n"
    )
    vector = next(v for v in CIPHERTEXTS if v["name"] == "tiny")
    result = subprocess.run(
        [sys.executable, "-c", script, str(vector["config"]), vector["key"], *vector["images"]],
        capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ONEDNN_MAX_CPU_ISA": isa, "ATEN_CPU_CAPABILITY": "avx2"},
    )  # fmt: skip
    assert result.stdout.split() == vector["sha256"], result.stderr


def test_a_saturating_kernel_is_never_chosen(monkeypatch):
    class Saturating(kernels.Float32Kernel):
        def __call__(self, x):
            return super().__call__(x).clamp(max=126)

    monkeypatch.setattr(kernels, "KERNELS", {"fused": Saturating, "float32": kernels.Float32Kernel})
    kernels.fastest.cache_clear()
    try:
        assert kernels.fastest("cpu") == "float32"
    finally:
        kernels.fastest.cache_clear()
