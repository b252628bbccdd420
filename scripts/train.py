"""Fine-tune a stock Vision Transformer on an encrypted dataset. This runs in the cloud; it needs no key.

accelerate launch scripts/train.py --dataset_name encrypted/ \
    --model_name_or_path google/vit-base-patch16-224-in21k --output_dir model/ \
    --num_train_epochs 3 --per_device_train_batch_size 32 --learning_rate 1e-4

Every flag of transformers' TrainingArguments is understood; one argument ending in .json or .yaml is read as a file of
flags. `--plain` trains the baseline on plain images, with the same code. The same command again continues an
interrupted run from its last checkpoint.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_neuracrypt.errors import KeyMismatchError, NeuraCryptError, fail, one_line_errors


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id of pre-trained weights."})
    config_name: str | None = field(default=None, metadata={"help": "Config to start from with random weights."})


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
    from transformers import set_seed

    from hf_neuracrypt import training
    from hf_neuracrypt.trainer import PublishingTrainer, check_output

    if not (model_args.model_name_or_path or model_args.config_name):
        raise NeuraCryptError("give --model_name_or_path to fine-tune, or --config_name to train from random weights")
    check_output(training_args.output_dir, training_args.hub_token)
    set_seed(training_args.seed)
    splits = training.load_splits(
        data_args.dataset_name, data_args.plain, data_args.image_column_name, data_args.label_column_name
    )
    records = training.checked_records(splits, data_args.allow_mixed_keys)
    checkpoint = find_checkpoint(training_args, records)
    train_split, eval_split = choose_splits(splits, data_args, training_args.seed)
    model = training.load_model(
        model_args.model_name_or_path,
        model_args.config_name,
        splits.label_names,
        records[0].config.image_size if records else data_args.image_size,
        records,
    )
    training_args.remove_unused_columns = False  # the collator picks the columns
    training_args.dataloader_pin_memory = training_args.dataloader_pin_memory and torch.cuda.is_available()
    trainer = PublishingTrainer(
        model=model,
        args=training_args,
        train_dataset=train_split,
        eval_dataset=eval_split,
        data_collator=training.Collator(splits.columns, model.config.image_size, data_args.plain),
        processing_class=training.stock_processor(model.config.image_size, data_args.plain),
        compute_metrics=training.compute_accuracy,
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
    from hf_neuracrypt import training

    data = splits.data
    name = "train" if "train" in data else next(iter(data))
    train_split = data[name]
    eval_name = next((other for other in ("validation", "val", "test") if other in data and other != name), None)
    if eval_name is not None:
        eval_split = data[eval_name]
    else:
        parts = train_split.train_test_split(data_args.train_val_split, seed=seed)
        train_split, eval_split = parts["train"], parts["test"]
    return (
        training.undecoded(split.select(range(min(limit or len(split), len(split)))), splits.columns)
        for split, limit in ((train_split, data_args.max_train_samples), (eval_split, data_args.max_eval_samples))
    )


def find_checkpoint(training_args, records) -> str | None:
    """Where to continue: the checkpoint asked for, else the newest in the output folder, else none.

    Raises:
        KeyMismatchError: it was trained on images of another key or config.
        NeuraCryptError: the output folder holds a model and nothing to continue.
    """
    from transformers.trainer_utils import get_last_checkpoint

    from hf_neuracrypt.prediction import load_model_config, model_records

    output = Path(training_args.output_dir)
    checkpoint = training_args.resume_from_checkpoint
    if checkpoint is None and output.is_dir():
        checkpoint = get_last_checkpoint(str(output))
        if checkpoint is None and (output / "model.safetensors").exists():
            raise NeuraCryptError(f"{output} already holds a model: choose another --output_dir")
    if checkpoint is not None and model_records(load_model_config(checkpoint)) != records:
        raise KeyMismatchError(f"{checkpoint} was trained on images of another key or config: it cannot be continued")
    return checkpoint


def parse(arguments: list[str]) -> tuple:
    """Flags, or one file of flags -> (ModelArguments, DataArguments, TrainingArguments)."""
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments), description=__doc__)
    parser.error = lambda message: fail(f"{message} (see --help)", 2)
    try:
        if len(arguments) == 1 and arguments[0].endswith(".json"):
            parsed = parser.parse_json_file(arguments[0])
        elif len(arguments) == 1 and arguments[0].endswith((".yaml", ".yml")):
            parsed = parser.parse_yaml_file(arguments[0])
        else:
            parsed = parser.parse_args_into_dataclasses(arguments)
    except ValueError as error:
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
