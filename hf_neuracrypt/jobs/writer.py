"""What a job leaves in its folder: shards with a note for each, and, when all are there, what makes it loadable.

A unit of work is a function of job and unit, whoever does it and how often: a shard that has its final name is whole,
and its note says how many rows it has, its sha256, and what was rejected. An unfinished folder is resumed by its notes.
"""

import errno
import hashlib
import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import config as datasets_config
from datasets.arrow_writer import ArrowWriter

from hf_neuracrypt.data.dataset import WRITER_BATCH_SIZE, EncryptRows, in_order
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
from hf_neuracrypt.data.places import (
    atomic_write,
    is_address,
    keep,
    make_folder,
    names_in,
    passing_folder,
    remove,
    sha256,
    texts_of,
)
from hf_neuracrypt.errors import DatasetError, NeuraCryptError, first_line
from hf_neuracrypt.jobs.job import BATCH_SIZE, Job, Unit, units_of


SCRATCH = "scratch-"
LAST = ".last.json"  # ends the name of the note of a unit's last shard
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Note = dict[str, Any]  # of one shard: unit, part, last, file, source_rows, rows, sha256, rejected, sent
Notes = dict[str, Note]  # by the names of their files
Progress = Callable[[int], object]


def claim(job: Job, repeatable: bool = False) -> bool:
    """Make the output this job's folder; False if it is already complete and `repeatable`. Raises DatasetError."""
    output, plan_file = job.output, job.output / UNFINISHED / JOB
    try:
        if not is_unfinished(output):
            if (output / MANIFEST).exists():
                if repeatable and read_manifest(output)["source"] == job.identity()["source"]:
                    return False
                raise DatasetError(f"{output} already holds a finished encrypted dataset: choose another folder")
            foreign = any(name != UNFINISHED for name in names_in(output))
            if foreign and not is_unfinished(output):  # another worker may just have begun
                raise DatasetError(f"{output} exists and is not empty: choose another folder")
            make_folder(job.notes)
            if not is_unfinished(output):
                atomic_write(plan_file, to_text(job.identity()))
        for split in job.splits:
            make_folder(output / split)
        other = json.loads(plan_file.read_text())
    except OSError as error:
        if is_address(output):
            raise
        raise DatasetError(f"cannot write to {output}: {error.strerror or first_line(error)}") from None
    different = [name for name, value in job.identity().items() if value != other.get(name)]
    if different:
        raise DatasetError(
            f"{output} holds an unfinished job with another {' and another '.join(different)}: give the same key, "
            "config and source to continue it, or choose another folder"
        )
    return True


def read_notes(job: Job, units: Iterable[Unit], known: Notes) -> Notes:
    """Those of the shards of some units, by name; what is known already is not read again."""
    wanted = {unit.name for unit in units}
    names = [name for name in names_in(job.notes) if _unit_of(name) in wanted and name not in known]
    return known | {name: json.loads(text) for name, text in texts_of(job.notes, names).items()}


def by_unit(notes: Notes) -> dict[str, list[Note]]:
    """Those of each unit, in the order of the data."""
    found = defaultdict(list)
    for name in sorted(notes, key=lambda name: (len(name), name)):
        found[_unit_of(name)].append(notes[name])
    return found


def name_of(note: Note) -> str:
    """Of a note's file: which units are done can be seen from names alone."""
    return f"{note['unit']}-{note['part']:05d}{LAST if note['last'] else '.json'}"


def _unit_of(name: str) -> str:
    return name.rpartition("-")[0]


def write_unit(job: Job, unit: Unit, first: int = 0, progress: Progress = lambda rows: None) -> Iterator[Note]:
    """Write the shards of a unit from number `first` on; gives the note of each once it is there.

    Raises:
        DatasetError: a row cannot be encrypted.
    """
    elsewhere = job.send is not None or is_address(job.output)
    beside = partial(tempfile.TemporaryDirectory, dir=job.output / UNFINISHED, prefix=SCRATCH)
    try:
        with passing_folder() if elsewhere else beside() as scratch:
            write = _write_rows if unit.rows is not None else _write_stream
            yield from write(job, unit, first, Path(scratch) / "shard.arrow", progress)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f"{tempfile.gettempdir()} ($TMPDIR)" if elsewhere else job.output
        reason = f"{error.strerror or first_line(error)}: make room in {where}"
        raise DatasetError(f"{reason}; the same command again continues") from None


