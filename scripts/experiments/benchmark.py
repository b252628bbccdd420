"""Measure the product on this machine. Ratios are taken within one run, in turns, and medians are reported.

python scripts/experiments/benchmark.py encoder   # the encoder alone, on images in memory; --device cuda: on a GPU
python scripts/experiments/benchmark.py encrypt   # from stored images to a finished folder
python scripts/experiments/benchmark.py load      # the same beside busy processes: the share of a fair share
python scripts/experiments/benchmark.py memory    # peak memory and disk of 2,000 and of 20,000 images
python scripts/experiments/benchmark.py shards    # what 100,000 shards cost beside encrypting
python scripts/experiments/benchmark.py paper     # what 10 million and 1 billion images would cost, from such figures
python scripts/experiments/benchmark.py train     # steps on ciphertexts, on plain PNGs, on photos as usual
python scripts/experiments/benchmark.py features  # the other way: a frozen model's features, computed at home
python scripts/experiments/benchmark.py crash     # kill the job at random moments, resume, compare; flip bits, verify

`encoder`: images/s of the exact encoder with each kernel, of the float32 network it stands for, and of int8 matrix
products of the same sizes alone, the upper limit of any encoder that multiplies these matrices; latency of one image.
`encrypt` takes `--dataset`, any that `hf-neuracrypt encrypt` takes; without it, it makes one from the photos that come
with scikit-image and scikit-learn.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_jobs
import benchmark_limits
import benchmark_paper
import benchmark_train
import torch
from processor import processor

from hf_neuracrypt.encoders.color_neuracrypt import ColorNeuraCrypt, expand
from hf_neuracrypt.encoders.kernels import KERNELS, FusedKernel, fastest
from hf_neuracrypt.encoders.reference import ColorNeuraCryptReference
from hf_neuracrypt.errors import one_line_errors
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EncoderConfig


def in_turns(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each job; the jobs take turns, so that a change of the machine's speed meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn > 0:  # the first warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def products_alone(encoder: ColorNeuraCrypt, batch: int, images_at_once: int) -> Callable[[], None]:
    """Only the matrix products of `encoder`, on rows that are there already; nothing between them."""
    rows, config = images_at_once * encoder.config.num_patches, encoder.config
    fan_in = [3 * config.patch_size**2] + [config.width] * (config.depth + 1)
    inputs = [torch.ones(rows, size, dtype=torch.uint8, device=encoder.device) for size in fan_in]
    # oneDNN's product cannot be had without the rounding it does in registers; the others leave int32 sums.
    products = [layer if isinstance(layer, FusedKernel) else layer.sums for layer in encoder.layers]

    def run() -> None:
        for _ in range(batch // images_at_once):
            for product, x in zip(products, inputs):
                product(x)

    return run


def exact_encoders(config: EncoderConfig, key: SecretKey, images: torch.Tensor) -> dict[str, ColorNeuraCrypt]:
    """The encoder with each kernel that this machine has, by the kernel's name."""
    encoders = {}
    for name in KERNELS:
        try:
            encoders[name] = ColorNeuraCrypt(config, key, images.device, name)
            encoders[name].encrypt(images)
        except RuntimeError as error:  # not on this device
            print(f"{name} kernel: not available here ({type(error).__name__})")
            encoders.pop(name, None)
    return encoders


