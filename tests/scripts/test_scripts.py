"""The launchers: `scripts/encrypt.py` under accelerate, torchrun and SLURM's variables, and the benchmark's trials."""

import json

import pytest

from hf_neuracrypt.data.manifest import is_unfinished
from tests.helpers import ROOT, SMALL_FLAGS, assert_one_line_error, command, digests, launch, make_dataset


@pytest.fixture
def source(tmp_path, key_file) -> list:
    """Options of an encryption of three shards."""
    make_dataset(400, size=56).save_to_disk(str(tmp_path / "plain"))
    flags = ["--image-size", 56, "--patch-size", 14, "--width", 64, "--shard-size", 1]
    return ["--dataset", tmp_path / "plain", "--key-file", key_file, *flags, "--output"]


def test_every_launcher_gives_the_same_bytes(source, tmp_path):
    script = ROOT / "scripts" / "encrypt.py"
    assert command("encrypt", *source, tmp_path / "one").returncode == 0
    expected = digests(tmp_path / "one")
    assert sum(name.endswith(".arrow") for name in expected) > 2
    assert command("encrypt", *source, tmp_path / "two", "--num-proc", 2).returncode == 0
    torchrun = launch("torchrun", "--nproc_per_node", 2, script, *source, tmp_path / "torchrun")
    assert torchrun.returncode == 0, torchrun.stderr
    accelerate = launch("accelerate", "launch", "--num_processes", 1, script, *source, tmp_path / "accelerate")
    assert accelerate.returncode == 0, accelerate.stderr
    for rank in (2, 0, 1):
        result = command("scripts/encrypt.py", *source, tmp_path / "slurm", SLURM_PROCID=str(rank), SLURM_NTASKS="3")
        assert result.returncode == 0, result.stderr
        assert is_unfinished(tmp_path / "slurm") == (rank != 1)
    for name in ("two", "torchrun", "accelerate", "slurm"):
        assert digests(tmp_path / name) == expected, name


def test_rank_and_world_size_by_hand(source, tmp_path):
    assert_one_line_error(command("encrypt", *source, tmp_path / "out", "--rank", 2, "--world-size", 2), "count from 0")
    first = command("encrypt", *source, tmp_path / "out", "--rank", 0, "--world-size", 2)
    assert first.returncode == 0 and "has done its part" in first.stderr
    assert_one_line_error(command("verify", tmp_path / "out"), "unfinished")
    last = command("encrypt", *source, tmp_path / "out", "--rank", 1, "--world-size", 2)
    assert last.returncode == 0 and "Encrypted 400 images" in last.stderr


def test_crash_trials(tmp_path):
    """The benchmark's own trials, a few of them."""
    result = command("scripts/benchmark.py", "--output", tmp_path / "crash.json", "crash", "--trials", 3, "--flips", 30)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "crash.json").read_text())
    assert figures["same_bytes"] == figures["trials"] == 3 and figures["found"] == figures["flips"] == 30


def test_training_is_timed(tmp_path):
    result = command(
        "scripts/benchmark.py", "--output", tmp_path / "train.json",
        "train", "--rows", 8, "--batch", 4, "--image_size", 32, "--steps", 1,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "train.json").read_text())
    rows = {name for name in figures if name.startswith("ViT-Tiny")}
    assert rows == {f"ViT-Tiny, {source}" for source in ("ciphertext", "resized plain PNG", "usual pipeline")}
    assert all(0 <= figures[name]["data"] <= 1 and figures[name]["images_per_second"] > 0 for name in rows)


def test_small_flags_are_those_of_the_small_config():
    from tests.helpers import SMALL

    names = [str(flag).removeprefix("--").replace("-", "_") for flag in SMALL_FLAGS[::2]]
    assert all(getattr(SMALL, name) == value for name, value in zip(names, SMALL_FLAGS[1::2]))
