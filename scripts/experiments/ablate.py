"""What each part of the recipe is worth: the same images, steps and seeds, with one thing changed in each row.

python scripts/experiments/ablate.py --dataset cifar10 --model vit-tiny/ --output model_cards/results/ablation.json
python scripts/experiments/ablate.py --output model_cards/results/ablation.json --draw

It trains on the first images of the training split and tests on the first of the test split. The public images of the
same kind are images 10,000 on of the training split (of a smaller one, the last), without labels; those of another kind
are squares of scikit-image's and scikit-learn's photos. What the file already holds is not run again, and a row that
was stopped goes on after its last epoch, from a file beside the output. A seed names the keys as well, insecure on
purpose; trained models are also asked under one more key. Images stay in memory and a loop in bfloat16, or float32
where that is faster, stands in for `Trainer`: one cycle of the learning rate, AdamW, the rates of the recipe. LoRA
needs `peft`. Before training, each row is probed: how well a ridge regression on the frozen model's class token tells
the labels of 600 images; `--epochs 0` does only that. "Features at home" trains nothing: a logistic regression on those
tokens of plain images, and their 20 nearest neighbours. Two kinds of rows take more from the owner: "adapted" is what
`hf-neuracrypt adapt` makes of known pairs, "soft" labels are probabilities that such a regression at home gives each
image, on features of 224 px, by the other four fifths of the images.
"""

import argparse
import functools
import json
import os
import re
import statistics
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import charts
import torch
from ablate_data import Data, rounded
from features import at_home
from fine_tune import FineTuning, Row, accuracy, to_float, with_lora
from processor import BFLOAT16, processor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_neuracrypt.alignment import (
    CIPHER_COMPONENTS,
    PLAIN_COMPONENTS,
    Alignment,
    align,
    rehearse,
    unwhitened,
)
from hf_neuracrypt.alignment.patches import Whitened, to_patches
from hf_neuracrypt.alignment.rehearsal import Corrected, Corrector, fitted
from hf_neuracrypt.audit.adapted import fit
from hf_neuracrypt.audit.pairs import Pairs
from hf_neuracrypt.errors import one_line_errors
from hf_neuracrypt.models.embeddings import fold, patch_embedding
from hf_neuracrypt.models.load import load_model
from hf_neuracrypt.training.aligned import PROBED, distil, probe


PAIRS = 1_500  # the last of the training images
GIVEN = 4, 64, 256  # how many pairs an owner fits an embedding on: the first of the training images
ROWS = [
    Row("plain images", plain=True),
    Row("features at home", plain=True, frozen=True),
    Row("labels alone"),
    Row("aligned start", public="same"),
    Row("aligned start, not distilled", public="same", distilled=False),
    Row("aligned start, five encrypted views", public="same", views=5),
    Row("aligned start, unrelated photos", public="photos"),
    Row("map fitted on true pairs", public="pairs"),
    *(Row(f"adapted with {count} known pairs", given=count) for count in GIVEN),
    Row("adapted with 64 known pairs, soft labels", given=64, soft=True),
    Row("labels alone, soft", soft=True),
    Row("aligned start, wrong sign", public="same", wrong_sign=True),
    Row("aligned start, patch CutMix", public="same", cutmix=0.5),
    Row("aligned start, layer-wise decay 0.75", public="same", layer_decay=0.75),
    Row("aligned start, averaged weights", public="same", average=0.99),
    Row("aligned start, embeddings first", public="same", frozen_epochs=1),
    Row("aligned start, frozen patch embedding", public="same", frozen_embedding=True),
    Row("labels alone, random patch embedding", random_embedding=True),
    Row("aligned start, LoRA", public="same", lora=True),
    Row("labels alone, LoRA", lora=True),
    Row("labels alone, LoRA, frozen patch embedding", lora=True, frozen_embedding=True),
    Row("aligned start, flipped ciphertexts", public="same", flip=True),
    Row("aligned start, moved ciphertexts", public="same", crop=True),
    *(Row(f"aligned start, {bits} bits kept", public="same", bits=bits) for bits in (7, 6, 5, 4)),
    Row("labels alone, depth 0", depth=0),
    Row("aligned start, depth 0", public="same", depth=0),
    Row("labels alone, width 256", width=256),
    Row("aligned start, width 256", public="same", width=256),
    Row("labels alone, width 2048", width=2048),
    Row("aligned start, width 2048", public="same", width=2048),
]


