"""What each part of the recipe is worth: the same images, steps and seeds, with one thing changed in each row.

python scripts/ablate.py --dataset cifar10 --model vit-tiny/ --output model_cards/ablation.json --seeds 3
python scripts/ablate.py --output model_cards/ablation.json --draw

It trains on the first images of the training split and tests on the first of the test split; images 10,000 on of the
training split (of a smaller one, the last), without labels, are the public ones of the same kind, and crops of
scikit-image's and scikit-learn's photos those of another kind. What the file already holds is not run again. Every
seed, and every start, draws a new key; trained models are also asked under one more key. Images stay in memory and a
bfloat16 loop stands in for `Trainer`: one cycle of the learning rate, AdamW, the rates of the recipe. Rows with LoRA
need `peft`. Before training, a row is probed: what a ridge regression on the frozen model's class token tells, of 600
images; `--epochs 0` does nothing else.
"""

import argparse
import functools
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import charts
import numpy as np
import torch
from PIL import Image
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder
from hf_neuracrypt.alignment import Alignment, align, fold, to_patches
from hf_neuracrypt.data.columns import find_columns
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import one_line_errors
from hf_neuracrypt.images import make_views, prepare
from hf_neuracrypt.training.recipes import EMBEDDING_FACTOR, PROBED, RECIPES, probe
from hf_neuracrypt.data.sources import load_source
from hf_neuracrypt.training.data import load_model


RATE, DECAY = (RECIPES["neuracrypt"][name] for name in ("learning_rate", "weight_decay"))
BATCH = RECIPES["neuracrypt"]["per_device_train_batch_size"]


@dataclass(frozen=True)
class Row:
    """What one row of the table does differently from learning on ciphertexts by their labels alone."""

    title: str
    plain: bool = False
    public: str | None = None  # "same" or "photos"
    wrong_sign: bool = False  # the map gives negatives
    cutmix: float = 0.0  # share of batches in which rectangles of whole patches come from another image
    views: int = 1  # the owner encrypted so many versions of an image; each epoch sees another one
    flip: bool = False  # ciphertexts are flipped: what one must not do
    crop: bool = False  # ciphertexts are moved by up to an eighth of their side: what one must not do
    layer_decay: float = 1.0  # a layer learns so much slower than the next
    average: float = 0.0  # decay of the average of the weights that is tested instead of the last ones
    frozen_epochs: int = 0  # embeddings and head alone learn first
    lora: str | None = None  # the backbone learns by LoRA only, the patch embedding as ever ("trained"), or "frozen"
    width: int = 768  # of the encoder
    depth: int = 4


ALIGNED = {"public": "same"}
ROWS = [
    Row("plain images", plain=True),
    Row("labels alone"),
    Row("aligned start", **ALIGNED),
    Row("aligned start, five encrypted views", **ALIGNED, views=5),
    Row("aligned start, unrelated photos", public="photos"),
    Row("aligned start, wrong sign", **ALIGNED, wrong_sign=True),
    Row("aligned start, patch CutMix", **ALIGNED, cutmix=0.5),
    Row("aligned start, layer-wise decay 0.75", **ALIGNED, layer_decay=0.75),
    Row("aligned start, averaged weights", **ALIGNED, average=0.99),
    Row("aligned start, embeddings first", **ALIGNED, frozen_epochs=1),
    Row("aligned start, LoRA", **ALIGNED, lora="trained"),
    Row("labels alone, LoRA", lora="trained"),
    Row("labels alone, LoRA, frozen patch embedding", lora="frozen"),
    Row("aligned start, flipped ciphertexts", **ALIGNED, flip=True),
    Row("aligned start, moved ciphertexts", **ALIGNED, crop=True),
    Row("labels alone, depth 0", depth=0),
    Row("aligned start, depth 0", **ALIGNED, depth=0),
    Row("labels alone, width 256", width=256),
    Row("aligned start, width 256", **ALIGNED, width=256),
    Row("labels alone, width 2048", width=2048),
    Row("aligned start, width 2048", **ALIGNED, width=2048),
]


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float().div_(127.5).sub_(1)


