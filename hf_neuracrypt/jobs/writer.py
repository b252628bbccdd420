"""What a job leaves in its folder: shards with a note for each, and, when all are there, what makes it loadable.

A unit of work is a function of job and unit, whoever does it and how often: a shard that has its final name is whole,
and its note says how many rows it has, its sha256, and what was rejected. An unfinished folder is resumed by its notes.
"""

import errno
import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets.arrow_writer import ArrowWriter
from datasets.config import DATASET_INFO_FILENAME, DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME

from hf_neuracrypt.data import places
from hf_neuracrypt.data.dataset import WRITER_BATCH_SIZE, EncryptRows, Split, in_order
from hf_neuracrypt.data.manifest import (
    JOB,
    MANIFEST,
    REJECTED,
    UNFINISHED,
    checksum,
    is_unfinished,
    read_manifest,
    to_text,
)
from hf_neuracrypt.errors import DatasetError, NeuraCryptError, first_line
from hf_neuracrypt.jobs.job import BATCH_SIZE, Job, Unit, units_of


SCRATCH = "scratch-"
LAST = ".last.json"  # ends the name of the note of a unit's last shard
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Note = dict[str, Any]  # of one shard: unit, part, last, file, source_rows, rows, sha256, rejected, sent
Notes = dict[str, Note]  # by the names of their files
Progress = Callable[[int], object]  # told how many rows each batch had


def claim(job: Job, repeatable: bool = False) -> bool:
    """Make the output this job's folder; False if it is already complete and `repeatable`. Raises DatasetError."""
    output, plan_file, identity = job.output, job.output / UNFINISHED / JOB, job.identity()
    try:
        if not is_unfinished(output):
            if (output / MANIFEST).exists():
                if repeatable and read_manifest(output)["source"] == identity["source"]:
                    return False
                raise DatasetError(f"{output} already holds a finished encrypted dataset: choose another folder")
            foreign = any(name != UNFINISHED for name in places.names_in(output))
            if foreign and not is_unfinished(output):  # another worker may just have begun
                raise DatasetError(f"{output} exists and is not empty: choose another folder")
            places.make_folder(job.notes)
            if not is_unfinished(output):
                places.atomic_write(plan_file, to_text(identity))
        for split in job.splits:
            places.make_folder(output / split)
        other = json.loads(plan_file.read_text())
    except OSError as error:
        if places.is_address(output):
            raise
        raise DatasetError(f"cannot write to {output}: {error.strerror or first_line(error)}") from None
    different = [name for name, value in identity.items() if value != other.get(name)]
    if different:
        raise DatasetError(
            f"{output} holds an unfinished job with another {' and another '.join(different)}: give the same key, "
            "config and source to continue it, or choose another folder"
        )
    return True


def read_notes(job: Job, units: Iterable[Unit], known: Notes) -> Notes:
    """Those of the shards of some units, by name; what is known already is not read again."""
    wanted = {unit.name for unit in units}
    names = [name for name in places.names_in(job.notes) if _unit_of(name) in wanted and name not in known]
    return known | {name: json.loads(text) for name, text in places.texts_of(job.notes, names).items()}


def name_of(note: Note) -> str:
    """Of a note's file: which units are done can be seen from names alone."""
    return f"{note['unit']}-{note['part']:05d}{LAST if note['last'] else '.json'}"


def _unit_of(name: str) -> str:
    return name.rpartition("-")[0]


def write_unit(job: Job, unit: Unit, first: int = 0, progress: Progress = lambda rows: None) -> Iterator[Note]:
    """Write the shards of a unit from number `first` on; gives the note of each once it is there.

    Raises:
        DatasetError: a row cannot be read or encrypted, or the disk is full.
    """
    away = job.send is not None or places.is_address(job.output)
    beside = job.output / UNFINISHED
    try:
        with places.passing_folder() if away else tempfile.TemporaryDirectory(prefix=SCRATCH, dir=beside) as scratch:
            yield from _write(job, unit, first, Path(scratch) / "shard.arrow", progress)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f"{tempfile.gettempdir()} ($TMPDIR)" if away else job.output
        reason = f"{error.strerror or first_line(error)}: make room in {where}"
        raise DatasetError(f"{reason}; the same command again continues") from None


def _write(job: Job, unit: Unit, first: int, temporary: Path, progress: Progress) -> Iterator[Note]:
    """The same in one pass over the source, of which one batch is held."""
    row = first * job.shard_rows
    source, chosen = _source(job, unit, row)
    batches = _read(unit, source.iter(batch_size=BATCH_SIZE))
    batch = next(batches, None)
    for part in itertools.count(first):
        start, encrypt = row, _encryption(job, unit, chosen)
        with ArrowWriter(
            features=job.plan.features, path=str(temporary), fingerprint=_fingerprint(job, unit, part),
            writer_batch_size=None if chosen is None else WRITER_BATCH_SIZE,
        ) as writer:  # fmt: skip
            while batch is not None and row < start + job.shard_rows:
                count = len(batch[job.plan.columns.image])
                writer.write_batch(encrypt(batch, list(range(row, row + count))))
                progress(count)
                row, batch = row + count, next(batches, None)
            writer.finalize()
        rejected = [{"split": unit.split} | each for each in encrypt.rejected or ()]
        note: Note = {
            "unit": unit.name, "part": part, "last": batch is None, "file": unit.file(part),
            "sha256": places.sha256(temporary), "source_rows": row - start,
            "rows": (row - start - len(rejected)) * encrypt.views, "rejected": rejected,
        }  # fmt: skip
        if job.send is not None:
            note["sent"] = job.send(temporary, note["file"])
        else:
            places.keep(temporary, job.output / note["file"])
            places.atomic_write(job.notes / name_of(note), to_text(note))
        yield note
        if batch is None:
            return


