"""The parts of `benchmark.py` that run whole jobs: speed from stored image to finished folder, memory, crashes."""

import argparse
import io
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image, IterableDataset
from PIL import Image as PILImage
from tqdm.auto import tqdm

from hf_neuracrypt.data.manifest import DatasetError, MANIFEST, UNFINISHED, is_unfinished, sha256, sync, verify
from hf_neuracrypt.jobs.writer import ArrowWriter, BATCH_SIZE, Job, work
from hf_neuracrypt.schemes import EncoderConfig
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.reference import ColorNeuraCryptReference
from hf_neuracrypt.images import to_png
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.jobs.run import encrypt_to_folder


BATCH = BATCH_SIZE


def photos(rows: int) -> Dataset:
    """JPEG crops of the photos that come with scikit-image and scikit-learn."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    sources = [PILImage.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee", "cat")]
    sources += [PILImage.fromarray(photo) for photo in load_sample_images().images]
    generator, encoded = random.Random(0), []
    for index in range(rows):
        photo, file = sources[index % len(sources)], io.BytesIO()
        left, top = generator.randrange(photo.width - 299), generator.randrange(photo.height - 299)
        photo.crop((left, top, left + 299, top + 299)).save(file, "JPEG", quality=90)
        encoded.append({"bytes": file.getvalue(), "path": None})
    return Dataset.from_dict({"image": encoded}, features=Features({"image": Image()}))


def rows_of(args: argparse.Namespace) -> Dataset:
    if args.dataset is None:
        return photos(args.rows)
    split = next(iter(load_source(args.dataset).values()))
    return split.select(range(min(args.rows, len(split))))


# ------------------------------------------------------------------------------------------------------------- speed


class IdentityEncoder:
    """Stands in for the encoder: what the pipeline does without encrypting."""

    def __init__(self, config: EncoderConfig, key: SecretKey):
        self.config, self.key = config, key

    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        return images


class Float32Encoder(IdentityEncoder):
    """The float32 network in the same place, its output rounded to 8 bits."""

    def __init__(self, config: EncoderConfig, key: SecretKey):
        super().__init__(config, key)
        self.network = ColorNeuraCryptReference(config, key)

    @torch.inference_mode()
    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.float()).round_().clamp_(0, 255).byte()


def encrypt(args: argparse.Namespace) -> dict:
    """Images/s from a dataset to a finished folder, with the encoder, without it, and with the float32 network."""
    split, config = rows_of(args), EncoderConfig()
    with tempfile.TemporaryDirectory() as folder:
        SecretKey.generate().save(f"{folder}/a.key")
        key = SecretKey.load(f"{folder}/a.key")
        exact, threads = load_encoder(config, key), torch.get_num_threads()
        variants = {  # encoder, processes, threads of a process
            "exact encoder": (exact, 1, threads),
            "exact encoder, 1 thread": (exact, 1, 1),
            "exact encoder, 2 processes": (exact, 2, threads),
            "identity encoder": (IdentityEncoder(config, key), 1, threads),
            "float32 network": (Float32Encoder(config, key), 1, threads),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(args.rounds):
            for name, (encoder, processes, count) in variants.items():
                torch.set_num_threads(count)
                splits = {"train": split}
                job = Job(splits, make_plan(splits, encoder), Path(folder) / f"{turn}-{name}", shard_bytes=10**8)
                start = time.perf_counter()
                encrypt_to_folder(job, processes)
                times[name].append(time.perf_counter() - start)
        rates = {name: len(split) / statistics.median(each) for name, each in times.items()}
        torch.set_num_threads(threads)
        stages = measure_stages(split, exact, Path(folder))
    slowest = min(stages, key=stages.__getitem__)
    one = rates["exact encoder"]
    result = {
        "images_per_second": rates,
        "stages_alone": stages,
        "share_of_slowest_stage": one / stages[slowest],
        "share_of_stages_in_sequence": one * sum(1 / rate for rate in stages.values()),
        "ratio_to_float32": one / rates["float32 network"],
        "ratio_two_processes": rates["exact encoder, 2 processes"] / one,
        "ratio_two_processes_of_one_thread": rates["exact encoder, 2 processes"] / rates["exact encoder, 1 thread"],
    }
    print(f"\n{len(split):,} images to {config.image_size} px\n\n{'whole job':<32}{'images/s':>10}")
    for name, rate in rates.items():
        print(f"{name:<32}{rate:>10.0f}")
    total = sum(1 / rate for rate in stages.values())
    print(f"\n{'stage alone':<32}{'images/s':>10}{'share of time':>15}")
    for name, rate in stages.items():
        print(f"{name:<32}{rate:>10.0f}{1 / rate / total:>15.0%}")
    print(
        f"\none process: {result['share_of_stages_in_sequence']:.0%} of what the stages one after the other allow, "
        f"{result['share_of_slowest_stage']:.0%} of what the slowest ({slowest}) alone allows; "
        f"{result['ratio_to_float32']:.1f} times the float32 network; "
        f"two processes {result['ratio_two_processes']:.2f} times one with all threads, "
        f"{result['ratio_two_processes_of_one_thread']:.2f} times one with one thread"
    )
    return result


def measure_stages(split: Dataset, encoder, folder: Path) -> dict[str, float]:
    """Images/s of each stage of the pipeline alone: its share of the time of a loop over batches."""
    seconds = dict.fromkeys(("decode", "resize", "encode", "PNG", "write", "hash"), 0.0)
    column, file, size = split.column_names[0], folder / "stages.arrow", encoder.config.image_size

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - start

    with ArrowWriter(features=Features({"image": Image()}), path=str(file)) as arrow:
        for batch in split.cast_column(column, Image(decode=False)).iter(batch_size=BATCH):
            with stage("decode"):
                images = [PILImage.open(io.BytesIO(source["bytes"])).convert("RGB") for source in batch[column]]
            with stage("resize"):
                resized = [np.asarray(image.resize((size, size), PILImage.Resampling.BILINEAR)) for image in images]
                plain = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
            with stage("encode"):
                pixels = encoder.encrypt(plain).permute(0, 2, 3, 1).contiguous().numpy()
            with stage("PNG"):
                stored = [{"bytes": to_png(image), "path": None} for image in pixels]
            with stage("write"):
                arrow.write_batch({"image": stored})
        with stage("write"):
            arrow.finalize()
            sync(file)
    with stage("hash"):
        sha256(file)
    return {name: len(split) / each for name, each in seconds.items()}


# ------------------------------------------------------------------------------------------------------------ memory


def synthetic(rows: int) -> Iterator[dict]:
    """PNG images of 224 px made on the fly: the source holds nothing."""
    generator = np.random.default_rng(0)
    for _ in range(rows):
        yield {"image": {"bytes": to_png(generator.integers(0, 256, (224, 224, 3), np.uint8)), "path": None}}


def memory(args: argparse.Namespace) -> dict:
    """Peak resident memory of a process that encrypts a stream of so many images; one process each."""
    peaks = {}
    for rows in args.rows:
        ended = subprocess.run(
            [sys.executable, __file__, "memory", str(rows)], capture_output=True, text=True, check=True
        )
        peaks[rows] = int(ended.stdout)
        print(f"{rows:>8,} images: {peaks[rows] / 1e6:,.0f} MB at the most")
    few, many = (peaks[rows] for rows in args.rows)
    print(f"ratio {many / few:.3f}")
    return {"peak_bytes": peaks, "ratio": many / few}


def memory_child(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        features = Features({"image": Image(decode=False)})
        splits = {"train": IterableDataset.from_generator(synthetic, gen_kwargs={"rows": rows}, features=features)}
        encoder = load_encoder(EncoderConfig(), SecretKey.generate())
        job = Job(splits, make_plan(splits, encoder), Path(folder) / "encrypted", shard_bytes=10**8)
        work(job)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# ------------------------------------------------------------------------------------------------------------- crash


def crash(args: argparse.Namespace) -> dict:
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
            subprocess.run(["rm", "-r", str(folder / output)], check=True)
        found = sum(flip_is_found(folder / "whole", generator) for _ in tqdm(range(args.flips), desc="Bit flips"))
        assert digests(folder / "whole") == expected
    print(f"{same} of {args.trials} interrupted jobs ended with the same bytes ({kills} kills); ", end="")
    print(f"{found} of {args.flips} flipped bits were found")
    return {"trials": args.trials, "same_bytes": same, "kills": kills, "flips": args.flips, "found": found}


def run_child(folder: Path, output: str) -> subprocess.Popen:
    words = [sys.executable, __file__, "crash", str(folder / "a.key"), str(folder / output)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def crash_child(key_file: str, output: str) -> None:
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (1280, 32, 32, 3), np.uint8))
    splits = {"train": Dataset.from_dict({"image": images}, features=Features({"image": Image()}))}
    encoder = load_encoder(EncoderConfig(image_size=32, patch_size=8), SecretKey.load(key_file))
    work(Job(splits, make_plan(splits, encoder), Path(output), shard_bytes=1))


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
            sys.exit("this is a part of scripts/benchmark.py: see its --help")
