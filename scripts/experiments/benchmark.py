"""Measure the product on this machine. Ratios are taken within one run, in turns, and medians are reported.

python scripts/benchmark.py encoder   # the encoder alone, on images in memory; add --device cuda for a GPU
python scripts/benchmark.py encrypt   # from stored images to a finished folder, stage by stage
python scripts/benchmark.py memory    # peak memory of 2,000 and of 20,000 images
python scripts/benchmark.py train     # steps on ciphertexts, on plain PNGs, with the usual pipeline on photos
python scripts/benchmark.py crash     # kill the job at random moments, resume, compare; flip bits, verify

`encoder`: images/s of the exact encoder with each kind of product, of the float32 network it stands for, and of bare
int8 matrix products of the same sizes, which nothing can beat that multiplies these matrices; latency of one image.
`encrypt` and `memory` take `--dataset`, any that `hf-neuracrypt encrypt` takes; without it, they make one from the
photos that come with scikit-image and scikit-learn.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import benchmark_jobs
import benchmark_train
import torch

from hf_neuracrypt.schemes import EncoderConfig
from hf_neuracrypt.encoders.color_neuracrypt import ColorNeuraCrypt, expand
from hf_neuracrypt.encoders.kernels import PRODUCTS, fastest
from hf_neuracrypt.encoders.reference import ColorNeuraCryptReference
from hf_neuracrypt.errors import one_line_errors
from hf_neuracrypt.keys import SecretKey


def in_turns(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each job; the jobs take turns, so that a change of the machine's speed meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def bare_products(encoder: ColorNeuraCrypt, batch: int, images_at_once: int) -> Callable[[], None]:
    """Only the matrix products of `encoder`, on rows that are there already; nothing between them."""
    rows = images_at_once * encoder.config.num_patches
    layers = [*encoder._hidden, encoder._projection]
    # oneDNN's product cannot be had without the rounding it does in registers; `_int_mm` leaves int32 sums.
    products = [layer if encoder.products == "fused" else layer.sums for layer in layers]
    fan_in = [3 * encoder.config.patch_size**2] + [encoder.config.width] * len(encoder._hidden)
    inputs = [torch.ones(rows, size, dtype=torch.int8, device=encoder.device) for size in fan_in]

    def run() -> None:
        for _ in range(batch // images_at_once):
            for product, h in zip(products, inputs):
                product(h)

    return run


@torch.inference_mode()
def benchmark_encoder(args: argparse.Namespace) -> dict:
    """Images per second of everything that can encode a batch, and the ratios between them."""
    config = EncoderConfig(image_size=args.image_size, depth=args.depth)
    key = SecretKey.generate()
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, 3, args.image_size, args.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(args.device)
    start = time.perf_counter()
    expand(config, key)
    expansion = time.perf_counter() - start
    encoders, jobs = {}, {}
    for name in PRODUCTS:
        for compiled in (False, True) if name != "fused" else (False,):
            title = f"exact, {name} products{', compiled' if compiled else ''}"
            try:
                encoder = ColorNeuraCrypt(config, key, args.device, name, compiled)
                encoder.encrypt(images)
            except Exception as error:  # not on this device, or no compiler
                print(f"{title}: not available here ({type(error).__name__})")
                continue
            encoders[title] = encoder
            jobs[title] = lambda encoder=encoder: encoder.encrypt(images)
    chosen = f"exact, {fastest(torch.device(args.device).type)} products"
    expected = encoders[chosen].encrypt(images)
    assert all(torch.equal(encoder.encrypt(images), expected) for encoder in encoders.values()), "bytes differ"
    reference = ColorNeuraCryptReference(config, key).to(args.device)
    jobs["float32 network"] = lambda: reference(images.float())
    for title, encoder in encoders.items():
        if "float32" not in title and "compiled" not in title:
            for size in (1, 2, 4, 8, 16, 32, 64):
                if args.batch % size == 0:
                    jobs[f"bare {encoder.products}, {size} at once"] = bare_products(encoder, args.batch, size)
    jobs["one image"] = lambda: encoders[chosen].encrypt(images[:1])
    seconds = in_turns(jobs, args.rounds)
    latency = seconds.pop("one image")
    rates = {name: args.batch / each for name, each in seconds.items()}
    limit = max((name for name in rates if name.startswith("bare")), key=rates.__getitem__, default=None)
    result = {
        "images_per_second": {name: rate for name, rate in rates.items() if not name.startswith("bare")},
        "int8_limit": {"what": limit, "images_per_second": rates.get(limit)},
        "int_mm_limit": max((rate for name, rate in rates.items() if name.startswith("bare int8")), default=None),
        "chosen": chosen,
        "ratio_to_float32": rates[chosen] / rates["float32 network"],
        "ratio_to_limit": rates[chosen] / rates[limit] if limit else None,
        "one_image_ms": 1e3 * latency,
        "key_expansion_ms": 1e3 * expansion,
    }
    print_encoder(result)
    return result


def print_encoder(result: dict) -> None:
    base = result["images_per_second"]["float32 network"]
    print(f"\n{'':<40}{'images/s':>10}{'x float32':>11}{'of limit':>10}")
    rows = dict(result["images_per_second"])
    if result["int8_limit"]["what"]:
        rows[f"limit: {result['int8_limit']['what']}"] = result["int8_limit"]["images_per_second"]
    for name, rate in rows.items():
        limit = result["int8_limit"]["images_per_second"]
        share = f"{rate / limit:.0%}" if limit else ""
        mark = "  <- chosen here" if name == result["chosen"] else ""
        print(f"{name:<40}{rate:>10.0f}{rate / base:>11.1f}{share:>10}{mark}")
    if result["int_mm_limit"]:
        print(f"{'bare torch._int_mm alone':<40}{result['int_mm_limit']:>10.0f}")
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
    encrypt = commands.add_parser("encrypt", help="from stored images to a finished folder, stage by stage")
    encrypt.add_argument("--dataset", help="default: photos of scikit-image and scikit-learn")
    encrypt.add_argument("--rows", type=int, default=2000)
    encrypt.add_argument("--rounds", type=int, default=3)
    encrypt.set_defaults(run=benchmark_jobs.encrypt)
    memory = commands.add_parser("memory", help="peak memory against the number of images")
    memory.add_argument("--rows", type=int, nargs=2, default=(2000, 20000))
    memory.set_defaults(run=benchmark_jobs.memory)
    train = commands.add_parser("train", help="training steps: ciphertexts, plain PNGs, the usual pipeline")
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--rows", type=int, default=512)
    train.add_argument("--image_size", type=int, default=224)
    train.add_argument("--steps", type=int, default=15, help="measured steps of each, taken in turns")
    train.add_argument("--workers", type=int, default=0, help="loader processes")
    train.add_argument("--device", default="cpu", help="cpu or cuda")
    train.set_defaults(run=benchmark_train.train)
    crash = commands.add_parser("crash", help="SIGKILL at random moments, resume, compare; flip bits, verify")
    crash.add_argument("--trials", type=int, default=50)
    crash.add_argument("--flips", type=int, default=200)
    crash.add_argument("--seed", type=int, default=0)
    crash.set_defaults(run=benchmark_jobs.crash)
    args = parser.parse_args()
    environment = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    print(", ".join(f"{name} {value}" for name, value in environment.items()))
    result = args.run(args)
    if args.output:
        Path(args.output).write_text(json.dumps({"environment": environment} | result, indent=2) + "\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
