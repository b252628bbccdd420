"""`hf-neuracrypt audit`: the known attacks, in the owner's worst case, on the owner's own images, before publishing.

Attacks tried are not attacks possible: each row has a grade, the scheme has none.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_neuracrypt import __version__
from hf_neuracrypt.audit import its_packages
from hf_neuracrypt.data.manifest import checksum, read_manifest


with its_packages():
    from hf_neuracrypt.audit import ciphertext, deep, folder, known, matching, puzzles

from hf_neuracrypt.audit.load import load_pairs
from hf_neuracrypt.audit.pairs import Pairs
from hf_neuracrypt.audit.results import AUDIT_FORMAT, NOT_APPLICABLE, Row
from hf_neuracrypt.data.batches import encrypt_all, use_own_cores
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.keys import SecretKey


@dataclass(frozen=True)
class Pictures:
    """What attacks reconstructed of the images `shown`: by the attack, uint8 (N, 3, S, S) or maps (N, P)."""

    shown: np.ndarray
    reconstructed: dict[str, np.ndarray]


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

    def to_dict(self) -> dict[str, Any]:
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
    use_own_cores()
    manifest = read_manifest(path)
    record = Record.from_dict(manifest)
    record.check_key(key, encrypted)
    encoder = load_encoder(record.config, key)
    pairs = load_pairs(path, source, encoder, max_images, seed, image_column)
    rows = [folder.metadata(path, manifest, record.config, pairs.wrong), folder.key_leak(path, key)]
    rows += [folder.labels(path, pairs, seed), folder.row_order(manifest)]
    attacked, pictures = attack(pairs, encoder, seed, train)
    return Audit(record, checksum(manifest), rows + attacked, seed, time.monotonic() - start, pairs, pictures)


def attack(pairs: Pairs, encoder: Encoder, seed: int = 0, train: bool = False) -> tuple[list[Row], Pictures]:
    """All attacks on pairs of images and ciphertexts; the encoder is the owner's, and serves as the oracle."""
    pictures = Pictures(known.hold_out(pairs, seed)[0], {})
    attacks = _attacks(pairs, encoder, seed, train, pictures)
    return list(tqdm(attacks, desc="Auditing", total=13 if train else 11, unit=" attacks")), pictures


def _attacks(pairs: Pairs, encoder: Encoder, seed: int, train: bool, pictures: Pictures) -> Iterator[Row]:
    """One row after the other; each adds what it shows to `pictures`."""
    shown, images = pictures.shown, pictures.reconstructed
    row, maps = ciphertext.thumbnail(pairs, seed)
    images["ciphertexts alone"] = maps[shown]
    yield row
    yield matching.matching(pairs, maps, seed)
    row, by_count = known.known_plaintext(pairs, seed)
    for count in sorted({1, 16, max(by_count)} & by_count.keys()):
        images[f"{count} known pair{'s' if count > 1 else ''}"] = by_count[count]
    yield row
    yield ciphertext.duplicates(pairs, seed)
    yield _linkability(pairs, seed)
    row, decrypted = known.chosen_plaintext(pairs, encoder)
    if decrypted is not None:
        images["chosen images"] = decrypted[shown]
    yield row
    yield puzzles.folding(pairs)
    row, recoloured = puzzles.candidates(pairs)
    if recoloured is not None:
        images["48 candidates"] = recoloured[shown]
    yield row
    yield puzzles.jigsaw(pairs, np.array(encoder.block_order()) if pairs.config.moves_blocks else None, seed)
    yield _shuffle(pairs, encoder)
    yield ciphertext.values(pairs)
    if train:
        row, aligned = deep.unpaired(pairs, shown, seed)
        if aligned is not None:
            images["ciphertexts and other images"] = aligned
        yield row
        row, images["network, other keys"] = deep.inverse_network(pairs, shown, seed, deep.KEYS)
        yield row


def _linkability(pairs: Pairs, seed: int) -> Row:
    """The same images under a throw-away key that everybody could know: it protects nothing."""
    few = pairs.take(range(min(len(pairs), matching.LINKED_IMAGES)))
    encoder = load_encoder(pairs.config, SecretKey(hashlib.sha256(f"audit {seed}".encode()).digest()))
    again = encrypt_all(encoder.encrypt_in_place, few.plain)
    return matching.linkability(few, Pairs(pairs.config, few.plain, again), seed)


def _shuffle(pairs: Pairs, encoder: Encoder) -> Row:
    if not pairs.config.shuffles:
        return Row("shuffle", NOT_APPLICABLE, "This scheme does not shuffle the patches of each image anew.")
    few = range(min(len(pairs), matching.LINKED_IMAGES // 4))
    orders = np.array([encoder.shuffle_order(torch.from_numpy(pairs.plain[number])) for number in few])
    shuffled = np.stack([pairs.encrypted[number][order] for number, order in zip(few, orders)])
    return matching.unshuffle(shuffled, orders)
