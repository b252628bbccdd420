"""The figures of the README, drawn into model_cards/results/. It needs the extras `audit` and `demo`.

python scripts/experiments/figures.py overview     # photos, their ciphertexts under two keys, and a reconstruction
python scripts/experiments/figures.py schemes      # one photo under every scheme
python scripts/experiments/figures.py throughput   # what `benchmark.py encoder` measured
python scripts/experiments/figures.py curves       # accuracy over epochs, from ablation-long.json

The photos come with scikit-image and are in the public domain (NASA, SpaceX) or CC0. A picture that shows both sides of
an encryption breaks its key, so every start makes keys of its own, in memory, and forgets them. Backgrounds are
transparent, in colours that are visible on light and on dark pages. `ablate.py --draw` draws the chart of accuracies.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import charts
import numpy as np
from photos import read_photo, squares
from PIL import Image, ImageDraw, ImageFont

from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder
from hf_neuracrypt.audit.known import reconstruct
from hf_neuracrypt.audit.pairs import Pairs, cut
from hf_neuracrypt.data.batches import encrypt_all
from hf_neuracrypt.errors import NeuraCryptError, one_line_errors
from hf_neuracrypt.images import prepare
from hf_neuracrypt.schemes import SCHEMES, SchemeConfig, make_config


OUTPUT = Path(__file__).parents[2] / "model_cards" / "results"
GAP, LINE = 8, 18  # pixels between pictures, and of a line of text
SHOWN = {"astronaut": (0, 90, 270), "chelsea": (0, 80, 300)}  # top, left and side of the square that is shown
OTHERS = ("coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")
KNOWN_PAIRS = 16


def shown(name: str, config: SchemeConfig) -> np.ndarray:
    """The square of a photo, as it is encrypted: uint8 (3, S, S)."""
    top, left, side = SHOWN[name]
    return prepare(read_photo(name)[top : top + side, left : left + side], config)


def encrypt(images: np.ndarray, config: SchemeConfig, key: SecretKey) -> np.ndarray:
    """Ciphertexts of uint8 images (N, 3, S, S)."""
    return encrypt_all(load_encoder(config, key).encrypt, images)


def attack(encrypted: np.ndarray, known: np.ndarray, config: SchemeConfig, key: SecretKey) -> np.ndarray:
    """What one linear map of patches, fitted on pairs of the `known` images, makes of ciphertexts."""
    pairs = Pairs(config, known, encrypt(known, config, key))
    return reconstruct(pairs, cut(encrypted, config.tile) - pairs.encrypted_mean, 0)["ridge"]


def draw_overview(path: Path) -> None:
    """A row a photo: plain, encrypted under two keys, and reconstructed by an attacker with pairs of other photos."""
    config, key = EncoderConfig(image_size=160), SecretKey.generate()
    plain = np.stack([shown(name, config) for name in SHOWN])
    encrypted, others = encrypt(plain, config, key), squares(KNOWN_PAIRS, config.image_size, OTHERS)
    columns = {
        "plain": plain,
        "encrypted": encrypted,
        "under another key": encrypt(plain, config, SecretKey.generate()),
        f"reconstructed from {KNOWN_PAIRS} pairs": attack(encrypted, others, config, key),
    }
    rows = [
        [(title if row == 0 else "", images[row]) for title, images in columns.items()] for row in range(len(plain))
    ]
    grid(rows).save(path, optimize=True)


def draw_schemes(path: Path) -> None:
    """One photo under every scheme. NeuraCrypt gives no image: drawn is a corner of its table of numbers."""
    size = 128
    # NeuraCrypt gives a row of numbers for each patch: patches of 8 pixels give enough rows to fill a square.
    options: dict[str, dict[str, Any]] = {"neuracrypt": {"patch_size": 8}, "etc, variant madono": {"variant": "madono"}}
    cells = [("plain", shown("astronaut", EncoderConfig(image_size=size)))]
    for title in (*SCHEMES, *(title for title in options if title not in SCHEMES)):
        config = make_config(title.split(",")[0], {"image_size": size} | options.get(title, {}))
        encrypted = encrypt(np.stack([shown("astronaut", config)]), config, SecretKey.generate())[0]
        cells.append((title, table(encrypted[:size, :size]) if config.patch_shape else encrypted))
    grid([cells[:5], cells[5:]]).save(path, optimize=True)


def table(numbers: np.ndarray) -> np.ndarray:
    """float32 (rows, columns) as grey uint8 (3, rows, columns), three standard deviations around the mean."""
    grey = ((numbers - numbers.mean()) / (6 * numbers.std()) + 0.5).clip(0, 1) * 255
    return np.repeat(grey.astype(np.uint8)[None], 3, axis=0)


def grid(rows: list[list[tuple[str, np.ndarray]]]) -> Image.Image:
    """Pictures of one size, uint8 (3, S, S), each under its title; no pixel is scaled."""
    size, columns = rows[0][0][1].shape[-1], max(len(row) for row in rows)
    heights = [size + GAP + (LINE if row[0][0] else 0) for row in rows]
    canvas = Image.new("RGBA", (columns * (size + GAP) - GAP, sum(heights) - GAP))
    pen, font, bottom = ImageDraw.Draw(canvas), ImageFont.load_default(12), 0
    for row, height in zip(rows, heights):
        for column, (title, picture) in enumerate(row):
            pen.text((column * (size + GAP), bottom), title, fill=charts.INK, font=font)
            image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
            canvas.paste(image, (column * (size + GAP), bottom + height - size - GAP))
        bottom += height
    return canvas


def draw_throughput(path: Path) -> None:
    """Bars of images/s: the float32 network, the exact encoder, and int8 products alone, which are its limit."""
    measured = OUTPUT / "throughput.json"
    if not measured.exists():
        command = f"python scripts/experiments/benchmark.py --output {measured} encoder"
        raise NeuraCryptError(f"there is no {measured}; this measures it: {command}")
    result = json.loads(measured.read_text())
    rates = result["images_per_second"] | {"int8 products alone": result["int8_limit"]["images_per_second"]}
    base, machine = rates["float32 network"], result["environment"]
    figure, axes = charts.pyplot().subplots(figsize=(8, 0.42 * len(rates) + 0.7))
    for place, (name, rate) in enumerate(sorted(rates.items(), key=lambda pair: -pair[1])):
        axes.barh(place, rate, color=charts.BLUE if name.startswith("exact") else charts.ORANGE, height=0.6)
        axes.text(rate, place, f" {rate:,.0f} ({rate / base:.1f} x float32)", va="center", color=charts.INK)
    axes.set_yticks(range(len(rates)), sorted(rates, key=lambda name: -rates[name]))
    axes.set_xlim(0, 1.3 * max(rates.values()))
    axes.set_xlabel(f"images/s at 224 px; threads: {machine['threads']}, {machine['processor']}")
    axes.spines[["top", "right"]].set_visible(False)
    charts.save(figure, path)


def draw_curves(path: Path) -> None:
    """Test accuracy after each epoch, a line for each row of `ablate.py`, its name at its end."""
    figure, axes = charts.pyplot().subplots(figsize=(8, 4.5))
    for entry in json.loads((OUTPUT / "ablation-long.json").read_text()):
        seen, color = entry["accuracy"], charts.ORANGE if entry["switches"]["plain"] else charts.BLUE
        axes.plot(range(1, len(seen) + 1), seen, "-o", color=color, markersize=3)
        axes.text(len(seen) + 0.2, seen[-1], f"{entry['row']} {seen[-1]:.3f}", va="center", color=charts.INK)
    axes.set_xlabel("epochs")
    axes.set_ylabel("test accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    charts.save(figure, path)


FIGURES = {"overview": draw_overview, "schemes": draw_schemes, "throughput": draw_throughput, "curves": draw_curves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="+", choices=FIGURES)
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder for the pictures; default: model_cards/results/"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.figures:
        FIGURES[name](args.output / f"{name}.png")


if __name__ == "__main__":
    with one_line_errors():
        main()
