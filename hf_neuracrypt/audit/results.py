"""A row of an audit: one attack, what it got, and a grade by thresholds that are written down here and in the report.

There is no grade for a scheme as a whole: attacks tried are not attacks possible.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_neuracrypt.errors import NeuraCryptError, first_line
from hf_neuracrypt.publish.cards import PublishedAudit


AUDIT_FORMAT = 1
MAX_AUDIT_BYTES = 1_000_000

LEAKS, WEAK, NEAR_CHANCE, NOT_APPLICABLE = "leaks", "weak", "near chance", "not applicable"
NOTHING_FOUND = "nothing found"  # by a search, where there is no chance to compare with
GRADES = (LEAKS, WEAK, NEAR_CHANCE, NOTHING_FOUND, NOT_APPLICABLE)

# Every row by its name: title, what the attacker holds, and how it is graded.
ROWS: dict[str, tuple[str, str, str]] = {
    "metadata": ("Metadata and columns", "the folder", "leaks: anything found; weak: columns kept in clear"),
    "key": ("Key leakage", "the folder", "leaks: the key, in any form"),
    "labels": (
        "Label leak", "the folder; of hidden labels, similar labelled pictures as well",
        "leaks: class names, or hidden ones named, above chance, by more than 50 %; weak: labels without names",
    ),
    "order": ("Row order", "the folder", "leaks: rows are in the order of the source"),
    "thumbnail": (
        "Thumbnail", "ciphertexts",
        "|correlation| of a principal component with patch brightness, leaks: above 0.5; weak: above 0.2",
    ),
    "duplicates": (
        "Equal and nearly equal patches", "ciphertexts", "share of such patches, leaks: above 10 %; weak: above 1 %"
    ),
    "folding": (
        "Folding (Chang and Li)", "ciphertexts",
        "|correlation| of folded ciphertext and folded plain image, leaks: above 0.5; weak: above 0.2",
    ),
    "candidates": (
        "48 candidates a pixel (Chang and Li)", "ciphertexts",
        "bytes recovered exactly, leaks: above 50 %; weak: above 10 %",
    ),
    "jigsaw": (
        "Jigsaw of blocks", "ciphertexts", "neighbours found, above chance, leaks: above 50 %; weak: above 10 %"
    ),
    "matching": (
        "Re-identification", "ciphertexts and candidate originals, no pairs",
        "the NeuraCrypt challenge's bands, leaks: above 20 % matched; weak: above 5 %; "
        "with few images, eight and four times chance",
    ),
    "link": ("Linkability under two keys", "ciphertexts under both keys", "as re-identification"),
    "shuffle": ("Patch shuffle undone", "ciphertexts", "patches put back, leaks: above 50 %; weak: above 10 %"),
    "known": (
        "Known plaintext", "some pairs",
        "pairs needed to reconstruct other images 3 dB better than their mean, leaks: up to 16; weak: more",
    ),
    "chosen": (
        "Chosen plaintext", "an encrypt-anything service",
        "bytes of other images recovered exactly, leaks: above 50 %; weak: above 10 %",
    ),
    "unpaired": (
        "Reconstructed without pairs (--deep)", "ciphertexts, and other images of the same kind",
        "images reconstructed better than their mean, leaks: by 3 dB; weak: by 1 dB",
    ),
    "deep": (
        "Inverse network (--deep)", "ciphertexts, and similar images encrypted under keys of their own",
        "images reconstructed better than their mean, leaks: by 3 dB; weak: by 1 dB",
    ),
    "values": (
        "Saturation, entropy, compression", "ciphertexts",
        "no leak by itself; weak: above 5 % saturated, which costs accuracy",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What one attack got.

    Args:
        name: one of `ROWS`.
        grade: one of `GRADES`.
        finding: one sentence for the owner's report; never published.
        figures: numbers, which a card may show.
    """

    name: str
    grade: str
    finding: str
    figures: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        return ROWS[self.name][0]

    @property
    def attacker(self) -> str:
        return ROWS[self.name][1]

    @property
    def thresholds(self) -> str:
        return ROWS[self.name][2]

    def to_dict(self) -> dict[str, Any]:
        """The row as `audit.json` has it: sums of floats differ in their last digits between runs, so four are kept."""
        figures = {name: round(value, 4) if isinstance(value, float) else value for name, value in self.figures.items()}
        return dataclasses.asdict(self) | {"figures": figures, "title": self.title, "thresholds": self.thresholds}

    @classmethod
    def from_dict(cls, values: Any) -> "Row":
        """A row of an `audit.json`, which may have been edited. Raises NeuraCryptError."""
        try:
            row = cls(values["name"], values["grade"], values["finding"], values["figures"])
            known = row.name in ROWS and row.grade in GRADES and isinstance(row.finding, str)
            figures = list(row.figures.items())
        except (TypeError, KeyError, AttributeError):
            known, figures = False, []
        plain = all(
            isinstance(name, str) and name.isascii() and name.replace("_", "").isalnum() and _is_figure(value)
            for name, value in figures
        )
        if not (known and plain):
            raise NeuraCryptError("a row of the audit is not what `hf-neuracrypt audit` writes: run the audit again")
        return row


def grade(value: float, weak: float, leaks: float) -> str:
    """The grade of a figure that is the worse the higher it is."""
    return LEAKS if value > leaks else WEAK if value > weak else NEAR_CHANCE


def read_audit(path: Path) -> PublishedAudit:
    """Read an `audit.json`, which may have been edited. Raises NeuraCryptError if it is none of this format."""
    try:
        if path.stat().st_size > MAX_AUDIT_BYTES:
            raise NeuraCryptError(f"{path} is larger than any audit")
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise NeuraCryptError(f"there is no file {path}") from None
    except (ValueError, RecursionError) as error:
        raise NeuraCryptError(f"{path} is damaged: {first_line(error)}") from None
    if not isinstance(content, dict) or content.get("neuracrypt_audit") != AUDIT_FORMAT:
        raise NeuraCryptError(f"{path} is not an audit of format {AUDIT_FORMAT}: run `hf-neuracrypt audit` again")
    kinds = {"key_id": str, "config": dict, "manifest_sha256": str, "images": int, "version": str, "rows": list}
    fields: dict[str, Any] = {name: content.get(name) for name in kinds}
    if any(type(fields[name]) is not kind for name, kind in kinds.items()) or not _is_version(content["version"]):
        raise NeuraCryptError(f"{path} is not what `hf-neuracrypt audit` writes: run the audit again")
    rows = [Row.from_dict(row) for row in content["rows"]]
    return PublishedAudit(**fields | {"rows": rows})


def _is_figure(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _is_version(text: str) -> bool:
    return len(text) < 40 and all(part.isalnum() for part in text.split("."))
