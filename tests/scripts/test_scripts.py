"""The launchers: `scripts/encrypt.py` under torchrun and SLURM's variables; and the benchmarks."""

import json
import tomllib

import pytest

from hf_neuracrypt.data.manifest import is_unfinished
from tests.commands import assert_one_line_error, command, launch
from tests.helpers import ROOT, digests, make_dataset


@pytest.fixture
def source(tmp_path, key_file) -> list:
    """Options of an encryption of several shards."""
    make_dataset(400, size=56).save_to_disk(str(tmp_path / "plain"))
    flags = ["--image-size", 56, "--patch-size", 14, "--scheme-option", "width=64", "--shard-size", 1]
    return ["--dataset", tmp_path / "plain", "--key-file", key_file, *flags, "--output"]


def test_ranks_of_a_launcher_give_the_same_bytes(source, tmp_path):
    script = ROOT / "scripts" / "encrypt.py"
    assert command("encrypt", *source, tmp_path / "one").returncode == 0
    expected = digests(tmp_path / "one")
    assert sum(name.endswith(".arrow") for name in expected) > 2
    torchrun = launch("torchrun", "--nproc_per_node", 2, script, *source, tmp_path / "torchrun")
    assert torchrun.returncode == 0, torchrun.stderr
    for rank in (2, 0, 1):
        result = command("scripts/encrypt.py", *source, tmp_path / "slurm", SLURM_PROCID=str(rank), SLURM_NTASKS="3")
        assert result.returncode == 0, result.stderr
        assert is_unfinished(tmp_path / "slurm") == (rank != 1)
    for name in ("torchrun", "slurm"):
        assert digests(tmp_path / name) == expected, name


def test_rank_and_world_size_by_hand(source, tmp_path):
    assert_one_line_error(command("encrypt", *source, tmp_path / "out", "--rank", 2, "--world-size", 2), "count from 0")
    first = command("encrypt", *source, tmp_path / "out", "--rank", 0, "--world-size", 2)
    assert first.returncode == 0 and "has done its part" in first.stderr
    assert_one_line_error(command("verify", tmp_path / "out"), "unfinished")
    last = command("encrypt", *source, tmp_path / "out", "--rank", 1, "--world-size", 2)
    assert last.returncode == 0 and "Encrypted 400 images" in last.stderr


def test_the_script_says_what_it_needs_where_nothing_is_installed():
    """PEP 723, for `uv run` and `hf jobs uv run`: this package, of its own repository, on the Pythons it takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "scripts" / "train.py").read_text().split("# /// script\n")[1].split("# ///\n")[0].splitlines()
    header = tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))
    assert header["requires-python"] == project["requires-python"]
    assert header["dependencies"] == [f"{project['name']} @ git+{project['urls']['Repository']}"]
    assert header["tool"]["hf-jobs"]["secrets"] == ["HF_TOKEN"]


def benchmark(folder, *words: object) -> dict:
    result = command("scripts/experiments/benchmark.py", "--output", folder / "figures.json", *words)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "figures.json").read_text())


def test_crash_trials(tmp_path):
    """The benchmark's own trials, one of them."""
    figures = benchmark(tmp_path, "crash", "--trials", 1, "--flips", 10, "--seed", 1)
    assert figures["same_bytes"] == figures["trials"] == 1 and figures["found"] == figures["flips"] == 10


def test_training_is_timed(tmp_path):
    figures = benchmark(tmp_path, "train", "--rows", 8, "--batch", 4, "--image_size", 32, "--steps", 1)
    rows = {name for name in figures if name.startswith("ViT-Tiny")}
    assert rows == {f"ViT-Tiny, {source}" for source in ("ciphertext", "resized plain PNG", "usual pipeline")}
    assert all(0 <= figures[name]["data"] <= 1 and figures[name]["images_per_second"] > 0 for name in rows)


def test_features_at_home_are_timed(tmp_path):
    rates = benchmark(tmp_path, "features", "--batch", 1, "--image_size", 32, "--rounds", 1)["images_per_second"]
    assert set(rates) == {"encrypt", "ViT-Tiny", "ViT-B/16"} and rates["ViT-B/16"] < rates["ViT-Tiny"]


def test_encoders_are_timed(tmp_path):
    figures = benchmark(tmp_path, "encoder", "--batch", 2, "--image_size", 32, "--depth", 0, "--rounds", 1)
    assert {figures["chosen"], "float32 network", "exact, float32 kernel"} <= set(figures["images_per_second"])
    assert "products alone" in figures["int8_limit"]["what"] and figures["one_image_ms"] > 0
