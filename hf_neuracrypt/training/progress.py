"""What a run says of itself: what lies ahead, a row for each evaluation, which classes are taken for others."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from hf_neuracrypt.training.data import Collator


class Table(ProgressCallback):
    """A bar with the latest loss, and above it a row for each evaluation, with the figures of these names."""

    loss: float | None = None

    def __init__(self, figures: Sequence[str]):
        super().__init__()
        self.figures, self.columns = figures, ("epoch", "step", "training loss", "loss", *figures)

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.loss = None
        if self.training_bar is not None:
            self.training_bar.set_description("Training")
            self.training_bar.write("  ".join(self.columns))

    def on_prediction_step(self, args, state, control, **kwargs):
        super().on_prediction_step(args, state, control, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("Evaluating", refresh=False)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or not logs:
            return
        self.loss = logs.get("loss", self.loss)
        if self.loss is not None:
            self.training_bar.set_postfix(loss=f"{self.loss:.3g}")
        if "eval_loss" in logs:
            values = [state.epoch or 0, state.global_step, self.loss, logs["eval_loss"]]
            values += [logs.get(f"eval_{name}") for name in self.figures]
            texts = ("" if value is None else f"{value:.4g}" for value in values)
            self.training_bar.write("  ".join(text.rjust(len(name)) for text, name in zip(texts, self.columns)))


def _duration(seconds: float) -> str:
    """As somebody would say it who has only a rough idea."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"about {seconds / length:.0f} {unit}"
    return "about a minute" if seconds > 30 else "less than a minute"


def ahead(model: PreTrainedModel, split: Dataset, collator: Collator, steps: int, args: TrainingArguments) -> str:
    """What a run will do, before it does: of which model and how many steps, and in one process how long it takes."""
    kind = "plain" if not model.config.neuracrypt else "encrypted"
    what = collator.target.describe() if collator.target else f"{model.config.num_labels} classes"
    text = f"{len(split):,} {kind} images of {what}; a {model.config.model_type} of "
    text += f"{model.num_parameters():,} weights; {steps:,} steps of "
    each = args.train_batch_size * args.gradient_accumulation_steps
    if args.world_size > 1:
        return f"{text}{each * args.world_size} images"
    few = collator(list(split.select(range(min(len(split), args.train_batch_size if args.n_gpu else 8)))))
    seconds = steps * each * _seconds_an_image(model, few["pixel_values"], args.device)
    return f"{text}{each} images: {_duration(seconds)}"


@torch.no_grad()
def _seconds_an_image(model: PreTrainedModel, batch: torch.Tensor, device: torch.device) -> float:
    """How long it takes to learn from an image: forward, and twice as long back. The first pass only warms up."""
    training, home, start = model.training, model.device, 0.0
    model.eval().to(device)
    for _ in range(2):
        start = time.perf_counter()
        model(pixel_values=batch.to(device)).logits.cpu()
    seconds = time.perf_counter() - start
    model.train(training).to(home)
    return 3 * seconds / len(batch)


def mistakes(names: Sequence[str], truths: Sequence[int], guesses: Sequence[str]) -> list[dict[str, Any]]:
    """The five classes that are told worst, the worst first, and what each is most often taken for."""
    images, wrong = Counter(truths), Counter(pair for pair in zip(truths, guesses) if names[pair[0]] != pair[1])
    rows: list[dict[str, Any]] = []
    for label in {label for label, _ in wrong}:
        taken = {guess: number for (truth, guess), number in wrong.most_common() if truth == label}
        recall = round(1 - sum(taken.values()) / images[label], 4)
        most = dict(list(taken.items())[:3])
        rows.append({"class": names[label], "images": images[label], "recall": recall, "taken_for": most})
    return sorted(rows, key=lambda row: (row["recall"], row["class"]))[:5]
