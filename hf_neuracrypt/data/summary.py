"""What an owner is told about a source before work: splits, rows, labels, images nearly black, frames not taken."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset, IterableDataset

from hf_neuracrypt.data.columns import first_rows
from hf_neuracrypt.data.dataset import Plan
from hf_neuracrypt.data.files import Files, show
from hf_neuracrypt.errors import ImageError, printable
from hf_neuracrypt.images import as_array, open_image, to_rgb
from hf_neuracrypt.images.dicom import is_dicom, read_header
from hf_neuracrypt.images.read import read_bytes
from hf_neuracrypt.schemes import SchemeConfig


LISTS = (".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".xls", ".ods")
LOOKED_AT = 16  # images of a split, for `remarks`
DARK = 64  # of 255: images of 14 bits or fewer, stored as 16


def rows_of(splits: Mapping[str, Dataset | IterableDataset]) -> dict[str, int | None]:
    """How many rows each split has; None: a stream."""
    return {name: len(split) if isinstance(split, Dataset) else None for name, split in splits.items()}


def describe(rows: Mapping[str, int | None], plan: Plan) -> str:
    """Splits and labels in one line: "train 4,708 images, test 624 images without labels; 2 classes: healthy, ill"."""
    counted = (
        f"{name} {_images(count)}{' without labels' if name in plan.without else ''}" for name, count in rows.items()
    )
    return f"{', '.join(counted)}; {_labels(plan)}"


def unread_lists(files: Files | None, splits: Mapping[str, Dataset | IterableDataset]) -> list[str]:
    """A sentence on lists beside images, not called as METADATA, if the images have no labels: they may stand there."""
    lists = [file for file in files.all if file.suffix.lower() in LISTS] if files and files.are_images else []
    lists = [file for file in lists if files and file not in files.metadata]
    if not lists or any(len(rows.features or ()) > 1 for rows in splits.values()):
        return []
    return [
        f"Note: {show(lists)} is not read: if labels stand there, save it as metadata.csv, with a column file_name "
        "(of DICOM files SOPInstanceUID or PatientID, too) that says which image a row is of."
    ]


def _images(count: int | None) -> str:
    return "a stream of images" if count is None else f"{count:,} image{'' if count == 1 else 's'}"


def _labels(plan: Plan) -> str:
    if plan.labels is None:
        left_out = _names(plan.columns.others)
        return f"no labels{f' (left out: {left_out}; --label-column)' if left_out else ''}"
    target = plan.labels.target
    return "labels are whole numbers" if target.names is None else f"{target.describe()}: {_names(target.names)}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(printable(name[:40]) for name in names[:5]) + (", …" if len(names) > 5 else "")


def remarks(splits: Mapping[str, Dataset | IterableDataset], plan: Plan) -> list[str]:
    """Sentences on splits whose images, some looked at before work, are all nearly black, or DICOM of many frames."""
    found = []
    for name, split in splits.items():
        images, config = _some(plan, name, split), plan.encoder.config
        brightest = max((_brightest(as_array(image, plan.dtype), config) for image in images), default=DARK)
        if brightest < DARK:
            found.append(
                f"Note: the images of {name} are nearly black: none of {len(images)} looked at is over {brightest} "
                "of 255. Values of 16 bits are divided by 65,535, whatever they reach: rescale those of 12 bits first, "
                "or give DICOM a --window."
            )
        most = max(map(_frames, images), default=1)
        if most > 1 and not any(isinstance(image, dict) and image.get("frame") for image in images):
            found.append(
                f"Note: the DICOM files of {name} have up to {most:,} frames, of {len(images)} looked at; the first of "
                "each is taken: --all-frames takes all."
            )
    return found


def _frames(source: object) -> int:
    try:
        content = read_bytes(source)
        return read_header(content).frames if is_dicom(content) else 1
    except ImageError:  # the job will name its row; or it is no file
        return 1


def _some(plan: Plan, name: str, split: Dataset | IterableDataset) -> Sequence[object]:
    source = plan.source(name, split)
    if isinstance(source, IterableDataset):
        return [row[plan.columns.image] for row in first_rows(source, LOOKED_AT)]
    places = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int))
    return source.select(places)[plan.columns.image][:]


def _brightest(source: object, config: SchemeConfig) -> int:
    try:
        return int(np.asarray(to_rgb(open_image(source, config.window, config.burned_in))).max())
    except ImageError:  # the job will name its row
        return DARK
