"""Rebuild the paper's table: every system, one protocol, the published figures beside.

python scripts/reproduce_table1.py --output digits.json --dataset digits --budget smoke
python scripts/reproduce_table1.py --output cifar10.json --dataset cifar10 --budget cpu --seeds 3

Budgets: `smoke` shows in a few minutes that every row runs (random weights, small models). `cpu` (4,000 images of 112
px, hours) and `gpu` (all images, 224 px) fine-tune a pre-trained ViT-Tiny, `paper` is the published recipe with
ViT-B/16 and the full PyramidNet, for a large GPU. Each row encrypts under a new key of its own, in front of the model
and after any augmentation, as the originals did, and is judged after its last step; how good it would have looked had
the step been chosen on the test set is reported apart. Another key gives the accuracy under a wrong key. "neighbours"
is how far a ciphertext moves when its image is encrypted alone instead of in a batch, in standard deviations. What the
output file holds already is not run again.
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from reproduce_table1_report import report
from reproduce_table1_rows import BUDGETS, ROWS, Budget, Recipe, Row
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, ViTConfig, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.training.recipes import optimizer_of
from hf_neuracrypt.models.embeddings import adapt
from hf_neuracrypt.data.columns import find_columns
from hf_neuracrypt.schemes import EncoderConfig
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import NeuraCryptError, one_line_errors
from hf_neuracrypt.images import prepare, to_rgb
from hf_neuracrypt.models import AdaptNetShakeDropConfig, ShakeDropConfig
from hf_neuracrypt.prediction.classifier import load_model_config
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.schemes import make_config
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.training.data import compute_accuracy, load_model


HUB = {"cifar10": "uoft-cs/cifar10", "mnist": "ylecun/mnist"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEVICE_BATCH = 128  # images a device works on at a time; larger batches are accumulated


# ------------------------------------------------------------------------------------------------------------- data


def load_data(name: str, source: str | None, budget: Budget) -> dict[str, Dataset]:
    """The first rows of train and test."""
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
        images = (pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        data = Dataset.from_dict({"image": list(images), "label": labels.tolist()}, features=features)
        splits = {"train": data.select(range(1437)), "test": data.select(range(1437, 1797))}  # other writers
    else:
        splits = load_source(source or HUB[name])
    return {
        split: splits[split].select(range(min(count or len(splits[split]), len(splits[split]))))
        for split, count in (("train", budget.train), ("test", budget.test))
    }


class Prepare:
    """Rows of a dataset -> {"images": uint8 RGB (S, S, 3), "label"}, for `with_transform`; plain, and maybe cropped."""

    def __init__(self, split: Dataset, image_size: int, augment: str = ""):
        self.columns = find_columns(split.features, None, None)
        self.config, self.augment = EncoderConfig(image_size=image_size, patch_size=8), augment

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        crop = {"": lambda image: image, "resized crop": resized_crop, "shift and flip": shift_and_flip}[self.augment]
        images = [prepare(crop(to_rgb(image)), self.config) for image in rows[self.columns.image]]
        return {"images": images, "label": rows[self.columns.label]}


def resized_crop(image):
    """5 to 100 % of the area at a ratio of 3:4 to 4:3, as torchvision's RandomResizedCrop; the whole if none fits."""
    width, height = image.size
    for _ in range(10):
        area, ratio = torch.rand(()) * 0.95 + 0.05, torch.exp((2 * torch.rand(()) - 1) * np.log(4 / 3))
        w, h = (round(float((width * height * area * x) ** 0.5)) for x in (ratio, 1 / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(torch.randint(0, free + 1, ())) for free in (width - w, height - h))
            return image.crop((left, top, left + w, top + h))
    return image


def shift_and_flip(image):
    """Moved by up to an eighth of its sides, black outside, half of them mirrored."""
    width, height = image.size
    left, top = (int(torch.randint(-(side // 8), side // 8 + 1, ())) for side in image.size)
    image = image.crop((left, top, left + width, top + height))
    return image.transpose(0) if torch.rand(()) < 0.5 else image  # 0: left to right


# ------------------------------------------------------------------------------------------------- encoders and models


def encoder_of(row: Row, budget: Budget, key: SecretKey, width: int) -> Encoder | None:
    """The row's encoder at the budget's sizes, None for plain images; `width`: of the ViT's tokens."""
    if row.scheme is None:
        return None
    sizes = {"image_size": budget.size_for(row)}
    if row.model == "vit":
        sizes["patch_size"] = budget.patch_size
    if row.scheme == "neuracrypt":
        sizes["width"] = width
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="batch_norm batch")  # the table has a column for it
        return load_encoder(make_config(row.scheme, sizes | row.options), key, DEVICE)


def vit_config(name: str | None, budget: Budget):
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


def new_model(row: Row, budget: Budget, name: str | None, labels: list[str], encoder: Encoder | None):
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
        nn.init.zeros_(model.classifier.weight)
    if row.adapted:
        adapt(model, encoder)
    return model


class OnCiphertexts(nn.Module):
    """A model behind an encoder, as the originals trained; with encoder None, a model of plain images."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder | None):
        super().__init__()
        self.model, self.encoder = model, encoder

    def forward(self, images: torch.Tensor, labels: torch.Tensor):
        """uint8 (B, S, S, 3), int64 (B,) -> loss and logits."""
        pixels = images.permute(0, 3, 1, 2)
        if self.encoder is not None:
            with torch.autocast(images.device.type, enabled=False):  # float32 schemes are to stay float32
                pixels = self.encoder.encrypt(pixels)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 127.5 - 1
        return self.model(pixel_values=pixels, labels=labels)


# ---------------------------------------------------------------------------------------------------------- training


def optimizer_and_schedule(recipe: Recipe, model: PreTrainedModel, pretrained: bool) -> tuple:
    """SGD with momentum or AdamW, with warm-up; then tenths at the recipe's milestones, or a cosine to 0."""
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), recipe.learning_rate, momentum=0.9, nesterov=recipe.nesterov, weight_decay=5e-4
        )
    else:
        args = TrainingArguments("unused", learning_rate=recipe.learning_rate, weight_decay=0.05, report_to="none")
        cls, options = optimizer_of("neuracrypt", args, model, pretrained)
        parameters = options.pop("params", model.parameters())
        optimizer = cls(parameters, **options)
    if recipe.milestones:
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, recipe.milestones, 0.1)
    return optimizer, transformers.get_cosine_schedule_with_warmup(optimizer, recipe.warmup, recipe.steps)


class Progress(TrainerCallback):
    """Moves a bar along with the training steps of all rows, in place of Trainer's own output."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()


def run(row: Row, budget: Budget, data: dict[str, Dataset], name: str | None, seed: int, bar: tqdm) -> dict:
    """Encrypt, train, test."""
    start, recipe = time.perf_counter(), budget.recipe_for(row)
    width, size = vit_config(name, budget).hidden_size, budget.size_for(row)
    set_seed(seed)
    encoder = encoder_of(row, budget, SecretKey.generate(), width)
    labels = data["train"].features[find_columns(data["train"].features, None, None).label].names
    model = new_model(row, budget, name, labels, encoder)
    learner = OnCiphertexts(model, encoder)
    test = data["test"].with_transform(Prepare(data["test"], size))
    device_batch = min(recipe.batch_size, DEVICE_BATCH)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=learner,
            train_dataset=data["train"].with_transform(Prepare(data["train"], size, recipe.augment)),
            eval_dataset=test,
            compute_metrics=compute_accuracy,
            callbacks=[Progress(bar)],
            optimizers=optimizer_and_schedule(recipe, model, name is not None),
            args=TrainingArguments(
                folder, max_steps=recipe.steps, per_device_train_batch_size=device_batch, seed=seed,
                gradient_accumulation_steps=recipe.batch_size // device_batch, per_device_eval_batch_size=64,
                eval_strategy="steps", eval_steps=budget.eval_steps, max_grad_norm=recipe.clip, bf16=budget.bf16,
                report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_num_workers=budget.workers, use_cpu=DEVICE == "cpu",
                dataloader_pin_memory=DEVICE == "cuda",
            ),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seen = [100 * entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
        result = {"accuracy": seen[-1], "best_on_test": max(seen), "wrong_key": None, "neighbours": None}
        if encoder is not None:
            result["neighbours"] = neighbours(encoder, np.stack(test[:16]["images"]))
            learner.encoder = encoder_of(row, budget, SecretKey.generate(), width)
            result["wrong_key"] = 100 * trainer.evaluate()["eval_accuracy"]
    return result | {"parameters": model.num_parameters(), "seconds": round(time.perf_counter() - start)}


def neighbours(encoder: Encoder, images: np.ndarray) -> float:
    """How far ciphertexts of images encrypted alone are from those in a batch, in standard deviations of the latter."""
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    together = encoder.encrypt(images).float()
    alone = torch.cat([encoder.encrypt(image[None]) for image in images]).float()
    return float((alone - together).square().mean().sqrt() / together.std())


# --------------------------------------------------------------------------------------------------------------- main


def new_table(dataset: str, budget: str, model: str | None) -> dict:
    """What the output file holds before the first row."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, datasets)}
    threads = torch.get_num_threads()
    cpu = f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}"
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else cpu
    environment = {"python": platform.python_version(), "device": device, **versions}
    pretrained = load_model_config(model).to_dict() if model else None
    name = model if model is None or not Path(model).exists() else Path(model).resolve().name
    sizes = pretrained and {key: pretrained.get(key) for key in ("hidden_size", "num_hidden_layers", "patch_size")}
    settings = {"dataset": dataset, "budget": budget, "vit": name, "vit_sizes": sizes, **asdict(BUDGETS[budget])}
    return {"settings": json.loads(json.dumps(settings)), "environment": environment, "rows": {}}


def save(path: Path, table: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(table, indent=1) + "\n")
    part.replace(path)


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
    table = new_table(args.dataset, args.budget, model)
    if args.output.exists():
        held = json.loads(args.output.read_text())
        if held["settings"] != table["settings"]:
            raise NeuraCryptError(f"{args.output} is of another dataset, model or budget: choose another --output")
        table = held
    args.output.parent.mkdir(parents=True, exist_ok=True)
    todo = [(seed, name) for seed in range(1, args.seeds + 1) for name in args.rows]
    todo = [(seed, name) for seed, name in todo if str(seed) not in table["rows"].get(name, {})]
    data = load_data(args.dataset, args.source, budget) if todo else {}
    steps = sum(budget.recipe_for(ROWS[name]).steps for _, name in todo)
    with tqdm(total=steps, unit="step", disable=not todo) as bar:
        for seed, name in todo:
            bar.set_description(f"{name}, seed {seed}")
            table["rows"].setdefault(name, {})[str(seed)] = run(ROWS[name], budget, data, model, seed, bar)
            save(args.output, table)
    print(report(args.output, table))


if __name__ == "__main__":
    with one_line_errors():
        main()
