"""`push`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_neuracrypt.cli.common import EncryptedFolder, PassphraseFile, PublishedColumn, load_key, note


def push(
    folder: EncryptedFolder,
    repo: Annotated[str, typer.Argument(help="The dataset's name on the Hub: owner/name.")],
    key_file: Annotated[
        Path | None,
        typer.Option(envvar="NEURACRYPT_KEY_FILE", help="Its key is searched for, in every form, in what would go."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it. Default: private.")] = False,
    gated: Annotated[bool, typer.Option("--gated", help="Readers must ask you for access.")] = False,
    keep_column: PublishedColumn = None,
    license: Annotated[str | None, typer.Option(help="A licence the Hub knows, such as cc-by-4.0.")] = None,
    audit: Annotated[Path | None, typer.Option(help="An audit.json, whose figures go into the card.")] = None,
    replace_key: Annotated[
        bool, typer.Option("--replace-key", help="The repository holds images of another key: replace them.")
    ] = False,
) -> None:
    """Publish an encrypted dataset on the Hub.

    It becomes a new revision if it is there already. HF_TOKEN, or `hf auth login`, says who you are. Everything is
    searched for keys, plain images and metadata first. If it is interrupted, run the same command again: it sends only
    what did not arrive.

    \b
    Example:
      hf-neuracrypt push encrypted/ hospital/xrays-encrypted --key-file hospital.key
    """
    key = load_key(key_file, passphrase_file) if key_file else None

    from hf_neuracrypt.audit.results import read_audit
    from hf_neuracrypt.data.manifest import read_manifest
    from hf_neuracrypt.publish.push import push_dataset

    images = ", ".join(f"{split} {count:,} images" for split, count in read_manifest(folder)["rows"].items())
    note(f"Publishing {folder} ({images}) in the {'public' if public else 'private'} repository {repo}.")
    url = push_dataset(
        folder, repo, key, public=public, gated=gated, keep_columns=tuple(keep_column or ()), license=license,
        replace_key=replace_key, audit=read_audit(audit) if audit else None,
    )  # fmt: skip
    typer.echo(url)
    name = url.partition("/datasets/")[2].partition("/commit/")[0]  # with the owner, where none was given
    note("Published. Next, on a rented GPU:")
    note(f"  hf jobs uv run scripts/train.py --dataset_name {name} --output_dir model --push_to_hub \\")
    note(f"      --hub_model_id {name}-model --model_name_or_path …")
    if replace_key:
        note(f"The earlier revisions of {repo} are still there: delete the repository to take them off the Hub.")
        note("What was encrypted under the old key stays readable to whoever has it. Train again: models know one key.")
    if key is None:
        note("Only searched for key files: give --key-file to search for the key itself as well.")
