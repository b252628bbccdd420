"""A folder of images -> its splits. Folders alone say which split and class an image is of, never the names of files.

Notable decisions
- Nothing is guessed where two readings are possible: the folder is refused, with what to do.
- What lies there is a row, or is named: `left_out` compares the rows with the files, after loading.
- `metadata.csv` and the like are read by `datasets`, which finds the images by the names that stand in there.
"""

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from hf_neuracrypt.data.files import METADATA, SPLITS, Files, fingerprint, show, split_of
from hf_neuracrypt.errors import DatasetError, printable


def load_images(files: Files) -> DatasetDict:
    """The splits of a folder of images.

    Raises:
        DatasetError: folders do not tell clearly what is a split and what a class, or a name is not UTF-8.
    """
    for file in files.images:
        if not _is_utf8(file):
            raise DatasetError(f"the name of the file {show([file])} is not UTF-8: rename it (convmv, for many)")
    splits = split_folders(files.images)
    if files.metadata:
        return _with_metadata(files, splits)
    names = _class_names(splits)
    return DatasetDict({split: _rows(files.root, split, inside, names) for split, inside in splits.items()})


def _is_utf8(file: PurePath) -> bool:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return False
    return True


def split_folders(files: Sequence[PurePath]) -> dict[str, list[PurePath]]:
    """The files of each split, if the outermost folders that tell them apart are all named after splits; else train."""
    level = _common_folders(files)
    loose = [file for file in files if len(file.parts) == level + 1]
    tops = sorted({file.parts[level] for file in files if len(file.parts) > level + 1})
    named = {top: split for top in tops if (split := split_of(top))}
    if named and len(named) == len(tops) and not loose:
        for split, count in Counter(named.values()).items():
            if count > 1:
                same = " and ".join(printable(top) for top in named if named[top] == split)
                raise DatasetError(
                    f"the folders {same} are both named after the split {split}: make one of them; "
                    "if they are classes, put them all into a folder called train"
                )
        chosen = {split: [file for file in files if named[file.parts[level]] == split] for split in named.values()}
        return {split: chosen[split] for split in SPLITS if split in chosen}
    if any(len(file.parts) > level + 2 and file.parts[level] in named for file in files):
        beside = loose or [PurePath(top) for top in tops if top not in named]
        raise DatasetError(
            f"beside the splits {', '.join(map(printable, named))} lies {show(beside)}: move it into one of them, or "
            "away; if they are all classes, put them into a folder called train"
        )
    return {"train": list(files)}


def _common_folders(files: Sequence[PurePath]) -> int:
    """How many folders all files have in common, up to one that is named after a split."""
    level = 0
    while all(len(file.parts) > level + 1 for file in files):
        names = {file.parts[level] for file in files}
        if len(names) > 1 or split_of(*names):
            break
        level += 1
    return level


def _class_names(splits: Mapping[str, Sequence[PurePath]]) -> list[str] | None:
    """The names of the innermost folders, if images of some split lie in several of them; None: no classes."""
    folders = {split: {file.parent for file in inside} for split, inside in splits.items()}
    if all(len(each) == 1 for each in folders.values()):
        return None
    if len({len(folder.parts) for each in folders.values() for folder in each}) > 1:
        depths = {len(file.parts): file for inside in splits.values() for file in inside}
        raise DatasetError(
            f"images lie at different depths ({show([depths[depth] for depth in sorted(depths)])}), so folders do not "
            "tell their classes: put each into the folder of its class; those without a class, encrypt by themselves"
        )
    names = {folder.name for each in folders.values() if len(each) > 1 for folder in each}
    for split, each in folders.items():
        if len(each) == 1 and not names.intersection(folder.name for folder in each):
            raise DatasetError(
                f"all images of the split {split} lie in {show(list(each))}, which is no class of the other splits: "
                "encrypt those without a class by themselves"
            )
    return sorted(names)


def _rows(root: Path, split: str, files: Sequence[PurePath], names: list[str] | None) -> Dataset:
    features = Features({"image": Image()} | ({"label": ClassLabel(names=names)} if names else {}))
    rows: dict[str, list] = {"image": [str(root / file) for file in files]}
    if names:
        numbers = {name: number for number, name in enumerate(names)}
        rows["label"] = [numbers[file.parent.name] for file in files]
    made = Dataset.from_dict(rows, features=features, split=split)
    made._fingerprint = fingerprint(root, files)
    return made


def _with_metadata(files: Files, splits: Mapping[str, Sequence[PurePath]]) -> DatasetDict:
    tables: dict[str, list[str]] = {split: [] for split in splits}
    for table in files.metadata:
        inside = [split for split, images in splits.items() if any(table.parent in each.parents for each in images)]
        if len(inside) != 1:
            raise DatasetError(f"{show([table])} is of no single split ({', '.join(splits)}): give each split its own")
        tables[inside[0]].append(glob.escape(str(files.root / table)))
    if missing := [split for split, inside in tables.items() if not inside]:
        raise DatasetError(f"the split {missing[0]} has no {' or '.join(METADATA)}, which another split has: add one")
    return datasets.load_dataset("imagefolder", data_files=tables)


def left_out(files: Files, splits: Mapping[str, Dataset]) -> list[PurePath]:
    """The files that are no rows and may be images."""
    used = set()
    for rows in splits.values():
        for column in (name for name, feature in rows.features.items() if isinstance(feature, Image)):
            stored = rows.cast_column(column, Image(decode=False)).with_format("arrow")[:][column]
            paths = (path for chunk in stored.chunks for path in chunk.field("path").to_pylist())
            used |= {os.path.normpath(path) for path in paths if path}
    unused = [file for file in files.images if os.path.normpath(files.root / file) not in used]
    return sorted([*unused, *files.others])
