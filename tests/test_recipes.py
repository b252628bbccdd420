"""Recipes: whose word counts, optimiser groups, class weights, and the aligned start inside a real training run."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, pipeline

from hf_neuracrypt import recipes, training, writer
from hf_neuracrypt.dataset import make_plan
from tests.conftest import ROOT, TINY_VIT, assert_one_line_error, command, launch, load_script, make_dataset


@pytest.fixture(scope="module")
def script():
    """scripts/train.py as a module."""
    return load_script("train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_encoder):
    """Encrypted and public images, and a tiny pre-trained ViT."""
    folder = tmp_path_factory.mktemp("recipes")
    splits = {"train": make_dataset(64, size=32), "validation": make_dataset(12, size=32, seed=1)}
    writer.work(writer.Job(splits, make_plan(splits, small_encoder), folder / "encrypted"))
    make_dataset(64, size=32, seed=2).remove_columns("label").save_to_disk(str(folder / "public"))
    ViTForImageClassification(ViTConfig(**TINY_VIT)).save_pretrained(folder / "pretrained")
    return folder


def flags_of(folder, output: str, *more: object) -> list:
    base = ["--dataset_name", folder / "encrypted", "--model_name_or_path", folder / "pretrained"]
    base += ["--output_dir", folder / output, "--report_to", "none", "--disable_tqdm", "true", "--use_cpu"]
    return [str(word) for word in (*base, *more)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"learning_rate": 1e-4, "num_train_epochs": 5, "weight_decay": 0.05}),
        (["--recipe", "usual"], {"learning_rate": 5e-5, "num_train_epochs": 3, "weight_decay": 0}),
        (["--recipe", "paper"], {"optim": "sgd", "learning_rate": 0.03, "warmup_steps": 500, "weight_decay": 5e-4}),
        (["--recipe", "paper", "--learning_rate", "0.1"], {"learning_rate": 0.1, "warmup_steps": 500}),
        (["--num_train_epochs", "3"], {"num_train_epochs": 3, "learning_rate": 1e-4}),
        (["--early_stopping", "2"], {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}),
    ],
)
def test_what_the_user_gives_wins_over_the_recipe(script, folder, tmp_path, given, expected):
    flags = flags_of(folder, "new", *given)
    values = [True if word == "--use_cpu" else None for word in flags]
    from_words = script.parse(flags)[-1]
    pairs = {word[2:]: values[i] or flags[i + 1] for i, word in enumerate(flags) if word.startswith("--")}
    (tmp_path / "flags.json").write_text(json.dumps({name: _typed(value) for name, value in pairs.items()}))
    from_file = script.parse([str(tmp_path / "flags.json")])[-1]
    for parsed in (from_words, from_file):
        assert {name: getattr(parsed, name) for name in expected} == expected


def _typed(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def test_the_optimiser_of_each_recipe(tmp_path):
    model = ViTForImageClassification(ViTConfig(**TINY_VIT))
    args = TrainingArguments(str(tmp_path), learning_rate=1e-4, weight_decay=0.05, report_to="none", use_cpu=True)
    cls, options = recipes.optimizer_of("neuracrypt", args, model, pretrained=True)
    assert issubclass(cls, torch.optim.AdamW)
    assert [group["lr"] for group in options["params"]] == [1e-4, 5e-4]
    assert sum(len(group["params"]) for group in options["params"]) == len(list(model.parameters()))
    assert "params" not in recipes.optimizer_of("neuracrypt", args, model, pretrained=False)[1]
    paper = TrainingArguments(str(tmp_path), optim="sgd", learning_rate=0.03, report_to="none", use_cpu=True)
    cls, options = recipes.optimizer_of("paper", paper, model, pretrained=True)
    assert cls is torch.optim.SGD and options["momentum"] == 0.9 and "params" not in options


def test_rare_classes_count_as_much_as_frequent_ones():
    labels = torch.tensor([0, 0, 0, 1])
    loss = recipes.balanced_loss(labels.tolist(), 3)
    logits = torch.tensor([[2.0, 0, 0]] * 4)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = (each[0] + each[3]) / 2  # the mean of the classes' means
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    halves = sum(loss({"logits": logits[part]}, labels[part], 4) for part in (slice(0, 2), slice(2, 4)))
    torch.testing.assert_close(halves, expected)


def test_a_map_that_does_not_help_is_dropped(folder, monkeypatch, caplog):
    """What decides is the labels' word, before and after."""
    splits = training.load_splits(str(folder / "encrypted"))
    split, public = training.undecoded(splits.data["train"], splits.columns), str(folder / "public")
    for probed, kept in (([0.5, 0.4], False), ([0.5, 0.6], True)):
        model = ViTForImageClassification.from_pretrained(folder / "pretrained")
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        monkeypatch.setattr(recipes, "probe", lambda *_, answers=probed: answers.pop(0))
        assert recipes.aligned_start(model, split, splits.columns, public, seed=0) is kept
        changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
        assert bool(changed) is kept and all("embeddings" in name for name in changed)
        assert ("do not help" in caplog.text) is not kept
        caplog.clear()


