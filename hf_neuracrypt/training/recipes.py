"""How to train on ciphertexts: defaults of `scripts/train.py` by name, and how fast each weight learns.

What each is worth is in model_cards/ablation.md. A flag that the user gives always wins over a recipe's.
"""

from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments


RECIPES: dict[str, dict[str, Any]] = {
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
        options["params"] = groups_of(model, args.learning_rate, args.weight_decay)
    return cls, options


def groups_of(model: PreTrainedModel, rate: float, decay: float) -> list[dict[str, Any]]:
    """What of a pre-trained model learns, and how fast."""
    fast: list[torch.nn.Parameter] = []
    slow: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (fast if "patch_embedding" in name or name.startswith("classifier") else slow).append(parameter)
    return [
        {"params": slow, "lr": rate, "weight_decay": decay},
        {"params": fast, "lr": rate * EMBEDDING_FACTOR, "weight_decay": decay},
    ]
