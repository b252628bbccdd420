"""Accuracy against leakage: every scheme, depths, widths, and options that Color-NeuraCrypt does not have.

python scripts/experiments/frontier.py --dataset cifar10 --model vit-tiny/ --output model_cards/results/frontier.json
python scripts/experiments/frontier.py --output model_cards/results/frontier.json --draw

Leakage is what `hf-neuracrypt audit` measures, on test images of the dataset and on crops of scikit-image's photos at
their native resolution, under a throw-away key. Accuracy is that of a ViT on ciphertexts, from their labels alone,
after a short training on the first images: it tells what an option costs, not what a scheme can reach. Results that the
file already holds are not measured again. The options that Color-NeuraCrypt does not have are added here, around the
encoder:

bits       the low bits of each byte of a ciphertext are dropped, which makes it smaller to send
noise      a normal error on each byte of a ciphertext, new for each image
blocks     the patches of all ciphertexts change places, alike; the attacker first solves the jigsaw
positions  the values of each plain patch change places and signs, by a key of that position, before the network
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import charts
import numpy as np
import torch
from ablate_data import read_rows, rounded
from features import HOME_SIZE, soft_labels
from fine_tune import FineTuning, Row, accuracy
from photos import crops
from processor import processor
from tqdm.auto import tqdm

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.audit.adapted import JUDGED, fit
from hf_neuracrypt.audit.ciphertext import compressed, thumbnail
from hf_neuracrypt.audit.known import GAIN_DB, hold_out, known_plaintext, quality, ridge
from hf_neuracrypt.audit.matching import matching
from hf_neuracrypt.audit.pairs import Pairs, cut, join
from hf_neuracrypt.audit.puzzles import candidates, jigsaw, put_back
from hf_neuracrypt.data.batches import encrypt_all
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.errors import NeuraCryptError, one_line_errors
from hf_neuracrypt.models.load import load_model
from hf_neuracrypt.schemes import SchemeConfig, make_config


PATCH = 16
COUNTS = (1, 4, 16, 64)  # known pairs
BEST_PSNR = 45  # dB, where bars end
Encrypt = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Variant:
    """A point of the frontier: a scheme, its options, and what is done around its encoder."""

    title: str
    scheme: str = "color-neuracrypt"
    options: dict[str, Any] = field(default_factory=dict)
    bits: int = 8  # of each byte of a ciphertext that are kept, the leading ones
    noise: float = 0.0  # standard deviation, in grey levels of the ciphertext
    blocks: bool = False
    positions: bool = False
    given: int = 0  # known pairs that the owner fits the model's embedding on, and so gives away
    soft: bool = False  # labels are what a head at home says of each image, which it has not learned from
    plain: bool = False
    learn: bool = False  # also train on it


BLOCK = {"block_size": PATCH}
VARIANTS = [
    Variant("plain images", plain=True, learn=True),
    Variant("depth 4 (default)", learn=True),
    *(Variant(f"adapted with {count} known pairs", given=count, learn=True) for count in (4, 64)),
    Variant("soft labels", soft=True, learn=True),
    *(Variant(f"depth {d}", options={"depth": d}, learn=d in (0, 16)) for d in (0, 1, 2, 8, 16)),
    Variant("width 2048", options={"width": 2048}, learn=True),
    *(Variant(f"{bits} bits kept", bits=bits) for bits in (7, 6, 5, 4)),
    *(Variant(f"noise {n}", noise=n, learn=n != 8) for n in (8, 16, 32)),
    Variant("blocks", blocks=True, learn=True),
    Variant("positions", positions=True, learn=True),
    Variant("float32", "color-neuracrypt-float"),
    Variant("NeuraCrypt", "neuracrypt", {"width": 768, "channels": 3}),
    Variant("LE", "le", BLOCK, learn=True),
    Variant("PE", "pe"),
    Variant("EtC", "etc", BLOCK, learn=True),
    Variant("ELE", "ele", BLOCK, learn=True),
    Variant("ViT block-wise", "vit-blockwise", learn=True),
]


def make_encrypt(variant: Variant, size: int) -> tuple[SchemeConfig, Encrypt, np.ndarray | None]:
    """The public config, uint8 (B, 3, S, S) -> ciphertexts, and where blocks come from, under a throw-away key."""
    config = make_config(variant.scheme, {"image_size": size} | variant.options)
    encoder, generator = load_encoder(config, SecretKey.generate()), np.random.default_rng()
    count, values = (size // PATCH) ** 2, 3 * PATCH**2
    order = np.array(encoder.block_order()) if config.moves_blocks else None
    moved = generator.permutation(count)
    moves = generator.permuted(np.tile(np.arange(values), (count, 1)), axis=1)
    signs = generator.integers(0, 2, (count, values), np.uint8) * 255

    def encrypt(images: np.ndarray) -> np.ndarray:
        if variant.plain:
            return images
        if variant.positions:
            images = join(np.take_along_axis(cut(images, PATCH), moves[None], 2) ^ signs, size)
        found = encrypt_all(encoder.encrypt_in_place, images)
        found = rounded(found, variant.bits)
        if variant.noise:
            noise = generator.normal(0, variant.noise, found.shape).astype(np.float32)
            found = (found + noise).round().clip(0, 255).astype(np.uint8)
        return join(cut(found, PATCH)[:, moved], size) if variant.blocks else found

    return config, encrypt, moved if variant.blocks else order


def leakage(variant: Variant, images: np.ndarray) -> dict[str, float | None]:
    """Figures of the audit's attacks on ciphertexts of uint8 images (N, 3, S, S)."""
    config, encrypt, order = make_encrypt(variant, images.shape[-1])
    pairs = Pairs(config, images, encrypt(images))
    found: dict[str, Any] = {}
    if order is not None:
        found["neighbours"] = jigsaw(pairs, order, 0).figures.get("neighbours")
    if variant.blocks and order is not None:
        pairs = upright(pairs, put_back(pairs, 0), order)
    row, maps = thumbnail(pairs, 0)
    found["thumbnail"] = row.figures["correlation"]
    matched: Mapping[str, Any] = matching(pairs, maps, 0).figures
    known: Mapping[str, Any] = known_plaintext(pairs, 0)[0].figures
    found |= {name: matched[name] for name in ("accuracy", "before_refinement", "chance")}
    found["mean_image_psnr"] = known["mean_image_psnr"]
    by_position = _each_position(pairs) if variant.positions else {}
    counts = [count for count in COUNTS if f"psnr_{count}" in known]
    for count in counts:
        had = max(count, variant.given)
        guesses = known[f"psnr_{had}"], known.get(f"mlp_psnr_{had}", 0), by_position.get(had, 0)
        found[f"psnr_{count}"] = max(guesses)
    enough = (
        count if count > variant.given else 0
        for count in counts
        if found[f"psnr_{count}"] >= found["mean_image_psnr"] + GAIN_DB
    )
    found["pairs_for_3_db"] = next(enough, None)
    found["compressed"] = compressed(pairs.encrypted)
    if not config.tile_name:  # each pixel by itself
        found["recovered"] = candidates(pairs)[0].figures["recovered"]
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def upright(pairs: Pairs, places: np.ndarray, order: np.ndarray) -> Pairs:
    """Pairs with the patches of `put_back` in place, turned and mirrored as an attacker would find out in eight trials.

    Args:
        pairs: their ciphertexts are moved.
        places: from `put_back`.
        order: where each patch comes from, which tells the best of the eight.
    """
    side = round(len(places) ** 0.5)
    square = places.reshape(side, side)
    turned = [np.rot90(each, turns).reshape(-1) for each in (square, square.T) for turns in range(4)]
    best = max(turned, key=lambda blocks: (order[blocks] == np.arange(len(blocks))).mean())
    return replace(pairs, encrypted=join(cut(pairs.encrypted, PATCH)[:, best], pairs.config.image_size))


