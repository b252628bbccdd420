"""Accuracy of a model on an encrypted dataset, or the figures of other labels. This runs in the cloud, without a key.

python scripts/evaluate.py --model model/ --dataset encrypted/ --split test --output results.json
"""

import argparse
import json
import sys
from pathlib import Path

from hf_neuracrypt.errors import one_line_errors, printable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--dataset", required=True, help="encrypted dataset: folder or Hub id")
    parser.add_argument("--split", help="default: test, else validation")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time; default: 32")
    parser.add_argument("--max_samples", type=int, help="only so many images of the split")
    parser.add_argument("--any_key", action="store_true", help="evaluate images of another key; expect chance")
    parser.add_argument("--plain", action="store_true", help="model and dataset are plain: the baseline")
    options = vars(parser.parse_args())

    from hf_neuracrypt.training.metrics import evaluate_model

    output = options.pop("output")
    result = evaluate_model(**options)
    text = json.dumps(result, indent=2)
    if output:
        output.write_text(text + "\n")
    print(text, flush=True)
    for row in result.get("each", ()):
        shown = (f"{name} {'undefined' if row[name] is None else format(row[name], '.3f')}" for name in list(row)[2:])
        print(printable(f"{', '.join(shown)} on {row['images']} images: {row['label']}"), file=sys.stderr)
    for row in result.get("worst_classes", ()):
        taken = ", ".join(f"{name} ({count})" for name, count in row["taken_for"].items())
        line = f"{row['recall']:.2f} of {row['images']} {row['class']}, else taken for {taken}"
        print(printable(line), file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main()
