"""`encrypt` and `verify`: encrypted folders, from the source to the last check."""

import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hf_neuracrypt.cli.common import ImageColumn, KeyFile, LabelColumn, PassphraseFile, load_key, note
from hf_neuracrypt.errors import ConfigError, DatasetError, KeyMismatchError, NeuraCryptError, printable
from hf_neuracrypt.schemes import SCHEMES


if TYPE_CHECKING:
    from hf_neuracrypt.jobs.job import Job


def encrypt(
    dataset: Annotated[
        str, typer.Option(help="Hub id, folder of images, save_to_disk folder, or Parquet/CSV/JSON/tar.")
    ],
    key_file: KeyFile,
    output: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="New folder for the result, or an address: of a bucket (s3://…) or of a private dataset repository "
            "(hf://datasets/OWNER/NAME). Run again to resume.",
        ),
    ],
    passphrase_file: PassphraseFile = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Store no labels.")] = False,
    keep_column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also store this column, in clear. Repeatable.")
    ] = None,
    hide_labels: Annotated[
        bool, typer.Option("--hide-labels", help="Neutral class names, permuted by the key.")
    ] = False,
    max_rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first rows of each split.")] = None,
    scheme: Annotated[str, typer.Option(help=f"One of: {', '.join(SCHEMES)}.")] = "color-neuracrypt",
    image_size: Annotated[
        int | None, typer.Option(help="Height and width, in pixels, of what is encrypted. Default: the scheme's (224).")
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(help="That of the model to be trained: 8, 14, 16 or 32. Default: 16.")
    ] = None,
    scheme_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another parameter of the scheme: depth=2, say. Repeatable."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Scheme, columns and views as in this encrypted folder, under a new key."),
    ] = None,
    views: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="Rows for each image of the split train: itself, then versions of it moved by up to an eighth of the "
            "side. Later, on ciphertexts, nothing can be augmented. More views also tell an attacker more.",
        ),
    ] = 1,
    flip: Annotated[
        bool, typer.Option("--flip", help="Mirror half of these versions, too: wrong for digits, text, left and right.")
    ] = False,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="CENTER,WIDTH",
            help="Of grey DICOM images: what becomes black to white, in the modality's units. Default: the file's own.",
        ),
    ] = None,
    all_frames: Annotated[
        bool, typer.Option("--all-frames", help="Of DICOM files: a row for each frame, not for the first alone.")
    ] = False,
    group_by_patient: Annotated[
        bool,
        typer.Option(
            "--group-by-patient",
            help="Split DICOM files into train and test, one patient in five: by PatientID and key, stored nowhere.",
        ),
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, metavar="N", help="Size of a shard file, in MB.")] = 500,
    max_bad_fraction: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Leave out rows that cannot be encrypted, and files that are no images, up to this share.",
        ),
    ] = 0.0,
    streaming: Annotated[
        bool | None,
        typer.Option(
            "--streaming/--no-streaming",
            help="Read the source once, without a copy in datasets' cache. Default: for local table files.",
        ),
    ] = None,
    num_proc: Annotated[int, typer.Option(min=1, metavar="N", help="Worker processes on this machine.")] = 1,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A Dask scheduler, tcp://host:8786: its workers do the work. They share an output folder, and have "
            "the key file at the same place or where NEURACRYPT_KEY_FILE says.",
        ),
    ] = None,
    rank: Annotated[
        int, typer.Option(min=0, metavar="N", help="This machine's number, if several share the work.")
    ] = 0,
    world_size: Annotated[int, typer.Option(min=1, metavar="N", help="How many machines share the work.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda. No effect on the result.")] = "cpu",
) -> None:
    """Encrypt a dataset into a new folder.

    If the job is interrupted, run the same command again to resume it; the result does not depend on the interruption,
    nor on how many processes and machines did the work. Exit status 3: done, but some rows (see rejected.jsonl) or
    files were left out.

    \b
    Example:
      hf-neuracrypt encrypt --dataset photos/ --key-file hospital.key --output encrypted/
    """
    from hf_neuracrypt.data.places import HUB, check_places, passing_folder, place, reachable

    if rank >= world_size:
        raise NeuraCryptError(f"--rank {rank} is not below --world-size {world_size}: ranks count from 0")
    if dask is not None and (num_proc > 1 or world_size > 1):
        raise NeuraCryptError("--dask has its own workers: leave --num-proc, --rank and --world-size out")
    repository = output.removeprefix(HUB) if output.startswith(HUB) else None
    if repository is not None and world_size > 1:
        raise NeuraCryptError("one process commits to a repository: leave --rank and --world-size out; --dask works")
    sizes = {"image_size": image_size, "patch_size": patch_size, "window": window}
    options = {name: size for name, size in sizes.items() if size is not None} | parse_options(scheme_option or ())
    if no_labels and (label_column or hide_labels):
        raise NeuraCryptError("--no-labels stores none: leave --label-column and --hide-labels out")
    dicom = {"all_frames": all_frames, "by_patient": group_by_patient}
    config, kept, views, flip, dicom = _how(like, scheme, options, views, flip, dicom)
    columns = kept or {"keep_columns": keep_column or (), "hide_labels": hide_labels}
    columns["image_column"] = image_column
    if no_labels or label_column:
        columns["label_column"] = label_column or ()
    check_places(dataset, key_file, output)
    key = load_key(key_file, passphrase_file)

    from datasets import IterableDataset

    from hf_neuracrypt.data.dataset import make_plan
    from hf_neuracrypt.data.manifest import read_manifest
    from hf_neuracrypt.data.sources import files_of, identity, plain_splits
    from hf_neuracrypt.data.summary import describe, remarks, rows_of, unread_lists
    from hf_neuracrypt.encoders import load_encoder
    from hf_neuracrypt.jobs.job import Job
    from hf_neuracrypt.jobs.run import run

    if like is not None and read_manifest(like)["key_id"] == key.id:
        raise KeyMismatchError(f"{like} was encrypted with this very key: --like needs another one")
    signal.signal(signal.SIGTERM, _interrupt)
    patients = key if dicom["by_patient"] else None
    files, frames = files_of(dataset), dicom["all_frames"]
    splits, left_out = plain_splits(dataset, streaming, max_rows, max_bad_fraction, frames, patients, files)
    for line in () if no_labels or rank else unread_lists(files, splits):
        note(line)
    encoder = load_encoder(config, key, device)
    streamed = any(isinstance(split, IterableDataset) for split in splits.values())
    origin = identity(dataset) if streamed else ""
    with reachable(dataset):  # of a stream, the first rows are looked at
        plan = make_plan(splits, encoder, **columns, origin=origin)
        if like is not None and plan.labels is None and columns.get("label_column") is None:
            raise DatasetError(f"{like} has labels: name their --label-column, or give --no-labels")
        left = [f"Left out: {left_out}."] if left_out else []
        if rank == 0:
            for line in (f"Found {describe(rows_of(splits), plan)}.", *left, *remarks(splits, plan)):
                note(line)
    with passing_folder() as passing:
        folder = passing / "encrypted" if repository else place(output)
        job = Job(splits, plan, folder, shard_size * 1_000_000, max_bad_fraction, views, flip, dicom)
        if repository:
            _run_to_repository(job, repository, num_proc, dask)
        elif not run(job, num_proc, rank, world_size, dask):
            return note(f"Rank {rank} of {world_size} has done its part; {output} is complete when all have.")
        _report(job, output, like, bool(left_out), stays=repository is None)


