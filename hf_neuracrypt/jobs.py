"""From the name of a plain source to a finished encrypted folder: what `encrypt` and `rotate` do."""

import os
from collections.abc import Sequence
from pathlib import Path

from hf_neuracrypt.configuration import PublicConfig
from hf_neuracrypt.errors import DatasetError, KeyFileError, KeyMismatchError
from hf_neuracrypt.keys import SecretKey


def encrypt_source(
    dataset: str,
    config: PublicConfig,
    key: SecretKey,
    output: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    keep_columns: Sequence[str] = (),
    hide_labels: bool = False,
    max_rows: int | None = None,
    shard_bytes: int = 500_000_000,
    skip: bool = False,
    max_bad_fraction: float = 0.1,
    streaming: bool | None = None,
    num_proc: int = 1,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
    views: int = 1,
    flip: bool = False,
) -> bool:
    """Load a source and encrypt it into a folder; the arguments are those of `hf-neuracrypt encrypt`.

    Returns:
        Whether the folder is complete; False when other machines have shards left to write.

    Raises:
        NeuraCryptError: what stopped it. The same call again continues.
    """
    from hf_neuracrypt.dataset import make_plan
    from hf_neuracrypt.encoders import load_encoder
    from hf_neuracrypt.sources import identity, is_table, load_source, stored_record
    from hf_neuracrypt.store import TRAIN
    from hf_neuracrypt.units import Job
    from hf_neuracrypt.workers import encrypt_to_folder

    if (record := stored_record(dataset)) is not None:
        raise DatasetError(f"{dataset} is already encrypted (key {record.key_id}): encrypt the plain images instead")
    streaming = is_table(dataset) if streaming is None else streaming
    splits = dict(load_source(dataset, streaming))
    if max_rows is not None:
        splits = {name: _first_rows(split, max_rows) for name, split in splits.items()}
    if views > 1 and TRAIN not in splits:
        raise DatasetError(f"--views are of the split {TRAIN!r}: {dataset} has {', '.join(splits)}")
    encoder = load_encoder(config, key, device=device)
    plan = make_plan(splits, encoder, image_column, label_column, keep_columns, hide_labels)
    job = Job(
        splits, plan, output, identity(dataset) if streaming else "", shard_bytes,
        skip=skip, max_bad_fraction=max_bad_fraction, views=views, flip=flip and views > 1,
    )  # fmt: skip
    return encrypt_to_folder(job, num_proc, rank, world_size)


def encrypt_again(
    folder: Path,
    dataset: str,
    key: SecretKey,
    output: Path,
    image_column: str | None = None,
    label_column: str | None = None,
    max_rows: int | None = None,
    num_proc: int = 1,
) -> dict[str, int]:
    """Encrypt a source as `folder` was encrypted, under a new key; a finished `output` of that key is taken as it is.

    Returns:
        The images of each split.

    Raises:
        KeyMismatchError: the key is that of `folder`, or `output` is finished under a third.
        DatasetError: `folder` is none of ours, or the source has other images than it had then.
    """
    from hf_neuracrypt.record import Record
    from hf_neuracrypt.store import MANIFEST, TRAIN, is_unfinished, read_manifest, views_of

    old = read_manifest(folder)
    record = Record.from_dict(old)
    if key.id == record.key_id:
        raise KeyMismatchError(f"{folder} was encrypted with this very key: rotation needs a new one")
    if is_unfinished(output) or not (output / MANIFEST).exists():
        encrypt_source(
            dataset, record.config, key, output, image_column=image_column, label_column=label_column,
            keep_columns=_kept_columns(folder), hide_labels=record.sealed_labels is not None, max_rows=max_rows,
            num_proc=num_proc, views=views_of(old, TRAIN), flip=old.get("views", {}).get("flip", False),
        )  # fmt: skip
    new = read_manifest(output)
    Record.from_dict(new).check_key(key, output)
    if new["config"] != old["config"]:
        raise KeyMismatchError(f"{output} is of another config than {folder}: choose another folder")
    if new["rows"] != old["rows"]:
        raise DatasetError(
            f"the source has other images now: {new['rows']}, not {old['rows']} as in {folder}; "
            f"{output} holds them, encrypted, and nothing was published"
        )
    return new["rows"]


def _kept_columns(folder: Path) -> tuple[str, ...]:
    """The columns of an encrypted folder that are stored in clear, beside the label."""
    from datasets import load_from_disk

    split = next(iter(load_from_disk(str(folder)).values()))
    return tuple(name for name in split.column_names if name not in ("image", "label"))


def check_places(dataset: str, key_file: Path, output: Path) -> None:
    """Source, key and output are three places: an output folder gets copied and published."""
    folder, source, key = (os.path.realpath(path) for path in (output, dataset, key_file))
    if folder == source or source.startswith(folder + os.sep):
        raise DatasetError(f"the output {output} is or holds the source {dataset}: choose another folder")
    if Path(source).is_dir() and folder.startswith(source + os.sep):
        raise DatasetError(f"the output {output} lies inside the source {dataset}: choose another folder")
    if key.startswith(folder + os.sep):
        raise KeyFileError(f"the key file {key_file} lies inside the output {output}: keep it elsewhere")


def _first_rows(split, count: int):
    from datasets import Dataset

    return split.select(range(min(count, len(split)))) if isinstance(split, Dataset) else split.take(count)
