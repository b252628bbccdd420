"""Jobs in several processes: the same bytes, an error that says why, and nobody left behind."""

import subprocess
import sys
import time

import PIL.Image
import pytest
from datasets import Dataset, Image

from hf_neuracrypt import SecretKey, load_encoder, writer
from hf_neuracrypt.errors import DatasetError, NeuraCryptError
from hf_neuracrypt.workers import encrypt_to_folder
from tests.conftest import ROOT, SMALL, digests, job_of


def test_worker_processes(key_file, tmp_path):
    encoder = load_encoder(SMALL, SecretKey.load(key_file))
    assert encrypt_to_folder(job_of(tmp_path / "one", encoder))
    assert encrypt_to_folder(job_of(tmp_path / "two", encoder), num_proc=2)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    with pytest.raises(DatasetError, match="already holds"):
        encrypt_to_folder(job_of(tmp_path / "two", encoder), num_proc=2)


def test_a_worker_process_that_fails_says_why(small_encoder, key_file, tmp_path):
    with pytest.raises(NeuraCryptError, match="never pickled"):
        encrypt_to_folder(job_of(tmp_path / "unsendable", small_encoder), num_proc=2)
    (tmp_path / "bad.png").write_bytes(b"")
    splits = {"train": Dataset.from_dict({"image": [str(tmp_path / "bad.png")] * 70}).cast_column("image", Image())}
    encoder = load_encoder(SMALL, SecretKey.load(key_file))
    with pytest.raises(NeuraCryptError, match=r"row (0|64) cannot be encrypted"):
        encrypt_to_folder(job_of(tmp_path / "failing", encoder, splits), num_proc=2)
    PIL.Image.new("RGB", (32, 32)).save(tmp_path / "bad.png")
    assert encrypt_to_folder(job_of(tmp_path / "failing", encoder, splits))


def test_workers_end_with_their_parent(key_file, tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from hf_neuracrypt import SecretKey, load_encoder\n"
        "from hf_neuracrypt.workers import encrypt_to_folder\n"
        "from tests.conftest import SMALL, job_of, make_dataset\n"
        "if __name__ == '__main__':\n"
        "    encoder = load_encoder(SMALL, SecretKey.load(sys.argv[2]))\n"
        "    splits = {'train': make_dataset(20_000)}\n"
        "    print('ready', flush=True)\n"
        "    encrypt_to_folder(job_of(Path(sys.argv[3]), encoder, splits), num_proc=2)\n"
    )
    (tmp_path / "main.py").write_text(script)
    words = [sys.executable, str(tmp_path / "main.py"), str(ROOT), str(key_file), str(tmp_path / "encrypted")]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    parent.stdout.readline()
    notes, deadline = tmp_path / "encrypted" / ".unfinished" / "notes", time.monotonic() + 60
    while not (notes.exists() and list(notes.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(2)
    before = len(list(notes.iterdir()))
    time.sleep(1)
    assert 0 < before == len(list(notes.iterdir())) < 20_000 // writer.BATCH_SIZE, "a worker goes on without its parent"
