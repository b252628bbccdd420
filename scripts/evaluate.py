"""Accuracy of a model on an encrypted dataset, through the stock pipeline. This runs in the cloud; it needs no key.

python scripts/evaluate.py --model model/ --dataset encrypted/ --split test --output results.json
"""

import argparse
import json
import sys
import time
from pathlib import Path


# This file bears the name of the library it uses: its own folder must not be searched first.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from hf_neuracrypt.errors import DatasetError, KeyMismatchError, one_line_errors


def evaluate_model(
    model: str, dataset: str, split: str | None, batch_size: int, max_samples: int | None, any_key: bool, plain: bool
) -> dict:
    """Returns accuracy, sample count, wall time, and what was evaluated.

    `evaluate.evaluator("image-classification")` of evaluate 0.4.6 asks for `transformers.TFPreTrainedModel`, which
    transformers 5 no longer has, and `evaluate.load("accuracy")` fetches code at run time. So: an `evaluate.Metric` of
    our own around `pipeline("image-classification")`, which is what the evaluator does.
    """
    from tqdm.auto import tqdm
    from transformers.pipelines.pt_utils import KeyDataset
    from transformers.utils import logging

    from hf_neuracrypt.training.data import load_splits
    from hf_neuracrypt.training.metrics import Accuracy
    from hf_neuracrypt.prediction.classifier import load_model_config, load_pipeline, model_records, representation_classifier

    logging.disable_progress_bar()
    splits = load_splits(dataset, plain)
    known = {(record.key_id, record.config) for record in model_records(load_model_config(model))}
    for record in splits.records:
        if (record.key_id, record.config) not in known and not any_key:
            trained = ", ".join(key_id for key_id, _ in known) or "no key: it is a model of plain images"
            raise KeyMismatchError(
                f"{dataset} was encrypted with key {record.key_id}, {model} was trained under {trained} "
                "(--any_key evaluates all the same)"
            )
    split = split or next((name for name in ("test", "validation", "val") if name in splits.data), None)
    if split not in splits.data:
        raise DatasetError(f"there is no split {split!r}: choose --split from {', '.join(splits.data)}")
    data = splits.data[split]
    data = data.select(range(min(max_samples or len(data), len(data))))
    names, metric = splits.label_names, Accuracy()
    if any(record.config.representation for record in splits.records):
        classify, batches = representation_classifier(model), data.with_format("torch").iter(batch_size)
        answers = (answer for batch in batches for answer in classify(batch[splits.columns.image], 1))
    else:
        classify = load_pipeline(model)
        answers = classify(KeyDataset(data, splits.columns.image), batch_size=batch_size, top_k=1)
    start = time.perf_counter()
    for label, answer in zip(data[splits.columns.label], tqdm(answers, total=len(data), desc="Evaluating")):
        # A label the dataset does not know counts as wrong.
        metric.add(reference=label, prediction=names.index(answer[0]["label"]) if answer[0]["label"] in names else -1)
    seconds = time.perf_counter() - start
    return {
        "accuracy": metric.compute()["accuracy"],
        "samples": len(data),
        "seconds": round(seconds, 3),
        "model": Path(model).name,
        "dataset": Path(dataset).name,
        "split": split,
        "key_ids": [record.key_id for record in splits.records],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--dataset", required=True, help="encrypted dataset: folder or Hub id")
    parser.add_argument("--split", help="default: test, else validation")
    parser.add_argument("--output", help="JSON file for the result")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time; default: 32")
    parser.add_argument("--max_samples", type=int, help="only the first images")
    parser.add_argument("--any_key", action="store_true", help="evaluate images of another key; expect chance")
    parser.add_argument("--plain", action="store_true", help="model and dataset are plain: the baseline")
    args = parser.parse_args()
    result = evaluate_model(
        args.model, args.dataset, args.split, args.batch_size, args.max_samples, args.any_key, args.plain
    )
    text = json.dumps(result, indent=2)
    if args.output:
        Path(args.output).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