def of_pairs(data: Data, public: torch.Tensor, rehearsed: Iterable[torch.Tensor]) -> Alignment:
    """What `align` gives, with maps fitted on pairs of pictures and their ciphertexts, which no cloud has of the
    owner's: a bound of what an alignment can find."""
    patch = data.config.patch_size
    plain = Whitened(to_patches(public, patch), PLAIN_COMPONENTS)
    pictures = (to_patches(to_float(data.plain[-PAIRS:]), patch) - plain.mean) @ (plain.basis / plain.scale)

    def mapped(images: torch.Tensor, wanted: torch.Tensor) -> tuple[Whitened, torch.Tensor]:
        side = Whitened(to_patches(images, patch), CIPHER_COMPONENTS)
        return side, fitted(side.values, wanted)

    own = [side.values @ found for side, found in (mapped(images, plain.values) for images in rehearsed)]
    side, found = mapped(to_float(data.cipher[-PAIRS:]), pictures)
    return unwhitened(side, plain, Corrected(found, Corrector(len(plain.scale)), 1.0, own))


def explained(alignment: Alignment, data: Data) -> float:
    """The share of the variance of true patches that the decrypted ones explain, over 500 images."""
    patch = data.config.patch_size
    true = to_patches(to_float(data.plain[:500]), patch).flatten(1, 2)
    guess = alignment.decrypt(to_float(data.cipher[:500]), patch)
    return 1 - float((guess - true).square().mean() / (true - true.mean(0)).square().mean())


def train(row: Row, data: Data, seed: int, unfinished: Path) -> dict[str, Any]:
    """What the row starts from, accuracy after each epoch, and the last training loss.

    `unfinished` is the file that each epoch leaves, and from which a run that was stopped goes on.
    """
    torch.manual_seed(seed)
    model = load_model(data.args.model, None, data.names, data.args.image_size, [])
    if row.frozen:
        found = at_home(model, data.plain, data.labels, data.plain_test, data.test_labels)
        return {"accuracy": [found.pop("linear")], **found}
    saved = torch.load(unfinished, weights_only=True) if unfinished.exists() else None
    result = saved["result"] if saved else start(model, row, data, seed)
    if row.lora:
        model = with_lora(model)
    labels = data.soft_labels() if row.soft else data.labels
    learning = FineTuning(model, data.versions(row), labels, epochs=data.args.epochs, row=row, seed=seed)
    if saved:
        learning.load_state_dict(saved["learning"])
    test = rounded(data.plain_test if row.plain else data.cipher_test, row.bits)
    while learning.epoch < data.args.epochs:
        result["loss"] = round(learning.run_epoch(), 4)
        result["accuracy"].append(accuracy(learning.tested, test, data.test_labels))
        torch.save({"result": result, "learning": learning.state_dict()}, f"{unfinished}.part")
        os.replace(f"{unfinished}.part", unfinished)
    if not row.plain:
        result["wrong_key"] = accuracy(learning.tested, rounded(data.other_test, row.bits), data.test_labels)
    return result


