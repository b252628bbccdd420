"""The owner's command as a user types it: what it prints, and that bad input is one line, a status, and no loss."""

import functools
import json
import os
import signal
import stat
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from datasets import load_from_disk
from PIL import Image

from hf_neuracrypt import SecretKey, __version__
from hf_neuracrypt.data.manifest import read_manifest
from tests.commands import assert_one_line_error, command, encrypt, process, wait_until
from tests.helpers import ROOT, SMALL_FLAGS, leaks, make_dataset, make_images, secret_of


# --------------------------------------------------------------------------------------------------------------- keys


def test_keygen_and_key_id(tmp_path):
    path = tmp_path / "a.key"
    made = command("keygen", path)
    assert made.returncode == 0
    key = SecretKey.load(path)
    assert made.stdout.strip() == key.id
    assert "Never upload" in made.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not leaks(secret_of(path), (made.stdout + made.stderr).encode())
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


def test_a_typed_passphrase_is_seen_nowhere(tmp_path):
    """Not on the terminal, nor in what others see of the process; on the command line it is refused."""
    code = (
        "import sys, time\n"
        "from hf_neuracrypt.keys import file\n"
        "file.WORK_FACTOR = 1\n"
        "from hf_neuracrypt.cli import main\n"
        "try: main()\n"
        "finally: print('done', flush=True); time.sleep(600)\n"
    )
    ours, theirs = os.openpty()
    words = [sys.executable, "-c", code, "keygen", str(tmp_path / "a.key"), "--passphrase"]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True) as typed:
        try:
            shown = b""
            for prompt in (b"Passphrase: ", b"confirmation: "):
                while not shown.endswith(prompt):
                    shown += os.read(ours, 1000)
                wait_until(lambda: not termios.tcgetattr(ours)[3] & termios.ECHO)
                os.write(ours, b"correct horse\n")
            while b"done" not in shown:
                shown += os.read(ours, 1000)
            seen = b"".join(Path(f"/proc/{typed.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        finally:
            typed.kill()
    assert SecretKey.load(tmp_path / "a.key", passphrase="correct horse").id.encode() in shown
    assert b"horse" not in shown + seen and b"--passphrase" in seen
    assert_one_line_error(command("keygen", tmp_path / "b.key", "--passphrase=correct horse"))
    assert not (tmp_path / "b.key").exists()


def test_key_file_from_the_environment(plain_folder, key_file, tmp_path):
    words = ("encrypt", "--dataset", plain_folder, "--output", tmp_path / "out", *SMALL_FLAGS)
    result = command(*words, NEURACRYPT_KEY_FILE=str(key_file))
    assert result.returncode == 0, result.stderr


# --------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", ["keygen", "key-id", "encrypt", "verify", "audit", "push", "predict", "adapt"])
def test_help_has_an_example(name):
    shown = command(name, "--help")
    assert shown.returncode == 0
    assert f"hf-neuracrypt {name} " in " ".join(shown.stdout.split())


def test_help_does_not_wait_for_heavy_imports():
    code = (
        "import sys\n"
        "from hf_neuracrypt.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print([name for name in ('torch', 'datasets', 'PIL') if name in sys.modules])\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "not confidentiality" in " ".join(shown.stdout.split()) and shown.stdout.endswith("[]\n")


def test_alone_it_shows_its_help():
    """As a program: the status, and stdout and stderr apart."""
    alone, version = process(), process("--version")
    assert (alone.returncode, alone.stderr) == (version.returncode, version.stderr) == (0, "")
    assert alone.stdout.replace("python -m hf_neuracrypt", "hf-neuracrypt") == command("--help").stdout
    assert version.stdout == f"{__version__}\n"
    assert_one_line_error(process("frobnicate"), "frobnicate")


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (["rotate", "encrypted/"], "`encrypt --like FOLDER`, then `push --replace-key`"),
        (["encrypt", "--on-error", "skip"], "--max-bad-fraction"),
        (["encrypt", "--depth", "2"], "--scheme-option depth=N"),
        (["encrypt", "--width=64"], "--scheme-option width=N"),
        (["encrypt", "--background", "#000000"], "--scheme-option background=#rrggbb"),
    ],
)
def test_old_spellings_are_told_the_new_ones(words, new):
    old = next(word.partition("=")[0] for word in words if word == "rotate" or word.startswith("--"))
    assert_one_line_error(command(*words), f"{old} is now {new}")


@pytest.mark.parametrize("script", ["train", "evaluate", "demo", "serve", "experiments/benchmark"])
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
        plain_folder,
        key_file,
        tmp_path / "out",
        "--hide-labels",
        "--max-rows",
        5,
        "--scheme-option",
        "background=#000000",
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
        (encrypt(tmp_path / "thesis", key_file, tmp_path / "new"), "holds no image and no table"),
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


def test_bad_input_to_predict(plain_folder, key_file, vit_config, tmp_path):
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    Image.fromarray(make_images(1, 32)[0]).save(photo)
    assert encrypt(plain_folder, key_file, out).returncode == 0
    SecretKey.generate().save(tmp_path / "other.key")
    for words, fragment in [
        (("--encrypted", out, "--model", tmp_path / "missing"), "cannot load the model"),
        (("--encrypted", out, "--model", "missing/"), "there is no such folder"),
        (("--encrypted", out, "--model", vit_config), "not trained on encrypted images"),
        (("--encrypted", out), "either --model"),
        (("--encrypted", out, "--model", vit_config, "--endpoint", "https://x.example"), "either --model"),
        (("--model", vit_config), "--encrypted"),
        (("--encrypted", plain_folder, "--model", vit_config), "is not encrypted"),
        (("--encrypted", out / "neuracrypt.json", "--model", vit_config), "not trained on encrypted images"),
        (("--encrypted", out, "--model", vit_config, "--key-file", tmp_path / "other.key"), "was encrypted under"),
    ]:
        assert_one_line_error(command("predict", "--key-file", key_file, *words, photo), fragment)
    config = json.loads((vit_config / "config.json").read_text())
    (vit_config / "config.json").write_text(json.dumps(config | {"neuracrypt": "yes"}))
    result = command("predict", "--key-file", key_file, "--encrypted", out, "--model", vit_config, photo)
    assert_one_line_error(result, "neuracrypt")


# ------------------------------------------------------------------------------------------------------------ bad rows


def test_rows_left_out_are_listed_and_said_in_the_status(key_file, tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(20):
        Image.fromarray(make_images(1, 32)[0]).save(tmp_path / "photos" / f"jane_{index:02d}.png")
    (tmp_path / "photos" / "jane_07.png").write_bytes(b"")
    result = encrypt(tmp_path / "photos", key_file, tmp_path / "out", "--max-bad-fraction", 0.1)
    assert result.returncode == 3, result.stderr
    assert "were left out: 1, listed in" in result.stderr and "jane" not in result.stderr
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 7
    assert len(load_from_disk(str(tmp_path / "out"))["train"]) == 19
    few = encrypt(tmp_path / "photos", key_file, tmp_path / "few", "--max-bad-fraction", 0.01)
    assert_one_line_error(few, "1 of 20 rows", "--max-bad-fraction 0.01")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_leave_a_job_that_continues(sent, processes, key_file, tmp_path):
    """In the second shard of a worker, whose images take an hour."""
    make_dataset(1100, size=32).save_to_disk(str(tmp_path / "plain"))
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from hf_neuracrypt.cli import main\n"
        "from hf_neuracrypt.data.dataset import EncryptRows\n"
        "encrypt, batches = EncryptRows.__call__, iter(range(5))\n"
        "def hangs(*batch):\n"
        "    if next(batches, None) is None:\n"
        "        Path(__file__).with_name('hangs').touch()\n"
        "        time.sleep(3600)\n"
        "    return encrypt(*batch)\n"
        "EncryptRows.__call__ = hangs\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    (tmp_path / "main.py").write_text(script)
    words = [
        "encrypt", "--dataset", tmp_path / "plain", "--key-file", key_file, "--output", tmp_path / "out",
        "--shard-size", 1, *SMALL_FLAGS, "--num-proc",
    ]  # fmt: skip
    started = [sys.executable, str(tmp_path / "main.py"), *map(str, [*words, processes])]
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
    with subprocess.Popen(
        started, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heeds,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as job:  # fmt: skip
        wait_until(lambda: (tmp_path / "hangs").exists() or job.poll() is not None)
        os.killpg(job.pid, sent) if sent == signal.SIGINT else job.send_signal(sent)
        stderr = job.communicate(timeout=300)[1]
    assert job.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr, stderr
    assert list((tmp_path / "out" / ".unfinished" / "notes").iterdir())
    again = command(*words, 1)
    assert again.returncode == 0, again.stderr
    assert command("verify", tmp_path / "out").returncode == 0
    assert len(load_from_disk(str(tmp_path / "out"))["train"]) == 1100
