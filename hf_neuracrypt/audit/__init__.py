"""What an attacker gets: the known attacks on the owner's own images, before publishing.

attacks.py     run_audit: all rows, in order
pairs.py       both sides, plain and encrypted, as images and as patches
load.py        pairs of a folder and its source, or made of plain images
folder.py      what files, columns, labels and order give away
ciphertext.py  thumbnails and repeated patches, from ciphertexts alone
matching.py    which ciphertext belongs to which image, without pairs
puzzles.py     permutation ciphers solved from ciphertexts alone: folding, 48 candidates a pixel, a jigsaw of blocks
known.py       images reconstructed from known and from chosen pairs
adapted.py     the same map of known pairs, folded into a model by the owner: what it sees, what it gives away
deep.py        images reconstructed without pairs, by statistics and by a network (`--deep`)
results.py     a row, its grade and the thresholds; `audit.json` read again for `push`, without SciPy
report.py      audit.json and audit.html
"""

from collections.abc import Iterator
from contextlib import contextmanager

from hf_neuracrypt.errors import NeuraCryptError


@contextmanager
def its_packages() -> Iterator[None]:
    """Around imports of the attacks. Raises NeuraCryptError: what they need is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("skimage", "scipy"):
            raise
        raise NeuraCryptError("this needs scikit-image and SciPy: pip install 'hf-neuracrypt[audit]'") from None
