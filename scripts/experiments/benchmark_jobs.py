"""The parts of `benchmark.py` about the speed of a job, from stored image to finished folder: where time goes, load."""

import argparse
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, IterableDataset
from photos import crops
from PIL import Image as PILImage

from hf_neuracrypt.data.batches import PART, cores
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.places import sha256
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.encoders.reference import ColorNeuraCryptReference
from hf_neuracrypt.images import open_image, resize, to_rgb
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EncoderConfig


CHILDREN = resource.RUSAGE_CHILDREN
DISTINCT = 300  # photos; more rows repeat them


def photo_rows(rows: int) -> Dataset:
    """JPEGs of 299 pixels: pieces of the photos that come with scikit-image and scikit-learn."""
    encoded = []
    for pixels in crops(min(rows, DISTINCT), 299).transpose(0, 2, 3, 1):
        file = io.BytesIO()
        PILImage.fromarray(pixels).save(file, "JPEG", quality=90)
        encoded.append({"bytes": file.getvalue(), "path": None})
    images = [encoded[index % len(encoded)] for index in range(rows)]
    return Dataset.from_dict({"image": images}, features=Features({"image": Image()}))


def fill(folder: Path, split: Dataset | IterableDataset, encoder: Encoder, processes: int = 1, **options: Any) -> None:
    """Encrypt one split into a new folder."""
    splits = {"train": split}
    run(Job(splits, make_plan(splits, encoder), folder, **({"shard_bytes": 10**8} | options)), processes)


# ------------------------------------------------------------------------------------------------------------- speed


class Identity(Encoder):
    """Stands in for the encoder: what the pipeline does without encrypting."""

    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        return images


class Float32(Encoder):
    """The float32 network in the same place, its output rounded to 8 bits."""

    def __init__(self, config: EncoderConfig, key: SecretKey):
        super().__init__(config, key)
        self.network = ColorNeuraCryptReference(config, key)

    @torch.inference_mode()
    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.float()).round_().clamp_(0, 255).byte()


