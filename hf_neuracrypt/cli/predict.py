"""`predict` and `adapt`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_neuracrypt.cli.common import Encrypted, ImageColumn, KeyFile, PassphraseFile, Yes, load_key, load_record, note
from hf_neuracrypt.errors import NeuraCryptError, fail


def predict(
    images: Annotated[list[Path], typer.Argument(help="Plain images, or folders of them.")],
    key_file: KeyFile,
    encrypted: Encrypted,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a model trained on encrypted images.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Instead: the address or Hub id of a model that is served elsewhere.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    top_k: Annotated[int, typer.Option(min=1, metavar="N", help="Labels for each image.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the answers to a new file, .csv or .jsonl.")] = None,
    send_token: Annotated[
        bool, typer.Option("--send-token", help="Send HF_TOKEN to --endpoint; else it goes to huggingface.co alone.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Encrypt images on this machine and have the ciphertexts classified, here or elsewhere.

    How they are encrypted is said by your own --encrypted, never by the model. Exit status 3: done, but some images
    could not be read and were left out.

    \b
    Examples:
      hf-neuracrypt predict --model model/ --encrypted encrypted/ --key-file hospital.key photo.jpg
      hf-neuracrypt predict --endpoint https://… --encrypted encrypted/ --key-file hospital.key photos/
    """
    if (model is None) == (endpoint is None):
        raise NeuraCryptError("give either --model (a model on this machine) or --endpoint (a served one)")
    key = load_key(key_file, passphrase_file)

    from transformers.utils import logging

    from hf_neuracrypt.encoders import load_encoder
    from hf_neuracrypt.prediction import files
    from hf_neuracrypt.prediction.classifier import Classifier
    from hf_neuracrypt.prediction.endpoint import Endpoint, is_in_clear

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    files.check_output(output)
    found = files.find_images(images)
    record = load_record(encrypted, key, yes)
    encoder = load_encoder(record.config, key)
    if endpoint is None:
        classifier = Classifier.from_pretrained(str(model), encoder, record)
    else:
        classifier = Classifier(encoder, Endpoint(endpoint, encoder.stored, send_token), record.true_names(key))
        if is_in_clear(endpoint):
            note("warning: over http, anybody on the way can read and change ciphertexts and answers: use https")
    if len(found) > 1:
        where = f"into {output}" if output else "a line each, the best label first"
        note(f"Asking {model or endpoint} about {len(found):,} images: {where}.")
    try:
        with files.writer(output, as_json, found) as show:
            left_out = files.answer_files(classifier, found, top_k, show)
    except KeyboardInterrupt:
        fail(f"interrupted; {files.what_is_left(output)}", 130)
    if output:
        note(f"Wrote {output}: the answers to {len(found) - left_out:,} images.")
    if left_out:
        note(f"{left_out:,} of {len(found):,} images could not be encrypted and were left out.")
        raise typer.Exit(3)


def adapt(
    model: Annotated[str, typer.Option(help="Folder or Hub id of a ViT trained on plain images.")],
    dataset: Annotated[str, typer.Option(help="Folder or Hub id of the encrypted images it is to see.")],
    key_file: KeyFile,
    output: Annotated[Path, typer.Option(help="New folder for the adapted model.")],
    source: Annotated[
        str | None, typer.Option(help="Plain images of yours that the embedding is fitted on (not for vit-blockwise).")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, metavar="N", help="On how many of them: what you give away.")] = 64,
    image_column: ImageColumn = None,
    passphrase_file: PassphraseFile = None,
    yes: Yes = False,
) -> None:
    """Give a plain ViT an embedding that sees in your ciphertexts, for a cloud to train on.

    It needs no training, and it gives something away: of vit-blockwise the whole cipher, of color-neuracrypt as much as
    so many known pairs. How much that is, is said before anything is written.

    \b
    Example:
      hf-neuracrypt adapt --model plain-vit/ --dataset encrypted/ --source photos/ --key-file hospital.key \\
          --output adapted/
    """
    from hf_neuracrypt.data.places import check_places

    check_places(source or dataset, key_file, output)
    key = load_key(key_file, passphrase_file)
    if output.exists():
        raise NeuraCryptError(f"{output} exists: choose another folder")

    from hf_neuracrypt.encoders import load_encoder
    from hf_neuracrypt.models import embeddings, load

    record = load_record(dataset, key, yes)
    scheme, permutes = record.config.scheme, record.config.symbol_bits is not None
    if not record.config.fits_patches:
        raise NeuraCryptError(f"no model is adapted to {scheme}, only to vit-blockwise and color-neuracrypt")
    if permutes == (source is not None):
        raise NeuraCryptError(f"{scheme} takes {'no --source' if permutes else '--source, plain images of yours'}")
    config = load.load_model_config(model)
    if load.model_records(config):
        raise NeuraCryptError(f"{model} was trained on encrypted images already")
    size, names = record.config.image_size, [name for _, name in sorted((config.id2label or {}).items())]
    fitted = load.load_model(model, None, names, size, [record])
    encoder = load_encoder(record.config, key)
    if source is None:
        note(embeddings.WARNING)
        embeddings.adapt(fitted, encoder)
    else:
        from hf_neuracrypt.audit import adapted
        from hf_neuracrypt.audit.load import make_pairs

        own = make_pairs(source, encoder, pairs + adapted.JUDGED, 0, image_column)
        note(adapted.given_away(own, pairs))
        adapted.fit(fitted, own, pairs)
    fitted.save_pretrained(output)
    load.stock_processor(size).save_pretrained(output)
    note(f"Wrote {output}.")
