"""The parts of `benchmark.py` about jobs that are large or cut off: memory, bookkeeping of many shards, crashes."""

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from benchmark_jobs import fill
from datasets import Dataset, DatasetInfo, Features, Image, IterableDataset
from tqdm.auto import tqdm

from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.manifest import MANIFEST, UNFINISHED, is_unfinished, to_text, verify
from hf_neuracrypt.data.places import sha256
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.images import to_png
from hf_neuracrypt.jobs.job import BATCH_SIZE, Job, units_of
from hf_neuracrypt.jobs.writer import claim, complete, name_of, read_notes
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EncoderConfig


# ------------------------------------------------------------------------------------------------------------ memory


def synthetic(rows: int) -> Iterator[dict]:
    """PNG images of 224 px made on the fly: the source holds nothing."""
    generator = np.random.default_rng(0)
    for _ in range(rows):
        yield {"image": {"bytes": to_png(generator.integers(0, 256, (3, 224, 224), np.uint8)), "path": None}}


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """The most memory and disk of a process that encrypts a stream of so many images, whose shards are taken away as by
    an upload; one process each."""
    peaks = {}
    for rows in args.rows:
        words = [sys.executable, __file__, "memory", str(rows)]
        said = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
        peaks[rows] = dict(zip(("memory", "disk"), map(int, said.split())))
        print(
            f"{rows:>8,} images: " + ", ".join(f"{each / 1e6:,.0f} MB of {what}" for what, each in peaks[rows].items())
        )
    few, many = (peaks[rows] for rows in args.rows)
    ratios = {what: many[what] / few[what] for what in few}
    print("ratios " + ", ".join(f"{what} {ratio:.3f}" for what, ratio in ratios.items()))
    return {"peak_bytes": peaks, "ratios": ratios}


def memory_child(rows: int) -> None:
    sizes = []

    def taken_away(shard: Path, name: str) -> None:
        sizes.append(sum(file.stat().st_size for file in shard.parent.iterdir()))

    with tempfile.TemporaryDirectory() as folder:
        features = Features({"image": Image(decode=False)})
        split = IterableDataset.from_generator(synthetic, gen_kwargs={"rows": rows}, features=features)
        encoder = load_encoder(EncoderConfig(), SecretKey.generate())
        fill(Path(folder) / "encrypted", split, encoder, send=taken_away)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, max(sizes))


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
        start = time.perf_counter()
        units = units_of(job)
        seconds["planning"] = time.perf_counter() - start
        for unit in tqdm(units, desc="Writing empty shards"):
            file, rows = job.output / unit.file(0), unit.rows or 0
            file.touch()
            note = {"unit": unit.name, "part": 0, "last": True, "file": unit.file(0), "source_rows": rows, "rows": rows}
            (job.notes / name_of(note)).write_text(to_text(note | {"sha256": sha256(file), "rejected": []}))
        start = time.perf_counter()
        notes = read_notes(job, units, {})
        assert len(notes) == len(units)
        seconds["resuming"] = time.perf_counter() - start
        start = time.perf_counter()
        complete(job, notes)
        seconds["completing"] = time.perf_counter() - start
        start = time.perf_counter()
        assert all(problem is None for _, problem in verify(job.output))
        seconds["verifying"] = time.perf_counter() - start
        size = (job.output / MANIFEST).stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{args.shards:,} shards: " + ", ".join(f"{what} {value:.1f} s" for what, value in seconds.items()), end="")
    print(f"; {peak / 1e6:,.0f} MB of memory at the most, {size / 1e6:,.1f} MB of manifest")
    return {"shards": args.shards, "seconds": seconds, "peak_bytes": peak, "manifest_bytes": size}


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