@torch.inference_mode()
def benchmark_encoder(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of everything that can encode a batch, and the ratios between them."""
    config, key = EncoderConfig(image_size=args.image_size, depth=args.depth), SecretKey.generate()
    shape = (args.batch, 3, args.image_size, args.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(args.device)
    encoders, chosen = exact_encoders(config, key, images), fastest(images.device.type)
    expected = encoders[chosen].encrypt(images)
    assert all(torch.equal(encoder.encrypt(images), expected) for encoder in encoders.values()), "bytes differ"
    reference = ColorNeuraCryptReference(config, key).to(args.device)
    jobs: dict[str, Callable[[], object]] = {
        f"exact, {name} kernel": partial(encoder.encrypt, images) for name, encoder in encoders.items()
    }
    jobs |= {"float32 network": lambda: reference(images.float())}
    for name in encoders.keys() - {"float32"}:
        for size in (2**power for power in range(7) if args.batch % 2**power == 0):
            jobs[f"{name} products alone, {size} at once"] = products_alone(encoders[name], args.batch, size)
    jobs |= {"one image": partial(encoders[chosen].encrypt, images[:1]), "a key": partial(expand, config, key)}
    seconds = in_turns(jobs, args.rounds)
    one_image, one_key = seconds.pop("one image"), seconds.pop("a key")
    rates = {name: args.batch / each for name, each in seconds.items() if "alone" not in name}
    alone = {name: args.batch / each for name, each in seconds.items() if "alone" in name}
    limit = max(alone, key=alone.__getitem__, default=None)
    best, chosen = alone.get(limit or ""), f"exact, {chosen} kernel"
    result = {
        "images_per_second": rates,
        "int8_limit": {"what": limit, "images_per_second": best},
        "int_mm_limit": max((rate for name, rate in alone.items() if name.startswith("int8")), default=None),
        "chosen": chosen,
        "ratio_to_float32": rates[chosen] / rates["float32 network"],
        "ratio_to_limit": rates[chosen] / best if best else None,
        "one_image_ms": 1e3 * one_image,
        "key_expansion_ms": 1e3 * one_key,
    }
    print_encoder(rates | ({str(limit): best} if best else {}), result)
    return result


def print_encoder(rates: dict[str, float], result: dict[str, Any]) -> None:
    base, limit = rates["float32 network"], result["int8_limit"]["images_per_second"]
    print(f"\n{'':<40}{'images/s':>10}{'x float32':>11}{'of limit':>10}")
    for name, rate in rates.items():
        share, mark = f"{rate / limit:.0%}" if limit else "", "  <- chosen here" if name == result["chosen"] else ""
        print(f"{name:<40}{rate:>10.0f}{rate / base:>11.1f}{share:>10}{mark}")
    print(f"one image: {result['one_image_ms']:.1f} ms; a key is expanded in {result['key_expansion_ms']:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="also write the figures to this JSON file")
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    encoder = commands.add_parser("encoder", help="the encoder alone, on images in memory")
    encoder.add_argument("--batch", type=int, default=64)
    encoder.add_argument("--image_size", type=int, default=224)
    encoder.add_argument("--depth", type=int, default=4)
    encoder.add_argument("--device", default="cpu", help="cpu or cuda")
    encoder.add_argument("--rounds", type=int, default=15, help="measurements of each job, taken in turns")
    encoder.set_defaults(run=benchmark_encoder)
    encrypt = commands.add_parser("encrypt", help="from stored images to a finished folder")
    encrypt.add_argument("--dataset", help="default: photos of scikit-image and scikit-learn")
    encrypt.add_argument("--rows", type=int, default=2000)
    encrypt.add_argument("--rounds", type=int, default=3)
    encrypt.set_defaults(run=benchmark_jobs.encrypt)
    load = commands.add_parser("load", help="a job beside busy processes")
    load.add_argument("--rows", type=int, default=1000)
    load.add_argument("--rounds", type=int, default=3)
    load.add_argument("--busy", type=int, default=4, help="busy processes for each core")
    load.set_defaults(run=benchmark_jobs.load)
    memory = commands.add_parser("memory", help="peak memory and disk against the number of images")
    memory.add_argument("--rows", type=int, nargs=2, default=(2000, 20000))
    memory.set_defaults(run=benchmark_limits.memory)
    shards = commands.add_parser("shards", help="bookkeeping of a job of many shards")
    shards.add_argument("--shards", type=int, default=100_000)
    shards.set_defaults(run=benchmark_limits.shards)
    paper = commands.add_parser("paper", help="costs of many images, computed")
    paper.add_argument("--images", type=int, nargs="+", default=(10**7, 10**9))
    for name, (value, unit) in benchmark_paper.INPUTS.items():
        paper.add_argument(f"--{name}", type=float, default=value, help=unit)
    paper.set_defaults(run=benchmark_paper.paper)
    train = commands.add_parser("train", help="training steps: ciphertexts, plain PNGs, the usual pipeline")
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--rows", type=int, default=512)
    train.add_argument("--image_size", type=int, default=224)
    train.add_argument("--steps", type=int, default=15, help="measured steps of each, taken in turns")
    train.add_argument("--workers", type=int, default=0, help="loader processes")
    train.add_argument("--device", default="cpu", help="cpu or cuda")
    train.set_defaults(run=benchmark_train.train)
    features = commands.add_parser("features", help="features of a frozen model, against encrypting")
    features.add_argument("--batch", type=int, default=16)
    features.add_argument("--image_size", type=int, default=224)
    features.add_argument("--rounds", type=int, default=7)
    features.set_defaults(run=benchmark_train.features)
    crash = commands.add_parser("crash", help="SIGKILL at random moments, resume, compare; flip bits, verify")
    crash.add_argument("--trials", type=int, default=50)
    crash.add_argument("--flips", type=int, default=200)
    crash.add_argument("--seed", type=int, default=0)
    crash.set_defaults(run=benchmark_limits.crash)
    args = parser.parse_args()
    environment = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }
    print(", ".join(f"{name} {value}" for name, value in environment.items()))
    result = args.run(args)
    if args.output:
        Path(args.output).write_text(json.dumps({"environment": environment} | result, indent=2) + "\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