def _fingerprint(job: Job, unit: Unit, part: int) -> str | None:
    if unit.rows is None:
        return job.plan.fingerprint(f"{job.source_of(unit.split)} {unit.index} {part}")
    return job.plan.fingerprint(f"{job.plan.origins[unit.split]} {unit.index}") if unit.rows else None


def _source(job: Job, unit: Unit, row: int) -> tuple[Split, Sequence[int] | None]:
    """What a unit reads from a row of its own on; of a dataset also the numbers of its rows there."""
    source = job.plan.source(unit.split, job.splits[unit.split])
    if unit.rows is not None:
        chosen = job.orders[unit.split][unit.index * job.shard_rows :][: unit.rows]
        return in_order(source, chosen), chosen
    if source.num_shards > 1:
        source = source.shard(source.num_shards, unit.index)
    return source.skip(row) if row else source, None


def _encryption(job: Job, unit: Unit, chosen: Sequence[int] | None) -> EncryptRows:
    part = f" of part {unit.index} of the source" if chosen is None and unit.index else ""
    stop = (
        f"row {{}}{part} cannot be encrypted: {{}} (split {unit.split}; --max-bad-fraction leaves such rows out; a "
        "repaired source needs a new output folder)"
    )
    rejected: list[dict] | None = [] if job.max_bad_fraction else None
    options = {"rejected": rejected, "views": job.views_of(unit.split), "flip": job.flip, "stop": stop}
    return job.plan.rows(unit.split, rows=chosen, **options)


def _read(unit: Unit, batches: Iterable[dict]) -> Iterator[dict]:
    """What a source gives, and in one line why it ends too early."""
    try:
        yield from batches
    except NeuraCryptError:
        raise
    except Exception as error:  # of whatever reads the source's files, or brings them here
        reason = f"{type(error).__name__}: {first_line(error)}"
        where = f"part {unit.index} of the source (split {unit.split})"
        raise DatasetError(f"cannot read {where}: {reason}; the same command again continues") from None


def check_rejected(job: Job, rejected: Sequence[dict], rows: int | None) -> None:
    """Raises DatasetError if these are too many of so many rows; how many a stream has is known at its end."""
    if rows is not None and len(rejected) > job.max_bad_fraction * rows:
        last = rejected[-1]
        raise DatasetError(
            f"{len(rejected)} of {rows} rows cannot be encrypted, --max-bad-fraction {job.max_bad_fraction} allows "
            f"fewer; one of them: row {last['row']} of {last['split']}: {last['reason']}"
        )


def complete(job: Job, notes: Notes) -> None:
    """If every unit is done, write what makes the folder loadable, and tidy up; others may have left further notes.

    Raises:
        DatasetError: too many rows were left out.
    """
    units = {unit.name: unit for unit in units_of(job)}
    if units.keys() - {_unit_of(name) for name in {*notes, *places.names_in(job.notes)} if name.endswith(LAST)}:
        return
    order = {name: number for number, name in enumerate(units)}
    notes = read_notes(job, units.values(), notes)
    shards: dict[str, list[Note]] = {split: [] for split in job.splits}
    seen, starts, rejected, files = Counter[str](), dict[str, int](), list[dict](), dict[str, dict]()
    for note in sorted(notes.values(), key=lambda note: (order[note["unit"]], note["part"])):
        unit = units[note["unit"]]
        start = (
            starts.setdefault(unit.name, seen[unit.split]) if unit.rows is None else 0
        )  # a stream's parts count anew
        rejected += [entry | {"row": start + entry["row"]} for entry in note["rejected"]]
        seen[unit.split] += note["source_rows"]
        shards[unit.split].append(note)
        files[note["file"]] = {"rows": note["rows"], "sha256": note["sha256"]}
    check_rejected(job, rejected, seen.total())
    scratch = job.output / UNFINISHED  # what a crash leaves behind must not lie beside the data
    for name, text in _texts(job, shards, rejected).items():
        places.atomic_write(job.output / name, text, scratch)
        files[name] = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    rows = {split: sum(note["rows"] for note in each) for split, each in shards.items()}
    manifest = job.plan.record.to_dict() | {"rows": rows, "source": job.identity()["source"], "files": files}
    if job.plan.keyed_order:
        manifest["order"] = "keyed"
    if job.views > 1:
        manifest["views"] = {"count": job.views, "flip": job.flip}
    if any(job.dicom.values()):
        manifest["dicom"] = dict(job.dicom)
    places.atomic_write(job.output / MANIFEST, to_text(manifest | {"sha256": checksum(manifest)}), scratch)
    (scratch / JOB).unlink(missing_ok=True)
    places.remove(scratch)


def _texts(job: Job, shards: dict[str, list[Note]], rejected: list[dict]) -> dict[str, str]:
    """The files beside the shards, by name: what `load_from_disk` reads, and the rows that were left out."""
    info = {"description": job.plan.record.to_json(), "features": job.plan.features.to_dict()}
    info |= {"citation": "", "homepage": "", "license": ""}
    texts = dict[str, str]()
    for split, notes in shards.items():
        state: dict[str, Any] = {
            "_data_files": [{"filename": Path(note["file"]).name} for note in notes],
            "_fingerprint": job.source_of(split),
            "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
            "_split": split,
        }  # fmt: skip
        texts |= {
            f"{split}/{DATASET_INFO_FILENAME}": to_text(info),
            f"{split}/{DATASET_STATE_JSON_FILENAME}": to_text(state),
        }
    if rejected:
        texts[REJECTED] = "".join(json.dumps(entry) + "\n" for entry in rejected)
    return texts | {DATASETDICT_JSON_FILENAME: to_text({"splits": list(job.splits)})}