def photos(count: int, config: EncoderConfig) -> torch.Tensor:
    """Random crops of the photos that come with two libraries, brought to 32 px and then, as CIFAR is, to the size."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina", "hubble_deep_field")
    sources = [getattr(data, name)() for name in names] + list(load_sample_images().images)
    generator, crops = np.random.default_rng(0), []
    for index in range(count):
        source = sources[index % len(sources)]
        side = generator.integers(64, min(source.shape[:2]) + 1)
        top, left = (generator.integers(0, length - side + 1) for length in source.shape[:2])
        crop = Image.fromarray(source[top : top + side, left : left + side]).resize((32, 32), Image.Resampling.BOX)
        crops.append(prepare(crop, config))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


class Data:
    """Images in memory, uint8 (B, 3, S, S), plain and encrypted by an encoder of a width and a depth."""

    def __init__(self, args: argparse.Namespace, width: int, depth: int):
        self.config = EncoderConfig(image_size=args.image_size, width=width, depth=depth)
        self.splits = load_source(args.dataset)
        self.encoder = load_encoder(self.config, SecretKey.generate())
        self.plain, self.labels = self._read("train", 0, args.train)
        self.plain_test, self.test_labels = self._read("test", 0, args.test)
        self.cipher, self.cipher_test = self.encrypt(self.plain), self.encrypt(self.plain_test)
        self.other_test = self.encrypt(self.plain_test, load_encoder(self.config, SecretKey.generate()))
        self.args = args

    def _read(self, split: str, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.splits[split].select(range(start, start + count))
        columns = find_columns(rows.features, None, None)
        images = np.stack([prepare(image, self.config) for image in rows[columns.image]])
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(rows[columns.label])

    def encrypt(self, images: torch.Tensor, encoder: Encoder | None = None) -> torch.Tensor:
        """Under the key of all rows, or by another encoder."""
        return torch.cat([(encoder or self.encoder).encrypt(part) for part in images.split(64)])

    def public(self, kind: str) -> torch.Tensor:
        if kind == "photos":
            return photos(4_000, self.config)
        rows = len(self.splits["train"])
        start = max(self.args.train, min(10_000, rows - 4_000))  # never one that is also encrypted
        return self._read("train", start, min(4_000, rows - start))[0]

    def versions(self, row: Row) -> list[torch.Tensor]:
        """Training images, a tensor for each epoch in turn."""
        if row.views == 1:
            return [self.plain if row.plain else self.cipher]
        images = [make_views(image.numpy(), row.views, flip=True) for image in self.plain.permute(0, 2, 3, 1)]
        views = torch.from_numpy(np.array(images)).permute(1, 0, 4, 2, 3)
        return [self.cipher, *map(self.encrypt, views[1:])]


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


def moved(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A batch moved by up to an eighth of its side, what an edge leaves empty reflected."""
    reach, size = pixels.shape[-1] // 8, pixels.shape[-1]
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = torch.nn.functional.pad(pixels, (reach,) * 4, mode="reflect")
    return padded[..., top : top + size, left : left + size]


