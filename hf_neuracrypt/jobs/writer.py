"""Encrypt a dataset into a folder: in one process, several, or on several machines; resumable, to the same bytes.

Notable decisions
- A shard that has its final name is whole. The note beside the job says how many rows it has, its sha256, and what was
  rejected. Resuming is: skip what has a note.
- Worker `rank` of `world_size` takes every world_size-th unit. Nobody waits for anybody: whoever finds all notes there
  completes the folder. So any number of workers may be killed, and any number may continue.
- A writer holds a lock that the system drops when the process ends, however it ends.
"""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    atomic_rename,
    atomic_write,
    checksum,
    is_unfinished,
    read_manifest,
    sha256,
    to_text,
)
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.jobs.job import BATCH_SIZE, Job, Unit, units_of
from hf_neuracrypt.jobs.notes import check_bound, compare, notes_of, rows_before


def work(job: Job, rank: int = 0, world_size: int = 1, progress: Callable[[int], object] | None = None) -> bool:
    """Do the units of one worker that nobody did before; complete the folder if that was the last of all.

    Returns:
        Whether the folder is complete; False when other workers have units left to do.

    Raises:
        DatasetError: the folder holds something else, this worker's place is taken, or a row cannot be encrypted.
    """
    if not claim(job, repeatable=world_size > 1):
        return True
    with _lock(job.output, rank, world_size):
        scratch = job.output / UNFINISHED / f"scratch-{rank}"
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed worker was writing
        scratch.mkdir()
        check_bound(job)
        for unit in units_of(job)[rank::world_size]:
            write = _write_rows if unit.rows is not None else _write_stream
            write(job, unit, scratch, progress or (lambda rows: None))
        try:
            return _finish(job)
        except FileNotFoundError:
            if is_unfinished(job.output):
                raise
            return True  # another worker completed it, and tidied up, meanwhile


def claim(job: Job, repeatable: bool = False) -> bool:
    """Make the output this job's folder; False if it is already complete and `repeatable`. Raises DatasetError."""
    output, plan_file = job.output, job.output / UNFINISHED / JOB
    try:
        if not is_unfinished(output):
            if (output / MANIFEST).exists():
                if repeatable and read_manifest(output)["source"] == job.identity()["source"]:
                    return False
                raise DatasetError(f"{output} already holds a finished encrypted dataset: choose another folder")
            foreign = output.exists() and any(path.name != UNFINISHED for path in output.iterdir())
            if foreign and not is_unfinished(output):  # another worker may just have begun
                raise DatasetError(f"{output} exists and is not empty: choose another folder")
            job.notes.mkdir(parents=True, exist_ok=True)
            if not is_unfinished(output):
                atomic_write(plan_file, to_text(job.identity()))
        other = json.loads(plan_file.read_text())
    except OSError as error:
        raise DatasetError(f"cannot write to {output}: {error.strerror}") from None
    different = [name for name, value in job.identity().items() if value != other.get(name)]
    if different:
        raise DatasetError(
            f"{output} holds an unfinished job with another {' and another '.join(different)}: give the same key, "
            "config and source to continue it, or choose another folder"
        )
    return True


