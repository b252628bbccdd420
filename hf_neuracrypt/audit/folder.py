"""What a folder gives away by its files, columns, labels and order, before any attack; hidden labels with one."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk

from hf_neuracrypt.audit.matching import named_classes
from hf_neuracrypt.audit.pairs import Pairs
from hf_neuracrypt.audit.results import LEAKS, NOTHING_FOUND, WEAK, Row
from hf_neuracrypt.data.manifest import MANIFEST, UNFINISHED, verify
from hf_neuracrypt.errors import LeakError
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.publish.guard import Guard
from hf_neuracrypt.schemes import SchemeConfig


def metadata(folder: Path, manifest: dict[str, Any], config: SchemeConfig, wrong: tuple[int, ...]) -> Row:
    """Files beside the dataset, changed files, metadata in images, columns in clear, rows that are not ciphertexts."""
    kept = {name for split in load_from_disk(str(folder)).values() for name in split.column_names} - {"image", "label"}
    guard, found = Guard(), [f"{file} {problem}" for file, problem in verify(folder) if problem]
    try:
        guard.check_folder(folder, [*manifest["files"], MANIFEST], ignored=[UNFINISHED])
        for file in (name for name in manifest["files"] if name.endswith(".arrow")):
            shard = Dataset.from_file(str(folder / file))
            guard.check_shard(shard, file, ("image", "label", *kept), config)
    except LeakError as error:
        found.append(str(error).replace(f"{folder}/", ""))
    if wrong:
        found.append(f"row {wrong[0]} and {len(wrong) - 1} more are not what the key makes of the source")
    figures = {"findings": len(found), "columns_in_clear": len(kept)}
    finding = "; ".join(found) or "Nothing found: no metadata in images, no paths, no other files."
    if kept:
        finding += f" Kept in clear: {', '.join(sorted(kept))}."
    return Row("metadata", LEAKS if found else WEAK if kept else NOTHING_FOUND, finding, figures)


def key_leak(folder: Path, key: SecretKey) -> Row:
    """The key in any file of the folder, in any form that the guard knows."""
    guard, found = Guard(key), []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            guard.check_file(path, name)
        except LeakError as error:
            found.append(str(error))
    finding = "; ".join(found) or "Not found, as text, bytes, digits, base64, base32 or numbers."
    return Row("key", LEAKS if found else NOTHING_FOUND, finding, {"findings": len(found)})


def labels(folder: Path, pairs: Pairs, seed: int) -> Row:
    """Whether class names are published; if they are hidden, how many of them similar pictures give away."""
    split = next(iter(load_from_disk(str(folder)).values()))
    if "label" not in split.features:
        return Row("labels", NOTHING_FOUND, "There are no labels.", {"classes": 0})
    feature = split.features["label"]
    each = feature.values() if isinstance(feature, dict) else [feature]
    if any("float" in str(getattr(kind, "dtype", "")) for kind in each):
        return Row("labels", LEAKS, "The numbers to be learned are published.", {"classes": 0})
    names = list(feature) if isinstance(feature, dict) else getattr(getattr(feature, "feature", feature), "names", [])
    if names and not all(name.startswith("class_") and name[6:].isdigit() for name in names):
        return Row("labels", LEAKS, "Class names are published (`encrypt --hide-labels`).", {"classes": len(names)})
    named = named_classes(pairs, seed)
    finding = "Labels without names: class balance, or the trained model, may tell which class is which."
    if named is None or pairs.labels is None:
        return Row("labels", WEAK, finding, {"classes": len(names)})
    chance = 1 / len(np.unique(pairs.labels))
    finding += " Half of the pictures, with labels, name classes of the other half without the key."
    found = LEAKS if named - chance > 0.5 * (1 - chance) else WEAK
    return Row("labels", found, finding, {"classes": len(names), "named": named, "chance": chance})


def row_order(manifest: dict[str, Any]) -> Row:
    """The order that `load_pairs` has compared both sides in, row by row."""
    if manifest.get("order") == "keyed":
        return Row("order", NOTHING_FOUND, "Rows are in an order that only the key gives.")
    finding = "Rows follow the source: if that, or its order, is public, row numbers identify images. Shuffle it first."
    return Row("order", LEAKS, finding)
