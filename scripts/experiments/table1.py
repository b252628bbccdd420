"""Rebuild the paper's table: every system, one protocol, the published figures beside.

python scripts/experiments/table1.py --output digits.json --dataset digits --budget smoke
python scripts/experiments/table1.py --output cifar10.json --dataset cifar10 --budget cpu --seeds 3

Budgets: `smoke` shows in a few minutes that every row runs (random weights, small models). `cpu` (4,000 images of 112
px, hours) and `gpu` (all images, 224 px) fine-tune a pre-trained ViT-Tiny, `paper` is the published recipe with
ViT-B/16 and the full PyramidNet, for a large GPU. Each row encrypts under a new key of its own, in front of the model
and after any augmentation, as the originals did, and is judged after its last step. "best_on_test" is how good it would
have looked had the step been chosen on the test set, "wrong_key" the accuracy under another key, and "neighbours" how
far a ciphertext moves when its image is encrypted alone instead of in a batch, in standard deviations. Rows that the
output file holds already are not run again.
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from features import HOME_SIZE, at_home, soft_labels
from fine_tune import to_float
from processor import BFLOAT16, processor
from table1_data import HUB, Prepare, load_data, stacked
from table1_report import report
from table1_rows import BUDGETS, GIVEN, ROWS, Budget, Recipe, Row
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, ViTConfig, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.alignment import align, most_images, rehearse
from hf_neuracrypt.audit.adapted import JUDGED, fit
from hf_neuracrypt.audit.pairs import Pairs
from hf_neuracrypt.data.batches import encrypt_all
from hf_neuracrypt.data.places import atomic_write
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.data.targets import CLASSES
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.encoders.blockwise import ViTBlockwise
from hf_neuracrypt.errors import NeuraCryptError, one_line_errors
from hf_neuracrypt.models import AdaptNetShakeDropConfig, ShakeDropConfig
from hf_neuracrypt.models.embeddings import adapt, fold
from hf_neuracrypt.models.load import load_model, load_model_config
from hf_neuracrypt.schemes import make_config
from hf_neuracrypt.training.aligned import distil
from hf_neuracrypt.training.recipes import optimizer_of
from hf_neuracrypt.training.tasks import metrics_of


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEVICE_NAME = torch.cuda.get_device_name() if DEVICE == "cuda" else processor()
DEVICE_BATCH = 128  # images a device works on at a time; larger batches are accumulated


def encoder_of(row: Row, budget: Budget, key: SecretKey, width: int) -> Encoder | None:
    """The row's encoder at the budget's sizes, None for plain images; `width`: of the ViT's tokens."""
    if row.scheme is None:
        return None
    options = {"image_size": budget.size_for(row)} | row.options
    if row.model == "vit":
        options["patch_size"] = budget.patch_size
    config = make_config(row.scheme, options)
    if config.patch_shape:  # they are the tokens of the ViT
        config = make_config(row.scheme, options | {"width": width})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="batch_norm batch")  # the table has a column for it
        return load_encoder(config, key, DEVICE)


def vit_config(name: str | None, budget: Budget) -> Any:
    """The config of the ViT to fine-tune, or of a small one to train from random weights."""
    if name is None:
        return ViTConfig(
            image_size=budget.image_size, patch_size=budget.patch_size, hidden_size=64, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=256,
        )  # fmt: skip
    config = load_model_config(name)
    if budget.original_vit:
        config.hidden_dropout_prob, config.layer_norm_eps = 0.1, 1e-6
    return config


def new_model(
    row: Row, budget: Budget, name: str | None, labels: list[str], encoder: Encoder | None
) -> PreTrainedModel:
    """A model for the row; of the pre-trained ViT `name` where it is a ViT."""
    if row.model == "vit":
        config = vit_config(name, budget)
    elif row.model == "shakedrop":
        config = ShakeDropConfig(**budget.pyramid)
    else:
        config = AdaptNetShakeDropConfig(adaptation=row.model, **budget.pyramid)
    records = [Record(encoder.config, encoder.key.id)] if encoder else []
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        pretrained = name if row.model == "vit" else None
        model = load_model(pretrained, folder, labels, budget.size_for(row), records)
    if row.model == "vit" and budget.original_vit:
        nn.init.zeros_(model.get_parameter("classifier.weight"))
    return model


