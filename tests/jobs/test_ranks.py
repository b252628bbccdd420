"""Jobs that several processes or machines share: the same bytes, whoever is killed, and no two at one folder."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys

import pytest

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.data.dataset import EncryptRows
from hf_neuracrypt.data.manifest import JOB, MANIFEST, UNFINISHED, is_unfinished
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.jobs.run import run
from tests.helpers import ROOT, SMALL, digests, job_of, problems, write, write_interrupted


@pytest.mark.parametrize("world_size", [2, 3, 20])
def test_ranks_one_after_the_other(world_size, finished, small_encoder, tmp_path):
    folder = tmp_path / "encrypted"
    complete = [run(job_of(folder, small_encoder), rank=rank, world_size=world_size) for rank in range(world_size)]
    assert complete.index(True) == min(world_size, 6) - 1, "complete exactly when the last unit is done"
    assert all(complete[complete.index(True) :])
    assert digests(folder) == digests(finished)


def test_three_ranks_of_which_one_is_killed_then_two_finish(key_file, tmp_path):
    """The rank is a process; SIGKILL, which nothing can catch, comes in the middle of a shard."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from hf_neuracrypt import SecretKey, load_encoder\n"
        "from hf_neuracrypt.data.dataset import EncryptRows\n"
        "from hf_neuracrypt.jobs.run import run\n"
        "from tests.helpers import SMALL, job_of\n"
        "def hangs(*_):\n"
        "    print('working', flush=True)\n"
        "    time.sleep(3600)\n"
        "EncryptRows.__call__ = hangs\n"
        "run(job_of(Path(sys.argv[2]), load_encoder(SMALL, SecretKey.load(sys.argv[1]))), rank=2, world_size=3)\n"
    )
    folder, encoder = tmp_path / "killed", load_encoder(SMALL, SecretKey.load(key_file))
    write(tmp_path / "whole", encoder)
    words = [sys.executable, "-c", script, str(key_file), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as killed:
        assert killed.stdout.readline() == "working\n"
        assert [run(job_of(folder, encoder), rank=rank, world_size=3) for rank in range(2)] == [False, False]
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and is_unfinished(folder)
    assert [run(job_of(folder, encoder), rank=rank, world_size=2) for rank in range(2)] == [False, True]
    assert digests(folder) == digests(tmp_path / "whole")


def test_two_ranks_that_complete_at_the_same_moment(finished, small_encoder, tmp_path, monkeypatch):
    """The slower one finds the folder complete and its scratch gone."""
    replace = os.replace

    def overtaken(temporary, path):
        replace(temporary, path)
        if path.name == MANIFEST:
            (path.parent / UNFINISHED / JOB).unlink()
            shutil.rmtree(path.parent / UNFINISHED)
            replace(temporary, path)

    monkeypatch.setattr(os, "replace", overtaken)
    write(tmp_path / "encrypted", small_encoder)
    assert digests(tmp_path / "encrypted") == digests(finished)


# ---------------------------------------------------------------------------------------------------------------- locks


def test_a_second_writer_is_told_who_is_at_work(small_encoder, tmp_path, monkeypatch):
    folder, encrypt = tmp_path / "encrypted", EncryptRows.__call__

    def second_writer(self, *args):
        monkeypatch.setattr(EncryptRows, "__call__", encrypt)
        for rank, world_size in ((0, 1), (0, 2), (1, 2)):
            with pytest.raises(DatasetError, match=f"process {os.getpid()} on .* is writing"):
                run(job_of(folder, small_encoder), rank=rank, world_size=world_size)
        return encrypt(self, *args)

    monkeypatch.setattr(EncryptRows, "__call__", second_writer)
    write(folder, small_encoder)
    assert not problems(folder)


def test_a_stale_lock_does_not_count(finished, small_encoder, tmp_path):
    folder = tmp_path / "encrypted"
    write_interrupted(1, folder, small_encoder)
    (folder / UNFINISHED / "lock").write_text("process 1 on a machine that is gone")
    write(folder, small_encoder)
    assert digests(folder) == digests(finished)


def test_ranks_work_side_by_side_and_nobody_else(finished, small_encoder, tmp_path):
    """A rank of an array, also one that a scheduler started twice, shares the folder with the others."""
    folder = tmp_path / "encrypted"
    write_interrupted(1, folder, small_encoder)
    with open(folder / UNFINISHED / "lock", "a+") as rank:
        fcntl.flock(rank, fcntl.LOCK_SH)
        with pytest.raises(DatasetError, match="is writing to"):
            write(folder, small_encoder)
        complete = [run(job_of(folder, small_encoder), rank=number, world_size=2) for number in (0, 0, 1)]
    assert complete == [False, False, True]
    assert digests(folder) == digests(finished)
