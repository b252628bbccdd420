"""`encrypt`, `verify` and `rotate`: encrypted folders, from the source to the last check."""

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hf_neuracrypt.cli.common import (
    EncryptedFolder,
    ImageColumn,
    KeyFile,
    LabelColumn,
    NumProc,
    PassphraseFile,
    PublishedColumn,
    load_key,
    note,
)
from hf_neuracrypt.cli.keys import keygen
from hf_neuracrypt.errors import DatasetError, NeuraCryptError
from hf_neuracrypt.schemes import SCHEMES


class OnError(StrEnum):
    """What to do at a row that cannot be encrypted."""

    stop = "stop"
    skip = "skip"


def encrypt(
    dataset: Annotated[
        str, typer.Option(help="Hub id, folder of images, save_to_disk folder, or Parquet/CSV/JSON/tar.")
    ],
    key_file: KeyFile,
    output: Annotated[Path, typer.Option(help="New folder for the encrypted dataset; run again to resume.")],
    passphrase_file: PassphraseFile = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
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
    depth: Annotated[int | None, typer.Option(help="1x1 convolutions after the patch embedding. Default: 4.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the hidden layers. Default: 768.")] = None,
    background: Annotated[str | None, typer.Option(help="Colour behind transparent pixels. Default: #ffffff.")] = None,
    scheme_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For another --scheme: variant=madono, say. Repeatable."),
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
    shard_size: Annotated[int, typer.Option(min=1, metavar="N", help="Size of a shard file, in MB.")] = 500,
    on_error: Annotated[OnError, typer.Option(help="At a row that cannot be encrypted: stop, or skip and list it.")] = (
        OnError.stop
    ),
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="With skip: stop after this share.")
    ] = 0.1,
    streaming: Annotated[
        bool | None,
        typer.Option(
            "--streaming/--no-streaming",
            help="Read the source once, without a copy in datasets' cache. Default: for local table files.",
        ),
    ] = None,
    num_proc: NumProc = 1,
    rank: Annotated[
        int, typer.Option(min=0, metavar="N", help="This machine's number, if several share the work.")
    ] = 0,
    world_size: Annotated[int, typer.Option(min=1, metavar="N", help="How many machines share the work.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda. No effect on the result.")] = "cpu",
) -> None:
    """Encrypt a dataset into a new folder.

    Stopped half-way, the same command continues; the result does not depend on the interruption, nor on how many
    processes and machines did the work. Exit status 3: done, but some rows were left out (see rejected.jsonl).

    \b
    Example:
      hf-neuracrypt encrypt --dataset photos/ --key-file hospital.key --output encrypted/
    """
    from hf_neuracrypt.jobs import check_places, encrypt_source
    from hf_neuracrypt.schemes import make_config, parse_options

    given = {
        "image_size": image_size, "patch_size": patch_size, "depth": depth, "width": width, "background": background,
    }  # fmt: skip
    config = make_config(scheme, {k: v for k, v in given.items() if v is not None} | parse_options(scheme_option or ()))
    if rank >= world_size:
        raise NeuraCryptError(f"--rank {rank} is not below --world-size {world_size}: ranks count from 0")
    if flip and views == 1:
        raise NeuraCryptError("--flip is about the versions of an image: give --views 2 or more")
    check_places(dataset, key_file, output)
    key = load_key(key_file, passphrase_file)

    from hf_neuracrypt import store

    # SIGTERM, as a cluster's scheduler sends it, ends the job like Ctrl-C: workers are told, locks are dropped.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    complete = encrypt_source(
        dataset, config, key, output, image_column=image_column, label_column=label_column,
        keep_columns=keep_column or (), hide_labels=hide_labels, max_rows=max_rows, shard_bytes=shard_size * 1_000_000,
        skip=on_error == OnError.skip, max_bad_fraction=max_bad_fraction, streaming=streaming, num_proc=num_proc,
        rank=rank, world_size=world_size, device=device, views=views, flip=flip,
    )  # fmt: skip
    if not complete:
        return note(f"Rank {rank} of {world_size} has done its part; {output} is complete when all have.")
    rows = store.read_manifest(output)["rows"]
    note(f"Encrypted {sum(rows.values()):,} images with {key.id} into {output}.")
    if (output / store.REJECTED).exists():
        left_out = len((output / store.REJECTED).read_text().splitlines())
        note(f"Rows that could not be encrypted and were left out: {left_out:,}, listed in {output / store.REJECTED}")
        raise typer.Exit(3)


def verify(folder: EncryptedFolder) -> None:
    """Check every file of an encrypted dataset.

    Each is hashed again; those that are not as they were written are named, and the exit status is 2.

    \b
    Example:
      hf-neuracrypt verify encrypted/
    """
    from hf_neuracrypt import store

    damaged = 0
    for file, problem in store.verify(folder):
        if problem:
            damaged += 1
            typer.echo(f"{folder / file} {problem}")
    if damaged:
        raise DatasetError(f"{damaged} file(s) of {folder} are not as they were written: encrypt again")
    note(f"Every file of {folder} is as it was written.")


def rotate(
    folder: Annotated[Path, typer.Argument(help="What the old key encrypted; its config and columns are used again.")],
    dataset: Annotated[str, typer.Option(help="The plain source, as given to `encrypt`.")],
    new_key_file: Annotated[Path, typer.Option(help="The new key file; made if it is not there.")],
    output: Annotated[Path, typer.Option(help="New folder; run again to resume.")],
    passphrase_file: Annotated[Path | None, typer.Option(help="The new key's passphrase is its first line.")] = None,
    repo: Annotated[str | None, typer.Option(help="Publish as a new revision of this dataset on the Hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="The repository is, or becomes, public.")] = False,
    keep_column: PublishedColumn = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    max_rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="As given to `encrypt`.")] = None,
    num_proc: NumProc = 1,
) -> None:
    """Encrypt a source again under a new key.

    With --repo, it is published in place of the old. It protects images to come: what was encrypted or published under
    the old key stays readable to whoever has that key, and with it they have pairs that weaken the new encryption of
    the same images.

    \b
    Example:
      hf-neuracrypt rotate encrypted/ --dataset photos/ --new-key-file new.key --output encrypted-2/
    """
    from hf_neuracrypt.jobs import check_places, encrypt_again

    check_places(dataset, new_key_file, output)
    if not new_key_file.exists():
        keygen(new_key_file, passphrase_file=passphrase_file)
    key = load_key(new_key_file, passphrase_file)
    rows = encrypt_again(folder, dataset, key, output, image_column, label_column, max_rows, num_proc)
    note(f"Encrypted {sum(rows.values()):,} images with {key.id} into {output}.")
    if repo is not None:
        from hf_neuracrypt.push import push_dataset

        kept = tuple(keep_column or ())
        typer.echo(push_dataset(output, repo, key, public=public, keep_columns=kept, replace_key=True))
        note(f"The earlier revisions of {repo} are still there: delete the repository to take them off the Hub.")
    note("What was encrypted under the old key stays readable to whoever has it. Train again: models know one key.")
