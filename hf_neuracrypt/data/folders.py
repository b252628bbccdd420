"""A folder of images -> its splits. Folders alone say which split and class an image is of, never the names of files.

Notable decisions
- Nothing is guessed where two readings are possible: the folder is refused, with what to do.
- What lies there is a row, or is named: `left_out` compares the rows with the files, after loading.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from hf_neuracrypt.data.files import SPLITS, Files, show, split_of
from hf_neuracrypt.data.headers import Headers, by_patient, frames_of
from hf_neuracrypt.data.metadata import described
from hf_neuracrypt.errors import DatasetError, printable
from hf_neuracrypt.keys import SecretKey


NO_LABEL = -1
PART = {"path": Value("string"), "offset": Value("int64"), "size": Value("int64"), "frame": Value("int64")}


def load_images(files: Files, all_frames: bool = False, patients: SecretKey | None = None) -> DatasetDict:
    """The splits of a folder of images.

    Args:
        files: of the folder.
        all_frames: each frame of a DICOM file is a row; else the first one is.
        patients: the key by which a folder without splits is split, so that no patient is in both; see `by_patient`.

    Raises:
        DatasetError: folders do not tell clearly what is a split and what a class, or a name is not UTF-8; or as the
            functions of `headers`.
    """
    for file in files.images:
        if not _is_utf8(file):
            raise DatasetError(f"the name of the file {show([file])} is not UTF-8: rename it (convmv, for many)")
    splits, headers = split_folders(files.images), Headers(files)
    names, bare = (None, set()) if files.metadata else (_class_names(splits), without_classes(splits))
    if patients is not None:
        if list(splits) != ["train"]:
            raise DatasetError(f"there are splits already ({', '.join(splits)}): leave --group-by-patient out")
        splits = by_patient(files, headers, patients)
    made = {}
    for split, inside in splits.items():
        if files.metadata and (split == "train" or _has_table(files, inside)):
            images, columns = described(files, inside, headers)
        else:
            images, columns = inside, _labels(inside, names, split not in bare)
        frames = [frames_of(headers[image]) if all_frames else range(1) for image in images]
        made[split] = _rows(files, split, images, columns, frames)
    return DatasetDict(made)


def _has_table(files: Files, images: Sequence[PurePath]) -> bool:
    """Whether one of them could be described; splits for testing alone often are not."""
    return any(table.parent in image.parents for image in images for table in files.metadata)


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
    bare = without_classes(splits)
    folders = {split: {file.parent for file in inside} for split, inside in splits.items() if split not in bare}
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


def without_classes(splits: Mapping[str, Sequence[PurePath]]) -> set[str]:
    """The splits but train whose images lie in the split's own folder, while those of others lie deeper: unlabelled."""
    folders = {split: {file.parent for file in inside} for split, inside in splits.items()}
    deepest = max(len(folder.parts) for each in folders.values() for folder in each)
    own = {
        split: all(split_of(f.name) == split and len(f.parts) < deepest for f in each)
        for split, each in folders.items()
    }
    return {split for split, is_own in own.items() if is_own and split != "train" and len(folders[split]) == 1}


def _labels(images: Sequence[PurePath], names: list[str] | None, known: bool) -> Dataset:
    """The label of each image by the name of its folder, if that is `known`: the only column, or none."""
    numbers = {name: number for number, name in enumerate(names or ())}
    labels = {"label": [numbers[image.parent.name] if known else NO_LABEL for image in images]} if names else {}
    return Dataset.from_dict(labels, features=Features({"label": ClassLabel(names=names)} if names else {}))


def _rows(files: Files, split: str, images: Sequence[PurePath], columns: Dataset, frames: Sequence[range]) -> Dataset:
    """A row for each frame of each image, its other columns those of the image."""
    numbers = [number for number, inside in enumerate(frames) for _ in inside]
    rows = {name: [column[number] for number in numbers] for name, column in columns.to_dict().items()}
    sources = [files.source(image) | {"frame": frame} for image, inside in zip(images, frames) for frame in inside]
    whole = all(source.keys() == {"path", "frame"} and source["frame"] == 0 for source in sources)
    rows["image"] = [source["path"] for source in sources] if whole else sources
    features = Features(columns.features | {"image": Image() if whole else PART})
    made = Dataset.from_dict(rows, features=features, split=split)
    rows_of_all = None if len(sources) == len(images) else len(sources)
    made._fingerprint = files.fingerprint([*images, *files.metadata], rows_of_all)
    return made


def left_out(files: Files, splits: Mapping[str, Dataset]) -> list[PurePath]:
    """The files that are no rows and may be images."""
    used = set()
    for rows in splits.values():
        for column in (
            name for name, feature in rows.features.items() if isinstance(feature, Image) or feature == PART
        ):
            whole = rows.features[column] != PART
            rows = rows.cast_column(column, Image(decode=False)) if whole else rows
            for chunk in rows.with_format("arrow")[:][column].chunks:
                offsets = [None] * len(chunk) if whole else chunk.field("offset").to_pylist()
                used |= set(zip(chunk.field("path").to_pylist(), offsets))
    used = {(os.path.normpath(path), offset) for path, offset in used if path}
    sources = {file: files.source(file) for file in files.images}
    places = {file: (os.path.normpath(str(source["path"])), source.get("offset")) for file, source in sources.items()}
    return sorted([*(file for file, place in places.items() if place not in used), *files.others])
