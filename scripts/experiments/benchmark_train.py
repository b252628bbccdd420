"""The parts of `benchmark.py` that run models: training steps on ciphertexts, resized plain PNGs and usual photos, and
the features of a frozen model, which an owner may compute instead of encrypting."""

import argparse
import itertools
import random
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmark_jobs import photo_rows
from datasets import Dataset, Features, Image, Value
from fine_tune import autocast
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_neuracrypt.data.batches import encrypt_all
from hf_neuracrypt.data.columns import Columns
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.images import prepare, to_png
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EncoderConfig
from hf_neuracrypt.training.data import Collator, undecoded


MODELS = {  # width, layers, heads
    "tiny": (32, 1, 2),
    "ViT-Tiny": (192, 12, 3),
    "ViT-B/16": (768, 12, 12),
}
COLUMNS = Columns("image", ("label",))


class UsualCollator:
    """What examples of transformers do to plain images at every step: decode, crop, flip, resize, normalise."""

    def __init__(self, size: int):
        self.processor = ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=[0.5] * 3)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        crops = [self._crop(row["image"].convert("RGB")) for row in rows]
        pixels = self.processor(crops, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}

    @staticmethod
    def _crop(image: PILImage.Image) -> PILImage.Image:
        width, height = (int(length * random.uniform(0.5, 1)) for length in image.size)
        left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
        return image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def labelled(images: np.ndarray) -> Dataset:
    """uint8 (B, 3, S, S) as PNG files with labels, not decoded."""
    features = Features({"image": Image(), "label": Value("int64")})
    rows = {"image": [{"bytes": to_png(image), "path": None} for image in images]}
    return undecoded(Dataset.from_dict(rows | {"label": [i % 10 for i in range(len(images))]}, features), COLUMNS)


def sources(rows: int, size: int) -> dict[str, tuple[Dataset, Callable[..., Any]]]:
    """The same photos three times: dataset and collator."""
    config, photos = EncoderConfig(image_size=size), photo_rows(rows)
    plain = np.stack([prepare(image, config) for image in photos["image"]])
    encoder = load_encoder(config, SecretKey.generate())
    collator = Collator(COLUMNS, encoder.stored.pixel_values)
    return {
        "ciphertext": (labelled(encrypt_all(encoder.encrypt, plain)), collator),
        "resized plain PNG": (labelled(plain), collator),
        "usual pipeline": (photos.add_column("label", [i % 10 for i in range(rows)]), UsualCollator(size)),
    }


def new_model(title: str, size: int) -> ViTForImageClassification:
    """Of random weights: how fast a model is does not depend on them."""
    width, layers, heads = MODELS[title]
    shape: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    shape |= {"intermediate_size": 4 * width, "image_size": size, "num_labels": 10}
    return ViTForImageClassification(ViTConfig(**shape))


class Stepper:
    """Training steps of one model on one source, with the time they waited for data."""

    def __init__(self, dataset: Dataset, collator: Callable[..., Any], model: ViTForImageClassification, args: Any):
        self.model, self.device = model.to(args.device), args.device
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        on_gpu = torch.device(args.device).type == "cuda"
        workers = {"num_workers": args.workers, "persistent_workers": args.workers > 0, "pin_memory": on_gpu}
        loader = DataLoader(dataset, args.batch, collate_fn=collator, drop_last=True, **workers)
        self.steps: list[float] = []
        self.waits: list[float] = []
        self.batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch

    def step(self, measured: bool = True) -> None:
        start = time.perf_counter()
        batch = {name: value.to(self.device, non_blocking=True) for name, value in next(self.batches).items()}
        waited = time.perf_counter() - start
        with autocast(torch.device(self.device).type):
            loss = self.model(**batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()  # waits for a GPU
        if measured:
            self.steps.append(time.perf_counter() - start)
            self.waits.append(waited)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Step time, samples/s and the share of time waiting for data; the sources take turns at every step."""
    data = sources(max(args.rows, args.batch), args.image_size)
    result: dict[str, Any] = {}
    print(f"{'':<32}{'step, ms':>10}{'images/s':>10}{'in data':>9}")
    for title in ("tiny", "ViT-Tiny"):
        steppers = {name: Stepper(*each, new_model(title, args.image_size), args) for name, each in data.items()}
        for turn in range(args.steps + 1):
            for stepper in steppers.values():
                stepper.step(measured=turn > 0)
        for name, stepper in steppers.items():
            seconds = statistics.median(stepper.steps)
            share = sum(stepper.waits) / sum(stepper.steps)
            result[f"{title}, {name}"] = {"seconds": seconds, "images_per_second": args.batch / seconds, "data": share}
            print(f"{f'{title}, {name}':<32}{1e3 * seconds:>10.1f}{args.batch / seconds:>10.0f}{share:>9.0%}")
        times = [result[f"{title}, {name}"]["seconds"] for name in data]
        print(f"{title}: ciphertext {times[0] / times[1]:.2f} x plain, usual {times[2] / times[0]:.2f} x ciphertext")
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        result["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print(", ".join(f"{name.replace('_', ' ')} {result[name]:.0f}" for name in result if name.startswith("peak")))
    return result


@torch.inference_mode()
def features(args: argparse.Namespace) -> dict[str, Any]:
    """Images/s of frozen models' features against those of the encoder: medians of turns, images in memory."""
    config = EncoderConfig(image_size=args.image_size)
    encoder = load_encoder(config, SecretKey.generate())
    images = torch.from_numpy(np.stack([prepare(image, config) for image in photo_rows(args.batch)["image"]]))
    models = {title: new_model(title, args.image_size).eval() for title in ("ViT-Tiny", "ViT-B/16")}

    def seconds(job: Callable[[], object]) -> float:
        start = time.perf_counter()
        job()
        return time.perf_counter() - start

    with autocast("cpu"):
        jobs: dict[str, Callable[[], object]] = {"encrypt": lambda: encoder.encrypt(images)}
        jobs |= {title: partial(model, images.float().div_(127.5).sub_(1)) for title, model in models.items()}
        times = [{name: seconds(job) for name, job in jobs.items()} for _ in range(args.rounds + 1)][1:]  # one warms up
    rates = {name: args.batch / statistics.median(each[name] for each in times) for name in jobs}
    for name, rate in rates.items():
        print(f"{name:<12}{rate:>8.0f} images/s{rates['encrypt'] / rate:>8.1f} x the time to encrypt")
    return {"images_per_second": rates}
