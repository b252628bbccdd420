"""The data of the table: splits, and plain images prepared for each step, some of them augmented as published."""

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from table1_rows import Budget

from hf_neuracrypt.data.columns import find_columns
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.images import prepare, to_rgb
from hf_neuracrypt.schemes import PEConfig


PUBLIC = 4_000  # plain images, at most, that an aligned start is given
HUB = {"cifar10": "uoft-cs/cifar10", "mnist": "ylecun/mnist"}


def load_data(name: str, source: str | None, budget: Budget) -> dict[str, Dataset]:
    """The first rows of train and test, and as "public" the last of train, of which nobody uses the labels.

    Whoever uses "public" does not learn from it: where `budget` has all of train learned from, that is 4,000 fewer.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
        images = (pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        data = Dataset.from_dict({"image": list(images), "label": labels.tolist()}, features=features)
        splits = {"train": data.select(range(1437)), "test": data.select(range(1437, 1797))}  # other writers
    else:
        splits = load_source(source or HUB[name])
    columns = find_columns(splits["train"].features, None, None)
    names = {name: new for name, new in ((columns.image, "image"), (columns.labels[0], "label")) if name != new}
    splits = {split: splits[split].rename_columns(names) for split in ("train", "test")}
    counts = {"train": budget.train, "test": budget.test}
    chosen = {split: rows.select(range(min(counts[split] or len(rows), len(rows)))) for split, rows in splits.items()}
    rows = len(splits["train"])
    return chosen | {"public": splits["train"].select(range(max(budget.train or 0, rows - PUBLIC), rows))}


class Prepare:
    """Rows of a dataset -> {"images": uint8 RGB (3, S, S), "label"}, for `with_transform`; plain, and maybe cropped."""

    def __init__(self, image_size: int, augment: str = ""):
        self.config, self.augment = PEConfig(image_size=image_size), augment  # PE takes any size

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        crop = AUGMENTATIONS[self.augment] if self.augment else to_rgb
        images = [prepare(crop(to_rgb(image)), self.config) for image in rows["image"]]
        return {"images": images, "label": rows["label"]}


def stacked(rows: Dataset, size: int) -> torch.Tensor:
    """The images, prepared: uint8 (B, 3, S, S)."""
    return torch.from_numpy(np.stack(rows.with_transform(Prepare(size))[:]["images"]))


def resized_crop(image: PILImage.Image) -> PILImage.Image:
    """5 to 100 % of the area at a ratio of 3:4 to 4:3, as torchvision's RandomResizedCrop; the whole if none fits."""
    width, height = image.size
    for _ in range(10):
        area, ratio = torch.rand(()) * 0.95 + 0.05, torch.exp((2 * torch.rand(()) - 1) * np.log(4 / 3))
        w, h = (round(float((width * height * area * x) ** 0.5)) for x in (ratio, 1 / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(torch.randint(0, free + 1, ())) for free in (width - w, height - h))
            return image.crop((left, top, left + w, top + h))
    return image


def shift_and_flip(image: PILImage.Image) -> PILImage.Image:
    """Moved by up to an eighth of its sides, black outside, half of them mirrored."""
    width, height = image.size
    left, top = (int(torch.randint(-(side // 8), side // 8 + 1, ())) for side in image.size)
    image = image.crop((left, top, left + width, top + height))
    return image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < 0.5 else image


AUGMENTATIONS = {"resized crop": resized_crop, "shift and flip": shift_and_flip}
