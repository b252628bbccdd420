"""Jobs on a Dask cluster, with the real scheduler; workers are threads here, and processes that die in test_far.py."""

from threading import Event, Thread

import dill
import pytest
from datasets import Dataset

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.data.dataset import EncryptRows
from hf_neuracrypt.data.manifest import is_unfinished
from hf_neuracrypt.errors import DatasetError, NeuraCryptError
from hf_neuracrypt.jobs.run import run
from tests.commands import assert_one_line_error, encrypt, wait_until
from tests.helpers import SMALL, digests, job_of, leaks, make_dataset, secret_of, write


distributed = pytest.importorskip("distributed")
SPLITS = {"train": make_dataset(400), "test": make_dataset(100, seed=1)}


def local_cluster(workers: int):
    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None
    )


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def encoder(key_file):
    return load_encoder(SMALL, SecretKey.load(key_file))


def after_a_shard(job, action) -> Thread:
    """Have something happen once a shard is there, and others are still to be written."""

    def happen():
        wait_until(lambda: job.notes.exists() and any(job.notes.iterdir()))
        action()

    thread = Thread(target=happen)
    thread.start()
    return thread


def test_a_row_that_cannot_be_encrypted_is_named(cluster, encoder, tmp_path):
    splits = {"train": Dataset.from_dict({"image": [b"no image"] * 70})}
    with pytest.raises(DatasetError, match=r"row (0|64) cannot be encrypted"):
        run(job_of(tmp_path / "bad", encoder, splits), dask=cluster.scheduler_address)


def test_a_scheduler_that_goes_away_is_one_error_and_no_loss(encoder, tmp_path, monkeypatch):
    """After the first shard; each of the others would take seconds."""
    job, original, begun, ended = job_of(tmp_path / "encrypted", encoder, SPLITS), EncryptRows.__call__, [], Event()

    def slow(self, *args):
        begun.append(args)
        if len(begun) > 1:
            ended.wait(2)
        return original(self, *args)

    monkeypatch.setattr(EncryptRows, "__call__", slow)
    with local_cluster(1) as cluster:
        closing = after_a_shard(job, cluster.close)
        with pytest.raises(NeuraCryptError, match="the same command again continues"):
            run(job, dask=cluster.scheduler_address)
        ended.set()
        closing.join()
    assert is_unfinished(job.output)
    assert run(job)
    write(tmp_path / "here", encoder, SPLITS)
    assert digests(tmp_path / "encrypted") == digests(tmp_path / "here")


def test_no_scheduler_there(plain_folder, key_file, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_neuracrypt.jobs.run.SCHEDULER_SECONDS", 1)
    out = tmp_path / "out"
    assert_one_line_error(encrypt(plain_folder, key_file, out, "--dask", "tcp://127.0.0.1:9"), "cannot reach a Dask")
    both = encrypt(plain_folder, key_file, out, "--dask", "tcp://127.0.0.1:9", "--num-proc", 2)
    assert_one_line_error(both, "--dask has its own workers")


def test_the_key_does_not_go_over_the_wire(encoder, key_file, tmp_path, monkeypatch):
    """A job is sent as these bytes; the key file may be at another place on the machine that gets them."""
    packed = dill.dumps(job_of(tmp_path / "encrypted", encoder, SPLITS))
    assert not leaks(secret_of(key_file), packed) and str(key_file).encode() in packed
    elsewhere = key_file.rename(tmp_path / "mounted")
    monkeypatch.setenv("NEURACRYPT_KEY_FILE", str(elsewhere))
    assert dill.loads(packed).plan.encoder.key == encoder.key
