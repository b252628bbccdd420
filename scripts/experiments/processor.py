"""What computes here: a figure is published with the name of its processor."""

import platform
from pathlib import Path

import torch


BFLOAT16 = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))  # elsewhere it is slow


def processor() -> str:
    """The processor's name, and which 8-bit dot products it has, as Linux says them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    products = [flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni") if flag in said.get("flags", "").split()]
    return ", ".join([said.get("model name", platform.processor() or platform.machine()), *products])