def test_the_probe_sees_what_is_there(folder):
    model = ViTForImageClassification.from_pretrained(folder / "pretrained").train()
    rows = make_dataset(120, size=32)
    pixels = torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) for image in rows["img"]]) / 127.5 - 1
    labels = torch.tensor(rows["label"])
    assert recipes.probe(model, pixels, labels) > 0.9 and model.training
    assert recipes.probe(model, pixels, labels[torch.randperm(120, generator=torch.Generator().manual_seed(0))]) < 0.5


def test_one_run_with_everything_switched_on(folder):
    """Aligned start, bfloat16, checkpointing, accumulation, class weights, the best model of a validation split."""
    switches = ["--public_images", folder / "public", "--bf16", "--gradient_checkpointing", "--class_weights"]
    switches += ["--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--num_train_epochs", 2]
    result = command("scripts/train.py", *flags_of(folder, "all", *switches, "--early_stopping", 2))
    assert result.returncode == 0, result.stderr
    state = json.loads((folder / "all" / "trainer_state.json").read_text())
    assert state["global_step"] == 8 and state["best_model_checkpoint"]
    start = load_file(folder / "pretrained" / "model.safetensors")["vit.embeddings.position_embeddings"]
    end = load_file(folder / "all" / "model.safetensors")["vit.embeddings.position_embeddings"]
    aligned = (end - start)[:, 1:].abs().max() > 0.01  # further than four steps could
    assert (end - start)[:, 0].abs().max() < 0.01 and aligned != ("do not help" in result.stderr)
    answer = pipeline("image-classification", model=str(folder / "all"))(make_dataset(1, size=32)[0]["img"])
    assert len(answer) == 3 and "auto_map" not in json.loads((folder / "all" / "config.json").read_text())


def test_a_stopped_run_continues_to_the_same_weights(script, folder):
    """Under torch.compile, which must not show in what is saved, and with accumulation; the optimiser is fused."""
    common = ["--torch_compile", "--torch_compile_backend", "aot_eager", "--per_device_train_batch_size", "8"]
    common += ["--gradient_accumulation_steps", "2", "--num_train_epochs", "2", "--save_steps", "5"]
    common += ["--learning_rate", "0.01"]
    weights = []
    for output in ("whole", "stopped"):
        if output == "stopped":  # as a run leaves its folder that is killed after five of its eight steps
            shutil.copytree(folder / "whole" / "checkpoint-5", folder / "stopped" / "checkpoint-5")
        parsed = script.parse(flags_of(folder, output, *common))
        assert parsed[-1].optim == "adamw_torch_fused"
        script.main(*parsed)
        weights.append(load_file(folder / output / "model.safetensors"))
        assert json.loads((folder / output / "trainer_state.json").read_text())["global_step"] == 8
    start = load_file(folder / "whole" / "checkpoint-5" / "model.safetensors")
    assert set(weights[0]) == set(load_file(folder / "pretrained" / "model.safetensors"))
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-6, rtol=0)
    assert any((start[name] != expected).any() for name, expected in weights[0].items())


def test_the_best_model_comes_back_whole(script, folder):
    """Of two epochs the first is made the better one: the higher loss counts as better."""
    flags = ["--early_stopping", "3", "--num_train_epochs", "2", "--per_device_train_batch_size", "8"]
    flags += ["--learning_rate", "0.01", "--metric_for_best_model", "loss", "--greater_is_better", "true"]
    parsed = script.parse(flags_of(folder, "best", *flags, "--save_total_limit", "2"))
    script.main(*parsed)
    best = json.loads((folder / "best" / "trainer_state.json").read_text())["best_model_checkpoint"]
    kept, saved = load_file(folder / "best" / "model.safetensors"), load_file(f"{best}/model.safetensors")
    assert best.endswith("checkpoint-8") and all(torch.equal(kept[name], saved[name]) for name in saved)


def test_two_ranks_learn_what_one_process_with_twice_the_batch_does(folder):
    common = ["--max_steps", 4, "--logging_steps", 1, "--save_strategy", "no", "--seed", 3]
    one = command(
        "scripts/train.py", *flags_of(folder, "one", *common, "--per_device_train_batch_size", 16), OMP_NUM_THREADS="1"
    )
    assert one.returncode == 0, one.stderr
    two = launch(
        "torchrun", "--nproc_per_node", 2, ROOT / "scripts" / "train.py",
        *flags_of(folder, "two", *common, "--per_device_train_batch_size", 8),
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    curves = []
    for name in ("one", "two"):
        history = json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
        curves.append([entry["loss"] for entry in history if "loss" in entry])
    assert len(curves[0]) == 4 and curves[0] == pytest.approx(curves[1], abs=2e-4)


def test_what_cannot_be_aligned(folder):
    for flags, fragment in [
        (["--public_images", folder / "encrypted"], "is encrypted: --public_images are plain"),
        (["--public_images", folder / "nothing"], "there is no folder or file"),
        (["--public_images", folder / "public", "--plain"], "--public_images align encrypted images"),
    ]:
        assert_one_line_error(command("scripts/train.py", *flags_of(folder, "refused", *flags)), fragment)
