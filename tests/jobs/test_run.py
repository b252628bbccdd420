"""Jobs in several processes: the same bytes, an error that says why, and nobody left behind."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import PIL.Image
import pytest
from datasets import Dataset, Image

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.errors import DatasetError, NeuraCryptError
from hf_neuracrypt.jobs.run import run
from tests.commands import wait_until
from tests.helpers import ROOT, SMALL, SPLITS, digests, job_of, leaks, secret_of


def test_worker_processes(key_file, tmp_path):
    encoder = load_encoder(SMALL, SecretKey.load(key_file))
    assert run(job_of(tmp_path / "one", encoder))
    assert run(job_of(tmp_path / "two", encoder), num_proc=2)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    with pytest.raises(DatasetError, match="already holds"):
        run(job_of(tmp_path / "two", encoder), num_proc=2)


def test_a_worker_process_that_fails_says_why(small_encoder, key_file, tmp_path):
    with pytest.raises(NeuraCryptError, match="never pickled"):
        run(job_of(tmp_path / "unsendable", small_encoder), num_proc=2)
    (tmp_path / "bad.png").write_bytes(b"")
    splits = {"train": Dataset.from_dict({"image": [str(tmp_path / "bad.png")] * 70}).cast_column("image", Image())}
    encoder = load_encoder(SMALL, SecretKey.load(key_file))
    with pytest.raises(NeuraCryptError, match=r"row (0|64) cannot be encrypted"):
        run(job_of(tmp_path / "failing", encoder, splits), num_proc=2)
    PIL.Image.new("RGB", (32, 32)).save(tmp_path / "bad.png")
    assert run(job_of(tmp_path / "failing", encoder, splits))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """Process ids of the children that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return [child for child in found if alive(child)]


def test_workers_end_with_their_parent(key_file, tmp_path):
    """SIGKILL of the parent; the workers, which import the script as well, are busy for an hour.

    Until then nothing that others see of the processes holds the key; afterwards there is no plain picture on the disk.
    """
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from hf_neuracrypt import SecretKey, load_encoder\n"
        "from hf_neuracrypt.data.dataset import EncryptRows\n"
        "from hf_neuracrypt.jobs.run import run\n"
        "from tests.helpers import SMALL, job_of\n"
        "def hangs(*_):\n"
        "    Path(sys.argv[2], 'working').touch()\n"
        "    time.sleep(3600)\n"
        "EncryptRows.__call__ = hangs\n"
        "if __name__ == '__main__':\n"
        "    encoder = load_encoder(SMALL, SecretKey.load(sys.argv[1]))\n"
        "    run(job_of(Path(sys.argv[2], 'encrypted'), encoder), num_proc=2)\n"
    )
    (tmp_path / "main.py").write_text(script)
    words = [sys.executable, str(tmp_path / "main.py"), str(key_file), str(tmp_path)]
    places = {"TMPDIR": str(tmp_path), "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, env=os.environ | places) as parent:
        wait_until(lambda: (tmp_path / "working").exists() or parent.poll() is not None)
        workers = children_of(parent.pid)
        assert len(workers) >= 2
        shown = {pid: seen_of(pid) for pid in (parent.pid, *workers)}
        parent.kill()
    wait_until(lambda: not any(map(alive, workers)))
    assert all(str(tmp_path).encode() in shown[parent.pid] and text for text in shown.values())
    assert not any(leaks(secret_of(key_file), text) for text in shown.values())
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    plain = [image.tobytes()[:90] for split in SPLITS.values() for image in split.select(range(3))["img"]]
    assert left and not any(pixels in content for pixels in plain for content in left)


def seen_of(pid: int) -> bytes:
    """What other programs of this user, and for the most part of others, see of a process."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
