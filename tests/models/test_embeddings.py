"""A ViT fitted to `vit-blockwise`: the plain model's answers on ciphertexts, and what it reveals."""

import json

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForImageClassification, ResNetConfig, ViTConfig, ViTForImageClassification

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.models.embeddings import WARNING, adapt
from hf_neuracrypt.models.load import stock_processor
from hf_neuracrypt.schemes import make_config
from tests.commands import assert_one_line_error, command
from tests.helpers import SMALL, TINY_VIT, batch, make_images


CONFIG = make_config("vit-blockwise", {"image_size": 32, "patch_size": 8})


def random_vit(**changes) -> ViTForImageClassification:
    """A tiny ViT whose position embeddings, biases and head are all far from zero."""
    model = ViTForImageClassification(ViTConfig(**(TINY_VIT | {"num_labels": 5} | changes))).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return model


def logits(model, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=images.float() / 127.5 - 1).logits


def test_same_logits_on_ciphertexts(insecure_key):
    encoder, model, images = load_encoder(CONFIG, insecure_key), random_vit(), batch(make_images(6, 32))
    plain = logits(model, images)
    assert (logits(model, encoder.encrypt(images)) - plain).abs().max() > 0.1
    assert adapt(model, encoder) is model
    torch.testing.assert_close(logits(model, encoder.encrypt(images)), plain, atol=1e-4, rtol=0)
    assert (logits(model, images) - plain).abs().max() > 0.1


def test_the_warning_is_true(insecure_key):
    """From the plain and the adapted model alone: the cipher, and with it every image."""
    encoder, plain, images = load_encoder(CONFIG, insecure_key), random_vit(), batch(make_images(2, 32))
    adapted = adapt(random_vit(), encoder)
    weights = [m.vit.embeddings.patch_embeddings.projection.weight.flatten(1).t() for m in (adapted, plain)]
    positions = [m.vit.embeddings.position_embeddings[0, 1:] for m in (adapted, plain)]
    pixels, patches = (torch.cdist(*pair).argmin(1) for pair in (weights, positions))
    blocks = encoder.encrypt(images).view(2, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 192)
    stolen = torch.empty_like(blocks)
    stolen[:, patches[:, None], pixels] = blocks
    assert torch.equal(stolen.view(2, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 32, 32), images)
    assert "GIVES THE KEY'S CIPHER AWAY" in WARNING


@pytest.mark.parametrize(
    "encoder, model, reason",
    [
        (CONFIG, {"image_size": 64}, "images of 64 pixels in patches of 8, the encryption's are 32 and 8"),
        (CONFIG, {"patch_size": 16}, "patches of 16"),
        (SMALL, {}, "only the scheme vit-blockwise has an adapted model, not color-neuracrypt"),
        (CONFIG, None, "type resnet cannot be adapted, only vit and deit"),
    ],
)
def test_what_cannot_be_adapted(encoder, model, reason, insecure_key):
    resnet = AutoModelForImageClassification.from_config(
        ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1])
    )
    with pytest.raises(NeuraCryptError, match=reason):
        adapt(resnet if model is None else random_vit(**model), load_encoder(encoder, insecure_key))


def test_command(plain_folder, key_file, tmp_path):
    random_vit(num_labels=3, id2label={0: "cat", 1: "dog", 2: "horse"}).save_pretrained(tmp_path / "vit")
    stock_processor(32, plain=True).save_pretrained(tmp_path / "vit")
    encrypted = command("encrypt", "--dataset", plain_folder, "--key-file", key_file,
                        "--output", tmp_path / "encrypted",
                        "--scheme", "vit-blockwise", "--image-size", 32, "--patch-size", 8)  # fmt: skip
    assert encrypted.returncode == 0, encrypted.stderr
    start = (
        "adapt",
        "--model",
        tmp_path / "vit",
        "--key-file",
        key_file,
        "--output",
        tmp_path / "adapted",
        "--dataset",
    )
    done = command(*start, tmp_path / "encrypted")
    assert done.returncode == 0 and WARNING in done.stderr, done.stderr
    image = load_from_disk(str(plain_folder))["test"][0]["img"].resize((32, 32))
    image.save(tmp_path / "photo.png")
    answer = command(
        "predict",
        "--model",
        tmp_path / "adapted",
        "--encrypted",
        tmp_path / "encrypted",
        "--key-file",
        key_file,
        "--json",
        tmp_path / "photo.png",
    )
    assert answer.returncode == 0, answer.stderr
    from transformers import pipeline

    expected = pipeline("image-classification", model=str(tmp_path / "vit"))(image)
    found = json.loads(answer.stdout)["predictions"]
    assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
    assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in expected], abs=1e-4)
    assert_one_line_error(command(*start, tmp_path / "encrypted"), "exists")
    SecretKey.generate().save(tmp_path / "other.key")
    other = [tmp_path / "other.key" if word == key_file else word for word in start]
    wrong = command(*(tmp_path / "elsewhere" if word == tmp_path / "adapted" else word for word in other),
                    tmp_path / "encrypted")  # fmt: skip
    assert_one_line_error(wrong, "was encrypted under the key")
