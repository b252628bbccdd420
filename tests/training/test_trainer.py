"""Models to the Hub and back: what `Trainer` publishes, and who can use it without our package."""

import json

import pytest
from huggingface_hub import ModelCard

from hf_neuracrypt import Classifier, SecretKey, load_encoder
from hf_neuracrypt.errors import KeyMismatchError, NeuraCryptError
from tests.commands import assert_one_line_error, command, load_script, push, python, started_with
from tests.helpers import SMALL, key_id, make_dataset  # fmt: skip


FLAGS = ("--num_train_epochs", 2, "--save_strategy", "epoch", "--eval_strategy", "epoch", "--max_train_samples", 24)
FLAGS += ("--use_cpu", "--disable_tqdm", "true", "--report_to", "none")
PUBLISHED = "stock Vision Transformer that learned from **encrypted** images"


@pytest.fixture
def train(published, owners):
    """scripts/train.py on the first owner's published images, in this process, with the loopback Hub as its Hub."""
    script = load_script("train")

    def train(*words: object, dataset: tuple = ("owner/photos",)) -> None:
        base = ("--dataset_name", *dataset, "--config_name", owners / "vit")
        script.main(*script.parse(list(map(str, (*base, *words, *FLAGS)))))

    with started_with(published.environment(owners / "home")):
        yield train


@pytest.mark.parametrize(
    "strategy, folder",
    [("end", None), ("every_save", None), ("checkpoint", "last-checkpoint/"), ("all_checkpoints", "checkpoint-")],
)
def test_training_publishes_with_our_card_at_every_push(strategy, folder, train, published, owners, tmp_path):
    name = f"owner/{strategy}"
    train("--push_to_hub", "--output_dir", tmp_path / strategy, "--hub_model_id", name, "--hub_strategy", strategy)
    repo = published.repos["model", name]
    assert repo.private and len(repo.commits) > 2
    for _, title, files in repo.commits[1:]:
        assert PUBLISHED in files["README.md"].decode(), title
    files = repo.commits[-1][2]
    assert bool(folder) == any(file.startswith(folder or "checkpoint-") for file in files)
    card = ModelCard(files["README.md"].decode())
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy", "loss"}
    assert card.data.datasets == ["owner/photos"] and key_id(owners / "one.key") in card.text
    assert str(owners) not in card.content
    config = json.loads(files["config.json"])
    assert config["neuracrypt"][0]["key_id"] == key_id(owners / "one.key") and "auto_map" not in config


def test_the_model_answers_without_our_package(train, published, owners, tmp_path):
    train("--push_to_hub", "--output_dir", tmp_path / "model", "--hub_model_id", "owner/vit")
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


def test_several_owners(train, published, owners, tmp_path):
    assert push(published, owners, "two", "owner/photos-two").returncode == 0
    both, ids = ("owner/photos", "owner/photos-two"), [key_id(owners / "one.key"), key_id(owners / "two.key")]
    with pytest.raises(KeyMismatchError, match=f"{ids[0]}, {ids[1]}.*--allow_mixed_keys"):
        train("--output_dir", tmp_path / "refused", dataset=both)
    train("--output_dir", tmp_path / "model", "--allow_mixed_keys", dataset=both)
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


@pytest.mark.parametrize(
    "name, plant, reason",
    [
        (
            "key",
            lambda folder: SecretKey.generate().save(folder / "owner.key"),
            "key file inside the output.*owner",
        ),
        ("token", lambda folder: None, "--hub_token would be published"),
        (
            "notes",
            lambda folder: (folder / "photo.png").write_bytes(b"a plain image"),
            "photo.png is not on the list of files",
        ),
    ],
)
def test_nothing_is_uploaded_beside_what_does_not_belong(name, plant, reason, train, published, tmp_path):
    (tmp_path / name).mkdir()
    plant(tmp_path / name)
    token = ("--hub_token", "hf_owner") if name == "token" else ()
    with pytest.raises(NeuraCryptError, match=reason):
        train("--push_to_hub", "--output_dir", tmp_path / name, "--hub_model_id", f"owner/{name}", *token)
    repo = published.repos.get(("model", f"owner/{name}"))
    assert (repo is not None) == (name == "notes")  # else it is refused before the repository is made
    assert repo is None or list(repo.commits[-1][2]) == [".gitattributes"]
