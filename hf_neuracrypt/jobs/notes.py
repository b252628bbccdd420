"""What finished shards left beside a job: how many rows each had, and which of them were rejected."""

import json
from pathlib import Path

from datasets import Dataset

from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.jobs.job import Job, Unit


def notes_of(job: Job, unit: Unit) -> list[dict] | None:
    """The notes of a unit's shards; None if they are not all done."""
    notes: list[dict] = []
    while not notes or not notes[-1]["last"]:
        note = _read(job.note(unit.file(len(notes))))
        if note is None:
            return None
        notes.append(note)
    return notes


def rows_before(job: Job, unit: Unit) -> int | None:
    """How many rows of its split come before those of a source shard; None: another worker is still at them."""
    earlier = [notes_of(job, Unit(unit.split, index)) for index in range(unit.index)]
    if any(notes is None for notes in earlier):
        return None
    return sum(note["source_rows"] for notes in earlier for note in notes or ())


def check_bound(job: Job) -> None:
    """`compare` what this run and earlier ones rejected with all rows; how many a stream has is known at its end."""
    if all(isinstance(split, Dataset) for split in job.splits.values()):
        notes = (_read(path) for path in job.notes.glob("*.json"))
        rejected = [entry for note in notes if note for entry in note["rejected"]]
        compare(job, rejected, sum(map(len, job.orders.values())))


def compare(job: Job, rejected: list[dict], total: int) -> None:
    """Raises DatasetError if more rows were rejected than the job may leave out."""
    if len(rejected) > job.max_bad_fraction * total:
        last = rejected[-1]
        raise DatasetError(
            f"{len(rejected)} of {total} rows cannot be encrypted, --max-bad-fraction {job.max_bad_fraction} allows "
            f"fewer; one of them: row {last['row']} of {last['split']}: {last['reason']}"
        )


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:  # not done yet; or another worker completed the folder, and tidied up
        return None
