"""What runs start from; what training in this process changes of it is put back."""

import os
from unittest import mock

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_neuracrypt import alignment
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from tests.helpers import TINY_VIT, make_dataset


@pytest.fixture(autouse=True)
def _environment():
    """`TrainingArguments` say how to compile by environment variables, which the next run would read."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _random_numbers():
    """A run with a seed sets the one that all share."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_encoder):
    """Encrypted and public images, and a tiny pre-trained ViT."""
    folder = tmp_path_factory.mktemp("recipes")
    splits = {"train": make_dataset(64, size=32), "validation": make_dataset(12, size=32, seed=1)}
    run(Job(splits, make_plan(splits, small_encoder), folder / "encrypted"))
    make_dataset(64, size=32, seed=2).remove_columns("label").save_to_disk(str(folder / "public"))
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**TINY_VIT)).save_pretrained(folder / "pretrained")
    return folder


@pytest.fixture(scope="module")
def align_once():
    """Which map it is plays no part here, and it takes seconds to find."""
    align, found = alignment.align, []

    def once(*images):
        found.append(found[0] if found else align(*images))
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "align", once)
        yield
