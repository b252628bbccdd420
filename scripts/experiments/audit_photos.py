"""The figures of .github/SECURITY.md: photos of scikit-image, encrypted under a new key and audited as an owner would.

python scripts/experiments/audit_photos.py --output audit-photos/ --deep

It writes the plain crops, the encrypted folder, the key and the report there, and prints the table. Figures differ
a little from key to key.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from photos import PHOTOS, crops

from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder
from hf_neuracrypt.audit.attacks import run_audit
from hf_neuracrypt.audit.report import write_report
from hf_neuracrypt.audit.results import Row
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.errors import DatasetError, one_line_errors
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run


def table(rows: Iterable[Row]) -> str:
    """The table of SECURITY.md, as Markdown."""
    figures: dict[str, Any] = {row.name: row.figures for row in rows}
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
            measured = ", ".join(
                f"{name} {known[f'{prefix}psnr_{count}']:.1f} dB, SSIM {known[f'{prefix}ssim_{count}']:.2f}"
                for name, prefix in (("linear", ""), ("network", "mlp_"))
            )
            lines.append(f"| reconstructing other images | {count} pair{'s' * (count > 1)} | {measured} | {baseline} |")
    lines += [
        f"| linking the same images under two keys | ciphertexts | {link['accuracy']:.0%} of {link['images']} | "
        f"{link['chance']:.1%} |",
        f"| silhouettes of repeated patches | ciphertexts | overlap (IoU) with the true ones "
        f"{figures['duplicates']['silhouette_iou'] or 0:.2f} | |",
    ]  # fmt: skip
    for name, attack, holds in (
        ("unpaired", "reconstruction by statistics", "ciphertexts and similar images, no pairs"),
        ("deep", "reconstruction by a network", "the same, and keys of their own"),
    ):
        if name in figures and "psnr" in (found := figures[name]):
            measured, mean = (f"{found[f'{p}psnr']:.1f} dB, SSIM {found[f'{p}ssim']:.2f}" for p in ("", "mean_image_"))
            lines.append(f"| {attack} | {holds} | {measured} | {mean} (mean image) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="new folder; it shows plain images")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--deep", action="store_true", help="also the attacks that train networks")
    args = parser.parse_args()
    if args.output.exists():
        raise DatasetError(f"{args.output} is there already: choose a new folder")
    features = Features({"image": Image(), "label": ClassLabel(names=list(PHOTOS))})
    images = [image.transpose(1, 2, 0) for image in crops(args.images, args.image_size)]
    labels = [number % len(PHOTOS) for number in range(args.images)]
    splits = DatasetDict({"train": Dataset.from_dict({"image": images, "label": labels}, features=features)})
    plain, encrypted, key = args.output / "plain", args.output / "encrypted", SecretKey.generate()
    splits.save_to_disk(str(plain))
    key.save(args.output / "photos.key")
    encoder = load_encoder(EncoderConfig(image_size=args.image_size), key)
    run(Job(splits, make_plan(splits, encoder), encrypted))
    audit = run_audit(encrypted, str(plain), key, train=args.deep)
    write_report(audit, args.output / "report")
    print(table(audit.rows))
    print(f"{audit.seconds:.0f} s")


if __name__ == "__main__":
    with one_line_errors():
        main()