class OnCiphertexts(nn.Module):
    """A model behind an encoder, as the originals trained; with encoder None, a model of plain images."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder | None):
        super().__init__()
        self.model, self.encoder = model, encoder

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 (B, 3, S, S), and int64 (B,) or probabilities (B, classes) -> loss and logits."""
        if self.encoder is not None:
            with torch.autocast(images.device.type, enabled=False):  # float32 schemes are to stay float32
                images = self.encoder.encrypt(images)
        if images.dtype == torch.uint8:
            images = images.float() / 127.5 - 1
        logits = self.model(pixel_values=images).logits
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def optimizer_and_schedule(recipe: Recipe, model: PreTrainedModel, pretrained: bool) -> tuple[Any, Any]:
    """SGD with momentum or AdamW, with warm-up; then tenths at the recipe's milestones, or a cosine to 0."""
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), recipe.learning_rate, momentum=0.9, nesterov=recipe.nesterov, weight_decay=5e-4
        )
    else:
        args = TrainingArguments("unused", learning_rate=recipe.learning_rate, weight_decay=0.05, report_to="none")
        cls, options = optimizer_of("neuracrypt", args, model, pretrained)
        optimizer = cls(options.pop("params", model.parameters()), **options)
    if recipe.milestones:
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, recipe.milestones, 0.1)
    return optimizer, transformers.get_cosine_schedule_with_warmup(optimizer, recipe.warmup, recipe.steps)


class Progress(TrainerCallback):
    """Moves a bar along with the training steps of all rows, in place of Trainer's own output."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.bar.update()


def run(row: Row, budget: Budget, data: dict[str, Dataset], name: str | None, seed: int, bar: tqdm) -> dict[str, Any]:
    """Encrypt, train, test."""
    start, recipe, size = time.perf_counter(), budget.recipe_for(row), budget.size_for(row)
    width = vit_config(name, budget).hidden_size
    set_seed(seed)
    encoder = encoder_of(row, budget, SecretKey.generate(), width)
    model = new_model(row, budget, name, data["train"].features["label"].names, encoder)
    if row.frozen:
        bar.update(recipe.steps)
        return at_home_row(model, data, size) | {"seconds": round(time.perf_counter() - start)}
    images = data["train"]
    if row.adapted and encoder is not None:
        adapted_start(model, encoder, images)
    if row.aligned and encoder is not None:
        images = images if budget.train else images.select(range(len(images) - len(data["public"])))
        align_start(model, encoder, images, data["public"], seed)
    if row.soft:
        images = softened(images, budget, name)
    learner, test = OnCiphertexts(model, encoder), data["test"].with_transform(Prepare(size))
    device_batch = min(recipe.batch_size, DEVICE_BATCH)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=learner,
            train_dataset=images.with_transform(Prepare(size, recipe.augment)),
            eval_dataset=test,
            compute_metrics=metrics_of(CLASSES),
            callbacks=[Progress(bar)],
            optimizers=optimizer_and_schedule(recipe, model, name is not None),
            args=TrainingArguments(
                folder, max_steps=recipe.steps, per_device_train_batch_size=device_batch, seed=seed,
                gradient_accumulation_steps=recipe.batch_size // device_batch, per_device_eval_batch_size=64,
                eval_strategy="steps", eval_steps=budget.eval_steps, max_grad_norm=recipe.clip,
                bf16=budget.bf16 and (DEVICE == "cuda" or BFLOAT16), use_cpu=DEVICE == "cpu",
                report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
                remove_unused_columns=False, dataloader_num_workers=budget.workers,
                dataloader_pin_memory=DEVICE == "cuda",
            ),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seen = [100 * entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
        result = {"accuracy": seen[-1], "best_on_test": max(seen)} | dict.fromkeys(("wrong_key", "neighbours"))
        if encoder is not None:
            result["neighbours"] = neighbours(encoder, torch.from_numpy(np.stack(test[:16]["images"])))
            learner.encoder = encoder_of(row, budget, SecretKey.generate(), width)
            result["wrong_key"] = 100 * trainer.evaluate()["eval_accuracy"]
    return result | {"parameters": model.num_parameters(), "seconds": round(time.perf_counter() - start)}


def align_start(model: PreTrainedModel, encoder: Encoder, images: Dataset, public: Dataset, seed: int) -> None:
    """What `train.py --public_images` does: ciphertexts and public images that are not theirs, no key, no label."""
    size, patch_size = model.config.image_size, model.config.patch_size
    count = most_images(size, patch_size)
    plain, shown = (stacked(rows.select(range(min(count, len(rows)))), size) for rows in (images, public))
    similar = to_float(shown)
    cipher = to_float(torch.from_numpy(encrypt_all(encoder.encrypt, plain.numpy())))
    found = align(cipher, similar, rehearse(encoder.config, similar, seed), patch_size, seed)
    distil(model, similar, found, seed, DEVICE, BFLOAT16)
    fold(model, found.patch_map)


def adapted_start(model: PreTrainedModel, encoder: Encoder, images: Dataset) -> None:
    """What `hf-neuracrypt adapt` does; the first of the plain images make known pairs."""
    if isinstance(encoder, ViTBlockwise):
        adapt(model, encoder)
    else:
        few = images.select(range(min(GIVEN + JUDGED, len(images))))
        plain = stacked(few, model.config.image_size).numpy()
        fit(model, Pairs(encoder.config, plain, encrypt_all(encoder.encrypt, plain)), min(GIVEN, len(plain)))


def softened(images: Dataset, budget: Budget, name: str | None) -> Dataset:
    """The images with probabilities in place of labels: what a head at home says of each."""
    home = replace(budget, image_size=HOME_SIZE)
    model = new_model(ROWS["plain-vit"], home, name, images.features["label"].names, None)
    found = soft_labels(model, stacked(images, HOME_SIZE), torch.tensor(images["label"]))
    return images.remove_columns("label").add_column("label", found.tolist())


def at_home_row(model: PreTrainedModel, data: dict[str, Dataset], size: int) -> dict[str, Any]:
    """The frozen model's features of plain images, and a linear head on them."""
    sides = []
    for split in ("train", "test"):
        sides += [stacked(data[split], size), torch.tensor(data[split]["label"])]
    accuracy = 100 * at_home(model, *sides)["linear"]
    result = {"accuracy": accuracy, "best_on_test": accuracy} | dict.fromkeys(("wrong_key", "neighbours"))
    return result | {"parameters": model.num_parameters()}


