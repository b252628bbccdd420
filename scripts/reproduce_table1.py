"""Rebuild the paper's table at a size this machine can do: every system, one protocol, the published figures beside.

python scripts/reproduce_table1.py --output table1/ --dataset digits --budget smoke
python scripts/reproduce_table1.py --output table1/ --dataset cifar10 --budget cpu --rows plain-vit color-neuracrypt

Every row encrypts the same images under a new key, trains a model from random weights for the same number of steps, and
is tested once, after the last step. Another key's test images give the accuracy under a wrong key; "neighbours" is how
much an image's ciphertext changes when it is encrypted alone instead of in a batch, in standard deviations. A row that
is done (results/ROW-SEED.json) is not done again. The published figures are of pre-trained models, larger images and
the published recipe: compare the order of the rows, not the figures.
"""

import argparse
import dataclasses
import json
import platform
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean, stdev

import datasets
import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from transformers import Trainer, TrainingArguments, ViTConfig, set_seed

from hf_neuracrypt import SecretKey, encrypt_dataset, load_encoder, training
from hf_neuracrypt.dataset import find_columns
from hf_neuracrypt.errors import NeuraCryptError, one_line_errors
from hf_neuracrypt.images import prepare
from hf_neuracrypt.models import AdaptNetShakeDropConfig, ShakeDropConfig
from hf_neuracrypt.record import Record
from hf_neuracrypt.schemes import make_config
from hf_neuracrypt.sources import load_source


HUB = {"cifar10": "uoft-cs/cifar10", "mnist": "ylecun/mnist"}
QI, MADONO = "Qi et al., Color-NeuraCrypt", "Madono et al., arXiv 2001.07761, Table 3"


@dataclasses.dataclass(frozen=True)
class Row:
    """A system: how its images are encrypted (scheme None: not at all), what learns, and what was published."""

    scheme: str | None
    model: str
    options: dict = dataclasses.field(default_factory=dict)
    published: dict[str, float] = dataclasses.field(default_factory=dict)
    source: str = ""


ROWS = {
    "plain-vit": Row(None, "vit", published={"cifar10": 99.10, "mnist": 99.71}, source=QI),
    "color-neuracrypt": Row("color-neuracrypt", "vit", published={"cifar10": 96.20}, source=QI),
    "color-neuracrypt-float": Row("color-neuracrypt-float", "vit", published={"cifar10": 96.20}, source=QI),
    "neuracrypt": Row("neuracrypt", "vit", {"channels": 3}, {"cifar10": 70.60, "mnist": 97.93}, QI),
    "vit-blockwise": Row("vit-blockwise", "vit"),
    "plain-shakedrop": Row(None, "shakedrop", published={"cifar10": 96.70}, source=MADONO),
    "le": Row("le", "le", published={"cifar10": 94.49}, source=MADONO),
    "etc": Row("etc", "ele", {"variant": "madono"}, {"cifar10": 89.09}, MADONO),
    "ele": Row("ele", "ele", published={"cifar10": 83.06}, source=MADONO),
    "pe": Row("pe", "shakedrop"),
}


@dataclasses.dataclass(frozen=True)
class Budget:
    """Rows of data, training steps of `batch_size`, and the sizes of images and models."""

    train: int
    test: int
    steps: int
    batch_size: int
    image_size: int
    patch_size: int
    width: int
    layers: int
    pyramid: dict


BUDGETS = {
    "smoke": Budget(400, 100, 40, 16, 32, 8, 64, 2, {"depth": 8, "widening": 24}),  # only shows that it runs
    "cpu": Budget(10_000, 2_000, 3_000, 64, 32, 8, 192, 6, {"depth": 20, "widening": 48}),
}


