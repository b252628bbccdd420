"""The aligned start of `scripts/train.py --public_images`: a map, checked by labels, and a model that knows its errors.

What it is worth is in model_cards/results/ablation.md.
"""

import copy
import logging
from collections.abc import Sequence

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_neuracrypt import alignment
from hf_neuracrypt.alignment.patches import to_images
from hf_neuracrypt.data.columns import Columns, find_columns
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.data.sources import load_source, stored_record
from hf_neuracrypt.data.targets import Target
from hf_neuracrypt.errors import DatasetError, NeuraCryptError
from hf_neuracrypt.models.embeddings import fold, patch_embedding, side
from hf_neuracrypt.training.data import Collator, reader, undecoded
from hf_neuracrypt.training.recipes import RECIPES, groups_of


PROBED = 600  # labelled images that decide whether the map is kept
STEPS, BATCH = 500, 32  # of distilling
PASSES = 8  # over the public images, at most


def aligned_start(
    model: PreTrainedModel,
    split: Dataset,
    columns: Columns,
    records: Sequence[Record],
    public_images: str,
    seed: int,
    target: Target | None = None,
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> bool:
    """Fold the map that `alignment` finds between ciphertexts and public images into the model's embeddings, after the
    model has learned from the public images to see through the map's errors.

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
        device, bf16: where to learn, and whether in mixed precision; the model is on the CPU.

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
    fold(model, found.patch_map)
    after = probe(model, *probed)
    for weight, value in usual:
        weight.data.copy_(value)
    kept = "kept" if after >= before else f"dropped, as {public_images} do not help"
    logging.getLogger(__name__).info(
        "Aligned %d ciphertexts with %d public images: the map explains %.2f of the patches; %s: the probe, which is "
        "what the frozen model tells apart, %s from %.3f to %.3f",
        len(cipher), len(plain), found.corrected.explained, kept, "rose" if after > before else "went", before, after,
    )  # fmt: skip
    if after >= before:
        distil(model, plain, found, seed, device, bf16)
        fold(model, found.patch_map)
    return after >= before


def distil(
    model: PreTrainedModel,
    public: torch.Tensor,
    found: alignment.Alignment,
    seed: int,
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> None:
    """Teach the model to see in pictures that are decrypted roughly what it sees in the pictures themselves.

    The public images were also decrypted, from ciphertexts under keys of one's own, so both are at hand. The model, as
    it is, looks at the one, and learns to have the same hidden states when it looks at the other (Hinton, Vinyals, Dean
    2015). Pairs are flipped and moved alike, as decrypted pictures can be, and ciphertexts cannot.

    Args:
        model: pre-trained on plain images, not folded; changed in place. It learns without dropout.
        public: the images that `found` was found with, float32 (B, 3, S, S) in [-1, 1].
        found: the alignment that will be folded.
        seed: of the images, and of how they are moved.
        device: where to learn; the model is on the CPU before and after.
        bf16: learn in mixed precision.
    """
    recipe, patch_size = RECIPES["neuracrypt"], side(model.config, "patch_size")
    mixed = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)
    training, teacher = model.training, copy.deepcopy(model).eval()
    for each in (model.eval(), teacher):
        torch.nn.Module.to(each, device)
    optimizer = torch.optim.AdamW(groups_of(model, recipe["learning_rate"], recipe["weight_decay"]))
    steps = min(STEPS, 1 + PASSES * len(public) // BATCH)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps, pct_start=recipe["warmup_steps"])
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), "Distilling"):
        chosen = torch.randint(len(public), (min(BATCH, len(public)),), generator=generator)
        key = int(torch.randint(len(found.corrected.rehearsed), (), generator=generator))
        pairs = torch.cat([public[chosen], to_images(found.rehearsed(key, chosen), patch_size)], dim=1)
        plain, decrypted = moved(flipped(pairs, generator), generator).to(device).split(3, dim=1)
        with mixed, torch.no_grad():
            wanted = teacher(pixel_values=plain, output_hidden_states=True).hidden_states[-1].float()
        with mixed:
            seen = model(pixel_values=decrypted, output_hidden_states=True).hidden_states[-1].float()
        loss = (seen - wanted).square().mean() / wanted.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.cpu()
    model.train(training)


def flipped(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (B, C, S, S), half of them mirrored."""
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5, images.flip(-1), images)


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (B, C, S, S), moved by up to an eighth of their side, what an edge leaves empty reflected."""
    size, reach = images.shape[-1], images.shape[-1] // 8
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = torch.nn.functional.pad(images, (reach,) * 4, mode="reflect")
    return padded[..., top : top + size, left : left + size]


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
