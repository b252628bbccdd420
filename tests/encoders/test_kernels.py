"""Every way to compute a layer gives the same integers, and one that does not on this machine is never chosen."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from hf_neuracrypt.schemes import EncoderConfig
from hf_neuracrypt.encoders import kernels
from hf_neuracrypt.encoders.color_neuracrypt import ColorNeuraCrypt, expand
from hf_neuracrypt.encoders.kernels import PRODUCTS, Layer
from tests.helpers import ROOT, SMALL, batch, make_images
from tests.helpers import golden_image


def available_products() -> list[str]:
    """Those that are exact on this machine."""
    layer = Layer(np.full((32, 64), 127, np.int8), np.zeros(32, np.int32), 7, False)
    h, names = torch.full((32, 64), 127, dtype=torch.int8), []
    for name, product in PRODUCTS.items():
        try:
            if (product(layer, h.device)(h) == 127).all():
                names.append(name)
        except (RuntimeError, AttributeError):
            continue
    return names


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_gives_the_same_bytes(name, insecure_key):
    if name not in available_products():
        pytest.skip(f"{name} products are not exact on this machine, so they are never chosen")
    config = EncoderConfig(image_size=64)
    images = batch(
        np.concatenate([make_images(5, 64), golden_image("white", 64)[None], golden_image("black", 64)[None]])
    )
    expected = ColorNeuraCrypt(config, insecure_key, products="float32").encrypt(images)
    assert torch.equal(ColorNeuraCrypt(config, insecure_key, products=name).encrypt(images), expected)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_float32_products_are_exact_at_any_precision(precision, insecure_key):
    """ "high" allows TF32 and "medium" bf16 inputs, where the hardware has them."""
    images, before = batch(make_images(4, 224)), torch.get_float32_matmul_precision()
    expected = ColorNeuraCrypt(EncoderConfig(), insecure_key).encrypt(images)
    try:
        torch.set_float32_matmul_precision(precision)
        encrypted = ColorNeuraCrypt(EncoderConfig(), insecure_key, products="float32").encrypt(images)
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


@pytest.mark.parametrize("name", ["int8", "float32"])
def test_compiled_steps_give_the_same_bytes(name, insecure_key):
    encoder = ColorNeuraCrypt(SMALL, insecure_key, products=name, compile=True)
    images = batch(make_images(7, 32))
    try:
        encrypted = encoder.encrypt(images)
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    assert torch.equal(encrypted, ColorNeuraCrypt(SMALL, insecure_key).encrypt(images))
    assert torch.equal(encoder.encrypt(images[:1]), encrypted[:1])


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_processors_without_vnni_give_the_golden_bytes(isa):
    """Their 8-bit multiply-adds saturate; the machine's own check must keep such products away."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.encoders.test_color_neuracrypt import *\n"
        "from hf_neuracrypt.encoders import kernels\n"
        "vector = next(v for v in CIPHERTEXTS if v['name'] == 'tiny')\n"
        "test_golden_ciphertexts(vector); print(kernels.fastest('cpu'))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(ROOT)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "ATEN_CPU_CAPABILITY": "avx2"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_a_saturating_product_is_never_chosen(monkeypatch):
    class Saturating(products.Float32Product):
        def __call__(self, h):
            return super().__call__(h).clamp(max=126)

    monkeypatch.setattr(products, "PRODUCTS", {"int8": Saturating, "float32": products.Float32Product})
    kernels.fastest.cache_clear()
    try:
        assert kernels.fastest("cpu") == "float32"
    finally:
        kernels.fastest.cache_clear()
