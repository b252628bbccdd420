"""What tests share: images and models made in code, and the ways to run a command."""

import base64
import contextlib
import hashlib
import importlib
import importlib.util
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset
from PIL import Image as PILImage

from hf_neuracrypt.data.dataset import EncryptRows, make_plan
from hf_neuracrypt.data.manifest import verify
from hf_neuracrypt.data.places import place
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EncoderConfig


ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
SMALL = EncoderConfig(image_size=32, patch_size=8, depth=2, width=64)
SMALL_FLAGS = ("--image-size", 32, "--patch-size", 8, "--scheme-option", "width=64", "--scheme-option", "depth=2")
KEY_ID = f"nck1-{0:032x}"  # of no key that anybody has
TINY_VIT = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 32, "patch_size": 8,
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- images


def make_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """(count, size, size, 3) uint8, as Pillow takes images, with structure and full range; `batch` makes a tensor."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3))
    fine = generator.integers(-30, 31, (count, size, size, 3))
    return np.clip(coarse.repeat(size // 4, 1).repeat(size // 4, 2) + fine, 0, 255).astype(np.uint8)


def batch(images: np.ndarray) -> torch.Tensor:
    """(B, S, S, 3) -> what an encoder takes, (B, 3, S, S)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def make_dataset(rows: int = 10, size: int = 20, seed: int = 0) -> Dataset:
    """Plain images of three classes, not sorted by them, easy to tell apart, under CIFAR's column names."""
    labels = [(1, 0, 2)[index % 3] for index in range(rows)]
    images = make_images(rows, size, seed) // 2 + np.array(labels, np.uint8)[:, None, None, None] * 60
    features = Features({"img": Image(), "label": ClassLabel(names=["cat", "dog", "horse"])})
    return Dataset.from_dict({"img": list(images), "label": labels}, features=features)


def golden_image(name: str, size: int) -> np.ndarray:
    """(size, size, 3) uint8 by integer rules alone."""
    y, x, c = np.ogrid[:size, :size, :3]
    if name == "black":
        return np.zeros((size, size, 3), np.uint8)
    if name == "white":
        return np.full((size, size, 3), 255, np.uint8)
    if name == "ramp":
        return ((x * 7 + y * 3 + c * 85) % 256).astype(np.uint8)
    assert name == "noise"
    stream = hashlib.shake_256(b"golden noise").digest(size * size * 3)
    return np.frombuffer(stream, np.uint8).reshape(size, size, 3)


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def scenes(count: int, seed: int) -> torch.Tensor:
    """Smooth colour images (count, 3, 48, 48) in [-1, 1], skewed as photos are: mostly dark, channels correlated."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, 9, 9, generator=generator)
    noise = noise @ torch.diag(torch.linspace(0.8, 1.2, 9)) + 1.2 * noise[:, :1]
    smooth = torch.nn.functional.interpolate(noise, 48, mode="bicubic")
    return (smooth.exp() * 0.12).clamp(max=2) - 1


def crops(names: tuple[str, ...], count: int, size: int, seed: int = 0) -> np.ndarray:
    """Crops of scikit-image's photos at native resolution: uint8 (count, 3, size, size)."""
    from skimage import data

    generator, photos = np.random.default_rng(seed), [getattr(data, name)() for name in names]
    images = []
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = (generator.integers(0, side - size + 1) for side in photo.shape[:2])
        images.append(photo[top : top + size, left : left + size].transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(images))


