"""Accuracy against leakage: every scheme, depths, widths, and options that Color-NeuraCrypt does not have.

python scripts/frontier.py --dataset cifar10 --model vit-tiny/ --output model_cards/frontier.json
python scripts/frontier.py --output model_cards/frontier.json --draw

Leakage is what `hf-neuracrypt audit` measures, on test images of the dataset and on crops of scikit-image's photos at
their native resolution, under a throw-away key. Accuracy is a ViT's on ciphertexts, from their labels alone, after a
short training on the first images: it tells what an option costs, not what a scheme can reach. What the file already
holds is not run again. The options that Color-NeuraCrypt does not have are made here, around the encoder:

noise      a normal error on each byte of a ciphertext, new for each image
blocks     the patches of all ciphertexts change places, alike; the attacker first solves the jigsaw
positions  the values of each plain patch change places and signs, by a key of that position, before the network
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import charts
import numpy as np
import torch
from ablate import BATCH, DECAY, Row, accuracy, groups_of, to_float
from audit_photos import crops
from tqdm.auto import tqdm

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.audit.ciphertext import thumbnail
from hf_neuracrypt.audit.known import GAIN_DB, REDRAWN_IMAGES, known_plaintext, quality
from hf_neuracrypt.audit.matching import matching
from hf_neuracrypt.audit.pairs import BLOCK_MOVING_SCHEMES, Pairs, cut, join
from hf_neuracrypt.audit.puzzles import candidates, jigsaw, put_back
from hf_neuracrypt.audit.known import ridge
from hf_neuracrypt.data.columns import find_columns
from hf_neuracrypt.schemes import PublicConfig
from hf_neuracrypt.errors import NeuraCryptError, one_line_errors
from hf_neuracrypt.images import prepare
from hf_neuracrypt.schemes import make_config
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.training.data import load_model


PATCH = 16
COUNTS = (1, 4, 16, 64)  # known pairs
BEST_PSNR = 45  # dB, where bars end
Encrypt = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """A point of the frontier: a scheme, its options, and what is done around its encoder."""

    title: str
    scheme: str = "color-neuracrypt"
    options: dict = field(default_factory=dict)
    noise: float = 0.0  # standard deviation, in grey levels of the ciphertext
    blocks: bool = False
    positions: bool = False
    plain: bool = False
    learn: bool = False  # also train on it


BLOCK = {"block_size": PATCH}
VARIANTS = [
    Variant("plain images", plain=True, learn=True),
    Variant("depth 4 (default)", learn=True),
    *(Variant(f"depth {d}", options={"depth": d}, learn=d in (0, 16)) for d in (0, 1, 2, 8, 16)),
    Variant("width 2048", options={"width": 2048}, learn=True),
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


def make_encrypt(variant: Variant, size: int) -> tuple[PublicConfig, Encrypt, np.ndarray | None]:
    """The public config, uint8 (B, 3, S, S) -> ciphertexts, and where blocks come from, under a throw-away key."""
    config = make_config(variant.scheme, {"image_size": size} | variant.options)
    encoder, generator = load_encoder(config, SecretKey.generate()), np.random.default_rng()
    count, values = (size // PATCH) ** 2, 3 * PATCH**2
    order = generator.permutation(count) if variant.blocks else None
    moves = generator.permuted(np.tile(np.arange(values), (count, 1)), axis=1)
    signs = generator.integers(0, 2, (count, values), np.uint8) * 255

    def encrypt(images: torch.Tensor) -> torch.Tensor:
        if variant.plain:
            return images
        if variant.positions:
            patches = np.take_along_axis(cut(images.numpy(), PATCH), moves[None], 2) ^ signs
            images = torch.from_numpy(join(patches, size))
        batches = images.split(32)
        found = torch.cat([encoder.represent(b) if config.representation else encoder.encrypt(b) for b in batches])
        if variant.noise:
            noise = torch.from_numpy(generator.normal(0, variant.noise, found.shape).astype(np.float32))
            found = (found + noise).round().clamp(0, 255).byte()
        if order is not None:
            found = torch.from_numpy(join(cut(found.numpy(), PATCH)[:, order], size))
        return found

    moved_by_scheme = variant.scheme in BLOCK_MOVING_SCHEMES
    return config, encrypt, encoder.block_order(PATCH) if moved_by_scheme else order


def leakage(variant: Variant, images: np.ndarray) -> dict:
    """Figures of the audit's attacks; uint8 (N, 3, S, S)."""
    config, encrypt, order = make_encrypt(variant, images.shape[-1])
    pairs = Pairs(config, images, encrypt(torch.from_numpy(images)).numpy())
    found = {"neighbours": jigsaw(pairs, order, 0).figures.get("neighbours")} if order is not None else {}
    if variant.blocks:
        pairs = _upright(pairs, put_back(pairs, 0), order)
    row, maps = thumbnail(pairs, 0)
    found["thumbnail"] = row.figures["correlation"]
    matched, known = matching(pairs, maps, 0).figures, known_plaintext(pairs, 0)[0].figures
    found |= {name: matched[name] for name in ("accuracy", "before_refinement", "chance")}
    found["mean_image_psnr"] = known["mean_image_psnr"]
    by_position = _each_position(pairs) if variant.positions else {}
    counts = [count for count in COUNTS if f"psnr_{count}" in known]
    for count in counts:
        found[f"psnr_{count}"] = max(
            known[f"psnr_{count}"], known.get(f"mlp_psnr_{count}", 0), by_position.get(count, 0)
        )  # fmt: skip
    enough = (count for count in counts if found[f"psnr_{count}"] >= found["mean_image_psnr"] + GAIN_DB)
    found["pairs_for_3_db"] = next(enough, None)
    if config.scheme == "pe":
        found["recovered"] = candidates(pairs)[0].figures["recovered"]
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def _upright(pairs: Pairs, places: np.ndarray, order: np.ndarray) -> Pairs:
    """Ciphertexts with their patches at `places`, turned and mirrored as an attacker would find out in eight trials."""
    side = round(len(places) ** 0.5)
    square = places.reshape(side, side)
    turned = [np.rot90(each, turns).reshape(-1) for each in (square, square.T) for turns in range(4)]
    best = max(turned, key=lambda blocks: (order[blocks] == np.arange(len(blocks))).mean())
    return replace(pairs, encrypted=join(cut(pairs.encrypted, PATCH)[:, best], pairs.config.image_size))


