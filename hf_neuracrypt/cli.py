"""The owner's command, `hf-neuracrypt`. Heavy imports stay inside the commands, so that `--help` answers at once."""

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hf_neuracrypt import __version__
from hf_neuracrypt.errors import DatasetError, KeyFileError, KeyMismatchError, NeuraCryptError, fail, one_line_errors
from hf_neuracrypt.schemes import SCHEMES


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"max_content_width": 100},
    epilog="First steps: keygen, encrypt, audit, push. Each command's --help has an example.",
)  # fmt: skip

KeyFile = Annotated[Path, typer.Option(envvar="NEURACRYPT_KEY_FILE", help="The secret key file, made by `keygen`.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="A file whose first line is the passphrase of a locked key. Default: you are asked."),
]


class OnError(StrEnum):
    """What to do at a row that cannot be encrypted."""

    stop = "stop"
    skip = "skip"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Encrypt image datasets with a secret key, so that a cloud can train a stock Vision Transformer on them.

    It hides pictures from people; it is not confidentiality against a capable attacker (see SECURITY.md).
    """


@app.command()
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

    words = None
    if passphrase_file is not None:
        words = read_passphrase(passphrase_file)
    elif passphrase:
        words = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    key = SecretKey.generate()
    key.save(path, passphrase=words)
    typer.echo(key.id)
    _note(f"Wrote {path}. Keep two copies in safe places: without it the model is useless. Never upload or mail it.")


@app.command()
def key_id(
    key_file: Annotated[Path, typer.Argument(help="A key file.")], passphrase_file: PassphraseFile = None
) -> None:
    """Print the public id of a key.

    \b
    Example:
      hf-neuracrypt key-id hospital.key
    """
    typer.echo(_load_key(key_file, passphrase_file).id)


@app.command()
def encrypt(
    dataset: Annotated[
        str, typer.Option(help="Hub id, folder of images, save_to_disk folder, or Parquet/CSV/JSON/tar.")
    ],
    key_file: KeyFile,
    output: Annotated[Path, typer.Option(help="New folder for the encrypted dataset; run again to resume.")],
    passphrase_file: PassphraseFile = None,
    image_column: Annotated[str | None, typer.Option(help="Default: image, img or pixel_values.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Default: label, labels or fine_label.")] = None,
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
    num_proc: Annotated[int, typer.Option(min=1, metavar="N", help="Worker processes on this machine.")] = 1,
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
    key = _load_key(key_file, passphrase_file)

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
        return _note(f"Rank {rank} of {world_size} has done its part; {output} is complete when all have.")
    rows = store.read_manifest(output)["rows"]
    _note(f"Encrypted {sum(rows.values()):,} images with {key.id} into {output}.")
    if (output / store.REJECTED).exists():
        left_out = len((output / store.REJECTED).read_text().splitlines())
        _note(f"Rows that could not be encrypted and were left out: {left_out:,}, listed in {output / store.REJECTED}")
        raise typer.Exit(3)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="A folder written by `encrypt`.")]) -> None:
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
    _note(f"Every file of {folder} is as it was written.")


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(help="A folder written by `encrypt`.")],
    source: Annotated[str, typer.Option(help="The plain dataset it was made of, as given to `encrypt`.")],
    key_file: KeyFile,
    output: Annotated[Path, typer.Option(help="Folder for the report. It shows plain images: never publish it.")],
    passphrase_file: PassphraseFile = None,
    max_images: Annotated[int, typer.Option(min=16, metavar="N", help="How many images to look at.")] = 512,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Draws them, and which of them are known to the attacker.")
    ] = 0,
    image_column: Annotated[str | None, typer.Option(help="Default: image, img or pixel_values.")] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also train a network on an attacker's own keys: minutes more.")
    ] = False,
) -> None:
    """Run the known attacks on an encrypted dataset.

    It says what leaks to whom: attacks tried, not attacks possible. It needs the plain source and the key, and
    `pip install 'hf-neuracrypt[audit]'`.

    \b
    Example:
      hf-neuracrypt audit encrypted/ --source photos/ --key-file hospital.key --output audit/
    """
    from hf_neuracrypt.jobs import check_places

    check_places(source, key_file, output)
    if output.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(f"the output {output} lies inside {folder}, which gets published: choose another folder")
    key = _load_key(key_file, passphrase_file)

    from hf_neuracrypt.audit.attacks import run_audit
    from hf_neuracrypt.audit.report import write_report

    result = run_audit(folder, source, key, max_images=max_images, seed=seed, image_column=image_column, train=deep)
    write_report(result, output)
    for row in result.rows:
        typer.echo(f"{row.grade:15} {row.title}")
    _note(f"Wrote {output}. These are attacks tried, not attacks possible. The pictures show plain images: keep them.")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A folder written by `encrypt`.")],
    repo: Annotated[str, typer.Argument(help="The dataset's name on the Hub: owner/name.")],
    key_file: Annotated[
        Path | None,
        typer.Option(envvar="NEURACRYPT_KEY_FILE", help="Its key is searched for, in every form, in what would go."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it. Default: private.")] = False,
    gated: Annotated[bool, typer.Option("--gated", help="Readers must ask you for access.")] = False,
    keep_column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also publish this column, in clear. Repeatable.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="A licence the Hub knows, such as cc-by-4.0.")] = None,
    audit: Annotated[Path | None, typer.Option(help="An audit.json, whose figures go into the card.")] = None,
) -> None:
    """Publish an encrypted dataset on the Hub.

    It becomes a new revision if it is there already. HF_TOKEN, or `hf auth login`, says who you are. Everything is
    searched for keys, plain images and metadata first. Stopped half-way, the same command continues.

    \b
    Example:
      hf-neuracrypt push encrypted/ hospital/xrays-encrypted --key-file hospital.key
    """
    key = _load_key(key_file, passphrase_file) if key_file else None

    from hf_neuracrypt.push import push_dataset

    url = push_dataset(
        folder, repo, key, public=public, gated=gated, keep_columns=tuple(keep_column or ()), license=license,
        audit=audit,
    )  # fmt: skip
    typer.echo(url)
    if key is None:
        _note("Only searched for key files: give --key-file to search for the key itself as well.")


@app.command()
def rotate(
    folder: Annotated[Path, typer.Argument(help="What the old key encrypted; its config and columns are used again.")],
    dataset: Annotated[str, typer.Option(help="The plain source, as given to `encrypt`.")],
    new_key_file: Annotated[Path, typer.Option(help="The new key file; made if it is not there.")],
    output: Annotated[Path, typer.Option(help="New folder; run again to resume.")],
    passphrase_file: Annotated[Path | None, typer.Option(help="The new key's passphrase is its first line.")] = None,
    repo: Annotated[str | None, typer.Option(help="Publish as a new revision of this dataset on the Hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="The repository is, or becomes, public.")] = False,
    keep_column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also publish this column, in clear. Repeatable.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Default: image, img or pixel_values.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Default: label, labels or fine_label.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="As given to `encrypt`.")] = None,
    num_proc: Annotated[int, typer.Option(min=1, metavar="N", help="Worker processes on this machine.")] = 1,
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
    key = _load_key(new_key_file, passphrase_file)
    rows = encrypt_again(folder, dataset, key, output, image_column, label_column, max_rows, num_proc)
    _note(f"Encrypted {sum(rows.values()):,} images with {key.id} into {output}.")
    if repo is not None:
        from hf_neuracrypt.push import push_dataset

        kept = tuple(keep_column or ())
        typer.echo(push_dataset(output, repo, key, public=public, keep_columns=kept, replace_key=True))
        _note(f"The earlier revisions of {repo} are still there: delete the repository to take them off the Hub.")
    _note("What was encrypted under the old key stays readable to whoever has it. Train again: models know one key.")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Plain images, or folders of them.")],
    key_file: KeyFile,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a model trained on encrypted images.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Ask a model that is served elsewhere, by its address or Hub id.")
    ] = None,
    encrypted: Annotated[
        str | None,
        typer.Option(help="With an address and no --model: the encrypted dataset it learned from, folder or Hub id."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    top_k: Annotated[int, typer.Option(min=1, metavar="N", help="Labels for each image.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the answers to a new file, .csv or .jsonl.")] = None,
) -> None:
    """Encrypt images on this machine and have the ciphertexts classified, here or elsewhere.

    Exit status 3: done, but some images could not be read and were left out.

    \b
    Examples:
      hf-neuracrypt predict --model model/ --key-file hospital.key photo.jpg
      hf-neuracrypt predict --endpoint https://… --encrypted encrypted/ --key-file hospital.key photos/
    """
    if model is None and endpoint is None:
        raise NeuraCryptError("who is to be asked? give --model for a model on this machine, or --endpoint")
    if encrypted is not None and endpoint is None:
        raise NeuraCryptError("--encrypted belongs to an --endpoint: a --model on this machine says how to encrypt")
    key = _load_key(key_file, passphrase_file)

    from transformers.utils import logging

    from hf_neuracrypt import answers, prediction

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answers.check_output(output)
    files = answers.find_images(images)
    if endpoint is None:
        classifier = prediction.local_classifier(model, key)
    else:
        from hf_neuracrypt.remote import remote_classifier

        classifier = remote_classifier(endpoint, key, model, encrypted)
    with answers.writer(output, as_json) as show:
        left_out = answers.answer_files(classifier, files, top_k, show)
    if left_out:
        _note(f"{left_out:,} of {len(files):,} images could not be encrypted and were left out.")
        raise typer.Exit(3)


@app.command()
def adapt(
    model: Annotated[str, typer.Option(help="Folder or Hub id of a ViT trained on plain images.")],
    dataset: Annotated[str, typer.Option(help="Folder or Hub id of images encrypted with --scheme vit-blockwise.")],
    key_file: KeyFile,
    output: Annotated[Path, typer.Option(help="New folder for the adapted model.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Fit a plain ViT to the ciphertexts of vit-blockwise.

    It needs no training. The result, beside the plain model, reveals the cipher.

    \b
    Example:
      hf-neuracrypt adapt --model plain-vit/ --dataset encrypted/ --key-file hospital.key --output adapted/
    """
    key = _load_key(key_file, passphrase_file)
    if output.exists():
        raise NeuraCryptError(f"{output} exists: choose another folder")

    from hf_neuracrypt import adaptation, prediction, training
    from hf_neuracrypt.encoders import load_encoder
    from hf_neuracrypt.sources import stored_record

    record = stored_record(dataset)
    if record is None:
        raise DatasetError(f"{dataset} is not encrypted: adapt fits a model to encrypted images")
    if record.key_id != key.id:
        raise KeyMismatchError(f"{dataset} was encrypted under the key {record.key_id}; this key is {key.id}")
    config = prediction.load_model_config(model)
    if prediction.model_records(config):
        raise NeuraCryptError(f"{model} was trained on encrypted images already")
    size = record.config.image_size
    fitted = training.load_model(model, None, [name for _, name in sorted(config.id2label.items())], size, [record])
    adaptation.adapt(fitted, load_encoder(record.config, key)).save_pretrained(output)
    training.stock_processor(size).save_pretrained(output)
    _note(f"Wrote {output}.\n{adaptation.WARNING}")


def main() -> None:
    """Run the command; every error is one line on stderr and a status that is not 0."""
    with one_line_errors():
        try:
            status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
            if status == 130:  # what Typer makes of Ctrl-C
                raise KeyboardInterrupt
        except typer.Abort:
            raise KeyboardInterrupt from None
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            # The option parser's errors: an unknown option, a missing argument.
            command = getattr(getattr(error, "ctx", None), "command_path", "hf-neuracrypt")
            fail(f"{error.format_message()} (see {command} --help)", 2)
    sys.exit(status or 0)


def _load_key(path: Path, passphrase_file: Path | None):
    from hf_neuracrypt.keys import SecretKey

    words = None
    if passphrase_file is None and SecretKey.is_locked(path):
        if not sys.stdin.isatty():
            raise KeyFileError(f"{path} is locked with a passphrase: give --passphrase-file")
        words = typer.prompt(f"Passphrase of {path}", hide_input=True, err=True)
    return SecretKey.load(path, passphrase=words, passphrase_file=passphrase_file)


def _note(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    main()