def encoded(image: PILImage.Image, kind: str, **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_dicom(pixels: np.ndarray, syntax: str = "1.2.840.10008.1.2.1", **header) -> bytes:
    """A DICOM file of grey (H, W), several frames (N, H, W), or RGB (H, W, 3); `header` by keywords, None: without."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, SecondaryCaptureImageStorage, generate_uid

    uid, colour = generate_uid(entropy_srcs=[repr(header), repr(pixels)]), pixels.shape[-1] == 3
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = UID(syntax), header.get("SOPInstanceUID", uid)
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data, bits = FileDataset("", {}, file_meta=meta, preamble=bytes(128)), 8 * pixels.itemsize
    rows, columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    given = {
        "SOPClassUID": SecondaryCaptureImageStorage, "SOPInstanceUID": uid, "Modality": "OT", "Rows": rows,
        "Columns": columns, "SamplesPerPixel": 3 if colour else 1, "BitsAllocated": bits, "BitsStored": bits,
        "HighBit": bits - 1, "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2", "PlanarConfiguration": 0 if colour else None,
        "NumberOfFrames": len(pixels) if pixels.ndim == 3 and not colour else None, "PixelData": pixels.tobytes(),
    }  # fmt: skip
    for name, value in (given | header).items():
        if value is not None:
            setattr(data, name, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def save_model(folder: Path, names: list[str], record: Record) -> None:
    """A tiny ViT of random weights that says it was trained on what `record` encrypted."""
    from hf_neuracrypt.models.load import load_model, stock_processor

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_VIT))
    load_model(None, str(folder), names, 32, [record]).save_pretrained(folder)
    stock_processor(32).save_pretrained(folder)


def key_id(path) -> str:
    return SecretKey.load(path).id


def secret_of(path: Path) -> bytes:
    """The key in a plain key file, read without the package."""
    line = path.read_text().splitlines()[-1]
    return base64.b32decode(line.removeprefix("NEURACRYPT-SECRET-KEY-1"))[:32]


def leaks(secret: bytes, data: bytes) -> bool:
    """Whether some bytes hold a key, raw or as text."""
    forms = (secret.hex().encode(), base64.b64encode(secret)[:40], base64.b32encode(secret)[:48], repr(secret).encode())
    return secret in data or any(form in data for form in forms)


# ----------------------------------------------------------------------------------------------------------- commands


def command(*words: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`hf-neuracrypt …`, or `python scripts/….py …`, inside this process: without a second for Python and torch.

    What a command changes of the process is put back; `environment` is seen as if the process had started with it.
    Signals, locks, workers and what needs a fresh interpreter are tested with `process`.
    """
    first, streams = str(words[0]), [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    script = ROOT / first if first.endswith(".py") else None
    argv = [str(script or "hf-neuracrypt"), *map(str, words[1 if script else 0 :])]
    path = [str(script.parent), *sys.path] if script else list(sys.path)
    with (
        started_with(environment), _state_put_back(), mock.patch.multiple(sys, argv=argv, path=path),
        mock.patch.object(sys, "stdin", io.StringIO(stdin or "")), _log_to(streams[1]),
        contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]),
    ):  # fmt: skip
        code = _status_of(script)
    out, err = (stream.buffer.getvalue().decode() for stream in streams)
    return subprocess.CompletedProcess(argv, code, out, err)


def _status_of(script: Path | None) -> int:
    """The exit status that an interpreter would end with."""
    try:
        if script:
            runpy.run_path(str(script), run_name="__main__")
        else:
            main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")  # of a console script
            try:  # no `mock.patch.dict`: it would forget what a command imported, and some modules load but once
                importlib.import_module("hf_neuracrypt.cli").main()
            finally:
                sys.modules["__main__"] = main
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _state_put_back() -> Iterator[None]:
    """Signal handlers, threads and random numbers of torch, filters of warnings, how loud transformers is."""
    from transformers.utils import logging as transformers_logging

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads, verbosity = torch.get_num_threads(), transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _log_to(stream) -> Iterator[None]:
    """Handlers that hold the stderr of the time when a library was imported write to `stream`."""

    def point(target) -> None:
        for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
            for handler in getattr(logger, "handlers", []):
                if type(handler) is logging.StreamHandler:
                    handler.setStream(target)

    point(stream)
    try:
        yield
    finally:
        point(sys.__stderr__)


@contextlib.contextmanager
def started_with(environment: dict[str, str]) -> Iterator[None]:
    """`os.environ`, and what Hugging Face's libraries made of it when they were imported, with `environment` in it."""
    import datasets.config

    modules = (huggingface_hub.constants, datasets.config)
    before = [_imported_again(module) for module in modules] if environment else []
    with mock.patch.dict(os.environ, environment), contextlib.ExitStack() as stack:
        for module, old in zip(modules, before):
            new = _imported_again(module)
            for name in [name for name, value in new.items() if value != old[name]]:
                stack.enter_context(mock.patch.object(module, name, new[name]))
        if before:
            endpoint = huggingface_hub.constants.ENDPOINT
            stack.enter_context(mock.patch.object(huggingface_hub.hf_api.api, "endpoint", endpoint))
            huggingface_hub.HfFileSystem.clear_instance_cache()
        yield


