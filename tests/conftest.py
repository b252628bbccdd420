"""Fixtures: test keys (insecure on purpose), images made in code, tiny models. No test needs the network or a GPU."""

import os


# Before any Hugging Face library is imported: nothing is fetched, nothing is phoned home.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import hashlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset
from PIL import Image as PILImage

from hf_neuracrypt import store, writer
from hf_neuracrypt.configuration import EncoderConfig
from hf_neuracrypt.dataset import EncryptRows, make_plan
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.record import Record
from hf_neuracrypt.units import Job
from tests.loopback_hub import LoopbackHub


ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
SMALL = EncoderConfig(image_size=32, patch_size=8, depth=2, width=64)
SMALL_FLAGS = ("--image-size", 32, "--patch-size", 8, "--width", 64, "--depth", 2)
TINY_VIT = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 32, "patch_size": 8,
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Nothing of the suite lands in, or comes from, the user's cache."""
    import datasets.config

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")


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


def make_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """(count, size, size, 3) uint8 with structure and full range."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3))
    fine = generator.integers(-30, 31, (count, size, size, 3))
    return np.clip(coarse.repeat(size // 4, 1).repeat(size // 4, 2) + fine, 0, 255).astype(np.uint8)


def make_dataset(rows: int = 10, size: int = 20, seed: int = 0) -> Dataset:
    """Plain images of three classes, easy to tell apart, under CIFAR's column names."""
    labels = [index % 3 for index in range(rows)]
    images = make_images(rows, size, seed) // 2 + np.array(labels, np.uint8)[:, None, None, None] * 60
    features = Features({"img": Image(), "label": ClassLabel(names=["cat", "dog", "horse"])})
    return Dataset.from_dict({"img": list(images), "label": labels}, features=features)


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


def save_model(folder: Path, names: list[str], record: Record) -> None:
    """A tiny ViT of random weights that says it was trained on what `record` encrypted."""
    from hf_neuracrypt import training

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_VIT))
    training.load_model(None, str(folder), names, 32, [record]).save_pretrained(folder)
    training.stock_processor(32).save_pretrained(folder)


def encoded(image: PILImage.Image, kind: str, **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def batch(images: np.ndarray) -> torch.Tensor:
    """(B, S, S, 3) -> (B, 3, S, S)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def command(*words: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Run `hf-neuracrypt …`, or `python scripts/….py …`, as a user does."""
    first = str(words[0])
    program = (
        [sys.executable, str(ROOT / first)]
        if first.endswith(".py")
        else [sys.executable, "-m", "hf_neuracrypt.cli", first]
    )
    return subprocess.run(
        [*program, *map(str, words[1:])], capture_output=True, text=True, input=stdin, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


def encrypt(dataset, key_file, output, *flags) -> subprocess.CompletedProcess:
    """`hf-neuracrypt encrypt` with SMALL."""
    return command("encrypt", "--dataset", dataset, "--key-file", key_file, "--output", output, *SMALL_FLAGS, *flags)


def load_script(name: str):
    """scripts/NAME.py as a module; what it imports may lie beside it."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def launch(program: str, *words: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a launcher that is installed beside Python: torchrun, accelerate."""
    return subprocess.run(
        [str(Path(sys.executable).parent / program), *map(str, words)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


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
    return Job(splits, make_plan(splits, encoder), folder, **({"shard_bytes": SHARD_BYTES} | options))


def write(folder, encoder, splits=None, **options):
    assert writer.work(job_of(folder, encoder, splits, **options))


def write_interrupted(batches: int, monkeypatch, folder, encoder, splits=None, **options) -> None:
    """`write`, with Ctrl-C in the middle of the batch that follows `batches` whole ones."""
    calls, encrypt = [], EncryptRows.__call__

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) > batches:
            raise KeyboardInterrupt
        return encrypt(self, *args)

    monkeypatch.setattr(EncryptRows, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(folder, encoder, splits, **options)
    monkeypatch.undo()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small_encoder) -> Path:
    """SPLITS, encrypted in one go."""
    folder = tmp_path_factory.mktemp("writer") / "encrypted"
    write(folder, small_encoder)
    return folder


def digests(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def problems(folder) -> dict[str, str]:
    return {file: problem for file, problem in store.verify(folder) if problem}


def pixels(dataset) -> np.ndarray:
    return np.stack([np.asarray(row["image"]) for row in dataset])


def stream_of(dataset, shards: int = 1) -> IterableDataset:
    return dataset.to_iterable_dataset(num_shards=shards)


# ------------------------------------------------------------------------------------------------- two owners and a Hub


@pytest.fixture(scope="session")
def owners(tmp_path_factory):
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


def push(hub, owners, folder, repo, *words, token="hf_owner"):
    return command("push", owners / folder, repo, *words, **hub.environment(owners / "home", token))


def python(hub, code, home, token="hf_owner"):
    """Run code that a user might write; returns what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | hub.environment(home, token)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def key_id(path):
    return SecretKey.load(path).id


# ------------------------------------------------------------------------------------------------------------- audits


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


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """60 crops of photos, 64 px."""
    return crops(("astronaut", "coffee", "chelsea"), 60, 128)[:, :, ::2, ::2].copy()
