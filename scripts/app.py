"""A page to try it on: pick a picture, see its ciphertext, the model's answer, and an attacker's reconstruction.

python scripts/app.py                      # what `make demo` left in demo/
python scripts/app.py --model model/ --encrypted encrypted/ --key-file hospital.key --examples photos/

It runs on this machine alone, at an address that holds a random token: keep it to yourself. While the page runs, who
has the address can encrypt with your key, and pairs of picture and ciphertext are what an attack needs. Other websites
and other users of the machine are not answered. The key stays in the memory of this process. Pictures are kept in a
temporary folder, neuracrypt-page-…, that you alone can read and that is removed at the end. After `kill -9` or a power
cut they stay in it until the page is started again; on a disk, what was removed may still be recovered.
"""

import argparse
import base64
import html
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from private_page import serve, temporary_pictures
from transformers.utils import logging

from hf_neuracrypt import Classifier, SecretKey, load_encoder
from hf_neuracrypt.cli.common import load_record
from hf_neuracrypt.data.batches import encrypt_all, prepare_all
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import ImageError, NeuraCryptError, one_line_errors
from hf_neuracrypt.images import prepare, to_png
from hf_neuracrypt.prediction.files import find_images


with one_line_errors():  # if SciPy is not installed
    from hf_neuracrypt.audit.ciphertext import thumbnail
    from hf_neuracrypt.audit.known import PAIR_COUNTS, attempts, quality
    from hf_neuracrypt.audit.pairs import Pairs
    from hf_neuracrypt.audit.report import grey_map

if TYPE_CHECKING:
    import gradio

EXAMPLES = 288  # images that the attacker's pairs are taken from
SHOWN = 12
FEWEST = 16
TOP_K = 5

WARNING = """
<div class="warning"><b>This hides pictures from people. It does not stop an attacker.</b>
Whoever knows a few pictures together with their ciphertexts reconstructs the others: see <i>The attacker's view</i>.
Labels, class balance, duplicates and the trained model are not hidden.</div>
"""
HERE = "Everything happens on this machine: the key stays in its memory, pictures in a folder removed at the end."
CSS = Path(__file__).with_suffix(".css").read_text()


@dataclass(frozen=True)
class Owner:
    """What the page works with, all of it the owner's.

    Args:
        classifier: the model, and the encoder of the owner's key.
        stranger: the encoder of a random key, for questions that must fail.
        examples: prepared images, uint8 (N, 3, S, S): the first are shown; the attacker knows pairs of them.
        encrypted: their ciphertexts, as `Pairs` has them.
    """

    classifier: Classifier
    stranger: Encoder
    examples: np.ndarray
    encrypted: np.ndarray

    @classmethod
    def of(cls, model: str, key: SecretKey, record: Record, examples: Sequence[Path]) -> "Owner":
        """Raises NeuraCryptError for a model of another key or config, or too few usable examples."""
        encoder = load_encoder(record.config, key)
        classifier = Classifier.from_pretrained(model, encoder, record)
        order = np.random.default_rng(0).permutation(len(examples))[:EXAMPLES]
        chosen, prepared = [examples[number] for number in order], []
        for path, image in zip(chosen, prepare_all(chosen, record.config)):
            if isinstance(image, ImageError):
                print(f"{path} is left out: {image}", file=sys.stderr)
            else:
                prepared.append(image)
        if len(prepared) < FEWEST:
            raise NeuraCryptError(f"the page needs {FEWEST} example images or more, there are {len(prepared)}")
        stranger, plain = load_encoder(record.config, SecretKey.generate()), np.stack(prepared)
        return cls(classifier, stranger, plain, encrypt_all(encoder.encrypt_in_place, plain))

    def ask(self, image: object, wrong_key: bool) -> str:
        """The picture, its ciphertext and the model's answer, as HTML. Raises ImageError."""
        encoder = self.stranger if wrong_key else self.classifier.encoder
        plain = np.stack([prepare(image, encoder.config)])
        stored = encoder.stored.rows(encoder.encrypt(torch.from_numpy(plain)))
        (encrypted,), (answer,) = encoder.stored.arrays(stored), self.classifier.answer(stored, TOP_K)
        under = "under another, random key" if wrong_key else "under your key"
        figures = [
            _figure(plain[0], "Your picture", "as the encoder gets it"),
            _figure(_visible(encrypted, encoder.config.image_size), "Encrypted", under),
        ]
        saying = "a guess: this is not the key it was trained under" if wrong_key else "it sees the ciphertext alone"
        heading = f"<figcaption>The model's answer<small>{saying}</small></figcaption>"
        bars = "".join(_bar(entry, self.classifier.gives_numbers) for entry in answer)
        figures.append(f"<figure><div class='bars'>{bars}</div>{heading}</figure>")
        return _tiles(figures, 190)

    def attack(self, image: object) -> str:
        """What attacks of the audit make of the picture's ciphertext, as HTML. Raises ImageError."""
        encoder = self.classifier.encoder
        plain, size = np.stack([prepare(image, encoder.config)]), encoder.config.image_size
        others = (self.examples != plain).any((1, 2, 3))  # no pair of the picture that is to be reconstructed
        images = np.concatenate([self.examples[others], plain])
        own = encrypt_all(encoder.encrypt_in_place, plain)
        pairs, target = Pairs(encoder.config, images, np.concatenate([self.encrypted[others], own])), len(images) - 1
        figures = [
            _figure(plain[0], "Your picture", "nobody else has it"),
            _figure(_visible(own[0], size), "Its ciphertext", "what is published"),
            _figure(grey_map(thumbnail(pairs, 0)[1][target], size), "No pair known", "thumbnail of patches"),
        ]
        for count in [count for count in PAIR_COUNTS if count <= target]:
            guesses = attempts(pairs, range(target - count, target), [target], 0).values()
            psnr, best = max(((quality(images[target:], guess)[0], guess) for guess in guesses), key=lambda x: x[0])
            figures.append(_figure(best[0], f"{count} pair{'s' * (count > 1)} known", f"PSNR {psnr:.1f} dB"))
        baseline, _ = quality(images[target:], images[:target].mean(0, keepdims=True).round().astype(np.uint8))
        note = (
            "<p class='note'>Reconstructed by attacks of <code>hf-neuracrypt audit</code>, with pairs of your other "
            f"pictures. For comparison, the mean picture: PSNR {baseline:.1f} dB. Other attacks may do better.</p>"
        )
        return _tiles(figures, 140) + note


