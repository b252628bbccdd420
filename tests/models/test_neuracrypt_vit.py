"""From an image to an answer with `neuracrypt`: representations on disk, a ViT without patch embedding, predict."""

import dataclasses
import json

import pytest
import torch
from datasets import Array2D, load_from_disk
from transformers import (
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_neuracrypt import SecretKey, encrypt_dataset, load_encoder
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import ConfigError, NeuraCryptError
from hf_neuracrypt.models import NeuraCryptViTForImageClassification
from hf_neuracrypt.models.load import load_model
from hf_neuracrypt.schemes import make_config
from hf_neuracrypt.training.data import Collator, checked_records, load_splits, reader
from hf_neuracrypt.training.tasks import metrics_of
from tests.commands import command
from tests.helpers import KEY_ID, SMALL, TINY_VIT, make_dataset


CONFIG = make_config("neuracrypt", {"image_size": 32, "patch_size": 8, "width": 64, "depth": 1, "channels": 3})


def model_for(config, folder, name=None, **vit):
    ViTConfig(**(TINY_VIT | {"hidden_size": 64} | vit)).save_pretrained(folder)
    return load_model(name, str(folder), ["cat", "dog", "horse"], 32, [Record(config, KEY_ID)])


@pytest.fixture
def stock_vit(tmp_path) -> ViTForImageClassification:
    model = ViTForImageClassification(ViTConfig(**(TINY_VIT | {"hidden_size": 64, "num_labels": 7}))).eval()
    for weight in model.vit.layernorm.parameters():
        torch.nn.init.normal_(weight)
    model.save_pretrained(tmp_path / "stock")
    return model


def test_layers_of_a_stock_vit(stock_vit, tmp_path):
    """Given the stock model's own tokens, it computes what the stock model computes."""
    config = dataclasses.replace(CONFIG, shuffle="off")
    model = load_model(str(tmp_path / "stock"), None, ["a", "b"], 32, [Record(config, KEY_ID)]).eval()
    images, embeddings = torch.randn(2, 3, 32, 32), stock_vit.vit.embeddings
    with torch.no_grad():
        model.position_embeddings.copy_(embeddings.position_embeddings)
        model.classifier.weight.copy_(stock_vit.classifier.weight[:2])
        model.classifier.bias.copy_(stock_vit.classifier.bias[:2])
        logits = model(pixel_values=embeddings.patch_embeddings(images)).logits
        torch.testing.assert_close(logits, stock_vit(pixel_values=images).logits[:, :2], atol=1e-5, rtol=1e-4)


def test_without_positions_the_order_of_patches_means_nothing(tmp_path):
    model = model_for(CONFIG, tmp_path).eval()
    assert model.position_embeddings is None and model.config.num_patches == 16
    patches = torch.randn(2, 16, 64)
    with torch.no_grad():
        expected = model(pixel_values=patches).logits
        shuffled = model(pixel_values=patches[:, torch.randperm(16)]).logits
    torch.testing.assert_close(shuffled, expected, atol=1e-5, rtol=1e-4)
    hidden, mlp = 64, 32  # one layer: two norms, four projections of attention, two of the MLP
    layer = 4 * hidden + 4 * (hidden**2 + hidden) + 2 * hidden * mlp + hidden + mlp
    assert sum(weight.numel() for weight in model.parameters()) == hidden + layer + 2 * hidden + 3 * hidden + 3


def test_encrypt_train_predict(key_file, vit_config, tmp_path):
    make_dataset(60).train_test_split(12, shuffle=False).save_to_disk(str(tmp_path / "plain"))
    encrypted = command(
        "encrypt", "--dataset", tmp_path / "plain", "--key-file", key_file, "--output", tmp_path / "encrypted",
        "--scheme", "neuracrypt", "--image-size", 32, "--patch-size", 8, "--scheme-option", "width=64",
        "--scheme-option", "depth=1", "--scheme-option", "channels=3",
    )  # fmt: skip
    assert encrypted.returncode == 0, encrypted.stderr
    assert command("verify", tmp_path / "encrypted").returncode == 0
    splits, key = load_splits(str(tmp_path / "encrypted")), SecretKey.load(key_file)
    record = checked_records(splits)[0]
    assert record == Record(CONFIG, key.id)
    assert splits.data["train"].features["image"] == Array2D((16, 64), "float32")
    again = encrypt_dataset(load_from_disk(str(tmp_path / "plain"))["test"], load_encoder(CONFIG, key))
    torch.testing.assert_close(torch.tensor(again["image"][:]), torch.tensor(splits.data["test"]["image"][:]))

    (vit_config / "config.json").write_text(json.dumps(TINY_VIT | {"hidden_size": 64}))
    model = load_model(None, str(vit_config), splits.label_names, 32, [record])
    trainer = Trainer(
        model=model, train_dataset=splits.data["train"], eval_dataset=splits.data["test"],
        data_collator=Collator(splits.columns, reader(splits.records, 32)), compute_metrics=metrics_of("classes"),
        args=TrainingArguments(str(tmp_path / "run"), num_train_epochs=12, per_device_train_batch_size=12, seed=1,
                               learning_rate=5e-3, report_to="none", save_strategy="no", disable_tqdm=True,
                               remove_unused_columns=False, use_cpu=True, dataloader_pin_memory=False),
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.8
    trainer.save_model(str(tmp_path / "model"))
    assert (
        type(AutoModelForImageClassification.from_pretrained(tmp_path / "model")) is NeuraCryptViTForImageClassification
    )
    plain, right = load_from_disk(str(tmp_path / "plain"))["test"], 0
    photos = [tmp_path / f"{index}.png" for index in range(6)]
    for index, photo in enumerate(photos):
        plain[index]["img"].save(photo)
    own = ("--encrypted", tmp_path / "encrypted", "--key-file", key_file)
    answers = command("predict", "--model", tmp_path / "model", *own, "--json", *photos)
    assert answers.returncode == 0, answers.stderr
    for index, line in enumerate(answers.stdout.splitlines()):
        predictions = json.loads(line)["predictions"]
        assert sum(entry["score"] for entry in predictions) == pytest.approx(1, abs=1e-4)
        right += predictions[0]["label"] == plain.features["label"].int2str(plain[index]["label"])
    assert right >= 5
    evaluated = command("scripts/evaluate.py", "--model", tmp_path / "model", "--dataset", tmp_path / "encrypted")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["accuracy"] == trainer.evaluate()["eval_accuracy"]


def test_models_that_do_not_fit(stock_vit, tmp_path):
    with pytest.raises(NeuraCryptError, match=r"patches have 64 values.* not a vit of 128"):
        model_for(CONFIG, tmp_path / "wide", hidden_size=128)
    model = model_for(CONFIG, tmp_path / "fits")
    with pytest.raises(ConfigError, match=r"shape \(15, 64\) does not fit a model of 16 patches"):
        model(pixel_values=torch.zeros(1, 15, 64))
    model.save_pretrained(tmp_path / "model")
    assert load_model(str(tmp_path / "model"), None, ["a"], 32, [Record(CONFIG, KEY_ID)]).classifier.out_features == 1
    with pytest.raises(NeuraCryptError, match="takes patch representations, color-neuracrypt gives images"):
        load_model(str(tmp_path / "model"), None, ["a", "b"], 32, [Record(SMALL, KEY_ID)])
    deeper = NeuraCryptViTForImageClassification(
        type(model.config)(**(model.config.to_dict() | {"num_hidden_layers": 2}))
    )
    with pytest.raises(ConfigError, match="other sizes"):
        deeper.take_layers(stock_vit)
