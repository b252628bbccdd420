"""The parts of `benchmark.py` that run whole jobs: speed from stored image to finished folder, memory, crashes."""

import argparse
import io
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetInfo, Features, Image, IterableDataset
from photos import crops
from PIL import Image as PILImage
from tqdm.auto import tqdm

from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.manifest import MANIFEST, UNFINISHED, is_unfinished, sha256, to_text, verify
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.encoders.reference import ColorNeuraCryptReference
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.images import to_png
from hf_neuracrypt.jobs.job import BATCH_SIZE, Job, units_of
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.jobs.writer import claim, complete, finished_shards
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EncoderConfig


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
    """Images/s from a dataset to a finished folder, with the encoder, without it, and with the float32 network."""
    split = next(iter(load_source(args.dataset).values())) if args.dataset else photo_rows(args.rows)
    split, config, threads = split.select(range(min(args.rows, len(split)))), EncoderConfig(), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        SecretKey.generate().save(f"{folder}/a.key")
        key = SecretKey.load(f"{folder}/a.key")
        exact = load_encoder(config, key)
        variants: dict[str, tuple[Encoder, int, int]] = {  # encoder, processes, threads of a process
            "exact encoder": (exact, 1, threads),
            "exact encoder, 1 thread": (exact, 1, 1),
            "exact encoder, 2 processes": (exact, 2, threads),
            "identity encoder": (Identity(config, key), 1, threads),
            "float32 network": (Float32(config, key), 1, threads),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(args.rounds):
            for name, (encoder, processes, count) in variants.items():
                torch.set_num_threads(count)
                start = time.perf_counter()
                fill(Path(folder) / f"{turn}-{name}", split, encoder, processes)
                times[name].append(time.perf_counter() - start)
                torch.set_num_threads(threads)
    rates = {name: len(split) / statistics.median(each) for name, each in times.items()}
    one = rates["exact encoder"]
    result = {
        "images_per_second": rates,
        "ratio_to_float32": one / rates["float32 network"],
        "ratio_to_identity": one / rates["identity encoder"],
        "ratio_two_threads": one / rates["exact encoder, 1 thread"],
        "ratio_two_processes": rates["exact encoder, 2 processes"] / one,
    }
    print(f"\n{len(split):,} images to {config.image_size} px, {threads} threads\n\n{'whole job':<32}{'images/s':>10}")
    for name, rate in rates.items():
        print(f"{name:<32}{rate:>10.0f}")
    print(", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in result.items() if name[:5] == "ratio"))
    return result


# ------------------------------------------------------------------------------------------------------------ memory


def synthetic(rows: int) -> Iterator[dict]:
    """PNG images of 224 px made on the fly: the source holds nothing."""
    generator = np.random.default_rng(0)
    for _ in range(rows):
        yield {"image": {"bytes": to_png(generator.integers(0, 256, (3, 224, 224), np.uint8)), "path": None}}


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of a process that encrypts a stream of so many images; one process each."""
    peaks = {}
    for rows in args.rows:
        words = [sys.executable, __file__, "memory", str(rows)]
        peaks[rows] = int(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
        print(f"{rows:>8,} images: {peaks[rows] / 1e6:,.0f} MB at the most")
    few, many = (peaks[rows] for rows in args.rows)
    print(f"ratio {many / few:.3f}")
    return {"peak_bytes": peaks, "ratio": many / few}


def memory_child(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        features = Features({"image": Image(decode=False)})
        split = IterableDataset.from_generator(synthetic, gen_kwargs={"rows": rows}, features=features)
        fill(Path(folder) / "encrypted", split, load_encoder(EncoderConfig(), SecretKey.generate()))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# ------------------------------------------------------------------------------------------------------------ shards


def shards(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds that a job of so many shards needs beside encrypting: all of them are there, and empty."""
    nulls = pa.table({"image": pa.nulls(args.shards * BATCH_SIZE, Image().pa_type)})
    splits = {"train": Dataset(nulls, info=DatasetInfo(features=Features({"image": Image()})), fingerprint="empty")}
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        plan = make_plan(splits, load_encoder(EncoderConfig(), SecretKey.generate()))
        job = Job(splits, plan, Path(name) / "encrypted", shard_bytes=1)
        claim(job)
        (job.output / "train").mkdir()
        start = time.perf_counter()
        units = units_of(job)
        seconds["planning"] = time.perf_counter() - start
        for unit in tqdm(units, desc="Writing empty shards"):
            file, rows = job.output / unit.file(0), unit.rows or 0
            file.touch()
            note = {"file": unit.file(0), "source_rows": rows, "rows": rows, "sha256": sha256(file), "rejected": []}
            (job.notes / f"{unit.name}-00000.last.json").write_text(to_text(note))
        start = time.perf_counter()
        assert sum(each.all for each in finished_shards(job).values()) == len(units)
        seconds["resuming"] = time.perf_counter() - start
        start = time.perf_counter()
        assert complete(job)
        seconds["completing"] = time.perf_counter() - start
        start = time.perf_counter()
        assert all(problem is None for _, problem in verify(job.output))
        seconds["verifying"] = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{args.shards:,} shards: " + ", ".join(f"{what} {value:.1f} s" for what, value in seconds.items()), end="")
    print(f"; {peak / 1e6:,.0f} MB at the most")
    return {"shards": args.shards, "seconds": seconds, "peak_bytes": peak}


# ------------------------------------------------------------------------------------------------------------- crash


def crash(args: argparse.Namespace) -> dict[str, Any]:
    """SIGKILL a job at a random moment, then let it finish; its bytes must be those of an undisturbed one.

    Then flip single bits of the finished folder: `verify` must find each.
    """
    generator, same, kills = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        SecretKey.generate().save(folder / "a.key")
        start = time.perf_counter()
        run_child(folder, "whole").wait()
        usual = time.perf_counter() - start
        expected = digests(folder / "whole")
        for trial in tqdm(range(args.trials), desc="Crash trials"):
            output = f"trial{trial}"
            for _ in range(generator.randint(1, 3)):
                child = run_child(folder, output)
                time.sleep(usual * generator.uniform(0.3, 1))
                child.send_signal(signal.SIGKILL)
                kills += child.wait() == -signal.SIGKILL
            if not (folder / output / MANIFEST).exists() or is_unfinished(folder / output):
                run_child(folder, output).wait()
            same += digests(folder / output) == expected
            shutil.rmtree(folder / output)
        found = sum(flip_is_found(folder / "whole", generator) for _ in tqdm(range(args.flips), desc="Bit flips"))
        assert digests(folder / "whole") == expected
    print(f"{same} of {args.trials} interrupted jobs ended with the same bytes ({kills} kills); ", end="")
    print(f"{found} of {args.flips} flipped bits were found")
    return {"trials": args.trials, "same_bytes": same, "kills": kills, "flips": args.flips, "found": found}


def run_child(folder: Path, output: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, __file__, "crash", str(folder / "a.key"), str(folder / output)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def crash_child(key_file: str, output: str) -> None:
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (1280, 32, 32, 3), np.uint8))
    split = Dataset.from_dict({"image": images}, features=Features({"image": Image()}))
    encoder = load_encoder(EncoderConfig(image_size=32, patch_size=8), SecretKey.load(key_file))
    fill(Path(output), split, encoder, shard_bytes=1)


def digests(folder: Path) -> dict[str, str]:
    """What `verify` looks at, and the manifest: a job killed while tidying up is complete."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): sha256(path) for name, path in files.items() if name.parts[0] != UNFINISHED}


def flip_is_found(folder: Path, generator: random.Random) -> bool:
    """Flip one bit of one file, ask `verify`, and put it back."""
    path = generator.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(damaged)
    try:
        return any(problem and folder / file == path for file, problem in verify(folder))
    except DatasetError:
        return path.name == MANIFEST
    finally:
        path.write_bytes(content)


if __name__ == "__main__":  # the processes that the measurements above start
    match sys.argv[1:]:
        case ["memory", rows]:
            memory_child(int(rows))
        case ["crash", key_file, output]:
            crash_child(key_file, output)
        case _:
            sys.exit("this is a part of benchmark.py: see its --help")
