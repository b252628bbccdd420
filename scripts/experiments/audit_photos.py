"""The figures of .github/SECURITY.md: photos of scikit-image, encrypted under a new key and audited as an owner would.

python scripts/audit_photos.py --output audit-photos/ --deep

It writes the plain crops, the encrypted folder, the key and the report there, and prints the table. Figures differ
a little from key to key.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from hf_neuracrypt import EncoderConfig, SecretKey
from hf_neuracrypt.errors import DatasetError, one_line_errors
from hf_neuracrypt.jobs.run import encrypt_source


PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry")


def crops(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Crops of scikit-image's photos at their native resolution, in turn: uint8 (count, size, size, 3)."""
    from skimage import data

    generator, photos = np.random.default_rng(seed), [getattr(data, name)() for name in PHOTOS]
    images = np.empty((count, size, size, 3), np.uint8)
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = (generator.integers(0, side - size + 1) for side in photo.shape[:2])
        images[number] = photo[top : top + size, left : left + size]
    return images


def table(rows: dict) -> str:
    """The table of SECURITY.md, as Markdown."""
    figures = {name: row.figures for name, row in rows.items()}
    known, matching, link = figures["known"], figures["matching"], figures["link"]
    lines = [
        "| attack | attacker has | measured | chance, or without attack |", "|---|---|---|---|",
        f"| thumbnail from principal components | ciphertexts | correlation with brightness "
        f"{figures['thumbnail']['correlation']:.2f} | {figures['thumbnail']['chance']:.2f} |",
        f"| matching with candidate originals | both sides, no pairs | {matching['accuracy']:.0%} of "
        f"{matching['images']} ({matching['before_refinement']:.0%} before refinement) | {matching['chance']:.1%} |",
    ]  # fmt: skip
    baseline = f"{known['mean_image_psnr']:.1f} dB, SSIM {known['mean_image_ssim']:.2f} (mean image)"
    for count in (1, 4, 16, 64, 256):
        if f"psnr_{count}" in known:
            redrawn = ", ".join(
                f"{name} {known[f'{prefix}psnr_{count}']:.1f} dB, SSIM {known[f'{prefix}ssim_{count}']:.2f}"
                for name, prefix in (("linear", ""), ("network", "mlp_"))
            )
            lines.append(f"| redrawing other images | {count} pair{'s' * (count > 1)} | {redrawn} | {baseline} |")
    lines += [
        f"| linking the same images under two keys | ciphertexts | {link['accuracy']:.0%} of {link['images']} | "
        f"{link['chance']:.1%} |",
        f"| silhouettes of repeated patches | ciphertexts | overlap (IoU) with the true ones "
        f"{figures['duplicates']['silhouette_iou'] or 0:.2f} | |",
    ]  # fmt: skip
    for name, attack, holds in (
        ("unpaired", "redrawing by statistics", "ciphertexts and similar images, no pairs"),
        ("deep", "redrawing by a network", "the same, and keys of their own"),
    ):
        if name in figures and "psnr" in (found := figures[name]):
            redrawn, mean = (f"{found[f'{p}psnr']:.1f} dB, SSIM {found[f'{p}ssim']:.2f}" for p in ("", "mean_image_"))
            lines.append(f"| {attack} | {holds} | {redrawn} | {mean} (mean image) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="new folder; it shows plain images")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--deep", action="store_true", help="also the attacks that train networks")
    args = parser.parse_args()
    from hf_neuracrypt.audit.attacks import run_audit
    from hf_neuracrypt.audit.report import write_report

    if args.output.exists():
        raise DatasetError(f"{args.output} is there already: choose a new folder")
    features = Features({"image": Image(), "label": ClassLabel(names=list(PHOTOS))})
    images = list(crops(args.images, args.image_size))
    labels = [number % len(PHOTOS) for number in range(args.images)]
    plain = Dataset.from_dict({"image": images, "label": labels}, features=features)
    DatasetDict({"train": plain}).save_to_disk(str(args.output / "plain"))
    key = SecretKey.generate()
    key.save(args.output / "photos.key")
    encrypted = args.output / "encrypted"
    encrypt_source(str(args.output / "plain"), EncoderConfig(image_size=args.image_size), key, encrypted)
    audit = run_audit(encrypted, str(args.output / "plain"), key, train=args.deep)
    write_report(audit, args.output / "report")
    print(table({row.name: row for row in audit.rows}))
    print(f"{audit.seconds:.0f} s")


if __name__ == "__main__":
    with one_line_errors():
        main()
