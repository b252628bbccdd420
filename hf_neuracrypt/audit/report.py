"""An audit as files: `audit.json` for machines and cards, `audit.html`, one page with pictures, for the owner alone."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hf_neuracrypt.audit.attacks import Audit
from hf_neuracrypt.data.manifest import write_whole
from hf_neuracrypt.publish.cards import render


PICTURES, PICTURE_PIXELS = 6, 140  # rows of pictures, and what a picture is wide on the page


def write_report(audit: Audit, output: Path) -> None:
    """Write `audit.json` and `audit.html` into a folder that is made if it is not there."""
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "audit.json", json.dumps(audit.to_dict(), indent=2) + "\n")
    page = render(
        "audit.html.jinja",
        autoescape=True,
        audit=audit.to_dict(),
        rows=audit.rows,
        columns=["plain", "encrypted", *audit.pictures.redrawn],
        pictures=list(_pictures(audit)),
    )
    write_whole(output / "audit.html", page)


def _pictures(audit: Audit) -> Iterator[list[str]]:
    """Each image's row of the grid, as addresses that hold the picture itself."""
    size = audit.record.config.image_size
    for place, number in enumerate(audit.pictures.shown[:PICTURES]):
        encrypted = audit.pairs.encrypted[number]
        shown = [audit.pairs.plain[number], encrypted if audit.pairs.is_image else patch_means(encrypted, size)]
        shown += [
            images[place] if images.ndim == 4 else grey_map(images[place], size)
            for images in audit.pictures.redrawn.values()
        ]
        yield [_address(image) for image in shown]


def grey_map(values: np.ndarray, size: int) -> np.ndarray:
    """A value for each patch as a grey image, uint8 (3, S, S); its sign is not known to the attacker."""
    grid = round(len(values) ** 0.5)
    low, high = values.min(), values.max()
    grey = ((values - low) / max(high - low, 1e-6) * 255).astype(np.uint8).reshape(grid, grid)
    return np.broadcast_to(grey.repeat(size // grid, 0).repeat(size // grid, 1), (3, size, size))


def patch_means(patches: np.ndarray, size: int) -> np.ndarray:
    """A patch representation as a picture: the mean of each patch."""
    return grey_map(patches.mean(1), size)


def _address(image: np.ndarray) -> str:
    """A picture for the page alone, small and lossy: ciphertexts do not compress without loss."""
    picture, file = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), io.BytesIO()
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
