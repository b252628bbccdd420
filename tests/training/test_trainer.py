"""Models to the Hub and back: what `Trainer` publishes, and who can use it without our package."""

import json

import pytest
from huggingface_hub import ModelCard

from hf_neuracrypt import Classifier, SecretKey, load_encoder
from hf_neuracrypt.errors import KeyMismatchError
from tests.helpers import ROOT, SMALL, assert_one_line_error, command, key_id, make_dataset, push, python


TRAIN = """
import sys
sys.path.insert(0, "scripts")
import train
from hf_neuracrypt.errors import NeuraCryptError

def run(*words):
    flags = "--num_train_epochs 2 --save_strategy epoch --eval_strategy epoch --max_train_samples 24"
    try:
        train.main(*train.parse([*words, *flags.split(), "--use_cpu", "--disable_tqdm", "1"]))
    except NeuraCryptError as error:
        print("refused:", error)
"""


def test_training_publishes_with_our_card_at_every_push(published, owners, tmp_path):
    strategies = {"end": None, "every_save": None, "checkpoint": "last-checkpoint/", "all_checkpoints": "checkpoint-"}
    data = f'"--dataset_name", "owner/photos", "--config_name", r"{owners / "vit"}", "--push_to_hub"'
    calls = [
        f'run({data}, "--output_dir", r"{tmp_path / name}", "--hub_model_id", "owner/{name}", '
        f'"--hub_strategy", "{name}")'
        for name in strategies
    ]
    output = python(published, f"import os\nos.chdir(r'{ROOT}')\n" + TRAIN + "\n".join(calls), owners / "home")
    assert "refused" not in output
    for strategy, folder in strategies.items():
        repo = published.repos["model", f"owner/{strategy}"]
        assert repo.private and len(repo.commits) > 2
        for _, title, files in repo.commits[1:]:
            assert "stock Vision Transformer that learned from **encrypted** images" in files["README.md"].decode(), (
                title
            )
        files = repo.commits[-1][2]
        assert bool(folder) == any(name.startswith(folder or "checkpoint-") for name in files)
        card = ModelCard(files["README.md"].decode())
        assert {result.metric_type for result in card.data.eval_results} == {"accuracy", "loss"}
        assert card.data.datasets == ["owner/photos"] and key_id(owners / "one.key") in card.text
        assert str(owners) not in card.content
        config = json.loads(files["config.json"])
        assert config["neuracrypt"][0]["key_id"] == key_id(owners / "one.key") and "auto_map" not in config


def test_the_model_answers_without_our_package(published, owners, tmp_path):
    call = (
        f'run("--dataset_name", "owner/photos", "--config_name", r"{owners / "vit"}", "--push_to_hub", '
        f'"--output_dir", r"{tmp_path / "model"}", "--hub_model_id", "owner/vit")'
    )
    trained = python(published, f"import os\nos.chdir(r'{ROOT}')\n{TRAIN}\n{call}", owners / "home")
    assert "refused" not in trained
    code = """
import sys
from datasets import load_dataset
from transformers import pipeline
answer = pipeline("image-classification", model="owner/vit")(load_dataset("owner/photos", split="test")[0]["image"])
assert not any(name.startswith("hf_neuracrypt") for name in sys.modules)
print(sorted(entry["label"] for entry in answer))
"""
    assert python(published, code, tmp_path / "home").splitlines()[-1] == "['cat', 'dog', 'horse']"
    photo = tmp_path / "photo.png"
    make_dataset(1)[0]["img"].save(photo)
    environment = published.environment(tmp_path / "home")
    asked = ("predict", "--model", "owner/vit", photo, "--encrypted", owners / "one", "--key-file")
    assert command(*asked, owners / "one.key", **environment).returncode == 0
    two = ("predict", "--model", "owner/vit", photo, "--encrypted", owners / "two", "--key-file", owners / "two.key")
    assert_one_line_error(command(*two, **environment), "this key is", key_id(owners / "two.key"))
    stranger = published.environment(tmp_path / "empty", token="hf_other")
    missing = "not on the Hub, or it is private"
    assert_one_line_error(command(*asked, owners / "one.key", **stranger), missing, "HF_TOKEN")
    evaluate = ("scripts/evaluate.py", "--model", "owner/vit", "--dataset", "owner/photos")
    assert_one_line_error(command(*evaluate, **stranger), missing)
    assert json.loads(command(*evaluate, **environment).stdout)["samples"] == 30


def test_several_owners(published, owners, tmp_path):
    assert push(published, owners, "two", "owner/photos-two").returncode == 0
    both = f'"--dataset_name", "owner/photos", "owner/photos-two", "--config_name", r"{owners / "vit"}"'
    code = f"""
import os
os.chdir(r'{ROOT}')
{TRAIN}
run({both}, "--output_dir", r"{tmp_path / "refused"}")
run({both}, "--output_dir", r"{tmp_path / "model"}", "--allow_mixed_keys")
"""
    output = python(published, code, owners / "home")
    ids = [key_id(owners / "one.key"), key_id(owners / "two.key")]
    assert output.count("refused:") == 1 and "--allow_mixed_keys" in output and all(each in output for each in ids)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert [record["key_id"] for record in config["neuracrypt"]] == ids
    photo = tmp_path / "photo.png"
    make_dataset(1)[0]["img"].save(photo)
    for owner in ("one", "two"):
        own = ("--encrypted", owners / owner, "--key-file", owners / f"{owner}.key")
        answer = command("predict", "--model", tmp_path / "model", photo, *own)
        assert answer.returncode == 0, answer.stderr
    with pytest.raises(KeyMismatchError, match=f"{ids[0]}, {ids[1]}"):
        Classifier.from_pretrained(str(tmp_path / "model"), load_encoder(SMALL, SecretKey.generate()))


def test_nothing_is_uploaded_beside_what_does_not_belong(published, owners, tmp_path):
    for name in ("key", "notes"):
        (tmp_path / name).mkdir()
    SecretKey.generate().save(tmp_path / "key" / "owner.key")
    (tmp_path / "notes" / "photo.png").write_bytes(b"a plain image")
    words = f'"--dataset_name", "owner/photos", "--config_name", r"{owners / "vit"}", "--push_to_hub"'
    code = f"""
import os
os.chdir(r'{ROOT}')
{TRAIN}
run({words}, "--output_dir", r"{tmp_path / "key"}", "--hub_model_id", "owner/key")
run({words}, "--output_dir", r"{tmp_path / "notes"}", "--hub_model_id", "owner/notes")
run({words}, "--output_dir", r"{tmp_path / "token"}", "--hub_model_id", "owner/token", "--hub_token", "hf_owner")
"""
    refused = [line for line in python(published, code, owners / "home").splitlines() if line.startswith("refused:")]
    assert "key file inside the output" in refused[0] and "owner.key" in refused[0]
    assert "photo.png is not on the list of files" in refused[1]
    assert "--hub_token would be published" in refused[2]
    assert ("model", "owner/key") not in published.repos and ("model", "owner/token") not in published.repos
    assert list(published.files("model", "owner/notes")) == [".gitattributes"]