def _imported_again(module) -> dict[str, object]:
    """The plain values among the globals of a module, as they would be if it were imported now."""
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_again", module.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    plain = (str, bool, int, float, Path, type(None))
    return {name: value for name, value in vars(again).items() if isinstance(value, plain) and name[:2] != "__"}


def process(*words: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`command` as a user runs it, in a process of its own."""
    if words and str(words[0]).endswith(".py"):
        return _run([sys.executable, ROOT / str(words[0]), *words[1:]], environment, stdin)
    return _run([sys.executable, "-m", "hf_neuracrypt", *words], environment, stdin)


def launch(program: str, *words: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a launcher that is installed beside Python: torchrun, accelerate."""
    return _run([Path(sys.executable).parent / program, *words], {"OMP_NUM_THREADS": "1"} | environment)


def _run(words: list, environment: dict[str, str], stdin: str | None = None) -> subprocess.CompletedProcess:
    """A minute's work has ten: a test machine may be busy."""
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, input=stdin, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


def wait_until(happened) -> None:
    """Wait for an event, however busy the machine is."""
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def encrypt(dataset, key_file, output, *flags, run=command) -> subprocess.CompletedProcess:
    """`hf-neuracrypt encrypt` with SMALL."""
    return run("encrypt", "--dataset", dataset, "--key-file", key_file, "--output", output, *SMALL_FLAGS, *flags)


def load_script(name: str):
    """scripts/NAME.py or scripts/experiments/NAME.py as a module; what it imports may lie beside it."""
    folders = [str(ROOT / "scripts"), str(ROOT / "scripts" / "experiments")]
    with mock.patch.object(sys, "path", [*folders, *sys.path]):
        return importlib.import_module(name)


def notes(result: subprocess.CompletedProcess) -> list[str]:
    """The lines on stderr, without progress bars."""
    lines = result.stderr.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip("\x1b[A ") and "it/s]" not in line and "%|" not in line]


def assert_one_line_error(result: subprocess.CompletedProcess, *fragments: str) -> None:
    """Status is not 0, and stderr ends in one line that says what is wrong, without a traceback."""
    assert result.returncode not in (0, 1), result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    for fragment in fragments:
        assert fragment in errors[0], errors[0]


# ------------------------------------------------------------------------------------------- jobs that fill a folder

SHARD_BYTES = 250_000  # 64 rows of 32 px
SPLITS = {"train": make_dataset(240), "test": make_dataset(100, seed=1)}


def job_of(folder, encoder, splits=None, **options) -> Job:
    splits = splits or SPLITS
    plan = make_plan(splits, encoder, origin="made in code")
    return Job(splits, plan, folder, **({"shard_bytes": SHARD_BYTES} | options))


def write(folder, encoder, splits=None, **options) -> None:
    assert run(job_of(folder, encoder, splits, **options))


def write_interrupted(batches: int, folder, encoder, splits=None, **options) -> None:
    """`write`, with Ctrl-C in the middle of the batch that follows `batches` whole ones."""
    calls, encrypt_batch = [], EncryptRows.__call__

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) > batches:
            raise KeyboardInterrupt
        return encrypt_batch(self, *args)

    with mock.patch.object(EncryptRows, "__call__", interrupted), pytest.raises(KeyboardInterrupt):
        write(folder, encoder, splits, **options)


def digests(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def contents(folder) -> dict[str, bytes]:
    """Every file of a finished folder, or of one in a bucket, by name."""
    root = place(folder)
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def problems(folder) -> dict[str, str]:
    return {file: problem for file, problem in verify(folder) if problem}


def pixels(dataset) -> np.ndarray:
    return np.stack([np.asarray(row["image"]) for row in dataset])


def stream_of(dataset, shards: int = 1) -> IterableDataset:
    return dataset.to_iterable_dataset(num_shards=shards)


# ------------------------------------------------------------------------------------------------------------- a Hub


def push(hub, owners, folder, repo, *words, token="hf_owner") -> subprocess.CompletedProcess:
    return command("push", owners / folder, repo, *words, **hub.environment(owners / "home", token))


def python(hub, code, home, token="hf_owner") -> str:
    """Run code that a user might write; returns what it prints."""
    result = _run([sys.executable, "-c", code], hub.environment(home, token))
    assert result.returncode == 0, result.stderr
    return result.stdout
