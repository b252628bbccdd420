"""What several commands share: options with one meaning, the way to a key, notes to the user."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_neuracrypt.errors import DatasetError, KeyFileError, NeuraCryptError


if TYPE_CHECKING:
    from hf_neuracrypt.data.record import Record
    from hf_neuracrypt.keys import SecretKey

EncryptedFolder = Annotated[Path, typer.Argument(help="A folder written by `encrypt`.")]
KeyFile = Annotated[Path, typer.Option(envvar="NEURACRYPT_KEY_FILE", help="The secret key file, made by `keygen`.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="A file whose first line is the passphrase of a locked key. Default: you are asked."),
]
ImageColumn = Annotated[str | None, typer.Option(help="Default: image, img or pixel_values.")]
LabelColumn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Default: label, labels or fine_label. Repeatable: columns of 0, 1 and empty, or of numbers, together.",
    ),
]
PublishedColumn = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Also publish this column, in clear. Repeatable.")
]
Encrypted = Annotated[
    str,
    typer.Option(
        metavar="FOLDER",
        help="The encrypted dataset that the model learned from, or its neuracrypt.json: it says how to encrypt.",
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", help="Take the encryption parameters from the Hub, where they can have been changed.")
]


def load_key(path: Path, passphrase_file: Path | None) -> "SecretKey":
    """The key in a file; the passphrase of a locked one is asked for, if it is in no file.

    Raises:
        KeyFileError: as `SecretKey.load`; nobody is there to be asked.
    """
    from hf_neuracrypt.keys import SecretKey

    if passphrase_file is not None or not SecretKey.is_locked(path):
        return SecretKey.load(path, passphrase_file=passphrase_file)
    if not sys.stdin.isatty():
        raise KeyFileError(f"{path} is locked with a passphrase: give --passphrase-file")
    # Never a variable: an error tracker that records the locals of frames must not find it.
    return SecretKey.load(path, passphrase=typer.prompt(f"Passphrase of {path}", hide_input=True, err=True))


def load_record(encrypted: str, key: "SecretKey", yes: bool) -> "Record":
    """How the owner encrypts queries: as a local encrypted folder, or its manifest, says; shown before anything goes.

    A record on the Hub could have been changed there, to a weaker cipher under the same key: it takes your consent.

    Raises:
        DatasetError: it is not encrypted, damaged, or not there.
        KeyMismatchError: it was encrypted under another key.
        NeuraCryptError: nobody consented.
    """
    from hf_neuracrypt.data.manifest import MANIFEST, read_manifest
    from hf_neuracrypt.data.record import Record
    from hf_neuracrypt.data.sources import stored_record
    from hf_neuracrypt.schemes import check_floor

    path = Path(encrypted)
    beside = path.name == MANIFEST and path.is_file()
    record = Record.from_dict(read_manifest(path.parent)) if beside else stored_record(encrypted)
    if record is None:
        raise DatasetError(f"{encrypted} is not encrypted: give the encrypted dataset that the model learned from")
    record.check_key(key, encrypted)
    check_floor(record.config)
    note(f"Encrypting as {record.config.to_json()} under the key {key.id}.")
    if not path.exists() and not yes:
        question = f"These parameters come from {encrypted} on the Hub, not from your own copy. Encrypt like that?"
        if not sys.stdin.isatty():
            raise NeuraCryptError(f"the encryption parameters come from {encrypted} on the Hub: --yes takes them")
        typer.confirm(question, abort=True, err=True)
    return record


def note(text: str) -> None:
    """Tell the user something that is no result: on stderr."""
    typer.echo(text, err=True)