@contextmanager
def _lock(output: Path, rank: int, world_size: int) -> Iterator[None]:
    """Be worker `rank` of `world_size`, or raise DatasetError saying who is at work."""
    folder = output / UNFINISHED / "locks"
    folder.mkdir(exist_ok=True)
    own = folder / f"{rank}-of-{world_size}"
    for path in folder.iterdir():
        if path != own and path.name.endswith(f"-of-{world_size}"):
            continue  # a worker of the same team has other units
        with open(path, "a+") as file:
            # Only whether somebody holds it matters. Shared: workers of a team that look at the same time do not clash.
            _acquire(file, output, fcntl.LOCK_SH)
    with open(own, "a+") as file:
        _acquire(file, output, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _acquire(file, output: Path, kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise DatasetError(
            f"{file.read() or 'another process'} is writing to {output}: wait for it, or stop it"
        ) from None


def _write_rows(job: Job, unit: Unit, scratch: Path, progress: Callable[[int], object]) -> None:
    """One shard: `datasets.map` straight into its file."""
    rows = unit.rows or 0
    if job.note(unit.file(0)).exists():
        progress(rows)
        return
    split, temporary = job.splits[unit.split], scratch / "shard.arrow"
    chosen = job.orders[unit.split][unit.start : unit.start + rows]
    function = _function(job, unit, progress, chosen)
    job.plan.apply(
        in_order(split, chosen), function, batch_size=BATCH_SIZE,
        cache_file_name=str(temporary), load_from_cache_file=False, writer_batch_size=WRITER_BATCH_SIZE,
        new_fingerprint=job.plan.fingerprint(f"{split._fingerprint} {unit.index}"),
    )  # fmt: skip
    if not temporary.exists():  # `map` writes no file for no rows
        ArrowWriter(features=job.plan.features, path=str(temporary)).finalize()
    _keep(job, unit, 0, temporary, rows, function.rejected or [], last=True)


def _write_stream(job: Job, unit: Unit, scratch: Path, progress: Callable[[int], object]) -> None:
    """The shards of one source shard of a stream, in one pass, holding one batch at a time."""
    stream = job.plan.source(job.splits[unit.split])
    if stream.num_shards > 1:
        stream = stream.shard(stream.num_shards, unit.index)
    part = 0
    while job.note(unit.file(part)).exists():
        note = json.loads(job.note(unit.file(part)).read_text())
        progress(note["source_rows"])
        if note["last"]:
            return
        part += 1
    first_row, before = part * job.shard_rows, rows_before(job, unit)
    batches = iter((stream.skip(first_row) if first_row else stream).iter(batch_size=BATCH_SIZE))
    batch = next(batches, None)
    while True:
        temporary, row = scratch / "shard.arrow", first_row
        function = _function(job, unit, progress, before=before)
        fingerprint = job.plan.fingerprint(f"{job.source_of(unit.split)} {unit.index} {part}")
        with ArrowWriter(features=job.plan.features, path=str(temporary), fingerprint=fingerprint) as writer:
            while batch is not None and row < first_row + job.shard_rows:
                count = len(batch[job.plan.columns.image])
                rows = function(batch, list(range(row, row + count)))
                if rows["image"]:
                    writer.write_batch(rows)
                row, batch = row + count, next(batches, None)
            writer.finalize()
        _keep(job, unit, part, temporary, row - first_row, function.rejected or [], last=batch is None)
        if batch is None:
            return
        part, first_row = part + 1, row


def _function(
    job: Job,
    unit: Unit,
    progress: Callable[[int], object],
    rows: Sequence[int] | None = None,
    before: int | None = 0,
) -> EncryptRows:
    def stop(row: int, error: Exception) -> str:
        where = f"row {row} of part {unit.index} of the source" if before is None else f"row {before + row}"
        return (
            f"{where} cannot be encrypted: {error} (split {unit.split}; --max-bad-fraction leaves such rows out; a "
            "repaired source needs a new output folder)"
        )

    rejected: list[dict] | None = [] if job.max_bad_fraction else None
    views = job.views_of(unit.split)
    return job.plan.rows(rows=rows, rejected=rejected, progress=progress, views=views, flip=job.flip, stop=stop)


def _keep(job: Job, unit: Unit, part: int, temporary: Path, rows: int, rejected: list[dict], last: bool) -> None:
    """Give a shard its final name and leave its note; stop if too many rows were rejected."""
    file = unit.file(part)
    stored = (rows - len(rejected)) * job.views_of(unit.split)
    note = {"file": file, "source_rows": rows, "rows": stored, "sha256": sha256(temporary), "last": last}
    (job.output / unit.split).mkdir(exist_ok=True)
    atomic_rename(temporary, job.output / file)
    atomic_write(job.note(file), to_text(note | {"rejected": [{"split": unit.split} | each for each in rejected]}))
    if rejected:
        check_bound(job)


def _finish(job: Job) -> bool:
    """If every unit is done, write what makes the folder loadable, and tidy up."""
    notes: dict[str, list[dict]] = {name: [] for name in job.splits}
    rejected: list[dict] = []
    for unit in units_of(job):
        done = notes_of(job, unit)
        if done is None:
            return not is_unfinished(job.output)  # another worker may have completed it meanwhile
        before = sum(note["source_rows"] for note in notes[unit.split]) if unit.rows is None else 0
        rejected += [entry | {"row": before + entry["row"]} for note in done for entry in note["rejected"]]
        notes[unit.split] += done
    compare(job, rejected, sum(note["source_rows"] for each in notes.values() for note in each))
    files = {note["file"]: {k: note[k] for k in ("rows", "sha256")} for each in notes.values() for note in each}
    for split, each in notes.items():
        info, state = _split_files(job, split, [Path(note["file"]).name for note in each])
        _write_listed(job.output, f"{split}/{datasets_config.DATASET_INFO_FILENAME}", to_text(info), files)
        _write_listed(job.output, f"{split}/{datasets_config.DATASET_STATE_JSON_FILENAME}", to_text(state), files)
    if rejected:
        _write_listed(job.output, REJECTED, "".join(json.dumps(entry) + "\n" for entry in rejected), files)
    splits = to_text({"splits": list(job.splits)})
    _write_listed(job.output, datasets_config.DATASETDICT_JSON_FILENAME, splits, files)
    rows = {split: sum(note["rows"] for note in each) for split, each in notes.items()}
    manifest = job.plan.record.to_dict() | {"rows": rows, "source": job.identity()["source"], "files": files}
    if job.plan.keyed_order:
        manifest["order"] = "keyed"
    if job.views > 1:
        manifest["views"] = {"count": job.views, "flip": job.flip}
    atomic_write(job.output / MANIFEST, to_text(manifest | {"sha256": checksum(manifest)}), job.output / UNFINISHED)
    (job.output / UNFINISHED / JOB).unlink(missing_ok=True)
    shutil.rmtree(job.output / UNFINISHED, ignore_errors=True)
    return True


def _write_listed(output: Path, name: str, text: str, files: dict) -> None:
    atomic_write(output / name, text, output / UNFINISHED)  # what a crash leaves behind must not lie beside the data
    files[name] = {"sha256": sha256(output / name)}


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
