"""Recipes: whose word counts, optimiser groups, class weights, and everything at once in real training runs."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor
from safetensors.torch import load_file
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, pipeline

from hf_neuracrypt.training import recipes, tasks
from tests.commands import assert_one_line_error, command, load_script
from tests.helpers import TINY_VIT, make_dataset


pytestmark = pytest.mark.usefixtures("align_once")


@pytest.fixture(scope="module")
def script():
    """scripts/train.py as a module."""
    return load_script("train")


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
        ([], {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1}),
        (["--save_steps", "500"], {"save_strategy": "steps", "eval_strategy": "epoch", "save_total_limit": None}),
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
    loss = tasks.loss_of("classes", tasks.balanced(labels.tolist(), 3))
    logits = torch.tensor([[2.0, 0, 0]] * 4)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = (each[0] + each[3]) / 2  # the mean of the classes' means
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    halves = sum(loss({"logits": logits[part]}, labels[part], 4) for part in (slice(0, 2), slice(2, 4)))
    torch.testing.assert_close(halves, expected)


def test_one_run_with_everything_switched_on(script, folder, monkeypatch, caplog):
    """Aligned start, bfloat16, SDPA, checkpointing, accumulation, class weights, the best model of all epochs."""
    caplog.set_level(logging.INFO)
    calls, attention = [], torch.nn.functional.scaled_dot_product_attention

    def recorded(query, *args, **options):
        calls.append((query.dtype, torch.is_grad_enabled()))
        return attention(query, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    switches = ["--public_images", folder / "public", "--bf16", "--gradient_checkpointing", "--class_weights"]
    switches += ["--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--num_train_epochs", 2]
    script.main(*script.parse(flags_of(folder, "all", *switches, "--early_stopping", 2)))
    state = json.loads((folder / "all" / "trainer_state.json").read_text())
    assert state["global_step"] == 8 and state["best_model_checkpoint"]
    half_precision = [enabled for dtype, enabled in calls if dtype == torch.bfloat16]
    # One layer, 16 parts of batches: forwards, and with checkpointing once more on the way back. Before, if the map
    # is kept, eight passes over 64 public images to distil.
    distilled = 0 if "do not help" in caplog.text else 17
    assert half_precision.count(True) == 32 + distilled, calls
    start = load_file(folder / "pretrained" / "model.safetensors")["vit.embeddings.position_embeddings"]
    end = load_file(folder / "all" / "model.safetensors")["vit.embeddings.position_embeddings"]
    aligned = (end - start)[:, 1:].abs().max() > 0.01  # further than eight steps could
    assert (end - start)[:, 0].abs().max() < 0.01 and aligned != ("do not help" in caplog.text)
    answer = pipeline("image-classification", model=str(folder / "all"))(make_dataset(1, size=32)[0]["img"])
    assert len(answer) == 3 and "auto_map" not in json.loads((folder / "all" / "config.json").read_text())


COMMON = ["--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--save_steps", 5]
COMMON += ["--logging_steps", 1, "--num_train_epochs", 2, "--learning_rate", 3e-3]


def learned(script, flags) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A whole run: its losses, and the weights it saves."""
    parsed = script.parse(flags)
    assert parsed[-1].optim == "adamw_torch_fused"
    script.main(*parsed)
    output = Path(parsed[-1].output_dir)
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry], load_file(output / "model.safetensors")


def test_a_compiled_run_learns_the_same_and_continues(script, folder, tmp_path):
    """torch.compile must not show in what is saved; with accumulation, and an optimiser that is fused."""
    compiled = ["--torch_compile", "--torch_compile_backend", "aot_eager"]
    eager = learned(script, flags_of(folder, tmp_path / "eager", *COMMON))[0]
    curve, weights = learned(script, flags_of(folder, tmp_path / "whole", *COMMON, *compiled))
    assert len(eager) == 8 and curve == pytest.approx(eager, abs=1e-5)
    # As a run leaves its folder that is killed after five of its eight steps.
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", tmp_path / "stopped" / "checkpoint-5")
    continued, found = learned(script, flags_of(folder, tmp_path / "stopped", *COMMON, *compiled))
    assert continued == pytest.approx(curve, abs=1e-5)
    start = load_file(tmp_path / "whole" / "checkpoint-5" / "model.safetensors")
    assert set(start) == set(load_file(folder / "pretrained" / "model.safetensors"))
    for name, expected in weights.items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=0)
    assert any((start[name] != expected).any() for name, expected in weights.items())


@pytest.mark.skipif(not shutil.which("g++"), reason="it needs g++")
@inductor.patch({"cpp.vec_isa_ok": True, "compile_threads": 1})  # else it tries all vector instructions first
def test_kernels_that_are_compiled_learn_the_same(script, folder, tmp_path, monkeypatch):
    """By torch's own compiler, which takes a second for a kernel: of a model of embeddings and a head alone."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    ViTForImageClassification(ViTConfig(**TINY_VIT | {"num_hidden_layers": 0})).save_pretrained(tmp_path / "shallow")
    flags = ["--model_name_or_path", tmp_path / "shallow", *COMMON, "--per_device_eval_batch_size", 12]
    eager = learned(script, flags_of(folder, tmp_path / "eager", *flags))[0]
    compiled = ["--torch_compile", "--torch_compile_backend", "inductor"]
    assert learned(script, flags_of(folder, tmp_path / "compiled", *flags, *compiled))[0] == pytest.approx(
        eager, abs=1e-5
    )
    assert list((tmp_path / "cache").rglob("*.cpp"))  # kernels were written


@pytest.mark.parametrize("compiled", [[], ["--torch_compile", "--torch_compile_backend", "aot_eager"]])
def test_the_best_model_comes_back_whole(compiled, script, folder, tmp_path):
    """Of the epochs the first is made the best one, as a higher loss counts as better; so the second is the last."""
    flags = ["--early_stopping", 1, "--num_train_epochs", 3, "--per_device_train_batch_size", 8, *compiled]
    flags += ["--learning_rate", 0.001, "--metric_for_best_model", "loss", "--greater_is_better", "true"]
    script.main(*script.parse(flags_of(folder, tmp_path / "best", *flags, "--save_total_limit", 2)))
    state = json.loads((tmp_path / "best" / "trainer_state.json").read_text())
    best, last = (load_file(tmp_path / "best" / f"checkpoint-{step}" / "model.safetensors") for step in (8, 16))
    kept = load_file(tmp_path / "best" / "model.safetensors")
    assert state["best_model_checkpoint"].endswith("checkpoint-8") and state["global_step"] == 16
    assert set(kept) == set(best) and all(torch.equal(kept[name], best[name]) for name in best)
    assert any(not torch.equal(kept[name], last[name]) for name in last)


def test_what_cannot_be_aligned(folder):
    for flags, fragment in [
        (["--public_images", folder / "encrypted"], "is encrypted: --public_images are plain"),
        (["--public_images", folder / "nothing"], "there is no folder or file"),
        (["--public_images", folder / "public", "--plain"], "--public_images align encrypted images"),
    ]:
        assert_one_line_error(command("scripts/train.py", *flags_of(folder, "refused", *flags)), fragment)
