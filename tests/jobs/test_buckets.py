"""Jobs that write into a bucket, read from one, and go on from what is there: real clients, S3 on loopback."""

import os
import sys

import numpy as np
import pytest
from datasets import load_dataset

from hf_neuracrypt.data.manifest import is_unfinished, read_manifest, verify
from hf_neuracrypt.data.places import place
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.training.data import load_splits
from tests.commands import assert_one_line_error, command, encrypt
from tests.helpers import (
    SMALL,
    SPLITS,
    contents,
    job_of,
    leaks,
    make_dataset,
    pixels,
    secret_of,
    stream_of,
    write_interrupted,
)


s3fs = pytest.importorskip("s3fs")


@pytest.mark.parametrize("shards", [None, 2])
def test_the_bytes_of_a_folder(shards, bucket, small_encoder, tmp_path):
    splits = {name: stream_of(split, shards) for name, split in SPLITS.items()} if shards else SPLITS
    for output in (tmp_path / "folder", place(f"{bucket}/a/b")):
        assert run(job_of(output, small_encoder, splits))
    assert contents(f"{bucket}/a/b") == contents(tmp_path / "folder")
    assert all(problem is None for _, problem in verify(f"{bucket}/a/b"))
    with pytest.raises(DatasetError, match="already holds a finished"):
        run(job_of(place(f"{bucket}/a/b"), small_encoder, splits))


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_another_machine_continues(batches, bucket, small_encoder, tmp_path):
    """Nothing of the first one's disk is needed, and what has arrived is not sent again."""
    output = place(f"{bucket}/out")
    write_interrupted(batches, output, small_encoder)
    assert is_unfinished(output)
    with pytest.raises(DatasetError, match="is unfinished"):
        read_manifest(output)
    arrived = {path: path.fs.info(path.path)["LastModified"] for path in output.rglob("*.arrow")}
    assert len(arrived) == batches
    assert run(job_of(output, small_encoder))
    output.fs.invalidate_cache()
    assert all(path.fs.info(path.path)["LastModified"] == before for path, before in arrived.items())
    assert run(job_of(tmp_path / "folder", small_encoder))
    assert contents(output) == contents(tmp_path / "folder")


def test_from_a_bucket_to_a_bucket_and_into_training(bucket, key_file, tmp_path):
    """Without a copy of the source, or of the result, on this disk; nothing of the key is there."""
    files = {}
    for number in range(2):
        make_dataset(40, seed=number).to_parquet(tmp_path / f"{number}.parquet")
        place(f"{bucket}/plain/train-{number}.parquet").write_bytes((tmp_path / f"{number}.parquet").read_bytes())
        files[number] = tmp_path / f"{number}.parquet"
    result = encrypt(f"{bucket}/plain/train-*.parquet", key_file, f"{bucket}/out")
    assert result.returncode == 0, result.stderr
    assert command("verify", f"{bucket}/out").returncode == 0
    assert not any(leaks(secret_of(key_file), content) for content in contents(f"{bucket}/out").values())
    splits = load_splits([f"{bucket}/out"], plain=False)
    expected = load_dataset("parquet", data_files=[str(each) for each in files.values()], cache_dir=str(tmp_path / "c"))
    assert len(splits.data["train"]) == 80 and splits.records[0].config == SMALL
    assert splits.data["train"]["label"] == expected["train"]["label"]
    assert len(np.unique(pixels(splits.data["train"].select(range(4)))[:, 0, 0, 0])) > 1


def test_a_server_that_goes_away_is_one_error_and_no_loss(bucket, server, key_file, tmp_path):
    make_dataset(100).to_parquet(tmp_path / "plain.parquet")
    words = (tmp_path / "plain.parquet", key_file, f"{bucket}/out", "--shard-size", 1)
    address = os.environ["AWS_ENDPOINT_URL"]
    os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    s3fs.S3FileSystem.clear_instance_cache()
    assert_one_line_error(encrypt(*words), f"{bucket}/out", "cannot be used")
    os.environ["AWS_ENDPOINT_URL"] = address
    s3fs.S3FileSystem.clear_instance_cache()
    assert encrypt(*words).returncode == 0


def test_places_that_are_none(bucket, key_file, plain_folder, tmp_path, monkeypatch):
    assert_one_line_error(encrypt(plain_folder, key_file, "s3://no-such-bucket/out"), "s3://no-such-bucket/out")
    assert_one_line_error(encrypt(plain_folder, key_file, "nowhere://bucket/out"), "nowhere://bucket/out")
    assert_one_line_error(encrypt(f"{bucket}/x", key_file, f"{bucket}/x/"), "is or holds the source")
    assert_one_line_error(encrypt(f"{bucket}/x/train-*.tar", key_file, f"{bucket}/x"), "is or holds the source")
    assert_one_line_error(encrypt(f"{bucket}/x", key_file, f"{bucket}/x/y"), "lies inside the source")
    assert_one_line_error(encrypt(plain_folder, key_file, "memory://out"), "is in no bucket: give the path of a folder")
    assert_one_line_error(encrypt(plain_folder, key_file, f"file://{tmp_path}/out"), "give the path of a folder")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert_one_line_error(encrypt(plain_folder, key_file, "gs://bucket/out"), "gs://bucket/out", "install gcsfs")
    assert_one_line_error(encrypt(f"{bucket}/none.parquet", key_file, tmp_path / "out"), f"{bucket}/none.parquet")
    assert_one_line_error(encrypt(f"{bucket}/notes.txt", key_file, tmp_path / "out"), "no file of a known kind")
    assert_one_line_error(command("verify", f"{bucket}/out"), "is not an encrypted dataset")
