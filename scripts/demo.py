"""The whole product on real handwritten digits, in a few minutes on a CPU: `make demo`, or

python scripts/demo.py --output demo/

Runs the commands of the README one after the other, each shown as you would type it: keygen, encrypt, train, evaluate,
predict. Then it prints a table and writes `picture.png`. The digits are scikit-learn's (1,797 real ones, 8 x 8 pixels);
the classifier is a small Vision Transformer that starts from random weights.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hf_neuracrypt.errors import NeuraCryptError, one_line_errors


SCRIPTS = Path(__file__).parent
TRAIN_IMAGES = 1437  # scikit-learn's order: the later digits were written by other people
ENCODER = ["--image-size", "32", "--patch-size", "8", "--scheme-option", "width=256"]
MODEL = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 32, "patch_size": 8,
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256,
}  # fmt: skip
RECIPE = [
    "--num_train_epochs", "40", "--per_device_train_batch_size", "64", "--learning_rate", "1e-3",
    "--warmup_steps", "0.1", "--lr_scheduler_type", "cosine", "--weight_decay", "0.05", "--logging_steps", "100",
    "--save_strategy", "no", "--eval_strategy", "no", "--report_to", "none",
]  # fmt: skip


def write_digits(folder: Path) -> None:
    """scikit-learn's digits as a folder of images: split/digit/number.png."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target)):
        place = folder / ("train" if index < TRAIN_IMAGES else "test") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(place / f"{index:04d}.png")


def run(*command: str | Path) -> None:
    """Show a command, run it, and stop if it fails."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    tools = Path(sys.executable).parent  # the commands installed beside this interpreter
    program = tools / words[0]
    if subprocess.run([str(program) if program.exists() else words[0], *words[1:]]).returncode != 0:
        raise NeuraCryptError(f"this command failed: {shlex.join(words)}")


def train(dataset: Path, model: Path, config: Path, *flags: str) -> None:
    launch = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    files: list[str | Path] = ["--dataset_name", dataset, "--config_name", config, "--output_dir", model]
    run("accelerate", "launch", *launch, SCRIPTS / "train.py", *files, *RECIPE, *flags)


def evaluate(model: Path, dataset: Path, result: Path, *flags: str) -> float:
    run("python", SCRIPTS / "evaluate.py", "--model", model, "--dataset", dataset, "--output", result, *flags)
    return json.loads(result.read_text())["accuracy"]


def show_examples(output: Path, examples: list[Path]) -> None:
    """picture.png: plain | encrypted | encrypted with the wrong key, with the model's answer under each."""
    from datasets import Dataset, Image
    from transformers import pipeline

    from hf_neuracrypt import SecretKey, encrypt_dataset, load_encoder
    from hf_neuracrypt.data.manifest import read_manifest
    from hf_neuracrypt.data.record import Record

    config = Record.from_dict(read_manifest(output / "encrypted")).config
    plain = Dataset.from_dict({"image": list(map(str, examples))}).cast_column("image", Image())
    rows: dict[str, list[tuple[Any, str]]] = {"plain": [(image, "") for image in plain["image"]]}
    classify = pipeline("image-classification", model=str(output / "model"))
    for title, key_file in (("encrypted", "hospital.key"), ("wrong key", "wrong.key")):
        encoder = load_encoder(config, SecretKey.load(output / key_file))
        encrypted = list(encrypt_dataset(plain, encoder)["image"])
        answers = classify(encrypted, top_k=1)
        rows[title] = [(image, f"→ {answer[0]['label']}") for image, answer in zip(encrypted, answers)]
    draw(output / "picture.png", rows)


def draw(picture: Path, rows: dict[str, list[tuple[Any, str]]]) -> None:
    """A grid: a titled row for each entry of `rows`, (image, caption) side by side."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    columns = max(len(row) for row in rows.values())
    figure, axes = pyplot.subplots(len(rows), columns, figsize=(1.3 * columns, 4.6), squeeze=False)
    for line, (title, row) in zip(axes, rows.items()):
        for axis, (image, caption) in zip(line, row):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(caption, fontsize=9)
        line[0].set_ylabel(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(picture, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="new folder for everything that is made")
    output: Path = parser.parse_args().output
    if output.exists():
        raise NeuraCryptError(f"{output} exists: remove it, or choose another --output")
    start = time.perf_counter()
    plain, key, wrong = output / "plain", output / "hospital.key", output / "wrong.key"
    write_digits(plain)
    config = output / "tiny-vit"
    config.mkdir()
    (config / "config.json").write_text(json.dumps(MODEL))

    run("hf-neuracrypt", "keygen", key)
    run("hf-neuracrypt", "encrypt", "--dataset", plain, "--key-file", key, "--output", output / "encrypted", *ENCODER)
    train(output / "encrypted", output / "model", config)
    accuracy = {"encrypted": evaluate(output / "model", output / "encrypted", output / "encrypted.json")}
    examples = [sorted((plain / "test" / str(digit)).iterdir())[0] for digit in range(8)]
    owner = ("--encrypted", output / "encrypted", "--key-file", key)
    run("hf-neuracrypt", "predict", "--model", output / "model", *owner, "--top-k", "3", *examples[:3])

    print("\nAnd what it is measured against: the same training on plain images, and queries under another key.")
    train(plain, output / "plain-model", config, "--plain")
    accuracy["plain"] = evaluate(output / "plain-model", plain, output / "plain.json", "--plain")
    run("hf-neuracrypt", "keygen", wrong)
    run("hf-neuracrypt", "encrypt", "--dataset", plain, "--key-file", wrong, "--output", output / "wrong", *ENCODER)
    accuracy["wrong key"] = evaluate(output / "model", output / "wrong", output / "wrong.json", "--any_key")

    show_examples(output, examples)
    print(f"\n{'trained and asked on':<32}accuracy on 360 digits of other writers")
    titles = ("encrypted", "encrypted images"), ("wrong key", "encrypted, queries under another key")
    for name, title in (("plain", "plain images"), *titles):
        print(f"{title:<38}{accuracy[name]:.3f}")
    print(f"\n{time.perf_counter() - start:.0f} seconds. The picture: {output / 'picture.png'}")


if __name__ == "__main__":
    with one_line_errors():
        main()
