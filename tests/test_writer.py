"""Jobs that encrypt into a folder: resumable to the same bytes, by any number of workers, never on top of something."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Image, IterableDataset, load_from_disk

from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder, store, writer
from hf_neuracrypt.audit.pairs import load_pairs
from hf_neuracrypt.dataset import EncryptRows
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.images import make_views, prepare
from hf_neuracrypt.jobs import encrypt_again, encrypt_source
from hf_neuracrypt.writer import units_of
from tests.conftest import (
    ROOT,
    SHARD_BYTES,
    SMALL,
    SMALL_FLAGS,
    SPLITS,
    assert_one_line_error,
    batch,
    command,
    digests,
    job_of,
    make_dataset,
    pixels,
    problems,
    stream_of,
    write,
    write_interrupted,
)


# ---------------------------------------------------------------------------------------------------------- shards


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


# ---------------------------------------------------------------------------------------------------------- resuming


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


def test_two_ranks_that_complete_at_the_same_moment(finished, small_encoder, tmp_path, monkeypatch):
    """The slower one finds the folder complete and its scratch gone."""

    def overtaken(path, text, scratch=None):
        if path.name == store.MANIFEST:
            store.write_whole(path, text, scratch)
            (scratch / store.JOB).unlink()
            shutil.rmtree(scratch)
        store.write_whole(path, text, scratch)

    monkeypatch.setattr(writer, "write_whole", overtaken)
    write(tmp_path / "encrypted", small_encoder)
    assert digests(tmp_path / "encrypted") == digests(finished)


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


def test_a_second_writer_is_told_who_is_at_work(small_encoder, tmp_path, monkeypatch):
    folder, encrypt = tmp_path / "encrypted", EncryptRows.__call__

    def second_writer(self, *args):
        monkeypatch.setattr(EncryptRows, "__call__", encrypt)
        for place in ((0, 1), (0, 2), (1, 2)):
            with pytest.raises(DatasetError, match=f"process {os.getpid()} on .* is writing"):
                writer.work(job_of(folder, small_encoder), *place)
        return encrypt(self, *args)

    monkeypatch.setattr(EncryptRows, "__call__", second_writer)
    write(folder, small_encoder)
    assert not problems(folder)


def test_a_stale_lock_does_not_count(finished, small_encoder, tmp_path, monkeypatch):
    folder = tmp_path / "encrypted"
    write_interrupted(1, monkeypatch, folder, small_encoder)
    (folder / ".unfinished" / "locks" / "3-of-7").write_text("process 1 on a machine that is gone")
    write(folder, small_encoder)
    assert digests(folder) == digests(finished)


def test_teams_that_start_at_the_same_time_do_not_clash(finished, small_encoder, tmp_path, monkeypatch):
    """Another worker of the team is just looking at the stale lock of an earlier team."""
    folder = tmp_path / "encrypted"
    write_interrupted(1, monkeypatch, folder, small_encoder)
    with open(folder / ".unfinished" / "locks" / "0-of-1") as stale:
        fcntl.flock(stale, fcntl.LOCK_SH)
        assert [writer.work(job_of(folder, small_encoder), rank, 2) for rank in range(2)] == [False, True]
    assert digests(folder) == digests(finished)


# ------------------------------------------------------------------------------------------------------------ ranks


@pytest.mark.parametrize("world_size", [2, 3, 20])
def test_ranks_one_after_the_other(world_size, finished, small_encoder, tmp_path):
    folder = tmp_path / "encrypted"
    complete = [writer.work(job_of(folder, small_encoder), rank, world_size) for rank in range(world_size)]
    assert complete.index(True) == min(world_size, 6) - 1, "complete exactly when the last unit is done"
    assert all(complete[complete.index(True) :])
    assert digests(folder) == digests(finished)


def test_three_ranks_of_which_one_is_killed_then_two_finish(key_file, tmp_path):
    """Ranks are processes; SIGKILL, which nothing can catch, comes in the middle of a shard."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import time\n"
        "from pathlib import Path\n"
        "from hf_neuracrypt import SecretKey, load_encoder, writer\n"
        "from hf_neuracrypt.dataset import EncryptRows\n"
        "from tests.conftest import SMALL, job_of\n"
        "encoder = load_encoder(SMALL, SecretKey.load(sys.argv[2]))\n"
        "rank, world_size, slow = map(int, sys.argv[4:])\n"
        "encrypt = EncryptRows.__call__\n"
        "def slowly(self, *args):\n"
        "    print('working', flush=True)\n"
        "    time.sleep(slow)\n"
        "    return encrypt(self, *args)\n"
        "EncryptRows.__call__ = slowly\n"
        "writer.work(job_of(Path(sys.argv[3]), encoder), rank, world_size)\n"
    )

    def rank(folder: str, rank: int, world_size: int, slow: int = 0) -> subprocess.Popen:
        words = [sys.executable, "-c", script, str(ROOT), str(key_file), str(tmp_path / folder)]
        return subprocess.Popen([*words, str(rank), str(world_size), str(slow)], stdout=subprocess.PIPE, text=True)

    assert rank("whole", 0, 1).wait(120) == 0
    team = [rank("killed", 0, 3), rank("killed", 1, 3), rank("killed", 2, 3, slow=60)]
    assert team[2].stdout.readline() == "working\n"
    team[2].send_signal(signal.SIGKILL)
    assert [process.wait(120) for process in team] == [0, 0, -signal.SIGKILL]
    assert store.is_unfinished(tmp_path / "killed")
    assert [process.wait(120) for process in (rank("killed", 0, 2), rank("killed", 1, 2))] == [0, 0]
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("shards", [1, 3])
def test_a_stream_gives_the_rows_of_the_dataset(shards, finished, small_encoder, tmp_path):
    splits = {name: stream_of(split, shards) for name, split in SPLITS.items()}
    write(tmp_path / "encrypted", small_encoder, splits)
    loaded, expected = load_from_disk(str(tmp_path / "encrypted")), load_from_disk(str(finished))
    for name in SPLITS:
        np.testing.assert_array_equal(pixels(loaded[name]), pixels(expected[name]))
        assert loaded[name]["label"] == expected[name]["label"]
    assert len(list((tmp_path / "encrypted" / "train").glob("*.arrow"))) == (4 if shards == 1 else 6)
    assert not problems(tmp_path / "encrypted")


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 5])
def test_an_interrupted_stream_continues_to_the_same_bytes(batches, small_encoder, tmp_path, monkeypatch):
    splits = {"train": stream_of(SPLITS["train"]), "test": stream_of(SPLITS["test"], 2)}
    write(tmp_path / "whole", small_encoder, splits)
    write_interrupted(batches, monkeypatch, tmp_path / "resumed", small_encoder, splits)
    write(tmp_path / "resumed", small_encoder, splits)
    assert digests(tmp_path / "resumed") == digests(tmp_path / "whole")


