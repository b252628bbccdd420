"""Fixtures: test keys (insecure on purpose), images made in code, tiny models. No test needs the network or a GPU."""

import os


# Before any Hugging Face library is imported: nothing is fetched, nothing is phoned home.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import DatasetDict
from transformers.utils import logging as transformers_logging

from hf_neuracrypt.alignment import adversary, moments, rehearsal
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.keys import SecretKey
from tests.commands import command, push
from tests.helpers import SMALL, SMALL_FLAGS, TINY_VIT, crops, make_dataset, write
from tests.loopback_hub import LoopbackHub


LONGEST = (
    "test_far.py", "test_ranks.py", "test_readme.py", "test_trainer.py", "test_recipes.py", "test_scripts.py",
    "test_cli.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that two processes that share the suite end together."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Nothing of the suite lands in, or comes from, the user's cache."""
    import datasets.config

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")


@pytest.fixture(autouse=True)
def _loudness():
    """What transformers says does not depend on the tests before."""
    loudness = transformers_logging.get_verbosity()
    yield
    transformers_logging.set_verbosity(loudness)


@pytest.fixture(scope="module")
def short_search():
    """Enough of the search for an aligned start for images as simple as `scenes`."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (moments, "STARTS", 6), (adversary, "HEATS", ((20, 2), (30, 1))), (adversary, "STEPS", 60),
            (rehearsal, "KEYS", 2), (rehearsal, "ROUNDS", 2), (rehearsal, "STEPS", 60),
        ):  # fmt: skip
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="session")
def insecure_key() -> SecretKey:
    """A key everybody knows."""
    return SecretKey(bytes(range(32)))


@pytest.fixture
def key_file(tmp_path) -> Path:
    """A key file of its own for a test; its key can be sent to workers."""
    SecretKey.generate().save(tmp_path / "test.key")
    return tmp_path / "test.key"


@pytest.fixture(scope="session")
def small_encoder(insecure_key):
    return load_encoder(SMALL, insecure_key)


@pytest.fixture
def plain_folder(tmp_path) -> Path:
    """A `save_to_disk` folder with two splits."""
    DatasetDict({"train": make_dataset(24), "test": make_dataset(9, seed=1)}).save_to_disk(str(tmp_path / "plain"))
    return tmp_path / "plain"


@pytest.fixture
def vit_config(tmp_path) -> Path:
    """A folder with the config of a tiny ViT."""
    (tmp_path / "tiny-vit").mkdir()
    (tmp_path / "tiny-vit" / "config.json").write_text(json.dumps(TINY_VIT))
    return tmp_path / "tiny-vit"


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small_encoder) -> Path:
    """SPLITS, encrypted in one go."""
    folder = tmp_path_factory.mktemp("writer") / "encrypted"
    write(folder, small_encoder)
    return folder


@pytest.fixture(scope="session")
def owners(tmp_path_factory) -> Path:
    """Two owners: their keys, one source, two encrypted folders of several shards; a config of a tiny ViT."""
    folder = tmp_path_factory.mktemp("hub")
    plain = DatasetDict({"train": make_dataset(300), "test": make_dataset(30, seed=1)})
    plain.save_to_disk(str(folder / "plain"))
    for owner in ("one", "two"):
        SecretKey.generate().save(folder / f"{owner}.key")
        encrypt = command(
            "encrypt", "--dataset", folder / "plain", "--key-file", folder / f"{owner}.key", "--output", folder / owner,
            "--shard-size", 1, *SMALL_FLAGS,
        )  # fmt: skip
        assert encrypt.returncode == 0, encrypt.stderr
    (folder / "vit").mkdir()
    (folder / "vit" / "config.json").write_text(json.dumps(TINY_VIT))
    return folder


@pytest.fixture(scope="session")
def published(owners):
    """A Hub that holds the first owner's images as owner/photos."""
    with LoopbackHub() as hub:
        result = push(hub, owners, "one", "owner/photos", "--key-file", owners / "one.key")
        assert result.returncode == 0, result.stderr
        yield hub


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """60 crops of photos, 64 px: uint8 (60, 3, 64, 64)."""
    return crops(("astronaut", "coffee", "chelsea"), 60, 128)[:, :, ::2, ::2].copy()
