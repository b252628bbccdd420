"""Which pre-trained models learn from ciphertexts: the table of hf_neuracrypt/training/README.md, from tiny models."""

import json
import re

import pytest
import torch
import transformers as t
from transformers import pipeline

from hf_neuracrypt.alignment.patches import PatchMap, to_patches
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.models.embeddings import fold
from hf_neuracrypt.models.load import load_model
from hf_neuracrypt.schemes import EncoderConfig
from hf_neuracrypt.training.aligned import probe
from hf_neuracrypt.training.data import undecoded
from tests.commands import load_script
from tests.helpers import KEY_ID, ROOT, SMALL, make_dataset


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT |= {"image_size": 32, "patch_size": 8}
BEIT = VIT | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "drop_path_rate": 0.0}
MAE = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
SWIN = {"image_size": 32, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
NAFLEX = {name: value for name, value in VIT.items() if name != "image_size"} | {"num_patches": 16}
FOURS = {"depths": [1] * 4, "image_size": 32}
MODELS = {
    "ViT": lambda: t.ViTForImageClassification(t.ViTConfig(**VIT)),
    "ViT without a head (in21k)": lambda: t.ViTModel(t.ViTConfig(**VIT)),
    "ViT-MAE": lambda: t.ViTMAEForPreTraining(t.ViTMAEConfig(**VIT, **MAE, decoder_intermediate_size=16)),
    "ViT-MSN": lambda: t.ViTMSNModel(t.ViTMSNConfig(**VIT)),
    "DeiT": lambda: t.DeiTForImageClassification(t.DeiTConfig(**VIT)),
    "DeiT, distilled": lambda: t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**VIT)),
    "I-JEPA": lambda: t.IJepaModel(t.IJepaConfig(**VIT)),
    "DINOv2": lambda: t.Dinov2Model(t.Dinov2Config(**VIT, mlp_ratio=1)),
    "DINOv2 with registers": lambda: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**VIT, mlp_ratio=1)),
    "DINOv3": lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**VIT)),
    "BEiT": lambda: t.BeitForMaskedImageModeling(t.BeitConfig(**BEIT, use_relative_position_bias=True)),
    "BEiT, absolute positions": lambda: t.BeitModel(t.BeitConfig(**BEIT, use_absolute_position_embeddings=True)),
    "Data2Vec": lambda: t.Data2VecVisionModel(t.Data2VecVisionConfig(**BEIT, use_relative_position_bias=True)),
    "SigLIP": lambda: t.SiglipModel(t.SiglipConfig(text_config=VIT, vision_config=VIT)),
    "SigLIP, its vision tower alone": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**VIT)),
    "SigLIP 2, NaFlex": lambda: t.Siglip2VisionModel(t.Siglip2VisionConfig(**NAFLEX)),
    "CLIP": lambda: t.CLIPModel(t.CLIPConfig(text_config=VIT, vision_config=VIT, projection_dim=16)),
    "CLIP, its vision tower alone": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**VIT)),
    "Swin": lambda: t.SwinModel(t.SwinConfig(**SWIN)),
    "Swin, patches of 8": lambda: t.SwinModel(
        t.SwinConfig(**SWIN | {"depths": [1], "num_heads": [2], "patch_size": 8})
    ),
    "SwinV2": lambda: t.Swinv2Model(t.Swinv2Config(**SWIN)),
    "ConvNeXt": lambda: t.ConvNextModel(t.ConvNextConfig(**FOURS, hidden_sizes=[16] * 4)),
    "Hiera": lambda: t.HieraModel(
        t.HieraConfig(image_size=[224, 224], embed_dim=16, depths=[1] * 4, num_heads=[1] * 4)
    ),
    "PVT": lambda: t.PvtModel(t.PvtConfig(**FOURS, hidden_sizes=[16, 32, 32, 32], num_attention_heads=[1] * 4)),
    "MobileViT": lambda: t.MobileViTModel(t.MobileViTConfig(image_size=32)),
    "ResNet": lambda: t.ResNetModel(t.ResNetConfig(embedding_size=16, hidden_sizes=[16] * 4, depths=[1] * 4)),
}


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory, small_encoder):
    folder = tmp_path_factory.mktemp("backbones") / "encrypted"
    splits = {"train": make_dataset(8, size=32), "test": make_dataset(2, size=32, seed=1)}
    run(Job(splits, make_plan(splits, small_encoder), folder))
    return folder


