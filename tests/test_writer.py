"""Jobs that encrypt into a folder: resumable to the same bytes, never on top of something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk

from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder, store, writer
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.units import units_of
from tests.conftest import (
    ROOT,
    SMALL,
    SMALL_FLAGS,
    SPLITS,
    assert_one_line_error,
    command,
    digests,
    job_of,
    make_dataset,
    problems,
    write,
    write_interrupted,
)


# --------------------------------------------------------------------------------------------------------------- shards


def test_units_follow_from_the_data(small_encoder):
    job = job_of(Path("unused"), small_encoder)
    assert [(unit.split, unit.start, unit.rows) for unit in units_of(job)] == [
        ("train", 0, 64), ("train", 64, 64), ("train", 128, 64), ("train", 192, 48), ("test", 0, 64), ("test", 64, 36)
    ]  # fmt: skip
    assert len(units_of(job_of(Path("unused"), small_encoder, shard_bytes=10**9))) == 2
    assert job_of(Path("unused"), small_encoder, shard_bytes=1).shard_rows == writer.BATCH_SIZE


def test_again_gives_the_same_bytes(finished, small_encoder, tmp_path):
    write(tmp_path / "again", small_encoder)
    assert digests(tmp_path / "again") == digests(finished)


def test_an_empty_split_is_kept(small_encoder, tmp_path):
    splits = {"train": make_dataset(4), "test": make_dataset(4).select([])}
    write(tmp_path / "encrypted", small_encoder, splits)
    loaded = load_from_disk(str(tmp_path / "encrypted"))
    assert len(loaded["test"]) == 0 and loaded["test"].features == loaded["train"].features
    assert not problems(tmp_path / "encrypted")


def test_sizes_that_do_not_divide(small_encoder, tmp_path):
    """One row; fewer rows than a batch; one more than a batch."""
    for rows in (1, 63, 64, 65):
        write(tmp_path / str(rows), small_encoder, {"train": make_dataset(rows)}, shard_bytes=1)
        assert len(load_from_disk(str(tmp_path / str(rows)))["train"]) == rows


# ------------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_interrupted_and_resumed_gives_the_same_bytes(batches, finished, small_encoder, tmp_path, monkeypatch):
    folder = tmp_path / "encrypted"
    write_interrupted(batches, monkeypatch, folder, small_encoder)
    with pytest.raises(FileNotFoundError):
        load_from_disk(str(folder))
    with pytest.raises(DatasetError, match="unfinished: run the same"):
        store.read_manifest(folder)
    kept = {path: path.stat().st_mtime_ns for split in SPLITS for path in (folder / split).glob("*.arrow")}
    assert len(kept) == batches
    write(folder, small_encoder)
    assert digests(folder) == digests(finished)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items()), "a finished shard was redone"


@pytest.mark.parametrize("step", ["_split_files", "_write_listed", "checksum", "write_whole"])
def test_crash_while_completing_is_no_loss(step, finished, small_encoder, tmp_path, monkeypatch):
    def crash(*args):
        if step != "write_whole" or args[0].name == store.MANIFEST:
            raise KeyboardInterrupt
        return store.write_whole(*args)

    monkeypatch.setattr(writer, step, crash)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "encrypted", small_encoder)
    monkeypatch.undo()
    assert store.is_unfinished(tmp_path / "encrypted")
    write(tmp_path / "encrypted", small_encoder)
    assert digests(tmp_path / "encrypted") == digests(finished)


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json", "dataset_dict.json", store.MANIFEST])
def test_a_kill_inside_a_write_leaves_nothing_behind(name, finished, small_encoder, tmp_path, monkeypatch):
    """SIGKILL between writing a small file and giving it its name; the next run is another process."""
    replace = os.replace

    def killed(temporary, path):
        if path.name == name:
            raise KeyboardInterrupt
        replace(temporary, path)

    monkeypatch.setattr(store.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "encrypted", small_encoder)
    monkeypatch.undo()
    monkeypatch.setattr(store.os, "getpid", lambda: 1)
    write(tmp_path / "encrypted", small_encoder)
    assert digests(tmp_path / "encrypted") == digests(finished) and not problems(tmp_path / "encrypted")


def test_crash_while_tidying_up_is_no_loss(finished, small_encoder, tmp_path, monkeypatch):
    def crash(path, **options):
        if path.name == store.UNFINISHED:
            raise KeyboardInterrupt

    monkeypatch.setattr(writer.shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "encrypted", small_encoder)
    monkeypatch.undo()
    assert store.read_manifest(tmp_path / "encrypted") == store.read_manifest(finished)
    assert not problems(tmp_path / "encrypted")


def test_another_job_in_the_same_folder_is_refused(small_encoder, key_file, tmp_path, monkeypatch):
    folder = tmp_path / "encrypted"
    write_interrupted(2, monkeypatch, folder, small_encoder)
    before = digests(folder)
    other_key = load_encoder(SMALL, SecretKey.load(key_file))
    other_config = load_encoder(EncoderConfig(image_size=32, patch_size=8, depth=3, width=64), small_encoder.key)
    for encoder, splits, options, difference in [
        (other_key, SPLITS, {}, "another key"),
        (other_config, SPLITS, {}, "another config"),
        (small_encoder, {"train": make_dataset(239)}, {}, "another source and another rows"),
        (small_encoder, SPLITS, {"shard_bytes": 10**9}, "another shard size"),
    ]:
        with pytest.raises(DatasetError, match=difference):
            write(folder, encoder, splits, **options)
        assert digests(folder) == before


def test_a_finished_or_foreign_folder_is_never_touched(finished, small_encoder, tmp_path):
    before = digests(finished)
    with pytest.raises(DatasetError, match="already holds a finished"):
        write(finished, small_encoder)
    assert digests(finished) == before
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DatasetError, match="not empty"):
        write(tmp_path, small_encoder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]


# ------------------------------------------------------------------------------------------------------------- the disk


def test_a_full_disk_is_one_error_and_no_loss(key_file, plain_folder, tmp_path):
    """RLIMIT_FSIZE lets no file grow beyond 50 kB: a shard of 76 kB cannot be written."""
    words = ["encrypt", "--dataset", plain_folder, "--key-file", key_file, *SMALL_FLAGS, "--output"]
    limited = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "sys.argv[0] = 'hf-neuracrypt'; from hf_neuracrypt.cli import main; main()\n"
    )
    (tmp_path / "limited.py").write_text(limited)
    failed = subprocess.run(
        [sys.executable, str(tmp_path / "limited.py"), *map(str, words), str(tmp_path / "encrypted")],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert_one_line_error(failed, "File too large")
    assert store.is_unfinished(tmp_path / "encrypted")
    assert command(*words, tmp_path / "encrypted").returncode == 0
    assert command(*words, tmp_path / "again").returncode == 0
    assert digests(tmp_path / "encrypted") == digests(tmp_path / "again")