def start(model: PreTrainedModel, row: Row, data: Data, seed: int) -> dict[str, Any]:
    """Align the model, if the row says so, and probe what it sees before it learns."""
    images = rounded(data.plain if row.plain else data.cipher, row.bits)
    result: dict[str, Any] = {}
    if row.random_embedding:
        patch_embedding(model)[0].reset_parameters()
    if row.public:
        public = to_float(data.public(row.public))
        rehearsed = rehearse(data.config, public, seed)
        if row.public == "pairs":
            alignment = of_pairs(data, public, rehearsed)
        else:
            alignment = align(to_float(images[: len(public)]), public, rehearsed, data.config.patch_size, seed)
        if row.distilled:
            distil(model, public, alignment, seed, bf16=BFLOAT16)
        if row.wrong_sign:
            alignment = replace(alignment, to_components=-alignment.to_components)
        fold(model, alignment.patch_map)
        result["explained"] = round(explained(alignment, data), 4)
    if row.given:
        own = Pairs(data.config, data.plain[: max(GIVEN)].numpy(), data.cipher[: max(GIVEN)].numpy())
        fit(model, own, row.given)
    seen = probe(model, to_float(images[:PROBED]), data.labels[:PROBED])
    return result | {"probe": round(seen, 4), "accuracy": [], "loss": 0.0}


def title(entry: dict) -> str:
    """Of one result: its row, and how long it learned."""
    if entry["switches"].get("frozen"):
        return f"{entry['row']} ({entry['setting']['train']:,} images of {entry['setting']['image_size']} px)"
    return f"{entry['row']} ({len(entry['accuracy'])} epochs)"


def draw(results: list[dict], path: Path) -> None:
    """A bar a row, a dot a seed."""
    results = [entry for entry in results if entry["accuracy"]]
    titles = list(dict.fromkeys(map(title, results)))[::-1]
    figure, axes = charts.pyplot().subplots(figsize=(8, 0.5 * len(titles) + 1))
    for place, each in enumerate(titles):
        values = [entry["accuracy"][-1] for entry in results if title(entry) == each]
        axes.barh(place, statistics.mean(values), color=charts.BLUE, height=0.6)
        axes.plot(values, [place] * len(values), "o", color=charts.ORANGE, markersize=4)
        axes.text(max(values) + 0.02, place, f"{statistics.mean(values):.3f}", va="center", color=charts.INK)
    axes.set_yticks(range(len(titles)), titles)
    axes.set_xlim(0, 1.07)  # room for a figure
    axes.set_xlabel("test accuracy")
    charts.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="JSON file; the chart is written beside it")
    parser.add_argument("--dataset", help="plain images with the splits train and test: folder or Hub id")
    parser.add_argument("--model", help="pre-trained ViT: folder or Hub id")
    parser.add_argument("--rows", nargs="+", default=[row.title for row in ROWS], help="titles; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--draw", action="store_true", help="only draw the chart again")
    args = parser.parse_args()
    results = json.loads(args.output.read_text()) if args.output.exists() else []
    if not args.draw:
        if not (args.dataset and args.model):
            parser.error("--dataset and --model are needed to train")
        setting = {name: getattr(args, name) for name in ("train", "test", "image_size")}
        data_of = functools.lru_cache(1)(functools.partial(Data, args))
        for seed, row in tqdm([(seed, row) for seed in range(args.seeds) for row in ROWS if row.title in args.rows]):
            wanted = {"row": row.title, "seed": seed, "setting": setting}
            done = [e for e in results if {name: e[name] for name in wanted} == wanted]
            if not any(row.frozen or len(entry["accuracy"]) == args.epochs for entry in done):
                parts = (args.output.stem, row.title, *setting.values(), args.epochs, seed)
                unfinished = args.output.with_name(re.sub(r"\W+", "-", " ".join(map(str, parts))) + ".pt")
                entry = wanted | {"switches": asdict(row), "processor": processor()}
                results.append(entry | train(row, data_of(seed, row.width, row.depth), seed, unfinished))
                args.output.write_text(json.dumps(results, indent=1) + "\n")
                unfinished.unlink(missing_ok=True)
    draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    with one_line_errors():
        main()
