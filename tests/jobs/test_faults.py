"""Networks, stores, disks and drivers that fail while a job runs: one line, nothing half, the same bytes after all.

The clients are the real ones. s3fs sends a request again, five times, when a connection breaks; botocore does so when a
server says 5xx (`AWS_MAX_ATTEMPTS`, here 1); huggingface_hub does both, five times.
"""

import os
import resource
import threading
import time

import pytest

from hf_neuracrypt import SecretKey
from hf_neuracrypt.data import locks
from hf_neuracrypt.data.dataset import EncryptRows
from hf_neuracrypt.data.manifest import UNFINISHED, is_unfinished
from hf_neuracrypt.data.places import names_in, place
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.jobs.run import run
from tests.commands import assert_one_line_error, command, encrypt, wait_until
from tests.helpers import contents, job_of, make_dataset, write, write_interrupted


s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def source(client, tmp_path_factory):
    """A folder with a key, and what two Parquet files of 300 rows in a bucket are encrypted to on the disk."""
    folder = tmp_path_factory.mktemp("tables")
    SecretKey.generate().save(folder / "a.key")
    client.mkdir("plain")
    for number in range(2):
        make_dataset(300, seed=number).to_parquet(folder / "train.parquet")
        client.put_file(str(folder / "train.parquet"), f"plain/train-{number}.parquet")
    assert straight(folder / "local", folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def last_read(server, source, tmp_path_factory):
    """The number of the last request of the source in an undisturbed job."""
    server.log.clear()
    assert straight(tmp_path_factory.mktemp("counted") / "local", source).returncode == 0
    return sum(line.startswith("GET /plain/") for line in server.log) - 1


def straight(output, source, *words):
    return encrypt("s3://plain/train-*.parquet", source / "a.key", output, "--shard-size", 1, *words)


def same(output, source) -> bool:
    return contents(output) == contents(source / "local") and command("verify", output).returncode == 0


# ---------------------------------------------------------------------------------------------------------- a bucket


@pytest.mark.parametrize("request_, at, action", [
    (r"PUT .*\.arrow", 1, "cut"), (r"PUT .*\.arrow", 1, "lost"), (r"PUT .*last\.json", 0, "lost"),
    (r"PUT .*neuracrypt", 0, "lost"), (r"GET /plain/", 3, "cut"), (r"PUT .*\.arrow", 1, lambda: time.sleep(0.5)),
])  # fmt: skip
def test_what_the_clients_mend_by_themselves(request_, at, action, bucket, server, source):
    """Connections that end in the middle of an upload or a download, answers that are lost or late."""
    server.faults.append([request_, at, action])
    result = straight(bucket, source)
    assert result.returncode == 0, result.stderr
    assert not server.faults and same(bucket, source)


@pytest.mark.parametrize("request_, at, status", [
    (r"PUT .*\.arrow", 1, 503), (r"PUT .*last\.json", 0, 503),
    (r"PUT .*neuracrypt", 0, 503), (r"GET /plain/", 0, 503), (r"GET /plain/", 5, 403),
    (r"GET /plain/", -1, 403),
])  # fmt: skip
def test_what_ends_a_job_is_one_line_and_no_loss(request_, at, status, bucket, server, source, last_read):
    """Nothing is published: the address is no dataset until the same command has continued, and sent the rest."""
    server.faults.append([request_, last_read if at < 0 else at, status])
    about = bucket if "PUT" in request_ else "of the source" if at < 0 else "s3://plain/train-*.parquet"
    assert_one_line_error(straight(bucket, source), about, "the same command again continues")
    assert_one_line_error(
        command("verify", bucket), "is unfinished" if about != "s3://plain/train-*.parquet" else "is not"
    )
    noted = len(names_in(place(f"{bucket}/{UNFINISHED}/notes")))
    server.log.clear()
    assert straight(bucket, source).returncode == 0
    sent = sum(line.startswith("PUT ") and line.endswith(".arrow") for line in server.log)
    assert sent == sum(name.endswith(".arrow") for name in contents(source / "local")) - noted
    assert same(bucket, source)


def test_a_full_disk(bucket, source):
    """RLIMIT_FSIZE lets no file grow beyond 50 kB: no shard can be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        failed = straight(bucket, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_one_line_error(failed, "File too large: make room in", "$TMPDIR", "the same command again continues")
    assert straight(bucket, source).returncode == 0 and same(bucket, source)


@pytest.mark.parametrize("fault, reason", [
    (("RequestTimeTooSkewed", "The clocks differ too much"), "The clocks differ"),
    (("InvalidAccessKeyId", "No such access key"), "credentials"),
    (None, "Unable to locate credentials"),
])  # fmt: skip
def test_who_may_not_write_is_told_before_work(fault, reason, bucket, server, source, monkeypatch):
    """Nothing was encrypted by then, and nothing stays in the bucket."""
    if fault is None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, str(source / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    else:
        server.faults.append([rf"(PUT|POST) {bucket.removeprefix('s3:/')}", 0, fault])
    s3fs.S3FileSystem.clear_instance_cache()
    failed = encrypt(source / "train.parquet", source / "a.key", bucket)
    s3fs.S3FileSystem.clear_instance_cache()
    assert_one_line_error(failed, bucket, reason)
    monkeypatch.undo()
    assert not names_in(place(bucket)) and "hidden" not in failed.stderr


# ------------------------------------------------------------------------------------------------------- two at once


@pytest.fixture
def impatient(monkeypatch):
    """Locks that are renewed all the time; for how many beats somebody waits is said by the test."""
    monkeypatch.setattr(locks, "BEAT", 0.02)
    return lambda beats: monkeypatch.setattr(locks, "BEATS", beats)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_second_driver_is_refused(world_size, bucket, small_encoder, tmp_path, monkeypatch, impatient):
    impatient(100_000)
    original, output, said = EncryptRows.__call__, place(f"{bucket}/out"), []

    def second_driver(self, *args):
        monkeypatch.setattr(EncryptRows, "__call__", original)
        with pytest.raises(DatasetError, match=f"process {os.getpid()} on .* is writing to {bucket}/out") as caught:
            run(job_of(output, small_encoder), world_size=world_size)
        said.append(caught)
        return original(self, *args)

    monkeypatch.setattr(EncryptRows, "__call__", second_driver)
    assert run(job_of(output, small_encoder)) and said
    write(tmp_path / "folder", small_encoder)
    assert contents(output) == contents(tmp_path / "folder")


def test_a_driver_that_was_killed_does_not_count(bucket, small_encoder, tmp_path, impatient):
    """Its lock stays, and is never renewed. Nobody's clock matters: only what changes while one looks."""
    impatient(3)
    output = place(f"{bucket}/out")
    write_interrupted(1, output, small_encoder)
    (output / UNFINISHED / "lock").write_text("process 1 on a machine that is gone\n")
    assert run(job_of(output, small_encoder))
    write(tmp_path / "folder", small_encoder)
    assert contents(output) == contents(tmp_path / "folder")


def test_a_driver_that_slept_too_long_stops(bucket, small_encoder, monkeypatch, impatient):
    """Another one has its lock by now."""
    impatient(3)
    original, output = EncryptRows.__call__, place(f"{bucket}/out")
    lock = output / UNFINISHED / "lock"

    def taken_over():
        if renewing := any(thread.name == str(lock) for thread in threading.enumerate()):
            lock.write_text("another process\n")
        return not renewing

    def slept(self, *args):
        wait_until(taken_over)
        return original(self, *args)

    monkeypatch.setattr(EncryptRows, "__call__", slept)
    with pytest.raises(DatasetError, match="another job has begun"):
        run(job_of(output, small_encoder))
    assert lock.read_text() == "another process\n" and is_unfinished(output)
