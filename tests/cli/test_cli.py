"""The owner's command as a user types it: what it prints, and that bad input is one line, a status, and no loss."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from datasets import load_from_disk
from PIL import Image

from hf_neuracrypt import SecretKey, __version__
from hf_neuracrypt.data.manifest import read_manifest
from tests.helpers import ROOT, SMALL_FLAGS, assert_one_line_error, command, encrypt, make_dataset, make_images


# --------------------------------------------------------------------------------------------------------------- keys


def test_keygen_and_key_id(tmp_path):
    path = tmp_path / "a.key"
    made = command("keygen", path)
    assert made.returncode == 0
    key = SecretKey.load(path)
    assert made.stdout.strip() == key.id
    assert "Never upload" in made.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key._secret.hex() not in made.stdout + made.stderr
    assert command("key-id", path).stdout.strip() == key.id
    before = path.read_bytes()
    assert_one_line_error(command("keygen", path), "never overwritten")
    assert path.read_bytes() == before


def test_locked_keys(tmp_path):
    words = tmp_path / "words"
    words.write_text("correct horse\n")
    words.chmod(0o600)
    assert command("keygen", tmp_path / "a.key", "--passphrase-file", words).returncode == 0
    assert_one_line_error(command("key-id", tmp_path / "a.key", stdin=""), "--passphrase-file")
    unlocked = command("key-id", tmp_path / "a.key", "--passphrase-file", words)
    assert unlocked.stdout.startswith("nck1-")
    words.write_text("wrong\n")
    assert_one_line_error(command("key-id", tmp_path / "a.key", "--passphrase-file", words), "wrong passphrase")
    words.chmod(0o644)
    assert_one_line_error(command("key-id", tmp_path / "a.key", "--passphrase-file", words), "chmod 600")


def test_key_file_from_the_environment(plain_folder, key_file, tmp_path):
    result = command(
        "encrypt",
        "--dataset",
        plain_folder,
        "--output",
        tmp_path / "out",
        *SMALL_FLAGS,
        NEURACRYPT_KEY_FILE=str(key_file),
    )
    assert result.returncode == 0, result.stderr


# --------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    "name", ["keygen", "key-id", "encrypt", "verify", "audit", "push", "rotate", "predict", "adapt"]
)
def test_help_has_an_example(name):
    shown = command(name, "--help")
    assert shown.returncode == 0
    assert f"hf-neuracrypt {name} " in " ".join(shown.stdout.split())


def test_help_is_immediate():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        shown = command("--help")
        times.append(time.perf_counter() - start)
    assert "not confidentiality" in " ".join(shown.stdout.split())
    assert min(times) < 1
    check = (
        "import sys, hf_neuracrypt.cli; print([name for name in ('torch', 'datasets', 'PIL') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"


def test_alone_it_shows_its_help():
    alone = command("--help")
    program = [sys.executable, "-m", "hf_neuracrypt"]
    for words in ([], ["--version"]):
        shown = subprocess.run([*program, *words], capture_output=True, text=True, cwd=ROOT)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout == (f"{__version__}\n" if words else alone.stdout)


@pytest.mark.parametrize("script", ["train", "evaluate", "walkthrough", "benchmark", "serve"])
def test_scripts_have_help_with_an_example(script):
    shown = command(f"scripts/{script}.py", "--help")
    assert shown.returncode == 0 and f"scripts/{script}.py " in shown.stdout
    if script == "train":  # the recipe's defaults, not those of transformers
        assert "batch size per device for training. (default: 32)" in " ".join(shown.stdout.split())


# ------------------------------------------------------------------------------------------------------------ encrypt


def test_encrypt_verify_load(plain_folder, key_file, tmp_path):
    made = encrypt(plain_folder, key_file, tmp_path / "out")
    assert made.returncode == 0, made.stderr
    assert "33 images" in made.stderr
    assert {name: len(split) for name, split in load_from_disk(str(tmp_path / "out")).items()} == {
        "train": 24,
        "test": 9,
    }
    assert command("verify", tmp_path / "out").returncode == 0
    (shard,) = (tmp_path / "out" / "train").glob("*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    damaged = command("verify", tmp_path / "out")
    assert_one_line_error(damaged, "1 file(s)")
    assert shard.name in damaged.stdout


def test_sources(key_file, tmp_path):
    """A folder of images, Parquet, and a single saved split give the ciphertexts of the same images."""
    dataset = make_dataset(6, size=32)
    folder = tmp_path / "photos"
    for index, row in enumerate(dataset):
        place = folder / "train" / dataset.features["label"].int2str(row["label"])
        place.mkdir(parents=True, exist_ok=True)
        row["img"].save(place / f"jane_{index}.png")
    dataset.to_parquet(tmp_path / "photos.parquet")
    dataset.save_to_disk(str(tmp_path / "saved"))
    manifests = []
    for number, source in enumerate((folder, tmp_path / "photos.parquet", tmp_path / "saved")):
        made = encrypt(source, key_file, tmp_path / f"out{number}")
        assert made.returncode == 0, made.stderr
        assert "jane" not in made.stderr
        loaded = load_from_disk(str(tmp_path / f"out{number}"))["train"]
        manifests.append(sorted((row["label"], row["image"].tobytes()) for row in loaded))
        for path in (tmp_path / f"out{number}").rglob("*"):
            assert path.is_dir() or b"jane" not in path.read_bytes()
    assert manifests[0] == manifests[1] == manifests[2]


def test_options(plain_folder, key_file, tmp_path):
    made = encrypt(
        plain_folder, key_file, tmp_path / "out", "--hide-labels", "--max-rows", 5, "--background", "#000000"
    )
    assert made.returncode == 0, made.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest["rows"] == {"train": 5, "test": 5}
    assert manifest["config"]["background"] == "#000000" and manifest["sealed_labels"]
    assert "horse" not in (tmp_path / "out" / "train" / "dataset_info.json").read_text()


def test_bad_input_to_encrypt(plain_folder, key_file, tmp_path):
    out = tmp_path / "out"
    assert encrypt(plain_folder, key_file, out).returncode == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("precious")
    (tmp_path / "readable.key").write_text("x")
    for result, fragment in [
        (encrypt(plain_folder, key_file, out), "already holds a finished"),
        (encrypt(out, key_file, tmp_path / "twice"), "already encrypted"),
        (encrypt(plain_folder, key_file, plain_folder), "is or holds the source"),
        (encrypt(plain_folder, key_file, plain_folder / "inside"), "inside the source"),
        (encrypt(plain_folder, key_file, tmp_path), "is or holds the source"),
        (encrypt(tmp_path / "thesis", key_file, tmp_path / "new"), "none of the columns image"),
        (encrypt(tmp_path / "thesis" / "thesis.txt", key_file, tmp_path / "new"), "file of type .txt"),
        (encrypt(tmp_path / "missing", key_file, tmp_path / "new"), "there is no folder or file"),
        (encrypt("missing/", key_file, tmp_path / "new"), "there is no folder or file missing/"),
        (encrypt("missing", key_file, tmp_path / "new"), "there is no folder or file missing"),
        (encrypt("no-such/dataset", key_file, tmp_path / "new"), "cannot reach no-such/dataset: HF_HUB_OFFLINE is set"),
        (encrypt(plain_folder, tmp_path / "missing.key", tmp_path / "new"), "does not exist"),
        (encrypt(plain_folder, tmp_path / "readable.key", tmp_path / "new"), "chmod 600"),
        (encrypt(plain_folder, key_file, tmp_path / "new", "--image-column", "scan"), "no column 'scan'"),
        (encrypt(plain_folder, key_file, tmp_path / "new", "--image-size", 33), "not a multiple of patch_size"),
        (encrypt(plain_folder, key_file, tmp_path / "new", "--patch-size", 12), "choose from 8, 14, 16, 32"),
        (encrypt(plain_folder, key_file, tmp_path / "new", "--device", "nonsense"), "nonsense"),
        (encrypt(plain_folder, key_file, tmp_path / "new", "--frobnicate"), "--frobnicate"),
        (encrypt(plain_folder, key_file, tmp_path / "thesis"), "not empty"),
        (command("encrypt"), "--dataset"),
        (command("nonsense"), "nonsense"),
        (command("verify", tmp_path / "thesis"), "not an encrypted dataset"),
    ]:
        assert_one_line_error(result, fragment)
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == before
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "twice").exists()


def test_a_key_inside_the_output_is_refused(plain_folder, tmp_path):
    (tmp_path / "out").mkdir()
    SecretKey.generate().save(tmp_path / "out" / "a.key")
    assert_one_line_error(encrypt(plain_folder, tmp_path / "out" / "a.key", tmp_path / "out"), "keep it elsewhere")


def test_an_unreadable_image_stops_with_its_row(key_file, tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.fromarray(make_images(1, 32)[0]).save(tmp_path / "photos" / f"jane_{index}.png")
    (tmp_path / "photos" / "jane_3.png").write_bytes(b"")
    result = encrypt(tmp_path / "photos", key_file, tmp_path / "out")
    assert_one_line_error(result, "row 3 cannot be encrypted")
    assert "jane" not in result.stderr
    assert not (tmp_path / "out" / "dataset_dict.json").exists()
    Image.fromarray(make_images(1, 32)[0]).save(tmp_path / "photos" / "jane_3.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output(plain_folder, key_file, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert_one_line_error(encrypt(plain_folder, key_file, tmp_path / "locked" / "out"), "cannot write")


# ------------------------------------------------------------------------------------------------------------ predict


def test_bad_input_to_predict(key_file, vit_config, tmp_path):
    Image.fromarray(make_images(1, 32)[0]).save(tmp_path / "photo.png")
    for words, fragment in [
        (("--model", tmp_path / "missing", tmp_path / "photo.png"), "cannot load the model"),
        (("--model", "missing/", tmp_path / "photo.png"), "there is no such folder"),
        (("--model", vit_config, tmp_path / "photo.png"), "not trained on encrypted images"),
    ]:
        assert_one_line_error(command("predict", "--key-file", key_file, *words), fragment)
    config = json.loads((vit_config / "config.json").read_text())
    (vit_config / "config.json").write_text(json.dumps(config | {"neuracrypt": "yes"}))
    result = command("predict", "--key-file", key_file, "--model", vit_config, tmp_path / "photo.png")
    assert_one_line_error(result, "neuracrypt")


# ------------------------------------------------------------------------------------------------------------ bad rows


def test_skip_lists_rows_and_says_so_in_the_status(key_file, tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(20):
        Image.fromarray(make_images(1, 32)[0]).save(tmp_path / "photos" / f"jane_{index:02d}.png")
    (tmp_path / "photos" / "jane_07.png").write_bytes(b"")
    result = encrypt(tmp_path / "photos", key_file, tmp_path / "out", "--on-error", "skip")
    assert result.returncode == 3, result.stderr
    assert "were left out: 1, listed in" in result.stderr and "jane" not in result.stderr
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 7
    assert len(load_from_disk(str(tmp_path / "out"))["train"]) == 19
    few = encrypt(tmp_path / "photos", key_file, tmp_path / "few", "--on-error", "skip", "--max-bad-fraction", 0.01)
    assert_one_line_error(few, "1 of 20 rows", "--max-bad-fraction 0.01")
    assert_one_line_error(encrypt(tmp_path / "photos", key_file, tmp_path / "x", "--on-error", "guess"), "guess")


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_leave_a_job_that_continues(sent, status, processes, key_file, tmp_path):
    make_dataset(800, size=32).save_to_disk(str(tmp_path / "plain"))
    words = [
        "encrypt", "--dataset", tmp_path / "plain", "--key-file", key_file, "--output", tmp_path / "out",
        "--shard-size", 1, "--num-proc", processes,
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_neuracrypt", *map(str, words)],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    notes, deadline = tmp_path / "out" / ".unfinished" / "notes", time.monotonic() + 60
    while not (notes.exists() and list(notes.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == status and "interrupted" in stderr and "Traceback" not in stderr
    done = len(list(notes.iterdir()))
    assert 0 < done
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert command("verify", tmp_path / "out").returncode == 0
    assert len(load_from_disk(str(tmp_path / "out"))["train"]) == 800
