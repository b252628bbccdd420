"""Jobs that several processes or machines share: the same bytes, whoever is killed, and no two at one folder."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys

import pytest

from hf_neuracrypt import store, writer
from hf_neuracrypt.dataset import EncryptRows
from hf_neuracrypt.errors import DatasetError
from tests.conftest import (
    ROOT,
    digests,
    job_of,
    problems,
    write,
    write_interrupted,
)


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


# ---------------------------------------------------------------------------------------------------------------- locks


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
