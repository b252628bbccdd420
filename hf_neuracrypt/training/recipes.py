"""How to train on ciphertexts: defaults of `scripts/train.py` by name, and the parts of them that are not plain flags.

What each is worth is in model_cards/ablation.md. A flag that the user gives always wins over a recipe's.
"""

import logging
from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_neuracrypt import alignment
from hf_neuracrypt.data.columns import Columns, find_columns
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.data.sources import load_source, stored_record
from hf_neuracrypt.data.targets import Target
from hf_neuracrypt.errors import DatasetError, NeuraCryptError
from hf_neuracrypt.models.embeddings import fold, patch_embedding, side
from hf_neuracrypt.training.data import Collator, reader, undecoded


RECIPES = {
    "neuracrypt": {
        "learning_rate": 1e-4,
        "warmup_steps": 0.1,  # of all steps
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.05,
        "num_train_epochs": 5,
        "per_device_train_batch_size": 32,
    },
    "usual": {},  # what TrainingArguments says
    # Color-NeuraCrypt's ViT runs: jeonsworld/ViT-pytorch with the paper's weight decay. They took 10,000 steps of 512
    # images (--max_steps 10000 --per_device_train_batch_size 64 --gradient_accumulation_steps 8).
    "paper": {
        "optim": "sgd",
        "learning_rate": 0.03,
        "weight_decay": 5e-4,
        "warmup_steps": 500,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
    },
}
PROBED = 600  # labelled images that decide on an aligned start
EMBEDDING_FACTOR = 5  # the patch embedding and the head start further from their goal than the pre-trained rest


def optimizer_of(recipe: str, args: TrainingArguments, model: PreTrainedModel, pretrained: bool) -> tuple[type, dict]:
    """For `Trainer(optimizer_cls_and_kwargs=…)`: the optimiser that `args` name, with the recipe's parameter groups.

    Args:
        recipe: a name in RECIPES.
        args: what the user and the recipe say.
        model: whose parameters are trained.
        pretrained: whether it starts from pre-trained weights; then embedding and head get a higher learning rate.
    """
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if recipe == "paper" and cls is torch.optim.SGD:
        options.setdefault("momentum", 0.9)
    if recipe == "neuracrypt" and pretrained:
        fast: list[torch.nn.Parameter] = []
        slow: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                (fast if "patch_embedding" in name or name.startswith("classifier") else slow).append(parameter)
        options["params"] = [
            {"params": slow, "lr": args.learning_rate, "weight_decay": args.weight_decay},
            {"params": fast, "lr": args.learning_rate * EMBEDDING_FACTOR, "weight_decay": args.weight_decay},
        ]
    return cls, options


def aligned_start(
    model: PreTrainedModel,
    split: Dataset,
    columns: Columns,
    records: Sequence[Record],
    public_images: str,
    seed: int,
    target: Target | None = None,
) -> bool:
    """Fold the map that `alignment` finds between ciphertexts and public images into the model's embeddings.

    Public images may be of too different a kind. So labels decide: the map is dropped again if the frozen model then
    sees less in ciphertexts than before.

    Args:
        model: pre-trained on plain images; changed in place.
        split: ciphertexts, all of one key, images undecoded.
        columns: of `split`.
        records: of `split`: one.
        public_images: folder or Hub id of plain images of roughly the same kind; labels are not needed.
        seed: chooses the images, where there are more than are needed.
        target: see `Collator`.

    Returns:
        Whether the map was kept.

    Raises:
        DatasetError: there are no such images, or they are encrypted.
        NeuraCryptError: there are too few images on a side, or the model has no linear embedding of patches.
    """
    projection, positions = patch_embedding(model)
    if stored_record(public_images) is not None:
        raise DatasetError(f"{public_images} is encrypted: --public_images are plain images that anybody may see")
    splits = load_source(public_images)
    public = splits["train"] if "train" in splits else next(iter(splits.values()))
    public_columns = find_columns(public.features, None, ())
    size, patch_size = side(model.config, "image_size"), side(model.config, "patch_size")
    count = alignment.most_images(size, patch_size)
    cipher, labels = _images(split, Collator(columns, reader(records, size), target), count, seed)
    plain, _ = _images(undecoded(public, public_columns), Collator(public_columns, reader([], size)), count, seed)
    rehearsed = alignment.rehearse(records[0].config, plain, seed)
    found = alignment.align(cipher, plain, rehearsed, patch_size, seed)
    if labels is None:
        raise DatasetError("an aligned start needs labels, which decide whether the map helps")
    probed, folded = (cipher[:PROBED], labels[:PROBED]), (projection.weight, projection.bias, positions)
    usual = [(weight, weight.detach().clone()) for weight in folded if weight is not None]
    before = probe(model, *probed)
    fold(model, found)
    after, kept = probe(model, *probed), "kept"
    if after < before:
        for weight, value in usual:
            weight.data.copy_(value)
        kept = f"dropped, as {public_images} do not help"
    logging.getLogger(__name__).info(
        "Aligned %d ciphertexts with %d public images: the map explains %.2f of the patches; %s: the probe, which is "
        "what the frozen model tells apart, %s from %.3f to %.3f",
        len(cipher), len(plain), found.explained, kept, "rose" if after > before else "went", before, after,
    )  # fmt: skip
    return after >= before


@torch.no_grad()
def probe(model: PreTrainedModel, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """How much the frozen model sees: what a ridge regression on what its head is given, learned on three quarters of
    the images, tells of the labels of the others: the share of images whose class it is, else the variance explained.

    Args:
        model: with a `classifier`.
        pixels: float32 (B, 3, S, S) in [-1, 1].
        labels: int64 (B,), or float32 (B, names) with NaN for what is unknown.
    """
    x = torch.cat([head_inputs(model, part) for part in pixels.split(100)]).double()
    classes = labels.ndim == 1
    x, y = x - x.mean(0), torch.nn.functional.one_hot(labels).double() if classes else labels.double()
    y = torch.where(y.isnan(), y.nanmean(0).nan_to_num(), y)
    fold, right, wrong = torch.arange(len(x)) % 4, 0, 0.0
    for held in range(4):
        known, mean = x[fold != held], y[fold != held].mean(0)
        gram = known.T @ known
        gram += 0.1 * gram.diagonal().mean() * torch.eye(len(gram))
        weights = torch.linalg.solve(gram, known.T @ (y[fold != held] - mean))
        told, truths = x[fold == held] @ weights + mean, y[fold == held]
        right += int((told.argmax(1) == truths.argmax(1)).sum())
        wrong += float((told - truths).square().sum())
    return right / len(x) if classes else 1 - wrong / float((y - y.mean(0)).square().sum().clamp(min=1e-9))


@torch.no_grad()
def head_inputs(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """What the model gives its `classifier`: float32 (B, 3, S, S) in [-1, 1] -> (B, D)."""
    training, given = model.training, list[torch.Tensor]()
    hook = model.get_submodule("classifier").register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.eval()(pixel_values=pixels)
    hook.remove()
    model.train(training)
    return given[0]


def _images(split: Dataset, collator: Collator, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """At most `count` images, float32 (B, 3, S, S), and their labels, if there are any."""
    count = min(len(split), count)
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    parts = [split.select(chosen[start : start + 100]) for start in range(0, count, 100)]
    if not parts:
        raise NeuraCryptError("there are no images to align")
    batches = [collator(list(part)) for part in parts]
    labels = torch.cat([batch["labels"] for batch in batches]) if collator.columns.labels else None
    return torch.cat([batch["pixel_values"] for batch in batches]), labels
