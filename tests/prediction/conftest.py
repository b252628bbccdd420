"""An owner with a key and photos, a model whose labels are hidden, and a client that may send requests."""

import huggingface_hub
import pytest
from PIL import Image

from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.manifest import read_manifest
from hf_neuracrypt.data.record import Record, seal_names
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.keys import SecretKey
from tests.helpers import SMALL, make_dataset, make_images, save_model
from tests.prediction.serving import NAMES


@pytest.fixture
def online(monkeypatch):
    """The client in this process may send requests, with somebody's token at hand."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """An owner with a key and photos, and a model of random weights whose labels are hidden."""
    folder = tmp_path_factory.mktemp("remote")
    SecretKey.generate().save(folder / "a.key")
    key = SecretKey.load(folder / "a.key")
    neutral = [f"class_{number}" for number in range(3)]
    sealed = seal_names(key, dict(zip(neutral, NAMES)), "")
    save_model(folder / "model", neutral, Record(SMALL, key.id, sealed))
    (folder / "photos" / "ward").mkdir(parents=True)
    for number, pixels in enumerate(make_images(4, 40)):
        Image.fromarray(pixels).save(folder / "photos" / "ward" / f"jane_{number}.jpg")
    splits = {"train": make_dataset(9)}
    plan = make_plan(splits, load_encoder(SMALL, key), hide_labels=True)
    assert run(Job(splits, plan, folder / "encrypted"))
    (folder / "photos" / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def names(work):
    """The true names of hidden labels, as the owner's record has them."""
    return Record.from_dict(read_manifest(work / "encrypted")).true_names(SecretKey.load(work / "a.key"))
