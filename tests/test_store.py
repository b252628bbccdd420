"""An encrypted dataset on disk: whole or not there, resumable to the same bytes, and any change of it is found."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from datasets import DatasetDict, load_from_disk

from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder, store
from hf_neuracrypt.dataset import EncryptRows, make_plan, records_of
from hf_neuracrypt.errors import DatasetError
from tests.conftest import ROOT, SMALL, make_dataset


SPLITS = {"train": make_dataset(24), "test": make_dataset(9, seed=1)}
SHARD_BYTES = 20_000  # six rows of 32 px


def write(folder, encoder, splits=SPLITS, **options):
    store.write(splits, make_plan(splits, encoder), folder, **({"shard_bytes": SHARD_BYTES} | options))


def digests(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def problems(folder) -> dict[str, str]:
    return {file: problem for file, problem in store.verify(folder) if problem}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_encoder):
    folder = tmp_path_factory.mktemp("store") / "encrypted"
    write(folder, small_encoder)
    return folder


def test_layout_and_content(finished, small_encoder):
    names = sorted(path.relative_to(finished).as_posix() for path in finished.rglob("*"))
    shards = [f"train/data-0000{i}-of-00004.arrow" for i in range(4)] + [
        f"test/data-0000{i}-of-00002.arrow" for i in range(2)
    ]
    small = [f"{split}/{name}" for split in SPLITS for name in ("dataset_info.json", "state.json")]
    assert names == sorted(["neuracrypt.json", "dataset_dict.json", "train", "test", *shards, *small])
    loaded = load_from_disk(str(finished))
    assert isinstance(loaded, DatasetDict) and {name: len(split) for name, split in loaded.items()} == {
        "train": 24,
        "test": 9,
    }
    assert loaded["train"].split == "train" and loaded["train"]["label"] == SPLITS["train"]["label"]
    whole = make_plan(SPLITS, small_encoder).apply(SPLITS["train"])
    for row, expected in zip(loaded["train"], whole):
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(expected["image"]))
    assert [record.key_id for record in records_of(loaded)] == [small_encoder.key.id]


def test_manifest(finished, small_encoder):
    manifest = store.read_manifest(finished)
    assert manifest["key_id"] == small_encoder.key.id and manifest["config"] == SMALL.to_dict()
    assert manifest["rows"] == {"train": 24, "test": 9}
    for file, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((finished / file).read_bytes()).hexdigest()
    secret = small_encoder.key._secret
    for path in finished.rglob("*.json"):
        assert secret.hex() not in path.read_text() and "Jane" not in path.read_text()


def test_bytes_do_not_depend_on_the_run(finished, small_encoder, tmp_path):
    write(tmp_path / "again", small_encoder)
    assert digests(tmp_path / "again") == digests(finished)


def test_shards_follow_from_the_data(finished, small_encoder):
    plan = make_plan(SPLITS, small_encoder)
    for rows, shard_bytes, count in [(24, SHARD_BYTES, 4), (24, 10**9, 1), (0, 10**9, 1), (10, 1, 10 * 3172)]:
        shards = store.plan_shards("train", rows, plan, shard_bytes)
        assert len(shards) == count
        assert sum(shard.rows for shard in shards) == rows
        assert [shard.start for shard in shards[1:]] == [shard.start + shard.rows for shard in shards[:-1]]


def test_an_empty_split_is_kept(small_encoder, tmp_path):
    splits = {"train": make_dataset(4), "test": make_dataset(4).select([])}
    write(tmp_path / "encrypted", small_encoder, splits)
    loaded = load_from_disk(str(tmp_path / "encrypted"))
    assert len(loaded["test"]) == 0 and loaded["test"].features == loaded["train"].features
    assert not problems(tmp_path / "encrypted")


# ------------------------------------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("stop_after", [0, 1, 3, 5])
def test_interrupted_and_resumed_gives_the_same_bytes(stop_after, finished, small_encoder, tmp_path, monkeypatch):
    folder, calls, encrypt = tmp_path / "encrypted", [], EncryptRows.__call__

    def interrupt(self, *args):
        calls.append(1)
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return encrypt(self, *args)

    monkeypatch.setattr(EncryptRows, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(folder, small_encoder)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        load_from_disk(str(folder))
    with pytest.raises(DatasetError, match="unfinished: run the same"):
        store.read_manifest(folder)
    kept = {name: (folder / name).stat().st_mtime_ns for name in digests(folder) if name.endswith(".arrow")}
    kept = {name: time_ for name, time_ in kept.items() if not name.startswith(".")}
    assert len(kept) == stop_after
    write(folder, small_encoder)
    assert digests(folder) == digests(finished)
    assert all((folder / name).stat().st_mtime_ns == time_ for name, time_ in kept.items()), (
        "a finished shard was redone"
    )


def test_killed_and_resumed_gives_the_same_bytes(finished, key_file, tmp_path):
    """SIGKILL, which nothing can catch, at moments spread over a job of 40 shards."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.test_store import *\n"
        "encoder = load_encoder(SMALL, SecretKey.load(sys.argv[2]))\n"
        "splits = {'train': make_dataset(240)}\n"
        "print('ready', flush=True)\n"
        "write(Path(sys.argv[3]), encoder, splits)\n"
    ).replace("write(Path", "from pathlib import Path\nwrite(Path")
    words = [sys.executable, "-c", script, str(ROOT), str(key_file)]
    subprocess.run([*words, str(tmp_path / "whole")], check=True, capture_output=True, timeout=120)
    for delay in (0.02, 0.15, 0.4):
        process = subprocess.Popen(
            [*words, str(tmp_path / "killed")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(
        [*words, str(tmp_path / "killed")], check=not (tmp_path / "killed" / store.MANIFEST).exists(), timeout=120
    )
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_crash_while_tidying_up_is_no_loss(finished, small_encoder, tmp_path, monkeypatch):
    folder = tmp_path / "encrypted"
    monkeypatch.setattr(store, "_clean", lambda output: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(folder, small_encoder)
    monkeypatch.undo()
    write(folder, small_encoder)
    assert digests(folder) == digests(finished)


def test_another_job_in_the_same_folder_is_refused(small_encoder, key_file, tmp_path, monkeypatch):
    folder = tmp_path / "encrypted"
    monkeypatch.setattr(store, "_finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(folder, small_encoder)
    monkeypatch.undo()
    before = digests(folder)
    other_key = load_encoder(SMALL, SecretKey.load(key_file))
    other_config = load_encoder(EncoderConfig(image_size=32, patch_size=8, depth=3, width=64), small_encoder.key)
    for encoder, splits, options, difference in [
        (other_key, SPLITS, {}, "record"),
        (other_config, SPLITS, {}, "record"),
        (small_encoder, {"train": make_dataset(23)}, {}, "source and rows"),
        (small_encoder, SPLITS, {"shard_bytes": 10**9}, "shards"),
    ]:
        with pytest.raises(DatasetError, match=f"another .*{difference}"):
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


def test_two_writers(small_encoder, tmp_path, monkeypatch):
    folder, encrypt = tmp_path / "encrypted", EncryptRows.__call__

    def second_writer(self, *args):
        monkeypatch.setattr(EncryptRows, "__call__", encrypt)
        with pytest.raises(DatasetError, match="another process is writing"):
            write(folder, small_encoder)
        return encrypt(self, *args)

    monkeypatch.setattr(EncryptRows, "__call__", second_writer)
    write(folder, small_encoder)
    assert not problems(folder)


def test_a_bad_row_leaves_a_resumable_folder(small_encoder, tmp_path):
    import PIL.Image
    from datasets import Dataset, Image

    good = tmp_path / "good.png"
    PIL.Image.new("RGB", (20, 20)).save(good)
    late = tmp_path / "late.png"
    late.write_bytes(b"not yet an image")
    splits = {"train": Dataset.from_dict({"image": [str(good)] * 8 + [str(late)]}).cast_column("image", Image())}
    with pytest.raises(DatasetError, match="row 8 cannot"):
        write(tmp_path / "encrypted", small_encoder, splits)
    PIL.Image.new("RGB", (20, 20)).save(late)
    write(tmp_path / "encrypted", small_encoder, splits)
    assert len(load_from_disk(str(tmp_path / "encrypted"))["train"]) == 9


# ------------------------------------------------------------------------------------------------------------- verify


def copy_of(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_verify_accepts_what_was_written(finished):
    assert not problems(finished)


def test_verify_finds_any_flipped_bit(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    generator = np.random.default_rng(0)
    for name in digests(folder):
        path = folder / name
        content = path.read_bytes()
        for position in [0, len(content) - 1, *generator.integers(0, len(content), 5)]:
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(generator.integers(8))
            path.write_bytes(damaged)
            if name == store.MANIFEST:
                with pytest.raises(DatasetError, match=r"neuracrypt\.json is damaged"):
                    problems(folder)
            else:
                assert list(problems(folder)) == [name]
        path.write_bytes(content)
    assert not problems(folder)


def test_verify_names_missing_and_foreign_files(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    os.remove(folder / "test" / "state.json")
    (folder / "train" / "jane.png").write_bytes(b"")
    assert problems(folder) == {"test/state.json": "is missing", "train/jane.png": "is not in the manifest"}


@pytest.mark.parametrize("content", ["", "{", "[]", "null", json.dumps({"neuracrypt": 1}), "x" * 1000])
def test_hostile_manifests(content, finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    (folder / store.MANIFEST).write_text(content)
    with pytest.raises(DatasetError, match="damaged"):
        store.read_manifest(folder)
