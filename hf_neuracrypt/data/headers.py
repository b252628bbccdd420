"""What the headers of DICOM files decide of rows: their split by patient, their labels, how many there are.

A header is read for these alone, before work, and nothing of it is stored.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import pandas
import pyarrow
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset

from hf_neuracrypt.data.files import Files, show
from hf_neuracrypt.errors import DatasetError, ImageError
from hf_neuracrypt.images.dicom import MAX_FRAMES, Header, read_header
from hf_neuracrypt.images.read import read_bytes
from hf_neuracrypt.keys import SecretKey


ONE_IN = 5  # of the patients is tested with
KEYS = ("file_name", "SOPInstanceUID", "PatientID")  # of tables that describe images


class Headers:
    """The headers of the files of a folder, each read once; None: of what is no DICOM, or damaged."""

    def __init__(self, files: Files):
        self.files = files
        self._read: dict[PurePath, Header | None] = {}

    def __getitem__(self, file: PurePath) -> Header | None:
        if file not in self._read:
            try:
                found = read_header(read_bytes(self.files.source(file))) if file in self.files.dicom else None
            except ImageError:  # the job will say so of its row
                found = None
            self._read[file] = found
        return self._read[file]


def frames_of(header: Header | None) -> range:
    """The frames of a file that become rows; of one that says it has more than any has, one, which is refused then."""
    return range(header.frames if header and header.frames <= MAX_FRAMES else 1)


def by_patient(files: Files, headers: Headers, key: SecretKey) -> dict[str, list[PurePath]]:
    """Images of the splits train and test: about one patient in five is tested with, as the key and PatientID say.

    So the same patient is in the same split in whatever is encrypted under the same key.

    Raises:
        DatasetError: an image is of no known patient, or all patients are in one split.
    """
    splits: dict[str, list[PurePath]] = {"train": [], "test": []}
    for file in files.images:
        header = headers[file]
        if file not in files.dicom or (header and not header.patient):
            raise DatasetError(f"{show([file])} has no PatientID, so --group-by-patient cannot place it")
        tested = header is not None and key.permutation(header.patient, "patients", ONE_IN)[0] == 0
        splits["test" if tested else "train"].append(file)
    if not all(splits.values()):
        raise DatasetError(
            "--group-by-patient puts all of so few patients into one split: make the folders train and test instead"
        )
    return splits


def described(files: Files, images: Sequence[PurePath], headers: Headers) -> tuple[list[PurePath], Dataset]:
    """The images that a metadata.csv (.jsonl, .parquet) beside or above them describes, and the rows that do.

    A table names images by the first of these columns that it has: file_name, SOPInstanceUID, PatientID. None of them
    goes on.

    Raises:
        DatasetError: a table has none of them, or names one thing twice, or a file that is not there; tables differ.
    """
    tables = {table: _rows_by_name(files, table) for table in files.metadata}
    chosen: dict[PurePath, list[int]] = {table: [] for table in tables}
    of_table: dict[PurePath, list[PurePath]] = {table: [] for table in tables}
    for image in images:
        above = [table for table in tables if table.parent in image.parents]
        if not above:
            continue
        table = max(above, key=lambda table: len(table.parts))
        column, names, _ = tables[table]
        number = names.get(_name_of(image, table, column, headers))
        if number is not None:
            chosen[table].append(number)
            of_table[table].append(image)
    parts = [rows.take(chosen[table]) for table, (_, _, rows) in tables.items() if chosen[table]]
    if not parts:
        raise DatasetError(f"{show(list(tables))} describes none of the {len(images)} images beside it")
    if any(part.schema != parts[0].schema for part in parts):
        raise DatasetError(f"the tables {show(list(tables))} differ in their columns: make them alike")
    return [image for table in tables for image in of_table[table]], Dataset(pyarrow.concat_tables(parts))


def _name_of(image: PurePath, table: PurePath, column: str, headers: Headers) -> str:
    if column == "file_name":
        return image.relative_to(table.parent).as_posix()
    header = headers[image] or Header("", "", 1)
    return header.patient if column == "PatientID" else header.instance


def _rows_by_name(files: Files, table: PurePath) -> tuple[str, Mapping[str, int], pyarrow.Table]:
    content = read_bytes(files.source(table))
    try:
        if table.suffix == ".csv":
            texts = dict.fromkeys(KEYS, str)
            rows = pyarrow.Table.from_pandas(pandas.read_csv(io.BytesIO(content), dtype=texts), preserve_index=False)
        elif table.suffix == ".jsonl":
            rows = pyarrow.json.read_json(io.BytesIO(content))
        else:
            rows = pyarrow.parquet.read_table(io.BytesIO(content))
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        raise DatasetError(f"{show([table])} cannot be read: {type(error).__name__}") from None
    column = next((name for name in KEYS if name in rows.column_names), None)
    if column is None:
        raise DatasetError(
            f"{show([table])} has none of the columns {', '.join(KEYS)}, which say what image a row is of"
        )
    named = [str(value or "").strip() for value in rows[column].to_pylist()]
    named = [PurePath(name).as_posix() for name in named] if column == "file_name" else named
    names = {name: number for number, name in enumerate(named) if name}
    twice = next((number for number, name in enumerate(named) if name and names[name] != number), None)
    if twice is not None:
        raise DatasetError(f"row {twice} of {show([table])} names what another row names, too: keep one of them")
    there = {file.relative_to(table.parent).as_posix() for file in files.all if table.parent in file.parents}
    gone = [number for name, number in names.items() if column == "file_name" and name not in there]
    if gone:
        raise DatasetError(f"row {gone[0]} of {show([table])} names a file that is not there")
    others = [name for name in rows.column_names if name not in (*KEYS, "image")]
    return column, names, rows.select(others).replace_schema_metadata(None)