def _write_rows(job: Job, unit: Unit, first: int, temporary: Path, progress: Progress) -> Iterator[Note]:
    """One shard: `datasets.map` straight into its file."""
    split, rows = job.splits[unit.split], unit.rows or 0
    chosen = job.orders[unit.split][unit.start : unit.start + rows]
    function = _function(job, unit, progress, chosen)
    job.plan.apply(
        unit.split, in_order(split, chosen), function, batch_size=BATCH_SIZE,
        cache_file_name=str(temporary), load_from_cache_file=False, writer_batch_size=WRITER_BATCH_SIZE,
        new_fingerprint=job.plan.fingerprint(f"{split._fingerprint} {unit.index}"),
    )  # fmt: skip
    if not temporary.exists():  # `map` writes no file for no rows
        ArrowWriter(features=job.plan.features, path=str(temporary)).finalize()
    yield _keep(job, unit, first, temporary, rows, function.rejected or [], last=True)


def _write_stream(job: Job, unit: Unit, first: int, temporary: Path, progress: Progress) -> Iterator[Note]:
    """The shards of one source shard of a stream, in one pass, holding one batch at a time."""
    stream = job.plan.source(unit.split, job.splits[unit.split])
    if stream.num_shards > 1:
        stream = stream.shard(stream.num_shards, unit.index)
    row = first * job.shard_rows
    batches = _read(unit, (stream.skip(row) if row else stream).iter(batch_size=BATCH_SIZE))
    batch = next(batches, None)
    for part in itertools.count(first):
        function, start = _function(job, unit, progress), row
        fingerprint = job.plan.fingerprint(f"{job.source_of(unit.split)} {unit.index} {part}")
        with ArrowWriter(features=job.plan.features, path=str(temporary), fingerprint=fingerprint) as writer:
            while batch is not None and row < start + job.shard_rows:
                count = len(batch[job.plan.columns.image])
                rows = function(batch, list(range(row, row + count)))
                if rows["image"]:
                    writer.write_batch(rows)
                row, batch = row + count, next(batches, None)
            writer.finalize()
        yield _keep(job, unit, part, temporary, row - start, function.rejected or [], last=batch is None)
        if batch is None:
            return


def _read(unit: Unit, batches: Iterable[dict]) -> Iterator[dict]:
    """What a stream gives, and in one line why it ends too early."""
    try:
        yield from batches
    except NeuraCryptError:
        raise
    except Exception as error:  # of whatever reads the source's files, or brings them here
        reason = f"{type(error).__name__}: {first_line(error)}"
        where = f"part {unit.index} of the source (split {unit.split})"
        raise DatasetError(f"cannot read {where}: {reason}; the same command again continues") from None


def _function(job: Job, unit: Unit, progress: Progress, rows: Sequence[int] | None = None) -> EncryptRows:
    def stop(row: int, error: Exception) -> str:
        part = f" of part {unit.index} of the source" if unit.rows is None and unit.index else ""
        return (
            f"row {row}{part} cannot be encrypted: {error} (split {unit.split}; --max-bad-fraction leaves such rows "
            "out; a repaired source needs a new output folder)"
        )

    rejected: list[dict] | None = [] if job.max_bad_fraction else None
    views = job.views_of(unit.split)
    options = {"rejected": rejected, "progress": progress, "views": views, "flip": job.flip, "stop": stop}
    return job.plan.rows(unit.split, rows=rows, **options)


def _keep(job: Job, unit: Unit, part: int, temporary: Path, rows: int, rejected: list[dict], last: bool) -> Note:
    """Give a shard its final place, and leave its note."""
    note: Note = {
        "unit": unit.name, "part": part, "last": last, "file": unit.file(part), "sha256": sha256(temporary),
        "source_rows": rows, "rows": (rows - len(rejected)) * job.views_of(unit.split),
        "rejected": [{"split": unit.split} | each for each in rejected],
    }  # fmt: skip
    if job.send is not None:
        return note | {"sent": job.send(temporary, note["file"])}
    keep(temporary, job.output / note["file"])
    atomic_write(job.notes / name_of(note), to_text(note))
    return note


