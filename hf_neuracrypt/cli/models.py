"""`predict` and `adapt`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_neuracrypt.cli.common import KeyFile, PassphraseFile, load_key, note
from hf_neuracrypt.errors import DatasetError, NeuraCryptError, fail


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
    key = load_key(key_file, passphrase_file)

    from transformers.utils import logging

    from hf_neuracrypt import answers, prediction

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answers.check_output(output)
    files = answers.find_images(images)
    if endpoint is None:
        classifier = prediction.local_classifier(model, key)
    else:
        from hf_neuracrypt.remote import is_in_clear, remote_classifier

        classifier = remote_classifier(endpoint, key, model, encrypted)
        if is_in_clear(endpoint):
            note("warning: over http, whoever is on the way can read and change ciphertexts and answers: use https")
    try:
        with answers.writer(output, as_json) as show:
            left_out = answers.answer_files(classifier, files, top_k, show)
    except KeyboardInterrupt:
        fail(f"interrupted; {answers.what_is_left(output)}", 130)
    if left_out:
        note(f"{left_out:,} of {len(files):,} images could not be encrypted and were left out.")
        raise typer.Exit(3)


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
    key = load_key(key_file, passphrase_file)
    if output.exists():
        raise NeuraCryptError(f"{output} exists: choose another folder")

    from hf_neuracrypt import adaptation, prediction, training
    from hf_neuracrypt.encoders import load_encoder
    from hf_neuracrypt.sources import stored_record

    record = stored_record(dataset)
    if record is None:
        raise DatasetError(f"{dataset} is not encrypted: adapt fits a model to encrypted images")
    record.check_key(key, dataset)
    config = prediction.load_model_config(model)
    if prediction.model_records(config):
        raise NeuraCryptError(f"{model} was trained on encrypted images already")
    size = record.config.image_size
    fitted = training.load_model(model, None, [name for _, name in sorted(config.id2label.items())], size, [record])
    adaptation.adapt(fitted, load_encoder(record.config, key)).save_pretrained(output)
    training.stock_processor(size).save_pretrained(output)
    note(f"Wrote {output}.\n{adaptation.WARNING}")