def load_data(name: str, budget: Budget) -> dict[str, Dataset]:
    """The first rows of train and test, in memory."""
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
        images = (pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        data = Dataset.from_dict({"image": list(images), "label": labels.tolist()}, features=features)
        splits = {"train": data.select(range(1437)), "test": data.select(range(1437, 1797))}  # other writers
    else:
        splits = load_source(HUB[name])
    return {
        split: splits[split].select(range(min(count, len(splits[split]))))
        for split, count in (("train", budget.train), ("test", budget.test))
    }


def encoder_of(row: Row, budget: Budget, key: SecretKey):
    """The row's encoder at the budget's sizes; None for plain images."""
    if row.scheme is None:
        return None
    sizes = {"image_size": budget.image_size}
    if row.model == "vit":
        sizes["patch_size"] = budget.patch_size
    if row.scheme == "neuracrypt":
        sizes["width"] = budget.width
    return load_encoder(make_config(row.scheme, sizes | row.options), key)


def new_model(row: Row, budget: Budget, labels: list[str], record: Record | None):
    if row.model == "vit":
        config = ViTConfig(
            image_size=budget.image_size, patch_size=budget.patch_size, hidden_size=budget.width,
            num_hidden_layers=budget.layers, num_attention_heads=budget.width // 32, intermediate_size=4 * budget.width,
        )  # fmt: skip
    elif row.model == "shakedrop":
        config = ShakeDropConfig(image_size=budget.image_size, **budget.pyramid)
    else:
        config = AdaptNetShakeDropConfig(image_size=budget.image_size, adaptation=row.model, **budget.pyramid)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return training.load_model(None, folder, labels, budget.image_size, [record] if record else [])


def neighbours(encoder, data: Dataset, column: str) -> float:
    """How far ciphertexts of images encrypted alone are from those in a batch, in standard deviations of the latter."""
    plain = np.stack([prepare(image, encoder.config) for image in data[column][:16]])
    images = torch.from_numpy(plain).permute(0, 3, 1, 2)
    together = encoder.encrypt(images).float()
    alone = torch.cat([encoder.encrypt(image[None]) for image in images]).float()
    return float((alone - together).square().mean().sqrt() / together.std())


def run(row: Row, budget: Budget, data: dict[str, Dataset], seed: int) -> dict:
    """Encrypt, train, test once."""
    start, key = time.perf_counter(), SecretKey.generate()
    set_seed(seed)
    encoder, plain = encoder_of(row, budget, key), row.scheme is None
    encrypted = data if plain else {name: encrypt_dataset(split, encoder) for name, split in data.items()}
    columns = find_columns(encrypted["train"].features, None, None)
    record = None if plain else Record(encoder.config, key.id)
    model = new_model(row, budget, encrypted["train"].features[columns.label].names, record)
    seconds = {"encrypt": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            train_dataset=training.undecoded(encrypted["train"], columns),
            data_collator=training.Collator(columns, budget.image_size, plain),
            compute_metrics=training.compute_accuracy,
            args=TrainingArguments(
                folder, max_steps=budget.steps, per_device_train_batch_size=budget.batch_size, seed=seed,
                per_device_eval_batch_size=64, learning_rate=1e-3, warmup_steps=budget.steps // 10,
                lr_scheduler_type="cosine", max_grad_norm=1.0, report_to="none", save_strategy="no",
                remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available(),
            ),
        )  # fmt: skip
        trainer.train()

        def accuracy(split: Dataset) -> float:
            return 100 * trainer.evaluate(training.undecoded(split, columns))["eval_accuracy"]

        result = {"accuracy": accuracy(encrypted["test"]), "wrong_key": None, "neighbours": None}
        if not plain:
            other = encoder_of(row, budget, SecretKey.generate())
            result["wrong_key"] = accuracy(encrypt_dataset(data["test"], other))
            result["neighbours"] = neighbours(
                encoder, data["test"], find_columns(data["test"].features, None, None).image
            )
    seconds["all"] = time.perf_counter() - start
    return result | {"parameters": model.num_parameters(), "seconds": {k: round(v, 1) for k, v in seconds.items()}}


def report(output: Path, dataset: str, budget: str, names: list[str], results: dict[str, list[dict]]) -> str:
    """table.json, table.md and table.png from the results of each row's seeds; returns the Markdown."""
    lines = [f"{dataset}, budget {budget}: {dataclasses.asdict(BUDGETS[budget])}", ""]
    lines += ["| system | model | accuracy % | under a wrong key % | neighbours | published % | source |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name in names:
        row, runs = ROWS[name], results[name]
        cells = [_figure([run[column] for run in runs]) for column in ("accuracy", "wrong_key", "neighbours")]
        published = f"{row.published[dataset]:.2f}" if dataset in row.published else ""
        lines.append(
            f"| {name} | {row.model} | {' | '.join(cells)} | {published} | {row.source if published else ''} |"
        )
    text = "\n".join(lines) + "\n"
    environment = {"python": platform.python_version(), "machine": platform.machine(), "torch": torch.__version__}
    environment |= {"transformers": transformers.__version__, "datasets": datasets.__version__}
    content = {"dataset": dataset, "budget": budget, "environment": environment, "rows": results}
    (output / "table.json").write_text(json.dumps(content, indent=2) + "\n")
    (output / "table.md").write_text(text)
    _chart(output / "table.png", dataset, names, results)
    return text


def _figure(values: list[float | None]) -> str:
    if None in values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _chart(path: Path, dataset: str, names: list[str], results: dict[str, list[dict]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.5 * len(names) + 1.2), layout="constrained")
    places = np.arange(len(names))
    axes.barh(places - 0.2, [mean(run["accuracy"] for run in results[name]) for name in names], 0.4, label="here")
    published = [ROWS[name].published.get(dataset, 0) for name in names]
    axes.barh(places + 0.2, published, 0.4, label="published", color="lightgrey")
    axes.set(yticks=places, yticklabels=names, xlim=(0, 100), xlabel=f"accuracy on {dataset}, %")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for results and table")
    parser.add_argument("--dataset", choices=["digits", *HUB], default="digits", help="digits need no download")
    parser.add_argument("--budget", choices=BUDGETS, default="smoke")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    args = parser.parse_args()
    datasets.disable_caching()
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="batch_norm batch")
    budget, results = BUDGETS[args.budget], {}
    data = load_data(args.dataset, budget)
    settings = {"dataset": args.dataset, "budget": args.budget, **dataclasses.asdict(budget)}
    (args.output / "results").mkdir(parents=True, exist_ok=True)
    for name in args.rows:
        results[name] = []
        for seed in args.seeds:
            path = args.output / "results" / f"{name}-{seed}.json"
            if not path.exists():
                path.write_text(
                    json.dumps({"settings": settings, **run(ROWS[name], budget, data, seed)}, indent=2) + "\n"
                )
            result = json.loads(path.read_text())
            if result["settings"] != settings:
                raise NeuraCryptError(f"{path} is of another dataset or budget: choose another --output")
            results[name].append(result)
    print(report(args.output, args.dataset, args.budget, args.rows, results))


if __name__ == "__main__":
    with one_line_errors():
        main()