def _each_position(pairs: Pairs) -> dict[int, float]:
    """PSNR by number of pairs of a linear map for each position, which a key for each position makes necessary."""
    (held_out, pool), found = hold_out(pairs, 0), {}
    unknown, truth = pairs.encrypted_centred[held_out], pairs.plain[held_out]
    for count in COUNTS[1:]:
        known = pairs.take(pool[:count])
        given, target = known.encrypted_centred, known.plain_patches.astype(np.float32)
        middle, average = given.mean(0), target.mean(0)
        weights = [
            ridge(g, t, 1, 0)[0] for g, t in zip((given - middle).swapaxes(0, 1), (target - average).swapaxes(0, 1))
        ]
        patches = np.stack([(unknown - middle)[:, p] @ w for p, w in enumerate(weights)], axis=1) + average
        guess = join(patches.round().clip(0, 255).astype(np.uint8), pairs.config.image_size)
        found[count] = quality(truth, guess)[0]
    return found


Labelled = tuple[torch.Tensor, torch.Tensor]  # uint8 images (B, 3, S, S), int64 labels (B,)


def learn(
    variant: Variant, train: Labelled, test: Labelled, home: Labelled | None, model_name: str, epochs: int
) -> float:
    """Test accuracy of a ViT trained on ciphertexts by their labels, and by what the owner gives.

    `home`: the training images for soft labels.
    """
    torch.manual_seed(0)
    config, encrypt, _ = make_encrypt(variant, train[0].shape[-1])
    images, queries = (torch.from_numpy(encrypt(side[0].numpy())) for side in (train, test))
    names = [str(label) for label in range(int(train[1].max()) + 1)]
    model = load_model(model_name, None, names, images.shape[-1], [])
    if variant.given:
        count = variant.given + JUDGED
        fit(model, Pairs(config, train[0][:count].numpy(), images[:count].numpy()), variant.given)
    labels = soft_labels(load_model(model_name, None, names, HOME_SIZE, []), *home) if home else train[1]
    learning = FineTuning(model, [images], labels, epochs=epochs, row=Row(variant.title), seed=0)
    for _ in range(epochs):
        learning.run_epoch()
    return accuracy(model, queries, test[1])


