"""Jobs that encrypt into a folder: resumable to the same bytes, never on top of something."""

import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from datasets import load_from_disk

from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder
from hf_neuracrypt.data.manifest import MANIFEST, UNFINISHED, is_unfinished, read_manifest
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.jobs.job import BATCH_SIZE, units_of
from tests.commands import assert_one_line_error, command
from tests.helpers import SMALL, SMALL_FLAGS, SPLITS, digests, job_of, make_dataset, problems, write, write_interrupted


# --------------------------------------------------------------------------------------------------------------- shards


def test_units_follow_from_the_data(small_encoder):
    job = job_of(Path("unused"), small_encoder)
    assert [(unit.split, unit.index, unit.rows) for unit in units_of(job)] == [
        ("train", 0, 64), ("train", 1, 64), ("train", 2, 64), ("train", 3, 48), ("test", 0, 64), ("test", 1, 36)
    ]  # fmt: skip
    assert len(units_of(job_of(Path("unused"), small_encoder, shard_bytes=10**9))) == 2
    assert job_of(Path("unused"), small_encoder, shard_bytes=1).shard_rows == BATCH_SIZE


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
def test_interrupted_and_resumed_gives_the_same_bytes(batches, finished, small_encoder, tmp_path):
    folder = tmp_path / "encrypted"
    write_interrupted(batches, folder, small_encoder)
    with pytest.raises(FileNotFoundError):
        load_from_disk(str(folder))
    with pytest.raises(DatasetError, match="unfinished: run the same"):
        read_manifest(folder)
    kept = {path: path.stat().st_mtime_ns for split in SPLITS for path in (folder / split).glob("*.arrow")}
    assert len(kept) == batches
    write(folder, small_encoder)
    assert digests(folder) == digests(finished)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items()), "a finished shard was redone"


@contextmanager
def killed_before(step: int | None):
    """Ctrl-C before the file-system operation with this number; None: never. Yields the operations so far."""
    done: list[str] = []

    def counted(function):
        def operation(*args, **options):
            if len(done) == step:
                raise KeyboardInterrupt
            done.append(function.__name__)
            return function(*args, **options)

        return operation

    names = ("fsync", "replace", "mkdir", "unlink", "rmdir")
    with mock.patch.multiple(os, **{name: counted(getattr(os, name)) for name in names}):
        yield done


def test_a_kill_between_any_two_operations_on_files_is_no_loss(small_encoder, tmp_path):
    """The next run is another process. Nothing is left behind, and no file is there that is not whole."""
    splits = {"train": make_dataset(65)}
    with killed_before(None) as operations:
        write(tmp_path / "whole", small_encoder, splits, shard_bytes=1)
    assert {"fsync", "replace", "unlink"} <= set(operations)
    for step in range(len(operations)):
        folder = tmp_path / str(step)
        with killed_before(step), pytest.raises(KeyboardInterrupt):
            write(folder, small_encoder, splits, shard_bytes=1)
        if is_unfinished(folder) or not (folder / MANIFEST).exists():
            with mock.patch.object(os, "getpid", lambda: 1):
                write(folder, small_encoder, splits, shard_bytes=1)
        assert not problems(folder)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # if only the tidying up was left to do
        assert digests(folder) == digests(tmp_path / "whole"), f"after {operations[:step]}"


def test_another_job_in_the_same_folder_is_refused(small_encoder, key_file, tmp_path):
    folder = tmp_path / "encrypted"
    write_interrupted(2, folder, small_encoder)
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
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        failed = command(*words, tmp_path / "encrypted")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_one_line_error(failed, "File too large")
    assert is_unfinished(tmp_path / "encrypted")
    assert command(*words, tmp_path / "encrypted").returncode == 0
    assert command(*words, tmp_path / "again").returncode == 0
    assert digests(tmp_path / "encrypted") == digests(tmp_path / "again")
