"""An audit as files: `audit.json` for machines and cards, `audit.html`, one page with pictures, for the owner alone."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from einops import repeat
from PIL import Image

from hf_neuracrypt.audit.attacks import Audit
from hf_neuracrypt.data.places import atomic_write
from hf_neuracrypt.publish.cards import render


PICTURES, PICTURE_PIXELS = 6, 140  # rows of pictures, and what a picture is wide on the page


def write_report(audit: Audit, output: Path) -> None:
    """Write `audit.json` and `audit.html`, which shows plain images, into a folder that nobody else may read."""
    output.mkdir(parents=True, exist_ok=True)
    output.chmod(0o700)
    atomic_write(output / "audit.json", json.dumps(audit.to_dict(), indent=2) + "\n")
    page = render(
        "audit.html.jinja",
        autoescape=True,
        audit=audit.to_dict(),
        rows=audit.rows,
        columns=["plain", "encrypted", *audit.pictures.reconstructed],
        pictures=list(_pictures(audit)),
    )
    atomic_write(output / "audit.html", page)
    for file in ("audit.json", "audit.html"):
        (output / file).chmod(0o600)


def _pictures(audit: Audit) -> Iterator[list[str]]:
    """Each image's row of the grid, as addresses that hold the picture itself."""
    pairs, pictures = audit.pairs, audit.pictures
    for place, number in enumerate(pictures.shown[:PICTURES]):
        images = [pairs.plain[number], pairs.encrypted[number]]
        images += [of_all[place] for of_all in pictures.reconstructed.values()]
        yield [_address(image if image.ndim == 3 else grey_map(image, pairs.config.image_size)) for image in images]


def grey_map(values: np.ndarray, size: int) -> np.ndarray:
    """Patches (P, D), or a value for each, (P,), as a grey image, uint8 (3, S, S): light and dark may be exchanged."""
    values = values.reshape(len(values), -1).mean(1)
    low, high, grid = values.min(), values.max(), round(len(values) ** 0.5)
    grey = ((values - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    return repeat(grey, "(h w) -> c (h p) (w q)", c=3, h=grid, p=size // grid, q=size // grid)


def _address(image: np.ndarray) -> str:
    """A picture for the page alone, small and lossy: ciphertexts do not compress without loss."""
    picture, file = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), io.BytesIO()
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
