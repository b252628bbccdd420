"""`hf-neuracrypt audit`: the known attacks, in the owner's worst case, on the owner's own images, before publishing.

Attacks tried are not attacks possible: each row has a grade, the scheme has none.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_neuracrypt import __version__
from hf_neuracrypt.data.manifest import checksum, read_manifest
from hf_neuracrypt.errors import NeuraCryptError


try:
    from hf_neuracrypt.audit import ciphertext, deep, folder, known, matching, puzzles, unpaired
except ModuleNotFoundError as error:
    if error.name.split(".")[0] not in ("skimage", "scipy"):
        raise
    raise NeuraCryptError("the audit needs scikit-image and SciPy: pip install 'hf-neuracrypt[audit]'") from None

from hf_neuracrypt.audit.pairs import BLOCK_MOVING_SCHEMES, Pairs, load_pairs
from hf_neuracrypt.audit.results import AUDIT_FORMAT, NOT_APPLICABLE, Row
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.keys import SecretKey


@dataclass(frozen=True)
class Pictures:
    """What attacks redrew of the images `shown`: by the attack, uint8 (N, 3, S, S) or maps (N, P)."""

    shown: np.ndarray
    redrawn: dict[str, np.ndarray]


@dataclass(frozen=True)
class Audit:
    """Rows, and what they are about; `pictures` and `pairs` show plain images and stay with the owner."""

    record: Record
    manifest_sha256: str
    rows: list[Row]
    seed: int
    seconds: float
    pairs: Pairs
    pictures: Pictures

    def to_dict(self) -> dict:
        """The content of `audit.json`: the same in every run but for `seconds`."""
        return {
            "neuracrypt_audit": AUDIT_FORMAT, "version": __version__, "config": self.record.config.to_dict(),
            "key_id": self.record.key_id, "manifest_sha256": self.manifest_sha256, "images": len(self.pairs),
            "seed": self.seed, "statement": "attacks tried, not attacks possible",
            "rows": [row.to_dict() for row in self.rows], "seconds": round(self.seconds, 1),
        }  # fmt: skip


def run_audit(
    encrypted: str | Path,
    source: str,
    key: SecretKey,
    *,
    max_images: int = 512,
    seed: int = 0,
    image_column: str | None = None,
    train: bool = False,
) -> Audit:
    """Attack a finished encrypted folder with everything its owner has.

    Args:
        encrypted: written by `hf-neuracrypt encrypt`.
        source: the plain dataset it was made of.
        key: the folder's.
        max_images: how many images to look at; fewer if they are large.
        seed: draws them, and which are known.
        image_column: as given to `encrypt`.
        train: also the attacks that train networks, which takes minutes (`--deep`).

    Raises:
        KeyMismatchError: another key's folder.
        DatasetError: an unfinished folder, or another source.
    """
    start, path = time.monotonic(), Path(encrypted)
    manifest = read_manifest(path)
    record = Record.from_dict(manifest)
    record.check_key(key, encrypted)
    encoder = load_encoder(record.config, key)
    pairs = load_pairs(path, source, encoder, max_images, seed, image_column)
    rows = [
        folder.metadata(path, manifest, record.config, pairs.wrong), folder.key_leak(path, key), folder.labels(path),
        folder.row_order(),
    ]  # fmt: skip
    attacked, pictures = attack(pairs, encoder, seed, train)
    return Audit(
        record, checksum(manifest), rows + attacked, seed, time.monotonic() - start, pairs, pictures
    )  # fmt: skip


def attack(pairs: Pairs, encoder: Encoder, seed: int = 0, train: bool = False) -> tuple[list[Row], Pictures]:
    """All attacks on pairs of images and ciphertexts; the encoder is the owner's, and serves as the oracle."""
    rows, redrawn = [], {}
    with tqdm(total=9, desc="Auditing", unit=" attacks") as bar:

        def done(row: Row) -> None:
            rows.append(row)
            bar.set_postfix_str(row.title)
            bar.update()

        row, maps = ciphertext.thumbnail(pairs, seed)
        done(row)
        done(matching.matching(pairs, maps, seed))
        row, shown, redraws = known.known_plaintext(pairs, seed)
        done(row)
        done(ciphertext.duplicates(pairs, seed))
        done(_linkability(pairs, seed))
        row, decrypted = known.chosen_plaintext(pairs, encoder)
        done(row)
        done(puzzles.folding(pairs))
        row, recoloured = puzzles.candidates(pairs)
        done(row)
        done(puzzles.jigsaw(pairs, _block_order(pairs, encoder), seed))
    rows += [_shuffle(pairs, encoder), ciphertext.values(pairs)]
    redrawn["ciphertexts alone"] = maps[shown]
    redrawn |= {
        f"{count} known pair{'s' if count > 1 else ''}": images
        for count, images in redraws.items()
        if count in (1, 16, max(redraws))
    }
    if recoloured is not None:
        redrawn["48 candidates"] = recoloured[shown]
    if decrypted is not None:
        redrawn["chosen images"] = decrypted[shown]
    if train:
        row, aligned = unpaired.unpaired(pairs, shown, seed)
        rows.append(row)
        if aligned is not None:
            redrawn["ciphertexts and other images"] = aligned
        row, redrawn["network, other keys"] = deep.inverse_network(pairs, shown, seed, deep.KEYS)
        rows.append(row)
    return rows, Pictures(shown, redrawn)


def _linkability(pairs: Pairs, seed: int) -> Row:
    """The same images under a throw-away key that everybody could know: it protects nothing."""
    few = pairs.take(range(min(len(pairs), matching.LINKED_IMAGES)))
    encoder = load_encoder(pairs.config, SecretKey(hashlib.sha256(f"audit {seed}".encode()).digest()))
    again = deep.encrypt_in_place(encoder, few.plain)
    return matching.linkability(few, Pairs(pairs.config, few.plain, again), seed)


def _block_order(pairs: Pairs, encoder: Encoder) -> np.ndarray | None:
    """Where each block of a ciphertext comes from; None: blocks stay where they are."""
    if pairs.config.scheme not in BLOCK_MOVING_SCHEMES:
        return None
    return encoder.block_order(pairs.tile)


def _shuffle(pairs: Pairs, encoder: Encoder) -> Row:
    if getattr(pairs.config, "shuffle", "off") == "off":
        return Row("shuffle", NOT_APPLICABLE, "This scheme does not shuffle the patches of each image anew.")
    few = range(min(len(pairs), matching.LINKED_IMAGES // 4))
    orders = np.array([encoder.patch_order(torch.from_numpy(pairs.plain[number])) for number in few])
    shuffled = np.stack([pairs.encrypted[number][order] for number, order in zip(few, orders)])
    return matching.shuffle(shuffled, orders)