def check_rejected(job: Job, rejected: Sequence[dict], rows: int | None = None) -> None:
    """Raises DatasetError if these are too many of the job's rows; how many a stream has is known at its end."""
    rows = job.rows if rows is None else rows
    if rows is not None and len(rejected) > job.max_bad_fraction * rows:
        last = rejected[-1]
        raise DatasetError(
            f"{len(rejected)} of {rows} rows cannot be encrypted, --max-bad-fraction {job.max_bad_fraction} allows "
            f"fewer; one of them: row {last['row']} of {last['split']}: {last['reason']}"
        )


def complete(job: Job, notes: Notes) -> bool:
    """If every unit is done, write what makes the folder loadable, and tidy up; others may have left further notes.

    Returns:
        Whether the folder is complete.

    Raises:
        DatasetError: too many rows were left out.
    """
    units = units_of(job)
    done = {_unit_of(name) for name in {*notes, *names_in(job.notes)} if name.endswith(LAST)}
    if not all(unit.name in done for unit in units):
        return not is_unfinished(job.output)  # another rank may have completed it meanwhile
    found = by_unit(read_notes(job, units, notes))
    shards: dict[str, list[Note]] = {name: [] for name in job.splits}
    rejected: list[dict] = []
    seen = dict.fromkeys(job.splits, 0)
    for unit in units:
        before = seen[unit.split] if unit.rows is None else 0  # rows of a stream are counted in its parts
        for note in found[unit.name]:
            rejected += [entry | {"row": before + entry["row"]} for entry in note["rejected"]]
            seen[unit.split] += note["source_rows"]
            shards[unit.split].append(note)
    check_rejected(job, rejected, sum(seen.values()))
    files = {note["file"]: {k: note[k] for k in ("rows", "sha256")} for each in shards.values() for note in each}
    for split, each in shards.items():
        info, state = _split_files(job, split, [Path(note["file"]).name for note in each])
        _write_listed(job.output, f"{split}/{datasets_config.DATASET_INFO_FILENAME}", to_text(info), files)
        _write_listed(job.output, f"{split}/{datasets_config.DATASET_STATE_JSON_FILENAME}", to_text(state), files)
    if rejected:
        _write_listed(job.output, REJECTED, "".join(json.dumps(entry) + "\n" for entry in rejected), files)
    splits = to_text({"splits": list(job.splits)})
    _write_listed(job.output, datasets_config.DATASETDICT_JSON_FILENAME, splits, files)
    rows = {split: sum(note["rows"] for note in each) for split, each in shards.items()}
    manifest = job.plan.record.to_dict() | {"rows": rows, "source": job.identity()["source"], "files": files}
    if job.plan.keyed_order:
        manifest["order"] = "keyed"
    if job.views > 1:
        manifest["views"] = {"count": job.views, "flip": job.flip}
    if any(job.dicom.values()):
        manifest["dicom"] = dict(job.dicom)
    atomic_write(job.output / MANIFEST, to_text(manifest | {"sha256": checksum(manifest)}), job.output / UNFINISHED)
    (job.output / UNFINISHED / JOB).unlink(missing_ok=True)
    remove(job.output / UNFINISHED)
    return True


def _write_listed(output: Path, name: str, text: str, files: dict) -> None:
    atomic_write(output / name, text, output / UNFINISHED)  # what a crash leaves behind must not lie beside the data
    files[name] = {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _split_files(job: Job, split: str, shards: list[str]) -> tuple[dict, dict]:
    """What `load_from_disk` reads beside the shards: dataset_info.json and state.json."""
    info = {"description": job.plan.record.to_json(), "features": job.plan.features.to_dict()}
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": job.source_of(split),
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
        "_split": split,
    }  # fmt: skip
    return info | {"citation": "", "homepage": "", "license": ""}, state
