"""More images than the disk holds, from a bucket to a bucket and to the Hub, on a cluster; drivers and a worker die."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hf_neuracrypt import SecretKey
from hf_neuracrypt.data import locks
from hf_neuracrypt.data.manifest import UNFINISHED
from tests.commands import command, encrypt, push, started_with, wait_until
from tests.helpers import ROOT, contents, make_dataset


pytest.importorskip("s3fs")
distributed = pytest.importorskip("distributed")
WORKERS, FILES = 2, 8
# A driver whose lock need not be watched for a minute once it is dead.
DRIVER = "from hf_neuracrypt.data import locks; locks.BEAT = 0.05; from hf_neuracrypt.cli import main; main()"


@contextmanager
def largest(folder: Path):
    """The most bytes that were below a folder at any time, in a list of one."""
    seen, ended = [0], threading.Event()

    def watch():
        while not ended.wait(0.002):
            total = 0
            for path in [os.path.join(inside, name) for inside, _, names in os.walk(folder) for name in names]:
                with suppress(OSError):
                    total += os.stat(path).st_size
            seen[0] = max(seen[0], total)

    watching = threading.Thread(target=watch)
    watching.start()
    yield seen
    ended.set()
    watching.join()


def test_a_disk_that_holds_a_third_and_everybody_is_killed_once(client, hub, tmp_path, monkeypatch):
    """Ciphertexts are on the disk only while they are made: at most two files for each worker, as Arrow and as Parquet,
    and one that the killed worker left."""
    for name in ("scratch", "home", "bucket"):
        (tmp_path / name).mkdir()
    SecretKey.generate().save(tmp_path / "one.key")
    client.mkdir("far")
    for number in range(FILES):
        make_dataset(384, seed=number).to_parquet(tmp_path / "plain.parquet")
        client.put_file(str(tmp_path / "plain.parquet"), f"far/plain/train-{number}.parquet")
    words = ("s3://far/plain/train-*.parquet", tmp_path / "one.key")
    assert encrypt(*words, tmp_path / "one", "--shard-size", 1).returncode == 0
    shards = [path.stat().st_size for path in (tmp_path / "one").rglob("*.arrow")]

    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    environment = hub.environment(tmp_path / "home") | {"TMPDIR": str(tmp_path / "scratch"), "PYTHONPATH": str(ROOT)}
    arrived = {
        "s3://far/out": lambda: sum(path.endswith(".arrow") for path in client.find("far/out", refresh=True)),
        "hf://datasets/owner/far": lambda: hub.done("PUT", "/storage"),
    }
    with (
        started_with(environment), largest(tmp_path / "scratch") as peak, distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path / "dask"),
        ) as cluster,
    ):  # fmt: skip
        flags = ("--shard-size", 1, "--dask", cluster.scheduler_address)

        def driver(*words, **_):
            return subprocess.Popen([sys.executable, "-c", DRIVER, *map(str, words)], stderr=subprocess.DEVNULL)

        def kill_on_its_way(output, process):
            wait_until(lambda: arrived[output]() >= 2 or process.poll() is not None)
            process.kill()
            assert process.wait() == -signal.SIGKILL, f"{output} was complete before it could be killed"

        drivers = {output: encrypt(*words, output, *flags, run=driver) for output in arrived}
        for output, process in drivers.items():
            kill_on_its_way(output, process)
        with distributed.Client(cluster) as dask:
            victim = next(iter(dask.run(os.getpid).values()))
        before = arrived["s3://far/out"]()

        def kill_a_worker():
            wait_until(lambda: arrived["s3://far/out"]() > before)
            os.kill(victim, signal.SIGKILL)

        killing = threading.Thread(target=kill_a_worker)
        killing.start()
        for output in arrived:
            result = encrypt(*words, output, *flags)
            assert result.returncode == 0, result.stderr
        killing.join()
        assert hub.done("PUT", "/storage") == len(shards)
    assert command("verify", "s3://far/out").returncode == 0
    bucket = {name: content for name, content in contents("s3://far/out").items() if not name.startswith(UNFINISHED)}
    assert bucket == contents(tmp_path / "one")
    assert push(hub, tmp_path, "one", "owner/near").returncode == 0
    far, near = (hub.files("dataset", f"owner/{name}") for name in ("far", "near"))
    assert {**far, "README.md": b""} == {**near, "README.md": b""}
    assert max(shards) < peak[0] <= (2 * WORKERS + 1) * max(shards) and 3 * peak[0] < sum(shards)