def _each_position(pairs: Pairs) -> dict[int, float]:
    """PSNR by number of pairs of a linear map for each position, which a key for each position makes necessary."""
    order, found = np.random.default_rng(0).permutation(len(pairs)), {}
    held_out, pool = np.split(order, [min(REDRAWN_IMAGES, len(pairs) // 4)])
    unknown, truth = pairs.encrypted_centred[held_out], pairs.plain[held_out]
    for count in COUNTS[1:]:
        known = pairs.take(pool[:count])
        given, target = known.encrypted_centred, known.plain_patches.astype(np.float32)
        middle, average = given.mean(0), target.mean(0)
        weights = [
            ridge(g, t, 1, 0)[0] for g, t in zip((given - middle).swapaxes(0, 1), (target - average).swapaxes(0, 1))
        ]
        patches = np.stack([(unknown - middle)[:, p] @ w for p, w in enumerate(weights)], axis=1) + average
        redrawn = join(patches.round().clip(0, 255).astype(np.uint8), pairs.config.image_size)
        found[count] = quality(truth, redrawn)[0]
    return found


def learn(variant: Variant, train: tuple, test: tuple, model_name: str, epochs: int) -> float:
    """Test accuracy of a ViT trained on ciphertexts by their labels alone; train, test: (images, labels)."""
    torch.manual_seed(0)
    (images, labels), (queries, answers) = train, test
    _, encrypt, _ = make_encrypt(variant, images.shape[-1])
    images, queries = encrypt(images), encrypt(queries)
    names = [str(label) for label in range(int(labels.max()) + 1)]
    model = load_model(model_name, None, names, images.shape[-1], [])
    groups = groups_of(model, Row(variant.title))
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    steps, rates = len(images) // BATCH, [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, epochs * steps, pct_start=0.1)
    for _ in tqdm(range(epochs), desc=f"Learning {variant.title}", leave=False):
        for index in torch.randperm(len(images)).split(BATCH)[:steps]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(pixel_values=to_float(images[index])).logits
                loss = torch.nn.functional.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return accuracy(model, queries, answers)


def read(name: str, split: str, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of a split, uint8 (B, 3, S, S), and their labels."""
    rows = load_source(name)[split]
    rows = rows.select(range(min(count, len(rows))))
    columns, config = find_columns(rows.features, None, None), make_config("color-neuracrypt", {"image_size": size})
    images = np.stack([prepare(image, config) for image in rows[columns.image]])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(rows[columns.label])


def measure(args: argparse.Namespace, results: list[dict]) -> None:
    """Add what is missing to `results`, and save after each."""
    if not (args.dataset and args.model):
        raise NeuraCryptError("--dataset and --model are needed to measure")
    size, variants = args.image_size, [v for v in VARIANTS if not args.rows or v.title in args.rows]
    leaking = {"test images": read(args.dataset, "test", args.images, size)[0].numpy()}
    leaking["photos"] = np.ascontiguousarray(crops(args.images, size).transpose(0, 3, 1, 2))
    jobs = [(variant, images) for variant in variants for images in leaking]
    jobs += [(variant, "accuracy") for variant in variants if variant.learn and args.train]
    for variant, what in tqdm(jobs, desc="Frontier"):
        wanted = {"variant": variant.title, "what": what, "image_size": size}
        wanted |= {"train": args.train, "epochs": args.epochs} if what == "accuracy" else {"images": args.images}
        if any(wanted.items() <= entry.items() for entry in results) or (variant.plain and what != "accuracy"):
            continue
        if what == "accuracy":
            sides = read(args.dataset, "train", args.train, size), read(args.dataset, "test", args.test, size)
            found = {"test": args.test, "accuracy": round(learn(variant, *sides, args.model, args.epochs), 4)}
        else:
            found = leakage(variant, leaking[what])
        results.append(wanted | found)
        args.output.write_text(json.dumps(results, indent=1) + "\n")


def draw(results: list[dict], path: Path) -> None:
    """Of photos: re-identification before and after refinement, what 16 pairs redraw, and accuracy against that."""
    accuracies = {entry["variant"]: entry["accuracy"] for entry in results if entry["what"] == "accuracy"}
    photos = {entry["variant"]: entry for entry in results if entry["what"] == "photos"}
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
    panels[1].set_xlabel(f"PSNR of photos redrawn from 16 pairs, dB\n(dot: mean image; {BEST_PSNR}: or more)")
    for title in photos.keys() & accuracies.keys() if accuracies else ():
        place = min(photos[title]["psnr_16"], BEST_PSNR), accuracies[title]
        panels[2].plot(*place, "o", color=charts.BLUE)
        panels[2].annotate(f" {title}", place, color=charts.INK, fontsize=9)
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
