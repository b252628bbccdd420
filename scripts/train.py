"""Fine-tune a stock Vision Transformer on an encrypted dataset. This runs in the cloud; it needs no key.

accelerate launch scripts/train.py --dataset_name encrypted/ \
    --model_name_or_path google/vit-base-patch16-224-in21k --output_dir model/ \
    --num_train_epochs 3 --per_device_train_batch_size 32 --learning_rate 1e-4

Every flag of transformers' TrainingArguments is understood; one argument ending in .json or .yaml is read as a file of
flags. `--plain` trains the baseline on plain images, with the same code. An interrupted run continues from its last
checkpoint when it is started again with `--resume_from_checkpoint last`.
"""

import sys
from dataclasses import dataclass, field

from hf_neuracrypt.errors import NeuraCryptError, one_line_errors


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id of pre-trained weights."})
    config_name: str | None = field(default=None, metadata={"help": "Config to start from with random weights."})


@dataclass
class DataArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "Encrypted dataset: a folder or a Hub id."})
    image_column_name: str | None = field(default=None, metadata={"help": "Default: image, img or pixel_values."})
    label_column_name: str | None = field(default=None, metadata={"help": "Default: label, labels or fine_label."})
    train_val_split: float = field(default=0.15, metadata={"help": "Share held out when there is no other split."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only the first evaluation images."})
    plain: bool = field(default=False, metadata={"help": "The images are plain: train the baseline."})
    image_size: int | None = field(default=None, metadata={"help": "With --plain: pixels; default: the model's."})


def main(model_args: ModelArguments, data_args: DataArguments, training_args) -> dict[str, float]:
    """Train, save, evaluate; returns the last metrics."""
    from transformers import Trainer, set_seed

    from hf_neuracrypt import training

    if not (model_args.model_name_or_path or model_args.config_name):
        raise NeuraCryptError("give --model_name_or_path to fine-tune, or --config_name to train from random weights")
    set_seed(training_args.seed)
    splits = training.load_splits(
        data_args.dataset_name, data_args.plain, data_args.image_column_name, data_args.label_column_name
    )
    record = training.single_record(splits)
    train_split, eval_split = choose_splits(splits, data_args, training_args.seed)
    model = training.load_model(
        model_args.model_name_or_path,
        model_args.config_name,
        splits.label_names,
        record.config.image_size if record else data_args.image_size,
        record,
    )
    training_args.remove_unused_columns = False  # the collator picks the columns
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_split,
        eval_dataset=eval_split,
        data_collator=training.Collator(splits.columns, model.config.image_size, data_args.plain),
        processing_class=training.stock_processor(model.config.image_size, data_args.plain),
        compute_metrics=training.compute_accuracy,
    )
    result = trainer.train(resume_from_checkpoint=find_checkpoint(training_args))
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics


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


def find_checkpoint(training_args) -> str | None:
    """`--resume_from_checkpoint last` is the newest one in the output folder, or none."""
    from transformers.trainer_utils import get_last_checkpoint

    if training_args.resume_from_checkpoint != "last":
        return training_args.resume_from_checkpoint
    return get_last_checkpoint(training_args.output_dir)


def parse(arguments: list[str]) -> tuple:
    """Flags, or one file of flags -> (ModelArguments, DataArguments, TrainingArguments)."""
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments), description=__doc__)
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        parsed = parser.parse_json_file(arguments[0])
    elif len(arguments) == 1 and arguments[0].endswith((".yaml", ".yml")):
        parsed = parser.parse_yaml_file(arguments[0])
    else:
        parsed = parser.parse_args_into_dataclasses(arguments)
    for name in ("dataset_name", "output_dir"):
        if not any(getattr(part, name, None) for part in parsed):
            raise NeuraCryptError(f"--{name} is missing")
    return parsed


if __name__ == "__main__":
    with one_line_errors():
        main(*parse(sys.argv[1:]))
