"""What tests share: images, models and encrypted folders made in code. How they run a command: `tests/commands.py`."""

import base64
import hashlib
import io
import json
from pathlib import Path
from unittest import mock

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