def read(name: str, split: str, count: int, size: int) -> Labelled:
    """The first images of a split."""
    rows = load_source(name)[split]
    return read_rows(rows.select(range(min(count, len(rows)))), make_config("color-neuracrypt", {"image_size": size}))


def measure(args: argparse.Namespace, results: list[dict]) -> None:
    """Measure what `results` does not hold yet, and save after each measurement."""
    if not (args.dataset and args.model):
        raise NeuraCryptError("--dataset and --model are needed to measure")
    size, variants = args.image_size, [v for v in VARIANTS if not args.rows or v.title in args.rows]
    leaking = {"test images": read(args.dataset, "test", args.images, size)[0].numpy()}
    leaking["photos"] = crops(args.images, size)
    jobs = [(variant, what) for variant in variants for what in leaking]
    jobs += [(variant, "accuracy") for variant in variants if variant.learn and args.train]
    for variant, what in tqdm(jobs, desc="Frontier"):
        wanted = {"variant": variant.title, "what": what, "image_size": size}
        wanted |= {"train": args.train, "epochs": args.epochs} if what == "accuracy" else {"images": args.images}
        if any(wanted.items() <= entry.items() for entry in results) or (variant.plain and what != "accuracy"):
            continue
        if what == "accuracy":
            sides = read(args.dataset, "train", args.train, size), read(args.dataset, "test", args.test, size)
            home = read(args.dataset, "train", args.train, HOME_SIZE) if variant.soft else None
            reached = learn(variant, *sides, home, args.model, args.epochs)
            found: dict[str, Any] = {"test": args.test, "accuracy": reached}
        else:
            found = leakage(variant, leaking[what])
        results.append(wanted | found | {"processor": processor()})
        args.output.write_text(json.dumps(results, indent=1) + "\n")


def draw(results: list[dict], path: Path) -> None:
    """Of photos: re-identification before and after refinement, PSNR from 16 pairs, and accuracy against PSNR."""
    accuracies = {entry["variant"]: entry["accuracy"] for entry in results if entry["what"] == "accuracy"}
    photos = {v.title: e for v in VARIANTS for e in results if (e["variant"], e["what"]) == (v.title, "photos")}
    figure, panels = charts.pyplot().subplots(
        1, 3 if accuracies else 2, figsize=(14, 2 + 0.3 * len(photos)), layout="constrained"
    )
    for place, entry in enumerate(reversed(photos.values())):
        panels[0].barh(place, entry["accuracy"], color=charts.BLUE, height=0.6)
        panels[0].plot(entry["before_refinement"], place, "o", color=charts.ORANGE)
        panels[1].barh(place, min(entry["psnr_16"], BEST_PSNR), color=charts.BLUE, height=0.6)
        panels[1].plot(entry["mean_image_psnr"], place, "o", color=charts.ORANGE)
    for axes, names in ((panels[0], list(reversed(photos))), (panels[1], [])):
        axes.set_yticks(range(len(names)), names)
    panels[0].set_xlabel("re-identified without pairs\n(dot: before refinement)")
    panels[1].set_xlabel(f"PSNR of photos reconstructed from 16 pairs, dB\n(dot: mean image; {BEST_PSNR}: or more)")
    titles = photos.keys() & accuracies.keys()
    points = {title: (min(photos[title]["psnr_16"], BEST_PSNR), accuracies[title]) for title in titles}
    for title, (x, y) in points.items():
        left = any(x < other < x + 15 and abs(height - y) < 0.012 for other, height in points.values())
        panels[2].plot(x, y, "o", color=charts.BLUE)
        side = {"ha": "right", "x": x - 1} if left else {"ha": "left", "x": x + 1}  # no title on another
        panels[2].text(y=y, s=title, va="center", color=charts.INK, fontsize=9, **side)
    if accuracies:
        panels[2].set_xlim(10, BEST_PSNR + 14)  # room for a title
        panels[2].set_xlabel("PSNR from 16 pairs, dB")
        panels[2].set_ylabel("test accuracy, short training")
    charts.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="JSON file; the figure is written beside it")
    parser.add_argument("--dataset", help="plain images with the splits train and test: folder or Hub id")
    parser.add_argument("--model", help="pre-trained ViT of 16-pixel patches: folder or Hub id")
    parser.add_argument("--rows", nargs="+", help="titles; default: all")
    parser.add_argument("--images", type=int, default=128, help="attacked, of each kind")
    parser.add_argument("--train", type=int, default=2000, help="0: leakage only")
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--draw", action="store_true", help="only draw the figure again")
    args = parser.parse_args()
    results = json.loads(args.output.read_text()) if args.output.exists() else []
    if not args.draw:
        measure(args, results)
    draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    with one_line_errors():
        main()
