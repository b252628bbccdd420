"""Puzzles."""

import numpy as np

from hf_neuracrypt.audit.ciphertext import unit
from hf_neuracrypt.audit.pairs import Pairs
from hf_neuracrypt.audit.rows import NOT_APPLICABLE, Row, grade


def folded(images: np.ndarray) -> np.ndarray:
    """|value - 127.5|, summed over colours: what inverting values and permuting colours cannot change. (N, S, S)."""
    return np.abs(images.astype(np.float32) - 127.5).sum(1)


def folding(pairs: Pairs) -> Row:
    """Folding at half range undoes negative-positive ciphers but for a mirrored brightness (Chang and Li)."""
    if not pairs.is_image:
        return Row("folding", NOT_APPLICABLE, "A patch representation has no 8-bit range to fold.")
    ours, truth = (unit(folded(images)) for images in (pairs.encrypted, pairs.plain))
    figures = {
        "correlation": float(np.median(np.abs((ours * truth).sum(1)))),
        "chance": float(np.median(np.abs((ours * np.roll(truth, 1, axis=0)).sum(1)))),
    }
    value = figures["correlation"] if figures["correlation"] > 1.5 * figures["chance"] else 0
    return Row("folding", grade(value, 0.2, 0.5), "Ciphertext and plain image, both folded (median).", figures)
