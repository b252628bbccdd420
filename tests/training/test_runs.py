"""scripts/train.py as it is run: what it refuses, what it continues, what every backbone's loss is."""

import json
import logging

import pytest
import torch
import transformers
from datasets import ClassLabel, DatasetDict

from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.training.progress import mistakes
from tests.commands import command, load_script
from tests.helpers import TINY_VIT, make_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in the order of their classes, as a folder of images has them; a tiny pre-trained ViT."""
    folder = tmp_path_factory.mktemp("runs")
    splits = {"train": make_dataset(48).sort("label"), "test": make_dataset(24, seed=1).sort("label")}
    DatasetDict(splits).save_to_disk(str(folder / "plain"))
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY_VIT))
    model.save_pretrained(folder / "base")
    return folder


@pytest.fixture
def train(folder, tmp_path):
    """Run on plain images, which differ in no way that matters here; returns the metrics."""
    script = load_script("train")

    def train(*words: object, base: object = folder / "base") -> dict[str, float]:
        flags = ("--plain", "--dataset_name", folder / "plain", "--model_name_or_path", base)
        flags += ("--output_dir", tmp_path / "out", "--report_to", "none", "--disable_tqdm", "true", "--use_cpu")
        flags += ("--per_device_train_batch_size", 8)
        return script.main(*script.parse(list(map(str, (*flags, *words)))))

    return train


def state(output) -> dict:
    return json.loads((output / "trainer_state.json").read_text())


def losses(output) -> list[float]:
    return [entry["loss"] for entry in state(output)["log_history"] if "loss" in entry]


BEIT = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "intermediate_size": 32, "out_indices": [1, 2, 3, 4],
}  # fmt: skip
BACKBONES = {
    "beit": lambda: transformers.BeitForImageClassification(transformers.BeitConfig(**BEIT, drop_path_rate=0)),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**TINY_VIT)),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_two_small_batches_are_one_large_batch(name, train, tmp_path):
    torch.manual_seed(0)
    BACKBONES[name]().save_pretrained(tmp_path / "base")
    flags = ("--max_steps", 2, "--logging_steps", 1)
    train(*flags, "--output_dir", tmp_path / "one", base=tmp_path / "base")
    halves = ("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2)
    train(*flags, *halves, "--output_dir", tmp_path / "two", base=tmp_path / "base")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)


@pytest.mark.parametrize(
    "flags, reason",
    [
        (("--do_train", "False"), "evaluate.py evaluates"),
        (("--num_train_epochs", 0), "no step to train"),
        (("--dataloader_drop_last", "True", "--per_device_train_batch_size", 64), "48 images make 0 batches"),
        (("--batch_eval_metrics", "True"), "leave --batch_eval_metrics out"),
        (("--report_to", "comet_ml"), "comet"),
        (("--report_to", "nonesuch"), "nonesuch is not supported"),
        (("--load_best_model_at_end", "True", "--metric_for_best_model", "f1"), "loss or accuracy"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_work(flags, reason, train, tmp_path):
    with pytest.raises(NeuraCryptError, match=reason):
        train(*flags)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_one_class_alone_is_an_error(train, tmp_path):
    cats = make_dataset(12).filter(lambda row: row["label"] == 0)
    DatasetDict({"train": cats.cast_column("label", ClassLabel(names=["cat"]))}).save_to_disk(str(tmp_path / "cats"))
    with pytest.raises(NeuraCryptError, match="one class alone, cat"):
        train("--dataset_name", tmp_path / "cats")


def test_a_small_run_leaves_a_checkpoint_an_epoch_and_a_finished_one_is_left_alone(train, tmp_path, caplog):
    """Two epochs of six steps; then the same command, after which nothing may have changed."""
    caplog.set_level(logging.INFO)
    first = train("--num_train_epochs", 2, "--learning_rate", 1e-3)
    assert [path.name for path in tmp_path.glob("out/checkpoint-*")] == ["checkpoint-12"]
    assert len(losses(tmp_path / "out")) == 2 and state(tmp_path / "out")["global_step"] == 12
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "model.safetensors").unlink()
    again = train("--num_train_epochs", 2, "--learning_rate", 1e-3, "--resume_from_checkpoint", "True")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert state(tmp_path / "out")["global_step"] == 12
    assert again["eval_accuracy"] == first["eval_accuracy"]
    assert "out is a finished run of 12 steps: nothing is left to train" in caplog.text
    train("--num_train_epochs", 3, "--learning_rate", 1e-3)
    assert "checkpoint-12, after 12 steps" in caplog.text
    assert state(tmp_path / "out")["global_step"] == 18


def test_a_run_that_early_stopping_ended_is_left_alone(train, tmp_path):
    flags = ("--early_stopping", 1, "--num_train_epochs", 6, "--metric_for_best_model", "loss")
    flags += ("--greater_is_better", "True", "--learning_rate", 1e-3)  # the loss falls: the second is no better
    train(*flags)
    assert state(tmp_path / "out")["global_step"] == 12
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    train(*flags)
    assert state(tmp_path / "out")["global_step"] == 12
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_a_sample_of_a_sorted_split_has_all_classes(train, monkeypatch):
    script, seen = load_script("train"), []
    monkeypatch.setattr(script, "steps_of", lambda _, images: seen.append(images) or 1)
    chosen = []
    whole = script.choose_splits
    monkeypatch.setattr(script, "choose_splits", lambda *words: chosen.append(whole(*words)) or chosen[-1])
    train("--max_train_samples", 15, "--max_eval_samples", 12, "--max_steps", 1)
    assert seen == [15] and [set(split["label"]) for split in chosen[0]] == [{0, 1, 2}] * 2


def test_what_a_run_says(folder, tmp_path):
    """What lies ahead, a row for each evaluation, and what to run next, which is then run."""
    output = str(tmp_path / "out")
    words = ("--plain", "--dataset_name", folder / "plain", "--model_name_or_path", folder / "base", "--use_cpu")
    words += ("--disable_tqdm", "false")  # its default depends on how loud transformers is
    result = command("scripts/train.py", *words, "--output_dir", output, "--num_train_epochs", 2, "--learning_rate", 0)
    assert result.returncode == 0, result.stderr
    said = [line.strip() for line in (result.stdout + result.stderr).replace("\r", "\n").splitlines()]
    first = next(line for line in said if line)
    assert first.startswith("48 plain images of 3 classes; a vit of") and "4 steps of 32 images: less than" in first
    header = said.index("epoch  step  training loss  loss  accuracy")
    rows = [line.split() for line in said[header:] if len(line.split()) == 5 and "|" not in line]
    assert [row[:2] for row in rows] == [["1", "2"], ["2", "4"]]
    assert any(line.startswith("Evaluating:") for line in said) and not any("mtime" in line for line in said)
    assert not any("LOAD REPORT" in line or "Loading weights" in line or "{" in line for line in said)
    (following,) = [line for line in said if line.startswith("python scripts/evaluate.py")]
    evaluated = command(*following.split()[1:])
    worst = json.loads(evaluated.stdout)["worst_classes"]
    assert worst and all(f" of 8 {row['class']}, else taken for " in evaluated.stderr for row in worst)


def test_the_worst_classes_come_first():
    names, truths = ["cat", "dog", "horse"], [0, 0, 1, 1, 1, 2]
    assert mistakes(names, truths, ["cat", "cat", "dog", "cat", "dog", "ox"]) == [
        {"class": "horse", "images": 1, "recall": 0.0, "taken_for": {"ox": 1}},
        {"class": "dog", "images": 3, "recall": 0.6667, "taken_for": {"cat": 1}},
    ]
    assert mistakes(names, truths, [names[truth] for truth in truths]) == []
