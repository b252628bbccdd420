"""Fine-tune a stock Vision Transformer on an encrypted dataset. This runs in the cloud; it needs no key.

accelerate launch scripts/train.py --dataset_name encrypted/ --public_images photos-of-the-same-kind/ \\
    --model_name_or_path google/vit-base-patch16-224-in21k --output_dir model/

Every flag of transformers' TrainingArguments is understood; those that are not given come from the `--recipe`. One
argument ending in .json or .yaml is read as a file of flags. `--plain` trains the baseline on plain images, with the
same code. The same command again continues an interrupted run from its last checkpoint.
"""

import os
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hf_neuracrypt.errors import KeyMismatchError, NeuraCryptError, fail, one_line_errors


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
    label_column_name: str | None = field(default=None, metadata={"help": "Default: label, labels or fine_label."})
    train_val_split: float = field(default=0.15, metadata={"help": "Share held out when there is no other split."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only the first evaluation images."})
    plain: bool = field(default=False, metadata={"help": "The images are plain: train the baseline."})
    image_size: int | None = field(default=None, metadata={"help": "With --plain: pixels; default: the model's."})


def main(model_args: ModelArguments, data_args: DataArguments, training_args) -> dict[str, float]:
    """Train, save, evaluate; returns the last metrics."""
    import torch
    from accelerate.utils import broadcast_object_list
    from transformers import EarlyStoppingCallback, set_seed

    from hf_neuracrypt.training.recipes import aligned_start, balanced_loss, optimizer_of
    from hf_neuracrypt.training.data import Collator, checked_records, compute_accuracy, hold_out, load_model, load_splits, stock_processor, undecoded
    from hf_neuracrypt.training.trainer import PublishingTrainer, check_output

    if not (model_args.model_name_or_path or model_args.config_name):
        raise NeuraCryptError("give --model_name_or_path to fine-tune, or --config_name to train from random weights")
    if model_args.public_images and (data_args.plain or not model_args.model_name_or_path):
        raise NeuraCryptError("--public_images align encrypted images with a pre-trained --model_name_or_path")
    check_output(training_args.output_dir, training_args.hub_token)
    set_seed(training_args.seed)
    splits = load_splits(
        data_args.dataset_name, data_args.plain, data_args.image_column_name, data_args.label_column_name
    )
    records = checked_records(splits, data_args.allow_mixed_keys)
    checkpoint = find_checkpoint(training_args, records)
    train_split, eval_split = choose_splits(splits, data_args, training_args.seed)
    model = load_model(
        model_args.model_name_or_path,
        model_args.config_name,
        splits.label_names,
        records[0].config.image_size if records else data_args.image_size,
        records,
    )
    if model_args.public_images and len(records) > 1:
        raise NeuraCryptError("--public_images align the images of one key: these have several")
    if model_args.public_images and checkpoint is None:
        if training_args.process_index == 0:
            aligned_start(model, train_split, splits.columns, model_args.public_images, training_args.seed)
        model.load_state_dict(broadcast_object_list([model.state_dict()])[0])  # all start where rank 0 does
    loss = None
    if model_args.class_weights:
        loss = balanced_loss(list(train_split[splits.columns.label]), len(splits.label_names))
    stopping = [EarlyStoppingCallback(model_args.early_stopping)] if model_args.early_stopping else None
    training_args.remove_unused_columns = False  # the collator picks the columns
    training_args.dataloader_pin_memory = training_args.dataloader_pin_memory and torch.cuda.is_available()
    trainer = PublishingTrainer(
        model=model,
        args=training_args,
        train_dataset=train_split,
        eval_dataset=eval_split,
        data_collator=Collator(splits.columns, model.config.image_size, data_args.plain),
        processing_class=stock_processor(model.config.image_size, data_args.plain),
        compute_metrics=compute_accuracy,
        compute_loss_func=loss,
        callbacks=stopping,
        optimizer_cls_and_kwargs=optimizer_of(
            model_args.recipe, training_args, model, model_args.model_name_or_path is not None
        ),
        records=records,
        dataset_ids=[name for name in data_args.dataset_name if not Path(name).exists()],
        base_model=hub_id(model_args.model_name_or_path),
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.create_model_card()
    return metrics


def hub_id(name: str | None) -> str | None:
    """The name of a model if it is on the Hub: a local path says nothing to a reader of the card."""
    return None if name is None or Path(name).exists() else name


def choose_splits(splits, data_args: DataArguments, seed: int):
    """The training split, and one to evaluate on: validation, else test, else a part of the training split."""
    from hf_neuracrypt.training.data import 

    data = splits.data
    name = "train" if "train" in data else next(iter(data))
    eval_name = next((other for other in ("validation", "val", "test") if other in data and other != name), None)
    if eval_name is not None:
        train_split, eval_split = data[name], data[eval_name]
    else:
        train_split, eval_split = hold_out(splits, data_args.train_val_split, seed)
    return (
        undecoded(split.select(range(min(limit or len(split), len(split)))), splits.columns)
        for split, limit in ((train_split, data_args.max_train_samples), (eval_split, data_args.max_eval_samples))
    )


def find_checkpoint(training_args, records) -> str | None:
    """Where to continue: the checkpoint asked for, else the newest in the output folder, else none.

    Raises:
        KeyMismatchError: it was trained on images of another key or config.
        NeuraCryptError: the output folder holds a model and nothing to continue.
    """
    from transformers.trainer_utils import get_last_checkpoint

    from hf_neuracrypt.prediction.classifier import load_model_config, model_records

    output = Path(training_args.output_dir)
    checkpoint = training_args.resume_from_checkpoint
    if checkpoint is None and output.is_dir():
        checkpoint = get_last_checkpoint(str(output))
        if checkpoint is None and (output / "model.safetensors").exists():
            raise NeuraCryptError(f"{output} already holds a model: choose another --output_dir")
    if checkpoint is not None and model_records(load_model_config(checkpoint)) != records:
        raise KeyMismatchError(f"{checkpoint} was trained on images of another key or config: it cannot be continued")
    return checkpoint


def defaults(flags: dict) -> dict:
    """What flags that are not given are, by the recipe and by what the given ones need."""
    import torch

    from hf_neuracrypt.training.recipes import RECIPES

    recipe = flags.get("recipe") or "neuracrypt"
    if recipe not in RECIPES:
        raise NeuraCryptError(f"there is no recipe {recipe!r}: choose from {', '.join(RECIPES)}")
    chosen = dict(RECIPES[recipe])
    if torch.cuda.is_available():  # a GPU should not wait for PNGs; on a CPU, workers would take its cores
        chosen["dataloader_num_workers"] = min(8, os.cpu_count() or 1)
    if flags.get("early_stopping"):
        chosen |= {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
        chosen |= {"metric_for_best_model": "accuracy", "save_total_limit": 1}
    return chosen


class Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Each flag with its default, under the description as it stands."""


def parse(arguments: list[str]) -> tuple:
    """Flags, or one file of flags -> (ModelArguments, DataArguments, TrainingArguments)."""
    import yaml
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments), description=__doc__, formatter_class=Help,
        usage="%(prog)s --dataset_name … --model_name_or_path … --output_dir … [any flag below]",
    )  # fmt: skip
    if {"-h", "--help"} & set(arguments):
        parser.set_defaults(**defaults({}))  # what is shown is what holds
    parser.error = lambda message: fail(f"{message} (see --help)", 2)
    try:
        if len(arguments) == 1 and arguments[0].endswith((".json", ".yaml", ".yml")):
            flags = yaml.safe_load(Path(arguments[0]).read_text())  # JSON is YAML
            if not isinstance(flags, dict):
                raise NeuraCryptError(f"{arguments[0]} is not a file of flags")
            parsed = parser.parse_dict(defaults(flags) | flags)
        else:
            parser.set_defaults(**defaults(vars(parser.parse_known_args(arguments)[0])))
            parsed = parser.parse_args_into_dataclasses(arguments)
    except (ValueError, yaml.YAMLError) as error:
        raise NeuraCryptError(f"{error} (see --help)") from None
    if isinstance(parsed[1].dataset_name, str):  # as a file of flags may have it
        parsed[1].dataset_name = [parsed[1].dataset_name]
    for name in ("dataset_name", "output_dir"):
        if not any(getattr(part, name, None) for part in parsed):
            raise NeuraCryptError(f"--{name} is missing")
    return parsed


if __name__ == "__main__":
    with one_line_errors():
        main(*parse(sys.argv[1:]))
        from accelerate import PartialState

        PartialState().destroy_process_group()  # ranks that part without a word may abort
