"""What several commands share: options with one meaning, the way to a key, notes to the user."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_neuracrypt.errors import KeyFileError


if TYPE_CHECKING:
    from hf_neuracrypt.keys import SecretKey

EncryptedFolder = Annotated[Path, typer.Argument(help="A folder written by `encrypt`.")]
KeyFile = Annotated[Path, typer.Option(envvar="NEURACRYPT_KEY_FILE", help="The secret key file, made by `keygen`.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="A file whose first line is the passphrase of a locked key. Default: you are asked."),
]
ImageColumn = Annotated[str | None, typer.Option(help="Default: image, img or pixel_values.")]
LabelColumn = Annotated[str | None, typer.Option(help="Default: label, labels or fine_label.")]
PublishedColumn = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Also publish this column, in clear. Repeatable.")
]
NumProc = Annotated[int, typer.Option(min=1, metavar="N", help="Worker processes on this machine.")]


def load_key(path: Path, passphrase_file: Path | None) -> "SecretKey":
    """The key in a file; the passphrase of a locked one is asked for, if it is in no file.

    Raises:
        KeyFileError: as `SecretKey.load`; nobody is there to be asked.
    """
    from hf_neuracrypt.keys import SecretKey

    words = None
    if passphrase_file is None and SecretKey.is_locked(path):
        if not sys.stdin.isatty():
            raise KeyFileError(f"{path} is locked with a passphrase: give --passphrase-file")
        words = typer.prompt(f"Passphrase of {path}", hide_input=True, err=True)
    return SecretKey.load(path, passphrase=words, passphrase_file=passphrase_file)


def note(text: str) -> None:
    """Tell the user something that is no result: on stderr."""
    typer.echo(text, err=True)
