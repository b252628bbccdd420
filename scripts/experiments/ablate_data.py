"""The images of the ablation: in memory, plain and encrypted, under keys that everybody can make again."""

import argparse
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from features import HOME_SIZE, soft_labels
from fine_tune import Row
from photos import OTHER_PHOTOS, PHOTOS, squares

from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder
from hf_neuracrypt.alignment import most_images
from hf_neuracrypt.data.batches import encrypt_all, prepare_all
from hf_neuracrypt.data.columns import find_columns
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.images import make_views
from hf_neuracrypt.models.load import load_model
from hf_neuracrypt.schemes import SchemeConfig


PUBLIC = 4_000  # images that an alignment is given of each side; of large ones as many as `train.py` takes


def read_images(sources: Sequence[object], config: SchemeConfig) -> torch.Tensor:
    """Plain images, prepared: uint8 (B, 3, S, S). Raises ImageError."""
    images = np.empty((len(sources), 3, config.image_size, config.image_size), np.uint8)
    for start in range(0, len(images), 1_000):  # in memory once
        for number, image in enumerate(prepare_all(sources[start : start + 1_000], config), start):
            if isinstance(image, ImageError):
                raise image
            images[number] = image
    return torch.from_numpy(images)


def read_rows(rows: Dataset, config: SchemeConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of a dataset, uint8 (B, 3, S, S), and their labels, int64 (B,)."""
    columns = find_columns(rows.features, None, None)
    return read_images(rows[columns.image], config), torch.tensor(rows[columns.labels[0]])


def insecure_key(name: str) -> SecretKey:
    """A key that everybody can make again, for images that everybody has."""
    return SecretKey(hashlib.sha256(f"insecure: {name}".encode()).digest())


def encrypted(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(encrypt_all(encoder.encrypt, images.numpy()))


def rounded(images: Any, bits: int) -> Any:
    """uint8 with so many leading bits of each value kept, the others those of the middle between two such values."""
    lost = 8 - bits
    return images if lost == 0 else images >> lost << lost | 1 << (lost - 1)


class Data:
    """Images in memory, uint8 (B, 3, S, S), plain and encrypted by an encoder of a width and a depth."""

    def __init__(self, args: argparse.Namespace, seed: int, width: int, depth: int):
        self.args, self.splits = args, load_source(args.dataset)
        self.config = EncoderConfig(image_size=args.image_size, width=width, depth=depth)
        keys = insecure_key(f"seed {seed}"), insecure_key(f"seed {seed}, another")
        self.encoder, self.other = (load_encoder(self.config, key) for key in keys)
        self.plain, self.labels = self._read("train", 0, args.train)
        self.plain_test, self.test_labels = self._read("test", 0, args.test)

    @functools.cached_property
    def cipher(self) -> torch.Tensor:
        return encrypted(self.encoder, self.plain)

    @functools.cached_property
    def cipher_test(self) -> torch.Tensor:
        return encrypted(self.encoder, self.plain_test)

    @functools.cached_property
    def other_test(self) -> torch.Tensor:
        """The test images under another key."""
        return encrypted(self.other, self.plain_test)

    def _read(self, split: str, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return read_rows(self.splits[split].select(range(start, start + count)), self.config)

    def public(self, kind: str) -> torch.Tensor:
        count = min(PUBLIC, most_images(self.config.image_size, self.config.patch_size))
        if kind == "photos":  # brought to 32 px and then, as CIFAR is, to the size
            return read_images(list(squares(count, 32, PHOTOS + OTHER_PHOTOS, smallest=64)), self.config)
        rows = len(self.splits["train"])
        start = max(self.args.train, min(10_000, rows - count))  # never one that is also encrypted
        return self._read("train", start, min(count, rows - start))[0]

    @property
    def names(self) -> list[str]:
        return [str(label) for label in range(int(self.labels.max()) + 1)]

    def soft_labels(self) -> torch.Tensor:
        """What the owner's own head says of each training image: float32 (B, classes)."""
        config = replace(self.config, image_size=HOME_SIZE)
        images, labels = read_rows(self.splits["train"].select(range(len(self.labels))), config)
        return soft_labels(load_model(self.args.model, None, self.names, HOME_SIZE, []), images, labels)

    def versions(self, row: Row) -> list[torch.Tensor]:
        """Training images, a tensor for each epoch in turn."""
        if row.views == 1:
            return [self.plain if row.plain else rounded(self.cipher, row.bits)]
        views = np.stack([make_views(image, row.views, flip=True) for image in self.plain.numpy()], axis=1)
        return [self.cipher, *(encrypted(self.encoder, torch.from_numpy(each)) for each in views[1:])]
