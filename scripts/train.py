# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-neuracrypt @ git+https://github.com/hf-neuracrypt/hf_neuracrypt"]
#
# [tool.hf-jobs]
# flavor = "a10g-small"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""Fine-tune a stock Vision Transformer on an encrypted dataset. This runs in the cloud; it needs no key.

accelerate launch scripts/train.py --dataset_name encrypted/ --public_images photos-of-the-same-kind/ \\
    --model_name_or_path google/vit-base-patch16-224-in21k --output_dir model/

Every flag of transformers' TrainingArguments is understood; those that are not given come from the `--recipe`. One
argument ending in .json or .yaml is read as a file of flags. `--plain` trains the baseline on plain images, with the
same code. The same command again continues an interrupted run from its last checkpoint.
"""

import logging
import os
import sys
from argparse import ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import EarlyStoppingCallback, HfArgumentParser, ProgressCallback, set_seed
from transformers.utils import logging as transformers_logging

from hf_neuracrypt.data.batches import use_own_cores
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.data.targets import CLASSES, PROBABILITIES, read_labels
from hf_neuracrypt.errors import DatasetError, NeuraCryptError, fail, one_line_errors
from hf_neuracrypt.models.embeddings import side
from hf_neuracrypt.models.load import load_model, one_line, stock_processor
from hf_neuracrypt.training.aligned import aligned_start
from hf_neuracrypt.training.data import (
    Collator,
    Splits,
    checked_records,
    choose_splits,
    load_splits,
    reader,
)
from hf_neuracrypt.training.progress import Table, ahead
from hf_neuracrypt.training.recipes import RECIPES, optimizer_of
from hf_neuracrypt.training.tasks import ALL_FIGURES, FIGURES, PROBLEM_TYPES, balanced, loss_of, metrics_of, settle
from hf_neuracrypt.training.tracking import RunArguments, settle_trackers
from hf_neuracrypt.training.trainer import PublishingTrainer, check_output, find_checkpoint, steps_of


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id of pre-trained weights."})
    config_name: str | None = field(default=None, metadata={"help": "Config to start from with random weights."})
    recipe: Literal["neuracrypt", "usual", "paper"] = field(
        default="neuracrypt",
        metadata={"help": "Defaults of the other flags: for ciphertexts; transformers' own; the paper's SGD."},
    )
    public_images: str | None = field(
        default=None,
        metadata={
            "help": "Plain images anybody may see, of roughly the same kind, no labels: a folder or a Hub id. The "
            "patch embedding then starts from what their statistics tell about the encryption, if that helps."
        },
    )
    class_weights: bool = field(default=False, metadata={"help": "Rare classes count as much as frequent ones."})
    early_stopping: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without progress, and keep the best model."}
    )


@dataclass
class DataArguments:
    dataset_name: list[str] = field(
        default_factory=list, metadata={"help": "Encrypted dataset: a folder or a Hub id. Several are put together."}
    )
    allow_mixed_keys: bool = field(default=False, metadata={"help": "Learn from images of several owners' keys."})
    image_column_name: str | None = field(default=None, metadata={"help": "Default: image, img or pixel_values."})
    label_column_name: list[str] | None = field(
        default=None, metadata={"help": "Default: label, labels or fine_label. Several make one label together."}
    )
    train_val_split: float = field(default=0.15, metadata={"help": "Share held out when there is no other split."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on only so many."})
    plain: bool = field(default=False, metadata={"help": "The images are plain: train the baseline."})
    image_size: int | None = field(default=None, metadata={"help": "With --plain: pixels; default: the model's."})


def main(model_args: ModelArguments, data_args: DataArguments, training_args: RunArguments) -> dict[str, float]:
    """Train, save, evaluate; returns the last metrics."""
    check(model_args, data_args, training_args)
    pretrained, public_images = model_args.model_name_or_path, model_args.public_images
    set_seed(training_args.seed)
    use_own_cores()

    # Load the dataset
    splits, records, train_split, eval_split = load_data(data_args, training_args.seed, bool(public_images))
    target = splits.to_learn
    settle(target.kind, training_args, model_args.class_weights, list(read_labels(eval_split, splits.columns, target)))
    checkpoint = find_checkpoint(training_args, records)
    steps = steps_of(training_args, len(train_split))

    # Load the model, perhaps with an aligned start
    image_size = records[0].config.image_size if records else data_args.image_size
    problem = PROBLEM_TYPES[target.kind]
    model = load_model(pretrained, model_args.config_name, splits.label_names, image_size, records, problem)
    image_size = side(model.config, "image_size")
    collator = Collator(splits.columns, reader(records, image_size), target)
    if training_args.process_index == 0:
        with one_line(str(pretrained or model_args.config_name), "use"):
            print(ahead(model, train_split, collator, steps, training_args), flush=True)
    if public_images and checkpoint is None:
        if training_args.process_index == 0:
            seed, device, bf16 = training_args.seed, training_args.device, training_args.bf16
            aligned_start(model, train_split, splits.columns, records, public_images, seed, target, device, bf16)
        model.load_state_dict(broadcast_object_list([model.state_dict()])[0])  # all start where rank 0 does

    # Train
    patience, weight = model_args.early_stopping, None
    if model_args.class_weights:
        labels = [int(label) for label in read_labels(train_split, splits.columns, target)]
        weight = balanced(labels, len(splits.label_names))
    training_args.remove_unused_columns = False  # the collator picks the columns
    training_args.dataloader_pin_memory = training_args.dataloader_pin_memory and torch.cuda.is_available()
    trainer = PublishingTrainer(
        model=model,
        args=training_args,
        train_dataset=train_split,
        eval_dataset=eval_split,
        data_collator=collator,
        processing_class=stock_processor(image_size, data_args.plain),
        compute_metrics=metrics_of(target.kind),
        compute_loss_func=loss_of(target.kind, weight, training_args.label_smoothing_factor),
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
        optimizer_cls_and_kwargs=optimizer_of(model_args.recipe, training_args, model, pretrained is not None),
        records=records,
        dataset_ids=[name for name in data_args.dataset_name if not Path(name).exists()],
        base_model=pretrained if pretrained and not Path(pretrained).exists() else None,  # a path tells no reader
    )
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(Table(FIGURES[target.kind]))
    result = trainer.train(checkpoint)

    # Save, evaluate, publish
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.final_metrics()
    trainer.save_metrics("eval", metrics)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.create_model_card()
    if training_args.process_index == 0:
        print(farewell(data_args, str(training_args.output_dir), len(eval_split), metrics))
    return metrics


def check(model_args: ModelArguments, data_args: DataArguments, training_args: RunArguments) -> None:
    """Refuse what cannot be meant, before anything is loaded. Raises NeuraCryptError."""
    pretrained = model_args.model_name_or_path
    if not (pretrained or model_args.config_name):
        raise NeuraCryptError("give --model_name_or_path to fine-tune, or --config_name to train from random weights")
    if model_args.public_images and (data_args.plain or not pretrained):
        raise NeuraCryptError("--public_images align encrypted images with a pre-trained --model_name_or_path")
    if not training_args.do_train:
        raise NeuraCryptError("this script trains: scripts/evaluate.py evaluates a model (leave --do_train False out)")
    if training_args.batch_eval_metrics:
        raise NeuraCryptError("leave --batch_eval_metrics out: accuracy is of all images at once")
    settle_trackers(training_args)
    check_output(str(training_args.output_dir), training_args.hub_token)


def load_data(data_args: DataArguments, seed: int, aligned: bool) -> tuple[Splits, list[Record], Dataset, Dataset]:
    """The dataset, how it was encrypted, and what of it is learned and evaluated. Raises NeuraCryptError."""
    names, columns = data_args.dataset_name, (data_args.image_column_name, data_args.label_column_name)
    splits = load_splits(names, data_args.plain, *columns)
    records = checked_records(splits, data_args.allow_mixed_keys)
    if aligned and len(records) > 1:
        raise NeuraCryptError("--public_images align the images of one key: these have several")
    if splits.to_learn.kind in (CLASSES, PROBABILITIES) and len(splits.label_names) < 2:
        raise DatasetError(f"there is one class alone, {splits.label_names[0]}: nothing tells it from others")
    limits = data_args.max_train_samples, data_args.max_eval_samples
    return splits, records, *choose_splits(splits, data_args.train_val_split, seed, *limits)


def farewell(data_args: DataArguments, output: str, images: int, metrics: dict[str, float]) -> str:
    """What came out, where it lies, and what to run next."""
    dataset, plain = data_args.dataset_name[0], " --plain" if data_args.plain else ""
    names = [name for name in (*ALL_FIGURES, "loss") if f"eval_{name}" in metrics]
    shown = ", ".join(f"{name} {metrics[f'eval_{name}']:.3f}" for name in names)
    text = f"{shown[0].upper()}{shown[1:]} on {images:,} images.\n"
    text += f"Wrote {output}: the model, and its card README.md. Next:\n"
    text += f"  python scripts/evaluate.py --model {output} --dataset {dataset}{plain}"
    if not plain:
        text += "\nand where the key is:\n"
        text += f"  hf-neuracrypt predict --model {output} --encrypted {dataset} --key-file … photo.jpg"
    return text


def defaults(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What flags that are not given (or None) are, by the recipe and by what the given ones need."""
    recipe = flags.get("recipe") or "neuracrypt"
    if recipe not in RECIPES:
        raise NeuraCryptError(f"there is no recipe {recipe!r}: choose from {', '.join(RECIPES)}")
    chosen = dict(RECIPES[recipe]) | {"do_train": True, "hub_private_repo": True}
    if not (flags.get("save_strategy") or flags.get("save_steps")):
        chosen["save_total_limit"] = 1
    for kind in ("logging", "eval", "save"):  # a small run, too, has something to show, and to continue from
        chosen[f"{kind}_strategy"] = "steps" if flags.get(f"{kind}_steps") else "epoch"
    if torch.cuda.is_available():  # a GPU should not wait for PNGs; on a CPU, workers would take its cores
        chosen["dataloader_num_workers"] = min(8, os.cpu_count() or 1)
    if flags.get("early_stopping"):
        chosen |= {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
        chosen |= {"metric_for_best_model": "accuracy"}
    return chosen


class Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Each flag with its default, under the description as it stands."""


class Parser(HfArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see --help)", 2)


def parse(arguments: list[str]) -> tuple[ModelArguments, DataArguments, RunArguments]:
    """Flags, or one file of flags."""
    parts: Any = (ModelArguments, DataArguments, RunArguments)
    usage = "%(prog)s --dataset_name … --model_name_or_path … --output_dir … [any flag below]"
    parser = Parser(parts, description=__doc__, formatter_class=Help, usage=usage)
    if {"-h", "--help"} & set(arguments):
        parser.set_defaults(**defaults({}))  # what is shown is what holds
    try:
        if len(arguments) == 1 and arguments[0].endswith((".json", ".yaml", ".yml")):
            flags = yaml.safe_load(Path(arguments[0]).read_text())  # JSON is YAML
            if not isinstance(flags, dict):
                raise NeuraCryptError(f"{arguments[0]} is not a file of flags")
            model_args, data_args, training_args = parser.parse_dict(defaults(flags) | flags)
        else:
            nothing = Namespace(**dict.fromkeys(vars(parser.parse_known_args([])[0])))
            parser.set_defaults(**defaults(vars(parser.parse_known_args(arguments, nothing)[0])))
            model_args, data_args, training_args = parser.parse_args_into_dataclasses(arguments)
    except (ValueError, yaml.YAMLError) as error:
        raise NeuraCryptError(f"{error} (see --help)") from None
    if isinstance(data_args.dataset_name, str):  # as a file of flags may have it
        data_args.dataset_name = [data_args.dataset_name]
    for name, given in (("dataset_name", data_args.dataset_name), ("output_dir", training_args.output_dir)):
        if not given:
            raise NeuraCryptError(f"--{name} is missing")
    return model_args, data_args, training_args


def leave() -> None:
    """End what ranks share, and each but the first at once.

    torch's wrapped models hold gloo's threads beyond the end of their group. A thread that is late to let go of a
    tensor aborts an interpreter that ends, and the launcher then calls a finished run failed. Only the first rank has
    something to do at its end, for trackers and uploads.
    """
    state = PartialState()
    state.destroy_process_group()
    if not state.is_main_process:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_neuracrypt").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()  # of loading and saving weights
    # Of epochs that take less than a second, whose checkpoints are then told apart by their numbers.
    logging.getLogger("transformers.trainer_utils").addFilter(lambda record: "mtime" not in record.getMessage())
    with one_line_errors():
        main(*parse(sys.argv[1:]))
        leave()
