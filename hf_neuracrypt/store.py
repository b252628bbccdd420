"""An encrypted dataset on disk: the layout of `save_to_disk`, written shard by shard so that nothing is half there.

    FOLDER/neuracrypt.json                  manifest: record, rows and sha256 of every shard; written last
    FOLDER/dataset_dict.json                the splits; written just before, so an unfinished folder does not load
    FOLDER/train/data-00000-of-00003.arrow  a shard: one `datasets.map`, written once, then fsync, then rename
    FOLDER/train/dataset_info.json, state.json
    FOLDER/.unfinished/                     while a job runs: what it is, notes on finished shards, scratch

Notable decisions
- The number of shards follows from the data, never from the number of workers; a shard with its final name is whole.
- The same command again keeps finished shards and makes the missing ones. Bytes do not depend on the interruption.
- A job with another key, config or source in the same folder is an error that names what differs.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from datasets import config as datasets_config
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock, Timeout

from hf_neuracrypt.dataset import WRITER_BATCH_SIZE, Plan, Record
from hf_neuracrypt.errors import ConfigError, DatasetError


MANIFEST = "neuracrypt.json"
UNFINISHED = ".unfinished"
# A record batch of the Arrow file holds what was encrypted at once: part of the bytes, so not a user's choice.
BATCH_SIZE = 64
JOB = "job.json"  # a folder is unfinished as long as it has this file
SHARD_BYTES = 500_000_000
MAX_MANIFEST_BYTES = 64_000_000


@dataclass(frozen=True)
class Shard:
    """A run of rows of a split, and the file it becomes."""

    split: str
    index: int
    count: int
    start: int
    rows: int

    @property
    def file(self) -> str:
        return f"{self.split}/data-{self.index:05d}-of-{self.count:05d}.arrow"


def write(splits: dict[str, Dataset], plan: Plan, output: str | Path, shard_bytes: int = SHARD_BYTES):
    """Encrypt `splits` into the folder `output`, or finish what an interrupted call with the same arguments left there.

    Args:
        splits: plain images, by split.
        plan: from `dataset.make_plan`.
        output: a new or empty folder, or an unfinished one of the same job.
        shard_bytes: about how large a shard becomes.

    Raises:
        DatasetError: the folder holds something else, another job writes to it, or a row cannot be encrypted.
    """
    output = Path(output)
    shards = [shard for name, split in splits.items() for shard in plan_shards(name, len(split), plan, shard_bytes)]
    job = {
        "record": plan.record.to_dict(),
        "features": plan.features.to_dict(),
        "source": {name: plan.fingerprint(split._fingerprint) for name, split in splits.items()},
        "rows": {name: len(split) for name, split in splits.items()},
        "shards": [shard.file for shard in shards],
    }
    _claim(output, job)
    with _exclusive(output):
        notes: list[dict] = []
        for shard in shards:
            note = output / UNFINISHED / f"{shard.file.replace('/', '-')}.json"
            if not (note.exists() and (output / shard.file).exists()):
                _write_shard(splits[shard.split], shard, plan, output, note)
            notes.append(json.loads(note.read_text()))
        _finish(output, plan, job, notes)
        _clean(output)


def plan_shards(split: str, rows: int, plan: Plan, shard_bytes: int) -> list[Shard]:
    """Cut a split into shards of about `shard_bytes`; an empty split is one empty shard."""
    row_bytes = 3 * plan.encoder.config.image_size**2 + 100
    count = max(1, -(-rows * row_bytes // shard_bytes))
    bounds = [rows * index // count for index in range(count + 1)]
    return [Shard(split, index, count, bounds[index], bounds[index + 1] - bounds[index]) for index in range(count)]


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a finished folder.

    Raises:
        DatasetError: there is none, the folder is unfinished, or the manifest is damaged.
    """
    folder = Path(folder)
    if (folder / UNFINISHED / JOB).exists():
        raise DatasetError(f"{folder} is unfinished: run the same `hf-neuracrypt encrypt` command again to complete it")
    try:
        if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
            raise DatasetError(f"{folder / MANIFEST} is larger than any manifest")
        text = (folder / MANIFEST).read_text()
        manifest = json.loads(text)
        Record.from_dict(manifest)
    except FileNotFoundError:
        raise DatasetError(f"{folder} is not an encrypted dataset: it has no {MANIFEST}") from None
    except (OSError, ValueError, ConfigError) as error:
        raise DatasetError(f"{folder / MANIFEST} is damaged: {error}") from None
    if text != _to_text(manifest) or manifest.pop("sha256", None) != _checksum(manifest):
        raise DatasetError(f"{folder / MANIFEST} is damaged: it fails its own checksum")
    return manifest