def encrypt(args: argparse.Namespace) -> dict[str, Any]:
    """A job from a dataset to a finished folder: images/s and CPU time, beside other ways; and where the time goes."""
    split = next(iter(load_source(args.dataset).values())) if args.dataset else photo_rows(args.rows)
    split, config, threads = split.select(range(min(args.rows, len(split)))), EncoderConfig(), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        key = key_in(folder)
        exact = load_encoder(config, key)
        variants: dict[str, tuple[Encoder | None, int, int]] = {  # encoder, processes, threads of a process
            "exact encoder": (exact, 1, threads),
            "exact encoder, 1 thread": (exact, 1, 1),
            "exact encoder, 2 processes": (exact, 2, threads),
            "identity encoder": (Identity(config, key), 1, threads),
            "float32 network": (Float32(config, key), 1, threads),
            "datasets.map, Pillow, library's PNG": (None, 1, 1),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for turn in range(args.rounds):
            for name, (encoder, processes, count) in variants.items():
                torch.set_num_threads(count)
                start, cpu = time.perf_counter(), cpu_seconds()
                if encoder is None:
                    as_usual(split, config.image_size, Path(folder) / f"{turn}-usual.arrow")
                else:
                    fill(Path(folder) / f"{turn}-{name}", split, encoder, processes)
                taken[name].append((time.perf_counter() - start, cpu_seconds() - cpu))
                torch.set_num_threads(threads)
        by_stage = stages(split.select(range(min(300, len(split)))), exact, Path(folder))
    rates = {name: len(split) / statistics.median(each[0] for each in both) for name, both in taken.items()}
    cpu_ms = {name: 1e3 * statistics.median(each[1] for each in both) / len(split) for name, both in taken.items()}
    one, single = rates["exact encoder"], "exact encoder, 1 thread"
    result = {
        "images_per_second": rates,
        "cpu_ms_per_image": cpu_ms,
        "stages_cpu_ms": by_stage,
        "ratio_to_stages": rates[single] * sum(by_stage.values()) / 1e3,
        "ratio_cpu_to_usual": cpu_ms[single] / cpu_ms["datasets.map, Pillow, library's PNG"],
        "ratio_to_float32": one / rates["float32 network"],
        "ratio_to_identity": one / rates["identity encoder"],
        "ratio_two_threads": one / rates[single],
        "ratio_two_processes": rates["exact encoder, 2 processes"] / rates[single],
    }
    print(f"\n{len(split):,} images to {config.image_size} px, {threads} threads\n")
    print(f"{'whole job':<38}{'images/s':>10}{'CPU ms an image':>18}")
    for name, rate in rates.items():
        print(f"{name:<38}{rate:>10.0f}{cpu_ms[name]:>18.2f}")
    print("one after the other, ms: " + ", ".join(f"{stage} {value:.2f}" for stage, value in by_stage.items()))
    print(", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in result.items() if name[:5] == "ratio"))
    return result


def key_in(folder: str) -> SecretKey:
    """A new key, with a file, so that worker processes can read it."""
    SecretKey.generate().save(f"{folder}/a.key")
    return SecretKey.load(f"{folder}/a.key")


def cpu_seconds() -> float:
    """Of this process, and of its children that have ended."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, CHILDREN)))


def as_usual(split: Dataset, size: int, file: Path) -> None:
    """What people do without encryption: decode, resize with Pillow, store the PNG that the library makes."""
    split.map(
        lambda row: {"image": row["image"].convert("RGB").resize((size, size), PILImage.Resampling.BILINEAR)},
        cache_file_name=str(file), load_from_cache_file=False, writer_batch_size=100,
    )  # fmt: skip


def stages(split: Dataset, encoder: Encoder, folder: Path) -> dict[str, float]:
    """CPU milliseconds an image of each step of a job, on one thread, each step done for all images."""
    threads, config = torch.get_num_threads(), encoder.config
    torch.set_num_threads(1)
    taken, sources = {}, [row["bytes"] for row in split.with_format("arrow").data["image"].to_pylist()]

    def timed(stage: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = function()
        taken[stage] = 1e3 * (time.process_time() - start) / len(sources)
        return result

    decoded = timed("decode", lambda: [to_rgb(open_image(source), config.background) for source in sources])
    small = timed("resize", lambda: [resize(image, config.image_size, config.resize) for image in decoded])
    parts = [torch.from_numpy(np.stack(small[start : start + PART])) for start in range(0, len(small), PART)]
    encrypted = timed("encrypt", lambda: [encoder.encrypt(part) for part in parts])
    rows = timed("PNG", lambda: [row for part in encrypted for row in encoder.stored.rows(part)])
    table = Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))
    timed("write", lambda: table.save_to_disk(folder / "stages"))
    shard = next((folder / "stages").glob("*.arrow"))
    timed("hash", lambda: sha256(shard))
    torch.set_num_threads(threads)
    return taken


# -------------------------------------------------------------------------------------------------------------- load


def load(args: argparse.Namespace) -> dict[str, Any]:
    """The job alone and beside busy processes: which share of its fair share of the cores it gets."""
    split, count = photo_rows(args.rows), args.busy * cores()
    rates: dict[str, list[float]] = {"alone": [], "beside others": []}
    with tempfile.TemporaryDirectory() as folder:
        encoder = load_encoder(EncoderConfig(), key_in(folder))
        for turn in range(args.rounds):
            for name in rates:
                busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
                for process in busy if name == "alone" else ():
                    process.kill()
                start = time.perf_counter()
                fill(Path(folder) / f"{turn}-{name}", split, encoder)
                rates[name].append(len(split) / (time.perf_counter() - start))
                for process in busy:
                    process.kill()
                    process.wait()
    alone, beside = (statistics.median(each) for each in rates.values())
    share = beside / (alone / (1 + args.busy))
    print(f"{alone:.0f} images/s alone, {beside:.0f} beside {count} busy processes: {share:.0%} of the fair share")
    return {"alone": alone, "beside_others": beside, "busy": count, "of_fair_share": share}
