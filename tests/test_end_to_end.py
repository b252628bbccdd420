"""From a key to an answer, with the commands of the README, on data made here and a tiny ViT."""

import json
import subprocess
import sys

import pytest
from datasets import load_from_disk
from PIL import Image

from hf_neuracrypt import SecretKey
from tests.commands import assert_one_line_error, command, encrypt, launch
from tests.helpers import ROOT, TINY_VIT, key_id, leaks, make_dataset, secret_of


RECIPE = (
    "--num_train_epochs", 12, "--per_device_train_batch_size", 16, "--learning_rate", "3e-3", "--report_to", "none",
    "--save_strategy", "epoch", "--save_total_limit", 1, "--disable_tqdm", "true", "--seed", 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Everything a user does, once; the tests look at what it left."""
    folder = tmp_path_factory.mktemp("walk")
    train = make_dataset(240, size=32)
    train.train_test_split(60, shuffle=False).save_to_disk(str(folder / "plain"))
    (folder / "tiny-vit").mkdir()
    (folder / "tiny-vit" / "config.json").write_text(json.dumps(TINY_VIT))
    assert command("keygen", folder / "a.key").returncode == 0
    encrypted = encrypt(folder / "plain", folder / "a.key", folder / "encrypted", "--hide-labels")
    assert encrypted.returncode == 0, encrypted.stderr
    trained = launch(
        "accelerate", "launch", "--num_processes", 1, ROOT / "scripts" / "train.py", "--dataset_name",
        folder / "encrypted", "--config_name", folder / "tiny-vit", "--output_dir", folder / "model", *RECIPE,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    return folder


@pytest.fixture
def ask(walk):
    """`predict` with the owner's key and record."""

    def run(*words, key="a.key", model="model", encrypted="encrypted"):
        given = ("--model", walk / model, "--encrypted", walk / encrypted, "--key-file", walk / key)
        return command("predict", *given, *words)

    return run


def test_the_model_learned_and_is_stock(walk):
    assert json.loads((walk / "model" / "eval_results.json").read_text())["eval_accuracy"] > 0.8
    config = json.loads((walk / "model" / "config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"] and "auto_map" not in config
    (record,) = config["neuracrypt"]
    assert record["key_id"] == SecretKey.load(walk / "a.key").id
    assert record["config"]["algorithm"] == "color-neuracrypt/v1"
    assert config["id2label"] == {"0": "class_0", "1": "class_1", "2": "class_2"}
    assert json.loads((walk / "model" / "preprocessor_config.json").read_text())["do_resize"] is False


def test_evaluate(walk):
    words = ("--model", walk / "model", "--dataset", walk / "encrypted", "--output", walk / "result.json")
    result = command("scripts/evaluate.py", *words)
    assert result.returncode == 0, result.stderr
    written = json.loads((walk / "result.json").read_text())
    trained = json.loads((walk / "model" / "eval_results.json").read_text())["eval_accuracy"]
    assert written["accuracy"] == pytest.approx(trained, abs=0.05)  # in batches of other sizes, sums are rounded apart
    assert written["samples"] == 60 and written["split"] == "test"


def test_predict_names_hidden_labels(walk, ask):
    plain = load_from_disk(str(walk / "plain"))["test"]
    photos = [walk / f"photo{index}.png" for index in range(6)]
    for index, photo in enumerate(photos):
        plain[index]["img"].save(photo)
    answers, right = ask("--json", *photos), 0
    assert answers.returncode == 0, answers.stderr
    for index, line in enumerate(answers.stdout.splitlines()):
        answer = json.loads(line)
        assert answer["image"].endswith(f"photo{index}.png")
        assert {entry["label"] for entry in answer["predictions"]} == {"cat", "dog", "horse"}
        right += answer["predictions"][0]["label"] == plain.features["label"].int2str(plain[index]["label"])
    assert right >= 5
    (line,) = ask("--top-k", 1, photos[0]).stdout.splitlines()
    file, score, label = line.split()
    assert file == str(photos[0]) and float(score) > 1 / 3 and label in {"cat", "dog", "horse"}


def test_stock_pipeline_without_our_package(walk):
    image = load_from_disk(str(walk / "encrypted"))["test"][0]["image"]
    image.save(walk / "encrypted.png")
    script = (
        "import sys; sys.modules['hf_neuracrypt'] = None\n"
        "from transformers import pipeline\n"
        "print(pipeline('image-classification', model='model')('encrypted.png')[0]['label'])\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=walk, timeout=120)
    assert answer.stdout.startswith("class_"), answer.stderr


def test_another_key_is_an_error_before_any_work(walk, ask):
    assert command("keygen", walk / "wrong.key").returncode == 0
    load_from_disk(str(walk / "plain"))["test"][0]["img"].save(walk / "photo.png")
    ids = [key_id(walk / name) for name in ("a.key", "wrong.key")]
    assert_one_line_error(ask(walk / "photo.png", key="wrong.key"), *ids)
    assert encrypt(walk / "plain", walk / "wrong.key", walk / "wrong").returncode == 0
    assert_one_line_error(ask(walk / "photo.png", key="wrong.key", encrypted="wrong"), *ids)
    words = ("scripts/evaluate.py", "--model", walk / "model", "--dataset", walk / "wrong")
    assert_one_line_error(command(*words), *ids)
    forced = command(*words, "--any_key")
    assert forced.returncode == 0, forced.stderr
    assert json.loads(forced.stdout)["accuracy"] < 0.7


def test_training_again_continues_or_refuses(walk):
    words = (
        "--dataset_name",
        walk / "encrypted",
        "--config_name",
        walk / "tiny-vit",
        "--output_dir",
        walk / "model",
        *RECIPE,
    )
    steps = json.loads((walk / "model" / "trainer_state.json").read_text())["global_step"]
    again = command("scripts/train.py", *words, "--num_train_epochs", 13)
    assert again.returncode == 0, again.stderr
    state = json.loads((walk / "model" / "trainer_state.json").read_text())
    assert state["global_step"] == steps * 13 // 12
    assert [entry["epoch"] for entry in state["log_history"] if "train_runtime" in entry] == [13.0]
    other = command("scripts/train.py", "--plain", "--dataset_name", walk / "plain", *words[2:])
    assert_one_line_error(other, "another key or config")


def test_plain_baseline(walk, ask):
    words = ("--config_name", walk / "tiny-vit", "--output_dir", walk / "plain-model", *RECIPE)
    refused = command("scripts/train.py", "--dataset_name", walk / "plain", *words)
    assert_one_line_error(refused, "is not encrypted", "--plain")
    trained = command("scripts/train.py", "--plain", "--dataset_name", walk / "plain", *words)
    assert trained.returncode == 0, trained.stderr
    result = command("scripts/evaluate.py", "--plain", "--model", walk / "plain-model", "--dataset", walk / "plain")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["accuracy"] > 0.8
    Image.new("RGB", (9, 9)).save(walk / "black.png")
    refused = ask(walk / "black.png", model="plain-model")
    assert_one_line_error(refused, "not trained on encrypted images")


def test_bad_input_to_the_scripts(walk):
    train = (
        "scripts/train.py",
        "--dataset_name",
        walk / "encrypted",
        "--output_dir",
        walk / "new",
        "--report_to",
        "none",
    )
    evaluate = ("scripts/evaluate.py", "--model", walk / "model", "--dataset", walk / "encrypted")
    for result, fragment in [
        (command(*train), "--model_name_or_path"),
        (command(*train, "--config_name", walk / "missing"), "cannot load the model"),
        (command(*train, "--config_name", walk / "tiny-vit", "--frobnicate", 1), "--frobnicate"),
        (command(*train, "--config_name", walk / "tiny-vit", "--label_column_name", "x"), "no column 'x'"),
        (
            command("scripts/train.py", "--config_name", walk / "tiny-vit", "--output_dir", walk / "new"),
            "--dataset_name",
        ),
        (command(*evaluate, "--split", "nowhere"), "no split 'nowhere'"),
        (command("scripts/evaluate.py", "--model", walk / "missing", "--dataset", walk / "encrypted"), "cannot load"),
        (command("scripts/evaluate.py", "--model", walk / "model", "--dataset", walk / "plain"), "is not encrypted"),
    ]:
        assert_one_line_error(result, fragment)
    assert not (walk / "new").exists()


def test_no_file_that_leaves_the_owner_holds_the_key(walk):
    secret = secret_of(walk / "a.key")
    for path in [path for folder in ("encrypted", "model") for path in (walk / folder).rglob("*") if path.is_file()]:
        content = path.read_bytes()
        assert not leaks(secret, content) and b"NEURACRYPT-SECRET-KEY" not in content and b"a.key" not in content, path