def test_a_stream_is_never_held(small_encoder, tmp_path):
    """When a row is read, all but the last few batches are already encrypted."""
    read, encrypted, largest = [0], [0], [0]

    def rows():
        for row in make_dataset(64):
            for _ in range(20):
                read[0] += 1
                largest[0] = max(largest[0], read[0] - encrypted[0])
                yield row

    splits = {"train": IterableDataset.from_generator(rows)}
    job = job_of(tmp_path / "encrypted", small_encoder, splits)
    assert writer.work(job, progress=lambda count: encrypted.__setitem__(0, encrypted[0] + count))
    assert encrypted[0] == 1280 and largest[0] <= 4 * writer.BATCH_SIZE


def test_an_empty_stream_shard(small_encoder, tmp_path):
    splits = {"train": stream_of(make_dataset(128)).filter(lambda row, index: index < 64, with_indices=True)}
    write(tmp_path / "encrypted", small_encoder, splits)
    assert len(load_from_disk(str(tmp_path / "encrypted"))["train"]) == 64


# ------------------------------------------------------------------------------------------------------------- views

VIEWS = {"views": 3, "flip": True, "shard_bytes": 3 * SHARD_BYTES}


@pytest.fixture(scope="module")
def with_views(tmp_path_factory, small_encoder) -> Path:
    """SPLITS with three rows for each training image."""
    folder = tmp_path_factory.mktemp("views") / "encrypted"
    write(folder, small_encoder, **VIEWS)
    return folder


def test_views_follow_each_image_of_train(with_views, finished, small_encoder):
    loaded, alone = load_from_disk(str(with_views)), load_from_disk(str(finished))
    np.testing.assert_array_equal(pixels(loaded["train"])[::3], pixels(alone["train"]))
    np.testing.assert_array_equal(pixels(loaded["test"]), pixels(alone["test"]))
    assert loaded["train"]["label"] == [label for label in alone["train"]["label"] for _ in range(3)]
    plain = make_views(prepare(SPLITS["train"][100]["img"], SMALL), 3, flip=True)
    expected = small_encoder.encrypt(batch(np.stack(plain))).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pixels(loaded["train"])[300:303], expected)
    manifest = store.read_manifest(with_views)
    assert manifest["rows"] == {"train": 720, "test": 100} and manifest["views"] == {"count": 3, "flip": True}
    assert not problems(with_views)


def test_views_are_the_same_bytes_whoever_does_the_work(with_views, small_encoder, tmp_path, monkeypatch):
    assert [writer.work(job_of(tmp_path / "team", small_encoder, **VIEWS), rank, 3) for rank in range(3)][-1]
    write_interrupted(2, monkeypatch, tmp_path / "resumed", small_encoder, **VIEWS)
    with pytest.raises(DatasetError, match="another views"):
        write(tmp_path / "resumed", small_encoder, **(VIEWS | {"flip": False}))
    write(tmp_path / "resumed", small_encoder, **VIEWS)
    assert digests(tmp_path / "team") == digests(tmp_path / "resumed") == digests(with_views)


