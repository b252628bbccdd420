"""A metadata.csv (.jsonl, .parquet) among images -> the columns of their rows.

Notable decisions
- It is read here, not by `datasets`, which would keep a copy in its cache, and turn whole numbers into floating-point
  ones where a cell is empty: a class would become a number to be learned.
- What it does not name is no row, and what it names is there, once: anything else stops the job.
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
from hf_neuracrypt.data.headers import Headers
from hf_neuracrypt.errors import DatasetError, printable
from hf_neuracrypt.images.dicom import Header
from hf_neuracrypt.images.read import read_bytes


KEYS = ("file_name", "SOPInstanceUID", "PatientID")  # of tables that describe images


def described(files: Files, images: Sequence[PurePath], headers: Headers) -> tuple[list[PurePath], Dataset]:
    """The images that a table beside or above them describes, and the rows that do.

    A table names images by the first of these columns that it has: file_name, SOPInstanceUID, PatientID. None of them
    goes on.

    Raises:
        DatasetError: a folder has two tables; one names images by none of these columns, or one thing twice, or a file
            that is not there; tables differ, or describe none of these images.
    """
    if len({table.parent for table in files.metadata}) < len(files.metadata):
        raise DatasetError(f"of {show(files.metadata)} two lie in one folder: keep one of them")
    tables = {table: _rows_by_name(files, table) for table in files.metadata}
    chosen: dict[PurePath, list[tuple[int, PurePath]]] = {table: [] for table in tables}
    for image in images:
        above = [table for table in tables if table.parent in image.parents]
        if not above:
            continue
        table = max(above, key=lambda table: len(table.parts))
        column, names, _ = tables[table]
        number = names.get(_name_of(image, table, column, headers))
        if number is not None:
            chosen[table].append((number, image))
    ordered = {table: sorted(found) for table, found in chosen.items() if found}  # as the rows of the table
    parts = [tables[table][2].take([number for number, _ in found]) for table, found in ordered.items()]
    if not parts:
        raise DatasetError(
            f"{show(list(tables))} describes none of the {len(images)} images with {show(images, 1)}: name them there, "
            "with empty cells if they have no labels"
        )
    if any(set(part.column_names) != set(parts[0].column_names) for part in parts):
        raise DatasetError(f"the tables {show(list(tables))} differ in their columns: make them alike")
    try:
        rows = pyarrow.concat_tables(parts, promote_options="permissive")
    except pyarrow.ArrowException:
        raise DatasetError(f"a column of the tables {show(list(tables))} is of two kinds: make them alike") from None
    return [image for found in ordered.values() for _, image in found], Dataset(rows)


def _name_of(image: PurePath, table: PurePath, column: str, headers: Headers) -> str:
    if column == "file_name":
        return image.relative_to(table.parent).as_posix()
    header = headers[image] or Header("", "", 1)
    return header.patient if column == "PatientID" else header.instance


def _rows_by_name(files: Files, table: PurePath) -> tuple[str, Mapping[str, int], pyarrow.Table]:
    """The column that names images, the rows by these names, and their other columns."""
    rows = _read(files, table)
    column = next((name for name in KEYS if name in rows.column_names), None)
    if column is None:
        found = ", ".join(map(printable, rows.column_names[:5]))
        raise DatasetError(
            f"{show([table])} has none of the columns {', '.join(KEYS)}, which say what image a row is of: it has "
            f"{found} (separated by commas)"
        )
    named = [str(value or "").strip() for value in rows[column].to_pylist()]
    named = [PurePath(name).as_posix() if name and column == "file_name" else name for name in named]
    names = {name: number for number, name in enumerate(named) if name}
    twice = next((number for number, name in enumerate(named) if name and names[name] != number), None)
    if twice is not None:
        raise DatasetError(f"row {twice} of {show([table])} names what another row names, too: keep one of them")
    there = {file.relative_to(table.parent).as_posix() for file in files.all if table.parent in file.parents}
    gone = [number for name, number in names.items() if column == "file_name" and name not in there]
    if gone:
        more = f", and {len(gone) - 1:,} others do" if len(gone) > 1 else ""
        raise DatasetError(f"row {gone[0]} of {show([table])} names a file that is not there{more}: remove such rows")
    others = [name for name in rows.column_names if name not in (*KEYS, "image")]
    return column, names, rows.select(others).replace_schema_metadata(None)


def _read(files: Files, table: PurePath) -> pyarrow.Table:
    """A table as it is; a column of empty cells alone has no type."""
    content = read_bytes(files.source(table))
    try:
        if table.suffix == ".csv":
            texts = dict.fromkeys(KEYS, str)
            read = pandas.read_csv(io.BytesIO(content), dtype=texts, dtype_backend="numpy_nullable")
            rows = pyarrow.Table.from_pandas(read, preserve_index=False)
        elif table.suffix == ".jsonl":
            rows = pyarrow.json.read_json(io.BytesIO(content))
        else:
            rows = pyarrow.parquet.read_table(io.BytesIO(content))
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        kind = {".csv": "CSV, separated by commas, in UTF-8", ".jsonl": "JSON, an object a line"}.get(table.suffix)
        save = f": save it as {kind}" if kind else ""
        raise DatasetError(f"{show([table])} cannot be read ({type(error).__name__}){save}") from None
    empty = [column.null_count == len(column) for column in rows.columns]
    columns = [pyarrow.nulls(len(rows)) if none else column for none, column in zip(empty, rows.columns)]
    return pyarrow.table(columns, rows.column_names)