def verify(folder: str | Path) -> Iterator[tuple[str, str | None]]:
    """Compare every file of a finished folder with the manifest: yields (file, what is wrong with it, or None)."""
    folder = Path(folder)
    expected = read_manifest(folder)["files"]
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {MANIFEST}
    for file in sorted(present - set(expected)):
        yield file, "is not in the manifest"
    for file, entry in expected.items():
        if file not in present:
            yield file, "is missing"
        else:
            yield (
                file,
                None if _sha256(folder / file) == entry["sha256"] else "does not have the sha256 of the manifest",
            )


def _claim(output: Path, job: dict) -> None:
    """Make `output` this job's folder, or raise DatasetError."""
    plan_file = output / UNFINISHED / JOB
    if (output / MANIFEST).exists() and not plan_file.exists():
        raise DatasetError(f"{output} already holds a finished encrypted dataset: choose another folder")
    if plan_file.exists():
        other = json.loads(plan_file.read_text())
        different = [name for name in job if job[name] != other.get(name)]
        if different:
            raise DatasetError(
                f"{output} holds an unfinished job with another {' and '.join(different)}: "
                "give the same key, config and source to continue it, or choose another folder"
            )
        return
    try:
        if output.exists() and any(path.name != UNFINISHED for path in output.iterdir()):
            raise DatasetError(f"{output} exists and is not empty: choose another folder")
        (output / UNFINISHED).mkdir(parents=True, exist_ok=True)
        _write_json(plan_file, job)
    except OSError as error:
        raise DatasetError(f"cannot write to {output}: {error.strerror}") from None


def _exclusive(output: Path) -> AbstractContextManager:
    """Held for the length of a job. The system releases it when the process ends, however it ends."""
    try:
        return FileLock(output / UNFINISHED / "lock").acquire(timeout=0)
    except Timeout:
        raise DatasetError(
            f"another process is writing to {output}: wait for it, or stop it and run this again"
        ) from None


def _write_shard(split: Dataset, shard: Shard, plan: Plan, output: Path, note: Path) -> None:
    scratch = output / UNFINISHED / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed job was writing
    scratch.mkdir()
    (output / shard.split).mkdir(exist_ok=True)
    temporary = scratch / "shard.arrow"
    plan.apply(
        split.select(range(shard.start, shard.start + shard.rows)), first_row=shard.start, batch_size=BATCH_SIZE,
        cache_file_name=str(temporary), load_from_cache_file=False, writer_batch_size=WRITER_BATCH_SIZE,
        new_fingerprint=plan.fingerprint(f"{split._fingerprint} {shard.file}"),
        desc=f"Encrypting {shard.split} {shard.index + 1}/{shard.count}",
    )  # fmt: skip
    if not temporary.exists():  # `map` writes no file for no rows
        ArrowWriter(features=plan.features, path=str(temporary)).finalize()
    _sync(temporary)
    entry = {"file": shard.file, "rows": shard.rows, "sha256": _sha256(temporary)}
    os.replace(temporary, output / shard.file)
    _sync((output / shard.file).parent)
    _write_json(note, entry)


def _finish(output: Path, plan: Plan, job: dict, notes: list[dict]) -> None:
    files = {note["file"]: {"rows": note["rows"], "sha256": note["sha256"]} for note in notes}
    for split in job["rows"]:
        state = {
            "_data_files": [{"filename": Path(file).name} for file in files if file.startswith(f"{split}/")],
            "_fingerprint": job["source"][split],
            "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
            "_split": split,
        }  # fmt: skip
        info = {
            "description": plan.record.to_json(),
            "features": plan.features.to_dict(),
            "citation": "",
            "homepage": "",
            "license": "",
        }
        small = {datasets_config.DATASET_INFO_FILENAME: info, datasets_config.DATASET_STATE_JSON_FILENAME: state}
        for name, content in small.items():
            _write_json(output / split / name, content)
            files[f"{split}/{name}"] = {"sha256": _sha256(output / split / name)}
    _write_json(output / datasets_config.DATASETDICT_JSON_FILENAME, {"splits": list(job["rows"])})
    name = datasets_config.DATASETDICT_JSON_FILENAME
    files[name] = {"sha256": _sha256(output / name)}
    manifest = plan.record.to_dict() | {"rows": job["rows"], "source": job["source"], "files": files}
    _write_json(output / MANIFEST, manifest | {"sha256": _checksum(manifest)})


def _clean(output: Path) -> None:
    for path in (output / UNFINISHED).iterdir():
        if path.name != JOB:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(output / UNFINISHED)


def _write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(_to_text(content))
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _to_text(content: dict) -> str:
    return json.dumps(content, indent=2) + "\n"


def _checksum(content: dict) -> str:
    return hashlib.sha256(_to_text(content).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