def _run_to_repository(job: "Job", repository: str, num_proc: int, dask: str | None) -> None:
    """Workers send their shards as soon as they are there; all are committed together at the end."""
    from hf_neuracrypt.data.manifest import read_manifest
    from hf_neuracrypt.jobs.run import run
    from hf_neuracrypt.publish.push import new_revision

    kept = tuple(job.plan.columns.kept)
    revision = new_revision(repository, job.plan.record, job.plan.encoder.key, keep_columns=kept)

    def arrived(note: dict) -> None:
        revision.shards[note["file"]] = note["sent"]

    run(dataclasses.replace(job, send=revision.shipment.send), num_proc, dask=dask, arrived=arrived)
    note(f"Committed {revision.commit(read_manifest(job.output))}")


def _report(job: "Job", output: str, like: Path | None, left_out: bool, stays: bool) -> None:
    """Say what was done, and what was left out."""
    from hf_neuracrypt.data.manifest import REJECTED, read_manifest
    from hf_neuracrypt.data.summary import describe

    rows, listed = read_manifest(job.output)["rows"], job.output / REJECTED
    what = f"{sum(rows.values()):,} images ({describe(rows, job.plan)})"
    note(f"Encrypted {what} with {job.plan.encoder.key.id} into {output}.")
    if like is not None and rows != read_manifest(like)["rows"]:
        raise DatasetError(f"the source has other images now: {rows}, not {read_manifest(like)['rows']} as in {like}")
    if listed.exists():
        lines = listed.read_text().splitlines()
        where = f"listed in {listed}" if stays else "\n".join(lines)
        note(f"Rows that could not be encrypted and were left out: {len(lines):,}, {where}")
    if left_out or listed.exists():
        raise typer.Exit(3)


