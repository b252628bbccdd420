"""`keygen` and `key-id`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_neuracrypt.cli.common import PassphraseFile, load_key, note


def keygen(
    path: Annotated[Path, typer.Argument(help="The new key file. It is never overwritten.")],
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Lock the file with a passphrase you type.")] = False,
    passphrase_file: Annotated[Path | None, typer.Option(help="Lock it with the first line of this file.")] = None,
) -> None:
    """Make a secret key and print its public id.

    \b
    Example:
      hf-neuracrypt keygen hospital.key
    """
    from hf_neuracrypt.keys import SecretKey, read_passphrase

    key = SecretKey.generate()
    if passphrase_file is not None:
        key.save(path, read_passphrase(passphrase_file))
    elif passphrase:
        key.save(path, typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True))
    else:
        key.save(path)
    typer.echo(key.id)
    note(f"Wrote {path}. Keep two copies in safe places: without it the model is useless. Never upload or mail it.")


def key_id(
    key_file: Annotated[Path, typer.Argument(help="A key file.")], passphrase_file: PassphraseFile = None
) -> None:
    """Print the public id of a key.

    \b
    Example:
      hf-neuracrypt key-id hospital.key
    """
    typer.echo(load_key(key_file, passphrase_file).id)