def _visible(ciphertext: np.ndarray, size: int) -> np.ndarray:
    """uint8 (3, S, S): a ciphertext that is an image as it is, of patches the mean of each."""
    return ciphertext if ciphertext.ndim == 3 else grey_map(ciphertext, size)


def _figure(image: np.ndarray, title: str, note: str) -> str:
    caption = f"<figcaption>{title}<small>{note}</small></figcaption>"
    png = base64.b64encode(to_png(image)).decode()
    return f"<figure><img src='data:image/png;base64,{png}' alt='{title}'>{caption}</figure>"


def _bar(entry: dict[str, Any], is_number: bool = False) -> str:
    score = entry["score"]
    said = f"{score:.4g}" if is_number else f"{score:.0%}" if score >= 0.005 else "below 1%"
    label = f"<b>{html.escape(entry['label'])}</b><span>{said}</span>"
    return f"<div class='bar'><i style='width: {0 if is_number else score:.1%}'></i>{label}</div>"


def _tiles(figures: list[str], width: int) -> str:
    return f"<div class='tiles' style='--tile: {width}px'>{''.join(figures)}</div>"


def page(owner: Owner) -> "gradio.Blocks":
    """The page, not yet served."""
    import gradio as gr

    def said(function: Callable[..., str], *words: object) -> str:
        try:
            return function(*words)
        except NeuraCryptError as error:
            raise gr.Error(f"This picture cannot be encrypted: {error}", print_exception=False) from None

    def ask(path: str | None, wrong_key: bool) -> str:
        return said(owner.ask, path, wrong_key) if path else "<p class='note'>Pick or drop a picture.</p>"

    def attack(path: str | None) -> str:
        return said(owner.attack, path) if path else "<p class='note'>Pick or drop a picture.</p>"

    with gr.Blocks(title="hf_neuracrypt", analytics_enabled=False, delete_cache=(60, 600)) as blocks:
        gr.HTML("<h1>Encrypted pictures, and who can read them</h1>" + WARNING)
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                picture: Any = gr.Image(
                    type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"], buttons=[],
                    label="Drop a picture", height=230, elem_id="picture",
                )  # fmt: skip
                picture.preprocess = lambda sent: sent and sent.path  # only `prepare` opens what may be any file
                shown = list(owner.examples[:SHOWN].transpose(0, 2, 3, 1))
                gr.HTML("<div class='note'>or pick one of yours</div>")
                examples = gr.Gallery(
                    shown, format="png", columns=4, height="auto", allow_preview=False, interactive=False, buttons=[],
                    show_label=False, elem_id="examples",
                )  # fmt: skip
            with gr.Column(scale=3, min_width=480), gr.Tabs():
                with gr.Tab("The model's view"):
                    wrong_key = gr.Checkbox(label="Encrypt under a wrong key", elem_id="wrong-key", container=False)
                    answer = gr.HTML(ask(None, False), elem_id="answer")
                with gr.Tab("The attacker's view"):
                    attacked = gr.HTML(attack(None), elem_id="attacked")
        gr.HTML(f"<div class='here'>{HERE}</div>")

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}

        def pick(event: gr.SelectData) -> np.ndarray:
            return shown[event.index]

        examples.select(pick, None, picture, **private)
        picture.change(ask, [picture, wrong_key], answer, **private).then(attack, picture, attacked, **private)
        wrong_key.change(ask, [picture, wrong_key], answer, **private)
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model", help="folder or Hub id of a model trained on encrypted images")
    parser.add_argument("--encrypted", default="demo/encrypted", help="those images: they say how to encrypt")
    parser.add_argument("--key-file", type=Path, default=Path("demo/hospital.key"), help="the key they are under")
    parser.add_argument("--passphrase-file", type=Path, help="whose first line opens a locked key")
    parser.add_argument("--examples", type=Path, default=Path("demo/plain/test"), help="folder of plain images")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    options = parser.parse_args()
    logging.disable_progress_bar()
    if find_spec("gradio") is None:
        raise NeuraCryptError("the page needs Gradio: pip install 'hf-neuracrypt[demo]'")
    if not options.examples.is_dir():
        raise NeuraCryptError(f"there is no folder {options.examples}: run `make demo`, or give --examples")
    key = SecretKey.load(options.key_file, passphrase_file=options.passphrase_file)
    record = load_record(options.encrypted, key, yes=False)
    owner = Owner.of(options.model, key, record, find_images([options.examples]))
    with temporary_pictures():
        serve(page(owner), CSS, options.port, options.key_file)


if __name__ == "__main__":
    with one_line_errors():
        main()