def test_views_of_a_stream_with_a_bad_row(some_bad, small_encoder, tmp_path):
    write(tmp_path / "encrypted", small_encoder, {"train": stream_of(some_bad["train"])}, skip=True, views=2)
    loaded = load_from_disk(str(tmp_path / "encrypted"))["train"]
    assert loaded["label"] == [row for row in range(130) if row not in (3, 70, 71) for _ in range(2)]
    rejected = (tmp_path / "encrypted" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rejected] == [3, 70, 71]
    assert store.read_manifest(tmp_path / "encrypted")["rows"] == {"train": 254}
    assert not problems(tmp_path / "encrypted")


def test_views_are_rotated_and_audited(plain_folder, small_encoder, key_file, tmp_path):
    """By the manifest alone: nobody has to say again how many there are."""
    source, other = str(plain_folder), SecretKey.load(key_file)
    encrypt_source(source, SMALL, small_encoder.key, tmp_path / "old", views=2, flip=True)
    assert encrypt_again(tmp_path / "old", source, other, tmp_path / "new") == {"train": 48, "test": 9}
    assert store.read_manifest(tmp_path / "new")["views"] == {"count": 2, "flip": True}
    pairs = load_pairs(tmp_path / "new", source, load_encoder(SMALL, other), 100, 0)
    assert len(pairs) == 33 and not pairs.wrong
    DatasetDict({"test": make_dataset(4)}).save_to_disk(str(tmp_path / "test-only"))
    with pytest.raises(DatasetError, match="--views are of the split 'train'"):
        encrypt_source(str(tmp_path / "test-only"), SMALL, other, tmp_path / "none", views=2)


# ---------------------------------------------------------------------------------------------------------- bad rows


@pytest.fixture
def some_bad(tmp_path) -> dict[str, Dataset]:
    """130 rows, of which 3, 70 and 71 cannot be read."""
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "good.png")
    (tmp_path / "jane_roe.png").write_bytes(b"not an image")
    names = ["jane_roe.png" if row in (3, 70, 71) else "good.png" for row in range(130)]
    rows = {"image": [str(tmp_path / name) for name in names], "label": list(range(130))}
    return {"train": Dataset.from_dict(rows).cast_column("image", Image())}


@pytest.mark.parametrize("streamed", [False, True])
def test_skipped_rows_are_listed(streamed, some_bad, small_encoder, tmp_path):
    splits = {"train": stream_of(some_bad["train"])} if streamed else some_bad
    write(tmp_path / "encrypted", small_encoder, splits, skip=True)
    loaded = load_from_disk(str(tmp_path / "encrypted"))["train"]
    assert loaded["label"] == [row for row in range(130) if row not in (3, 70, 71)]
    text = (tmp_path / "encrypted" / "rejected.jsonl").read_text()
    rejected = [json.loads(line) for line in text.splitlines()]
    assert [(each["split"], each["row"]) for each in rejected] == [("train", 3), ("train", 70), ("train", 71)]
    assert all("format" in each["reason"] for each in rejected) and "jane" not in text
    assert store.read_manifest(tmp_path / "encrypted")["rows"] == {"train": 127}
    assert not problems(tmp_path / "encrypted")


def test_too_many_bad_rows_stop_the_job(some_bad, small_encoder, tmp_path):
    with pytest.raises(DatasetError, match=r"2 of 130 rows .*--max-bad-fraction 0\.01|3 of 130 rows"):
        write(tmp_path / "encrypted", small_encoder, some_bad, skip=True, max_bad_fraction=0.01)
    assert store.is_unfinished(tmp_path / "encrypted")
    write(tmp_path / "encrypted", small_encoder, some_bad, skip=True, max_bad_fraction=0.5)


def test_a_bad_row_stops_and_leaves_a_resumable_folder(some_bad, small_encoder, tmp_path):
    with pytest.raises(DatasetError, match="row 3 cannot"):
        write(tmp_path / "encrypted", small_encoder, some_bad)
    with pytest.raises(DatasetError, match="row 70 cannot"):  # in the second shard
        write(
            tmp_path / "later",
            small_encoder,
            {"train": some_bad["train"].select([0, *range(4, 130)]).select([0, 0, 0, 0, *range(1, 127)])},
        )
    PIL.Image.new("RGB", (20, 20)).save(tmp_path / "jane_roe.png")
    write(tmp_path / "encrypted", small_encoder, some_bad)
    assert len(load_from_disk(str(tmp_path / "encrypted"))["train"]) == 130
    assert not (tmp_path / "encrypted" / "rejected.jsonl").exists()


# ---------------------------------------------------------------------------------------------------------- the disk


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