def with_lora(model: torch.nn.Module, kind: str) -> torch.nn.Module:
    """The model with its backbone frozen under LoRA; head and positions learn, the patch embedding if `trained`."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "classifier" in name or "position" in name or (kind == "trained" and "patch_embeddings" in name):
            parameter.requires_grad_(True)
    return model


def explained(alignment: Alignment, data: Data) -> float:
    """The share of the variance of true patches that the decrypted ones explain, over 500 images."""
    patch = data.config.patch_size
    true = to_patches(to_float(data.plain[:500]), patch).flatten(1, 2)
    guess = alignment.decrypt(to_float(data.cipher[:500]), patch)
    return 1 - float((guess - true).square().mean() / (true - true.mean(0)).square().mean())


def is_embedding(name: str) -> bool:
    return "patch_embeddings" in name or "classifier" in name


def groups_of(model: torch.nn.Module, row: Row) -> list[dict]:
    """What learns, and how fast: embedding and head by the recipe's factor, layers slower the lower they are."""
    layers, groups = model.config.num_hidden_layers, {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = int(name.split("layers.")[1].split(".")[0]) if "layers." in name else layers
            rate = RATE * (EMBEDDING_FACTOR if is_embedding(name) else row.layer_decay ** (layers - layer))
            groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def train(row: Row, data: Data, seed: int) -> dict:
    """What the row starts from, accuracy after each epoch, and the last training loss."""
    args, generator = data.args, torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    names = [str(label) for label in range(int(data.labels.max()) + 1)]
    model, start = load_model(args.model, None, names, args.image_size, []), {}
    if row.public:
        public = to_float(data.public(row.public))
        alignment = align(to_float(data.cipher[:4000]), public, data.config.patch_size, seed)
        if row.wrong_sign:
            alignment = replace(alignment, to_plain=-alignment.to_plain)
        fold(model, alignment)
        start["explained"] = round(explained(alignment, data), 4)
    pixels = to_float((data.plain if row.plain else data.cipher)[:PROBED])
    start["probe"] = round(probe(model, pixels, data.labels[:PROBED]), 4)
    if row.lora:
        model = with_lora(model, row.lora)
    groups = groups_of(model, row)
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    versions, steps = data.versions(row), len(data.labels) // BATCH
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, max(1, args.epochs * steps), pct_start=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(row.average)) if row.average else None
    backbone = [p for name, p in model.named_parameters() if not is_embedding(name) and "position" not in name]
    backbone = [parameter for parameter in backbone if parameter.requires_grad]
    test, accuracies, total = data.plain_test if row.plain else data.cipher_test, [], 0.0
    for epoch in range(args.epochs):
        for parameter in backbone:
            parameter.requires_grad_(epoch >= row.frozen_epochs)
        total, images = 0.0, versions[epoch % len(versions)]
        for index in torch.randperm(len(images), generator=generator).split(BATCH)[:steps]:
            loss = loss_of(model, to_float(images[index]), data.labels[index], row, data.config.patch_size, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if average is not None:
                average.update_parameters(model)
            total += loss.item()
        accuracies.append(accuracy(average or model, test, data.test_labels))
    end = {} if row.plain else {"wrong_key": accuracy(average or model, data.other_test, data.test_labels)}
    return start | {"accuracy": accuracies, "loss": round(total / steps, 4)} | end


def loss_of(
    model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor, row: Row, patch: int, generator: torch.Generator
) -> torch.Tensor:
    """Of one batch, after what the row does to it."""
    other, share = None, 1.0
    if row.flip and torch.rand(1, generator=generator) < 0.5:
        pixels = pixels.flip(-1)
    if row.crop:
        pixels = moved(pixels, generator)
    if torch.rand(1, generator=generator) < row.cutmix:
        pixels, other, share = cutmix(pixels, patch, generator)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pixel_values=pixels).logits
        loss = torch.nn.functional.cross_entropy(logits, labels) * share
        if other is not None:
            loss = loss + (1 - share) * torch.nn.functional.cross_entropy(logits, labels[other])
    return loss


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        answers = torch.cat([model(pixel_values=to_float(part)).logits.argmax(-1) for part in images.split(100)])
    model.train()
    return round(float((answers == labels).float().mean()), 4)


def draw(results: list[dict], path: Path) -> None:
    """A bar a row, a dot a seed."""
    results = [entry for entry in results if entry["accuracy"]]
    titles = list(dict.fromkeys(f"{entry['row']} ({len(entry['accuracy'])} epochs)" for entry in results))[::-1]
    figure, axes = charts.pyplot().subplots(figsize=(8, 0.5 * len(titles) + 1))
    for place, title in enumerate(titles):
        values = [e["accuracy"][-1] for e in results if f"{e['row']} ({len(e['accuracy'])} epochs)" == title]
        axes.barh(place, statistics.mean(values), color=charts.BLUE, height=0.6)
        axes.plot(values, [place] * len(values), "o", color=charts.ORANGE, markersize=4)
        axes.text(max(values) + 0.02, place, f"{statistics.mean(values):.3f}", va="center", color=charts.INK)
    axes.set_yticks(range(len(titles)), titles)
    axes.set_xlim(0, 1)
    axes.set_xlabel("test accuracy")
    charts.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="JSON file; the chart is written beside it")
    parser.add_argument("--dataset", help="plain images with the splits train and test: folder or Hub id")
    parser.add_argument("--model", help="pre-trained ViT: folder or Hub id")
    parser.add_argument("--rows", nargs="+", default=[row.title for row in ROWS], help="titles; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--draw", action="store_true", help="only draw the chart again")
    args = parser.parse_args()
    results = json.loads(args.output.read_text()) if args.output.exists() else []
    if not args.draw:
        if not (args.dataset and args.model):
            parser.error("--dataset and --model are needed to train")
        setting = {name: getattr(args, name) for name in ("train", "test", "image_size")}
        data_of = functools.lru_cache(1)(lambda seed, width, depth: Data(args, width, depth))  # a key for each seed
        for seed, row in tqdm([(seed, row) for seed in range(args.seeds) for row in ROWS if row.title in args.rows]):
            wanted = {"row": row.title, "seed": seed, "setting": setting}
            done = [e for e in results if {name: e[name] for name in wanted} == wanted]
            if not any(len(entry["accuracy"]) == args.epochs for entry in done):
                data = data_of(seed, row.width, row.depth)
                results.append(wanted | train(row, data, seed) | {"switches": asdict(row)})
                args.output.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    with one_line_errors():
        main()