def neighbours(encoder: Encoder, images: torch.Tensor) -> float:
    """How far ciphertexts of images encrypted alone are from those in a batch, in standard deviations of the latter."""
    together = encoder.encrypt(images).float()
    alone = torch.cat([encoder.encrypt(image[None]) for image in images]).float()
    return float((alone - together).square().mean().sqrt() / together.std())


def new_table(dataset: str, budget: str, model: str | None) -> dict:
    """What the output file holds before the first row."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, datasets)}
    environment = {"python": platform.python_version(), **versions}
    pretrained = load_model_config(model).to_dict() if model else None
    name = model if model is None or not Path(model).exists() else Path(model).resolve().name
    sizes = pretrained and {key: pretrained.get(key) for key in ("hidden_size", "num_hidden_layers", "patch_size")}
    settings = {"dataset": dataset, "budget": budget, "vit": name, "vit_sizes": sizes, **asdict(BUDGETS[budget])}
    return {"settings": json.loads(json.dumps(settings)), "environment": environment, "rows": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file; a .md and a .png are written beside it")
    parser.add_argument("--dataset", choices=["digits", *HUB], default="digits", help="digits come with scikit-learn")
    parser.add_argument("--source", help="a local copy of the dataset; default: its Hub repository")
    parser.add_argument("--budget", choices=BUDGETS, default="smoke")
    parser.add_argument("--model", help="pre-trained ViT, folder or Hub id; default: the budget's")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 1 on")
    args = parser.parse_args()
    if args.output.suffix != ".json":
        raise NeuraCryptError(f"{args.output}: the output is a .json file")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    budget, model = BUDGETS[args.budget], args.model or BUDGETS[args.budget].pretrained
    new = new_table(args.dataset, args.budget, model)
    table = json.loads(args.output.read_text()) if args.output.exists() else new
    if table["settings"] != new["settings"]:
        raise NeuraCryptError(f"{args.output} is of another dataset, model or budget: choose another --output")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    todo = [(seed, name) for seed in range(1, args.seeds + 1) for name in args.rows]
    todo = [(seed, name) for seed, name in todo if str(seed) not in table["rows"].get(name, {})]
    data = load_data(args.dataset, args.source, budget) if todo else {}
    steps = sum(budget.recipe_for(ROWS[name]).steps for _, name in todo)
    with tqdm(total=steps, unit="step", disable=not todo) as bar:
        for seed, name in todo:
            bar.set_description(f"{name}, seed {seed}")
            found = run(ROWS[name], budget, data, model, seed, bar)
            table["rows"].setdefault(name, {})[str(seed)] = found | {"processor": DEVICE_NAME}
            atomic_write(args.output, json.dumps(table, indent=1) + "\n")
    print(report(args.output, table))


if __name__ == "__main__":
    with one_line_errors():
        main()
