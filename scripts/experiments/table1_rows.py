"""The rows of the table, with what was published and where, and the budgets they can be rebuilt under."""

from dataclasses import dataclass, field


QI = "Qi et al., Color-NeuraCrypt, Table 1"
MADONO = "Madono et al., arXiv 2001.07761, Table 3"
BATCH = {"batch_norm": "batch"}  # as published
GIVEN = 64  # known pairs


@dataclass(frozen=True)
class Row:
    """A system: how its images are encrypted (scheme None: not at all), what learns, and what was published.

    Args:
        scheme, options: of the encryption.
        model: "vit", "shakedrop", or the adaptation network in front of ShakeDrop: "le", "ele".
        adapted: the owner fits the model's embeddings to the key: for `vit-blockwise` exactly, which gives the cipher
            away, else on `GIVEN` known pairs.
        published: accuracy in per cent by dataset.
        source: of the published figures.
        aligned: the cloud starts with public images, as `train.py --public_images` does.
        soft: labels are what a head at home says of each image, which it has not learned from.
        frozen: the owner computes features with the pre-trained model, and trains nothing but a linear head on them.
    """

    scheme: str | None
    model: str
    options: dict = field(default_factory=dict)
    adapted: bool = False
    published: dict[str, float] = field(default_factory=dict)
    source: str = ""
    aligned: bool = False
    soft: bool = False
    frozen: bool = False


ROWS = {
    "plain-vit": Row(None, "vit", published={"cifar10": 99.10, "mnist": 99.71}, source=QI),
    "features-at-home": Row(None, "vit", frozen=True),
    "color-neuracrypt": Row("color-neuracrypt", "vit", published={"cifar10": 96.20}, source=QI),
    "color-neuracrypt-aligned": Row("color-neuracrypt", "vit", aligned=True),
    "color-neuracrypt-adapted": Row("color-neuracrypt", "vit", adapted=True),
    "color-neuracrypt-soft": Row("color-neuracrypt", "vit", soft=True),
    "color-neuracrypt-float": Row("color-neuracrypt-float", "vit", BATCH, published={"cifar10": 96.20}, source=QI),
    "neuracrypt": Row("neuracrypt", "vit", BATCH | {"channels": 3}, False, {"cifar10": 70.60, "mnist": 97.93}, QI),
    "vit-blockwise": Row("vit-blockwise", "vit"),
    "vit-blockwise-adapted": Row("vit-blockwise", "vit", adapted=True),
    "plain-shakedrop": Row(None, "shakedrop", published={"cifar10": 96.70}, source=MADONO),
    "pe": Row("pe", "shakedrop"),
    "le": Row("le", "le", published={"cifar10": 94.49}, source=MADONO),
    "etc": Row("etc", "ele"),
    "etc-madono": Row("etc", "ele", {"variant": "madono"}, published={"cifar10": 89.09}, source=MADONO),
    "ele": Row("ele", "ele", published={"cifar10": 83.06}, source=MADONO),
}


@dataclass(frozen=True)
class Recipe:
    """How the models of one family learn.

    Args:
        steps, batch_size: optimiser steps of so many images.
        optimizer: "adamw", the project's recipe for ciphertexts, or "sgd" with momentum 0.9 and weight decay 5e-4.
        learning_rate: at its highest.
        warmup: steps of linear growth before a cosine to 0.
        milestones: instead, the steps at which the rate falls to a tenth.
        augment: plain images, before they are encrypted: "resized crop", "shift and flip" or not.
        clip: norm of the gradient; 0: not clipped.
    """

    steps: int
    batch_size: int
    optimizer: str
    learning_rate: float
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    nesterov: bool = False
    augment: str = ""
    clip: float = 1.0


@dataclass(frozen=True)
class Budget:
    """Rows of data (None: all), sizes, and a recipe for each family of models.

    Args:
        image_size, patch_size: of the rows with a ViT, in pixels; those with ShakeDrop are of 32.
        pretrained: the ViT to fine-tune; None: a small one from random weights.
        original_vit: dropout 0.1, epsilon 1e-6 and a head of zeros, as in the code behind the published figures, where
            transformers has dropout 0, epsilon 1e-12 and a random head.
        pyramid: the size of ShakeDrop.
        eval_steps: how often the test set is looked at for `best_on_test`.
        bf16: mixed precision, where the device computes fast in bfloat16.
        workers: processes that prepare images.
    """

    train: int | None
    test: int | None
    image_size: int
    patch_size: int
    pretrained: str | None
    vit_recipe: Recipe
    shakedrop_recipe: Recipe
    pyramid: dict
    eval_steps: int
    bf16: bool = False
    workers: int = 0
    original_vit: bool = False

    def size_for(self, row: Row) -> int:
        return self.image_size if row.model == "vit" else 32

    def recipe_for(self, row: Row) -> Recipe:
        return self.vit_recipe if row.model == "vit" else self.shakedrop_recipe


SMALL_PYRAMID = {"depth": 20, "widening": 48}
BUDGETS = {
    "smoke": Budget(
        400, 100, 32, 8, None, Recipe(40, 16, "adamw", 1e-3, 4), Recipe(40, 16, "sgd", 0.1, 4, nesterov=True),
        {"depth": 8, "widening": 24}, eval_steps=20,
    ),
    "cpu": Budget(
        4_000, 1_000, 112, 16, "WinKawaks/vit-tiny-patch16-224", Recipe(500, 32, "adamw", 1e-4, 50),
        Recipe(500, 32, "sgd", 0.1, 50, nesterov=True), SMALL_PYRAMID, eval_steps=100, bf16=True,
    ),
    "gpu": Budget(
        None, None, 224, 16, "WinKawaks/vit-tiny-patch16-224", Recipe(4_000, 128, "adamw", 3e-4, 400),
        Recipe(8_000, 128, "sgd", 0.1, 400, nesterov=True, augment="shift and flip"), SMALL_PYRAMID, eval_steps=400,
        bf16=True, workers=8,
    ),
    # Qi et al. say: as in jeonsworld/ViT-pytorch but for the learning rate, 0.03 to 0.1, and weight decay, 5e-4.
    # Madono et al. say 300 epochs of 128 images; their code 305, tenths at 150 and 225, no clipping.
    "paper": Budget(
        None, None, 224, 16, "google/vit-base-patch16-224-in21k",
        Recipe(10_000, 512, "sgd", 0.03, 500, augment="resized crop"),
        Recipe(
            117_300, 128, "sgd", 0.1, milestones=(58_650, 87_975), nesterov=True, augment="shift and flip", clip=0.0
        ),
        {"depth": 110, "widening": 270}, eval_steps=1_000, bf16=True, workers=8, original_vit=True,
    ),
}  # fmt: skip