@pytest.fixture
def base(request, tmp_path):
    """The model of that name, saved as others publish theirs."""
    torch.manual_seed(0)
    MODELS[request.param]().save_pretrained(tmp_path / "base")
    return request.param, tmp_path / "base"


def trains(encrypted, base, output) -> None:
    """A step of the script; then the stock pipeline gives what the model gives for a collated batch."""
    script = load_script("train")
    flags = ("--dataset_name", encrypted, "--model_name_or_path", base, "--output_dir", output, "--max_steps", 1)
    flags += ("--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "--save_strategy", "no")
    script.main(*script.parse(list(map(str, flags))))
    splits = script.load_splits(str(encrypted))
    split, collator = splits.data["test"], script.Collator(splits.columns, script.reader(splits.records, 32))
    model = t.AutoModelForImageClassification.from_pretrained(output)
    with torch.no_grad():
        batch = collator(list(undecoded(split, splits.columns)))
        expected = model(pixel_values=batch["pixel_values"]).logits.softmax(-1)
    for image, scores in zip(split["image"], expected):
        answer = {entry["label"]: entry["score"] for entry in pipeline("image-classification", str(output))(image)}
        assert [answer[name] for name in ("cat", "dog", "horse")] == pytest.approx(scores.tolist(), abs=1e-5)


def resizes(base) -> None:
    record = Record(EncoderConfig(image_size=64, patch_size=8), KEY_ID)
    model = load_model(str(base), None, ["a", "b"], 64, [record]).eval()
    assert model(pixel_values=torch.zeros(1, 3, 64, 64)).logits.isfinite().all()


def aligns(base) -> None:
    """Patches turned by a matrix, and moved alike at all positions: with the map folded in, nothing has changed."""
    model = load_model(str(base), None, ["a", "b"], 32, [Record(SMALL, KEY_ID)]).eval()
    generator = torch.Generator().manual_seed(0)
    images, turn = torch.randn(3, 3, 32, 32, generator=generator), torch.randn(192, 192, generator=generator)
    turn, mean = torch.linalg.qr(turn)[0], torch.randn(192, generator=generator).expand(16, 192)
    patches = to_patches(images, 8) @ turn + mean[0]
    cipher = patches.reshape(3, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
    with torch.no_grad():
        expected = model(pixel_values=images).logits
        assert (model(pixel_values=cipher).logits - expected).abs().max() > 1e-4
        assert 0 <= probe(model, images.repeat(4, 1, 1, 1), torch.arange(12) % 3) <= 1
        fold(model, PatchMap(turn.T, mean, torch.zeros(16, 192)))
        torch.testing.assert_close(model(pixel_values=cipher).logits, expected, atol=1e-4, rtol=1e-3)


def outcome(work, *given) -> str:
    """What the table says."""
    try:
        work(*given)
    except NeuraCryptError as error:
        assert "\n" not in str(error)
        return re.sub(r"^\S+ is an? |^this model is an? |^the model has ", "", str(error)).replace("|", "/")
    return "yes"


def table() -> dict[str, list[str]]:
    text = (ROOT / "hf_neuracrypt" / "training" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: [cell for cell in row[1:] if cell] for row in rows}


@pytest.mark.parametrize("base", MODELS, indirect=True)
def test_the_table_is_true(base, encrypted, tmp_path):
    name, folder = base
    found = [outcome(trains, encrypted, folder, tmp_path / "out")]
    if found == ["yes"]:
        found += [outcome(resizes, folder), outcome(aligns, folder)]
    print(f"| {name} | {' | '.join(found)} |")
    assert table().get(name) == found


def test_the_table_has_no_other_model():
    assert {name for name in table() if name not in ("model", "---")} == set(MODELS)


def test_a_timm_model_without_timm_is_one_line(tmp_path):
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 10,
        "pretrained_cfg": {},
        "model_type": "timm_wrapper",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NeuraCryptError, match="timm"):
        load_model(str(tmp_path), None, ["a", "b"], 32, [Record(SMALL, KEY_ID)])
