"""The training loop of the experiments, on images in memory; a `Row` says what is done differently."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from processor import BFLOAT16
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_neuracrypt.training.aligned import moved
from hf_neuracrypt.training.recipes import EMBEDDING_FACTOR, RECIPES


RECIPE: dict[str, Any] = RECIPES["neuracrypt"]
RATE, DECAY, BATCH = (RECIPE[name] for name in ("learning_rate", "weight_decay", "per_device_train_batch_size"))


@dataclass(frozen=True)
class Row:
    """What one row of a table does differently from learning on ciphertexts by their labels alone."""

    title: str
    plain: bool = False
    frozen: bool = False  # nothing is trained but a small head, on features that the owner computes at home
    public: str | None = None  # aligned with public images: of the "same" kind, or "photos"; or with "pairs"
    distilled: bool = True  # on public images, before the map is folded
    given: int = 0  # the owner fitted the embedding on so many pairs: `hf-neuracrypt adapt`
    soft: bool = False  # labels are what a head at home says of each image, which it has not learned from
    wrong_sign: bool = False  # the map gives negatives
    cutmix: float = 0.0  # share of batches in which rectangles of whole patches come from another image
    views: int = 1  # the owner encrypted so many versions of an image; each epoch sees another one
    flip: bool = False  # ciphertexts are flipped: what one must not do
    crop: bool = False  # ciphertexts are moved by up to an eighth of their side: what one must not do
    layer_decay: float = 1.0  # a layer learns so much slower than the next
    average: float = 0.0  # decay of the average of the weights that is tested instead of the last ones
    frozen_epochs: int = 0  # embeddings and head alone learn first
    lora: bool = False  # the backbone learns by LoRA only
    frozen_embedding: bool = False  # of patches: it never learns
    random_embedding: bool = False  # of patches: nothing of the pre-trained one, nor of a map
    bits: int = 8  # of each byte of a ciphertext that are kept
    width: int = 768  # of the encoder
    depth: int = 4


class FineTuning:
    """The training loop of all experiments: mixed precision, AdamW, one cycle of the learning rate, in whole batches.

    Args:
        model: a ViT, trained in place.
        versions: uint8 (B, 3, S, S), a tensor for each epoch in turn.
        labels: int64 (B,), or probabilities, float32 (B, classes).
        epochs: how often each image is seen.
        row: what is done differently.
        seed: of the order of the images, and of what the row does to them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        versions: Sequence[torch.Tensor],
        labels: torch.Tensor,
        *,
        epochs: int,
        row: Row,
        seed: int,
    ):
        self.model, self.versions, self.labels, self.epochs, self.row = model, versions, labels, epochs, row
        self.generator, self.epoch, self.steps = torch.Generator().manual_seed(seed), 0, len(labels) // BATCH
        if row.frozen_embedding:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and "patch_embeddings" not in name)
        groups = groups_of(model, row)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=DECAY, fused=True)  # as `Trainer` has it
        rates = [group["lr"] for group in groups]
        self.schedule = OneCycleLR(self.optimizer, rates, max(1, epochs * self.steps), pct_start=0.1)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(row.average)) if row.average else None
        backbone = [p for name, p in model.named_parameters() if not is_embedding(name) and "position" not in name]
        self.backbone = [parameter for parameter in backbone if parameter.requires_grad]

    @property
    def tested(self) -> nn.Module:
        """The model to test: the trained one, or the average of its weights."""
        return self.average or self.model

    def run_epoch(self) -> float:
        """Learn from each image once more; the mean loss of the batches."""
        for parameter in self.backbone:
            parameter.requires_grad_(self.epoch >= self.row.frozen_epochs)
        images, total = self.versions[self.epoch % len(self.versions)], 0.0
        self.epoch += 1
        batches = torch.randperm(len(images), generator=self.generator).split(BATCH)[: self.steps]
        for index in tqdm(batches, f"{self.row.title}, epoch {self.epoch} of {self.epochs}", leave=False):
            loss = loss_of(self.model, to_float(images[index]), self.labels[index], self.row, self.generator)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            total += loss.item()
        return total / self.steps

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes up in another process, where the same images are."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return parts | {"epoch": self.epoch, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.epoch = state["epoch"]
        self.generator.set_state(state["generator"])

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts | ({"average": self.average} if self.average is not None else {})


def autocast(device: str = "cpu") -> torch.autocast:
    """bfloat16 where it is multiplied in hardware, else float32: a processor without takes three times as long."""
    return torch.autocast(device, torch.bfloat16, enabled=BFLOAT16 or device != "cpu")


def loss_of(
    model: PreTrainedModel, pixels: torch.Tensor, labels: torch.Tensor, row: Row, generator: torch.Generator
) -> torch.Tensor:
    """Of one batch, after what the row does to it."""
    other, share = None, 1.0
    if row.flip and torch.rand(1, generator=generator) < 0.5:
        pixels = pixels.flip(-1)
    if row.crop:
        pixels = moved(pixels, generator)
    if torch.rand(1, generator=generator) < row.cutmix:
        pixels, other, share = cutmix(pixels, model.config.patch_size, generator)
    with autocast():
        logits = model(pixel_values=pixels).logits
        loss = cross_entropy(logits, labels) * share
        if other is not None:
            loss = loss + (1 - share) * cross_entropy(logits, labels[other])
    return loss


@torch.inference_mode()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of uint8 images (B, 3, S, S) that the model names right."""
    model.eval()
    with autocast():
        answers = torch.cat([model(pixel_values=to_float(part)).logits.argmax(-1) for part in images.split(100)])
    model.train()
    return round(float((answers == labels).float().mean()), 4)


def is_embedding(name: str) -> bool:
    return "patch_embeddings" in name or "classifier" in name


def groups_of(model: PreTrainedModel, row: Row) -> list[dict[str, Any]]:
    """What learns, and how fast: embedding and head by the recipe's factor, layers slower the lower they are."""
    layers: int = model.config.num_hidden_layers
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = int(name.split("layers.")[1].split(".")[0]) if "layers." in name else layers
            rate = RATE * (EMBEDDING_FACTOR if is_embedding(name) else row.layer_decay ** (layers - layer))
            groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def cutmix(images: torch.Tensor, patch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A rectangle of whole patches comes from another image: images, the others' order, the share that stayed."""
    grid = images.shape[-1] // patch
    height, width = torch.randint(1, grid - 1, (2,), generator=generator).tolist()
    top = int(torch.randint(0, grid - height + 1, (1,), generator=generator)) * patch
    left = int(torch.randint(0, grid - width + 1, (1,), generator=generator)) * patch
    order = torch.randperm(len(images), generator=generator)
    area = (..., slice(top, top + height * patch), slice(left, left + width * patch))
    mixed = images.clone()
    mixed[area] = images[order][area]
    return mixed, order, 1 - height * width / grid**2


def with_lora(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its backbone frozen under LoRA; head, positions and patch embedding learn as ever."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if is_embedding(name) or "position" in name:
            parameter.requires_grad_(True)
    return model