def _how(
    like: Path | None, scheme: str, options: dict[str, Any], views: int, flip: bool, dicom: dict[str, bool]
) -> tuple[Any, dict[str, Any], int, bool, dict[str, bool]]:
    """Config, columns, views, flip, and how DICOM files become rows: as the options say, or as an earlier folder was
    encrypted."""
    from hf_neuracrypt.schemes import make_config

    if like is None:
        return make_config(scheme, options), {}, views, flip, dicom
    if options or views > 1 or flip or any(dicom.values()) or scheme != "color-neuracrypt":
        raise NeuraCryptError(f"--like takes scheme, sizes and views from {like}: leave these options out")

    from datasets import load_from_disk

    from hf_neuracrypt.data.manifest import TRAIN, dicom_of, read_manifest, views_of
    from hf_neuracrypt.data.record import Record

    manifest = read_manifest(like)
    record = Record.from_dict(manifest)
    split = next(iter(load_from_disk(str(like)).values()))
    kept = tuple(name for name in split.column_names if name not in ("image", "label"))
    columns: dict[str, Any] = {"keep_columns": kept, "hide_labels": record.sealed_labels is not None}
    label = split.features.get("label", {})
    if isinstance(label, dict) and not record.sealed_labels:
        columns["label_column"] = tuple(label)
    flip = manifest.get("views", {}).get("flip", False)
    return record.config, columns, views_of(manifest, TRAIN), flip, dicom_of(manifest)


def parse_options(pairs: list[str] | tuple[()]) -> dict[str, str | int | bool]:
    """Options as a command line has them: ["block_size=8", "color_shuffle=false"]. Raises ConfigError."""
    options: dict[str, str | int | bool] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"the option {pair!r} is not of the form NAME=VALUE")
        whole = value.isascii() and value.removeprefix("-").isdigit()
        options[name.replace("-", "_")] = {"true": True, "false": False}.get(value, int(value) if whole else value)
    return options


def _interrupt(*_: object) -> NoReturn:
    """SIGTERM, as a cluster's scheduler sends it, ends the job like Ctrl-C: workers are told, locks are dropped."""
    raise KeyboardInterrupt


def verify(
    folder: Annotated[str, typer.Argument(help="A folder written by `encrypt`, or its address in a bucket.")],
) -> None:
    """Check every file of an encrypted dataset.

    Each is hashed again; those that are not as they were written are named, and the exit status is 2.

    \b
    Example:
      hf-neuracrypt verify encrypted/
    """
    from hf_neuracrypt.data import manifest
    from hf_neuracrypt.data.places import reachable

    damaged = 0
    with reachable(folder):
        for file, problem in manifest.verify(folder):
            if problem:
                damaged += 1
                typer.echo(printable(f"{folder.rstrip('/')}/{file} {problem}"))
    if damaged:
        raise DatasetError(f"{damaged} file(s) of {folder} are not as they were written: encrypt again")
    note(f"Every file of {folder} is as it was written.")
