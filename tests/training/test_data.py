"""What the Trainer is given: splits with their records, the collator, the stock model and processor."""

import dataclasses
import io
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, concatenate_datasets, load_from_disk
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

from hf_neuracrypt import EncoderConfig, SecretKey, encrypt_dataset, load_encoder
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.manifest import MANIFEST, checksum, to_text
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import DatasetError, ImageError, KeyMismatchError, NeuraCryptError
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.models.load import load_model, stock_processor
from hf_neuracrypt.training.data import (
    Collator,
    checked_records,
    choose_splits,
    hold_out,
    load_splits,
    reader,
    sample,
    undecoded,
)
from hf_neuracrypt.training.metrics import Accuracy, evaluate_model
from tests.helpers import SMALL, TINY_VIT, make_dataset, save_model


@pytest.fixture(scope="module")
def encrypted_folder(tmp_path_factory, small_encoder):
    folder = tmp_path_factory.mktemp("training") / "encrypted"
    splits = {"train": make_dataset(12), "test": make_dataset(6, seed=1)}
    run(Job(splits, make_plan(splits, small_encoder), folder))
    return folder


def test_splits_know_their_encryption(encrypted_folder, plain_folder, small_encoder):
    splits = load_splits(str(encrypted_folder))
    assert checked_records(splits) == [Record(SMALL, small_encoder.key.id)]
    assert splits.label_names == ["cat", "dog", "horse"]
    plain = load_splits(str(plain_folder), plain=True)
    assert checked_records(plain) == [] and plain.columns.image == "img"


def test_plain_and_encrypted_are_never_confused(encrypted_folder, plain_folder):
    with pytest.raises(DatasetError, match=r"is not encrypted.*--plain"):
        load_splits(str(plain_folder))
    with pytest.raises(DatasetError, match=r"is encrypted .key nck1-"):
        load_splits(str(encrypted_folder), plain=True)


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_nothing_that_a_dataset_names_is_fetched_or_opened(where, small_encoder, tmp_path, monkeypatch):
    """A stranger's Parquet may name an address, or a file of this machine, in a column that nobody asked for."""
    asked = []
    monkeypatch.setattr("datasets.features.image.xopen", lambda path, *_, **__: asked.append(path) or io.BytesIO())
    stored = encrypt_dataset(make_dataset(6), small_encoder).cast_column("image", Image(decode=False))
    named = [{"bytes": None, "path": path} for path in ("http://127.0.0.1:9/a.png", "/etc/hostname") * 3]
    columns = {"image": stored["image"][:], "label": stored["label"][:], "other": named}
    features = stored.features | {"image": Image(), "other": Image()}
    if where == "inside":
        columns["image"], features["image"] = [[each] for each in named], List(Image())
    made = Dataset.from_dict(columns, features=Features(features))
    (tmp_path / "data").mkdir()
    parquet.write_table(made.data.table, tmp_path / "data" / "train-0.parquet")
    manifest = Record(SMALL, small_encoder.key.id).to_dict() | {"rows": {"train": 6}, "files": {}}
    (tmp_path / MANIFEST).write_text(to_text(manifest | {"sha256": checksum(manifest)}))
    save_model(tmp_path / "model", ["cat", "dog", "horse"], Record(SMALL, small_encoder.key.id))
    splits = load_splits(str(tmp_path))
    if where == "inside":
        with pytest.raises(DatasetError, match=r"column 'image' holds List.*, not one image a row"):
            choose_splits(splits, 0.5, 0)
        with pytest.raises(DatasetError, match="not one image a row"):
            evaluate_model(str(tmp_path / "model"), str(tmp_path), "train")
    else:
        train, _ = choose_splits(splits, 0.5, 0)
        batch = Collator(splits.columns, reader(splits.records, 32))([train[row] for row in range(len(train))])
        assert batch["pixel_values"].shape == (3, 3, 32, 32)
        assert evaluate_model(str(tmp_path / "model"), str(tmp_path), "train")["samples"] == 6
    assert not asked


def test_mixed_keys_are_refused(small_encoder, key_file, tmp_path):
    other = load_encoder(SMALL, SecretKey.load(key_file))
    both = concatenate_datasets([encrypt_dataset(make_dataset(4), encoder) for encoder in (small_encoder, other)])
    DatasetDict({"train": both}).save_to_disk(str(tmp_path / "both"))
    splits = load_splits(str(tmp_path / "both"))
    with pytest.raises(KeyMismatchError, match=f"{small_encoder.key.id}, {other.key.id}"):
        checked_records(splits)


def test_an_unfinished_folder_is_refused(encrypted_folder, tmp_path):
    shutil.copytree(encrypted_folder, tmp_path / "copy")
    (tmp_path / "copy" / ".unfinished").mkdir()
    (tmp_path / "copy" / ".unfinished" / "job.json").write_text("{}")
    with pytest.raises(DatasetError, match="unfinished"):
        load_splits(str(tmp_path / "copy"))


def test_collator_equals_the_stock_processor(encrypted_folder, tmp_path):
    splits = load_splits(str(encrypted_folder))
    split = splits.data["train"]
    collated = Collator(splits.columns, reader(splits.records, 32))(list(undecoded(split, splits.columns)))
    stock_processor(32).save_pretrained(tmp_path / "processor")
    saved = json.loads((tmp_path / "processor" / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "ViTImageProcessor" and saved["do_resize"] is False
    processor = AutoImageProcessor.from_pretrained(tmp_path / "processor")
    expected = processor([row["image"] for row in split], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(collated["pixel_values"], expected, atol=1e-6, rtol=0)
    assert collated["labels"].tolist() == list(split["label"])


def test_collator_of_plain_images_resizes_as_encryption_does(plain_folder):
    splits = load_splits(str(plain_folder), plain=True)
    rows = list(undecoded(splits.data["train"], splits.columns))
    collated = Collator(splits.columns, reader([], 32))(rows[:2])
    from hf_neuracrypt.images import prepare

    expected = prepare(rows[0]["img"], SMALL) / 127.5 - 1
    np.testing.assert_allclose(collated["pixel_values"][0].numpy(), expected, atol=1e-6)


def test_ciphertext_of_another_size_is_never_resized(encrypted_folder):
    splits = load_splits(str(encrypted_folder))
    rows = list(undecoded(splits.data["train"], splits.columns))
    record = Record(EncoderConfig(image_size=64, patch_size=8), splits.records[0].key_id)
    with pytest.raises(ImageError, match="does not fit a model of 64 pixels"):
        Collator(splits.columns, reader([record], 64))(rows)


def test_views_of_an_image_are_never_parted(tmp_path, small_encoder, encrypted_folder):
    """Neither between training and evaluation, nor when owners' datasets, with and without views, are put together."""
    plain = {"train": make_dataset(40)}
    assert run(Job(plain, make_plan(plain, small_encoder), tmp_path / "views", views=3))
    splits = load_splits([str(tmp_path / "views"), str(encrypted_folder)])
    assert splits.images.tolist() == [*(image for image in range(40) for _ in range(3)), *range(40, 52)]
    numbered = splits.data["train"].add_column("number", list(range(132)))
    splits = dataclasses.replace(splits, data=DatasetDict({"train": numbered}))
    kept, held = (splits.images[part["number"]].tolist() for part in hold_out(splits, 0.25, seed=0))
    assert len(held) == len(set(held)) == 13 and not set(held) & set(kept) and set(held) | set(kept) == set(range(52))
    assert len(kept) == 132 - sum(3 if image < 40 else 1 for image in held)
    first = [number for number in hold_out(splits, 0.25, seed=0)[1]["number"] if number < 120]
    assert first and all(number % 3 == 0 for number in first)
    again, other = (hold_out(splits, 0.25, seed=seed)[1]["number"] for seed in (0, 1))
    assert [splits.images[number] for number in again] == held != [splits.images[number] for number in other]


# ------------------------------------------------------------------------------------------------------------- models


def test_a_new_model_carries_the_record(vit_config, small_encoder, tmp_path):
    record = Record(SMALL, small_encoder.key.id)
    model = load_model(None, str(vit_config), ["a", "b"], 32, [record])
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["neuracrypt"] == [record.to_dict()]
    assert saved["id2label"] == {"0": "a", "1": "b"}
    assert type(model) is ViTForImageClassification


def test_fine_tuning_keeps_the_body_and_replaces_the_head(tmp_path, small_encoder):
    original = ViTForImageClassification(ViTConfig(**(TINY_VIT | {"num_labels": 7})))
    original.save_pretrained(tmp_path / "original")
    model = load_model(str(tmp_path / "original"), None, ["a", "b"], 32, [Record(SMALL, small_encoder.key.id)])
    assert model.classifier.out_features == 2
    for name, weight in original.vit.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], weight), name


@pytest.mark.parametrize("size", [16, 64, 96])
def test_position_embeddings_follow_the_image_size(size, tmp_path, small_encoder):
    original = ViTForImageClassification(ViTConfig(**TINY_VIT))
    original.save_pretrained(tmp_path / "original")
    record = Record(EncoderConfig(image_size=size, patch_size=8), small_encoder.key.id)
    model = load_model(str(tmp_path / "original"), None, ["a", "b"], size, [record])
    assert model.config.image_size == size
    model(pixel_values=torch.zeros(1, 3, size, size))
    old = original.vit.embeddings.position_embeddings[0, 1:].reshape(4, 4, -1)
    new = model.vit.embeddings.position_embeddings[0, 1:].reshape(size // 8, size // 8, -1)
    torch.testing.assert_close(new.mean((0, 1)), old.mean((0, 1)), atol=2e-2, rtol=0)
    model.save_pretrained(tmp_path / "resized")
    again = ViTForImageClassification.from_pretrained(tmp_path / "resized")
    assert torch.equal(again.vit.embeddings.position_embeddings, model.vit.embeddings.position_embeddings)


def test_models_that_do_not_fit(vit_config, tmp_path, small_encoder):
    record = Record(EncoderConfig(image_size=32, patch_size=16), small_encoder.key.id)
    with pytest.raises(NeuraCryptError, match=r"patches of 8 pixels.*--patch-size 8"):
        load_model(None, str(vit_config), ["a", "b"], 32, [record])
    with pytest.raises(NeuraCryptError, match="cannot load the model"):
        load_model(str(tmp_path / "missing"), None, ["a"], 32, [])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(NeuraCryptError, match="bert, not a Vision Transformer"):
        load_model(None, str(tmp_path / "bert"), ["a"], 32, [])


@pytest.mark.parametrize("start", ["config", "weights"])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_hidden_layers": 10**7},
        {"hidden_act": "evil"},
        {"_attn_implementation": "evil/kernel"},
        {"id2label": []},
        {"patch_size": 0},
    ],
    ids=str,
)
def test_a_hostile_base_model_is_one_line(changes, start, small_encoder, tmp_path):
    record = Record(SMALL, small_encoder.key.id)
    save_model(tmp_path / "evil", ["a", "b"], record)
    config = json.loads((tmp_path / "evil" / "config.json").read_text()) | changes
    (tmp_path / "evil" / "config.json").write_text(json.dumps(config))
    evil = str(tmp_path / "evil")
    with pytest.raises(NeuraCryptError) as refused:
        load_model(evil if start == "weights" else None, evil, ["a", "b"], 32, [record])
    assert "\n" not in str(refused.value)


def test_only_the_head_may_start_at_random(small_encoder, tmp_path):
    record, base = Record(SMALL, small_encoder.key.id), tmp_path / "base"
    save_model(base, ["a", "b"], record)
    weights, config = load_file(base / "model.safetensors"), json.loads((base / "config.json").read_text())
    assert load_model(str(base), None, ["a", "b", "c"], 32, [record]).classifier.out_features == 3
    save_file(
        {name: weight for name, weight in weights.items() if "classifier" not in name}, base / "model.safetensors"
    )
    load_model(str(base), None, ["a", "b"], 32, [record])
    for changes in ({"hidden_size": 64}, {"model_type": "dinov2"}, {"num_hidden_layers": 2}):
        (base / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(NeuraCryptError, match=r"do not fit the config of .* only the head may be new"):
            load_model(str(base), None, ["a", "b"], 32, [record])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_are_trained_in_float32_and_the_base_config_decides_nothing(stored, small_encoder, tmp_path):
    other = {"problem_type": "regression", "output_hidden_states": True, "return_dict": False}
    ViTForImageClassification(ViTConfig(**TINY_VIT, **other)).to(stored).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), None, ["a", "b"], 32, [Record(SMALL, small_encoder.key.id)])
    assert {weight.dtype for weight in model.parameters()} == {torch.float32} and model.config.dtype == torch.float32
    assert set(model(pixel_values=torch.zeros(1, 3, 32, 32))) == {"logits"}


@pytest.mark.parametrize("test", [[-1] * 6, None])
def test_rows_without_a_label_are_not_learned_and_a_test_split_without_any_is_passed_over(test, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    splits = DatasetDict({"train": make_dataset(30), "test": make_dataset(6).remove_columns("label")})
    labels = [-1, *splits["train"]["label"][1:]]
    kind = splits["train"].features["label"]
    splits["train"] = splits["train"].remove_columns("label").add_column("label", labels).cast_column("label", kind)
    if test:
        splits["test"] = splits["test"].add_column("label", test).cast_column("label", kind)
    splits.save_to_disk(str(tmp_path / "plain"))
    loaded = load_splits(str(tmp_path / "plain"), plain=True)
    train, held_out = choose_splits(loaded, 0.2, seed=0)
    assert (
        len(train) + len(held_out) == 29 and len(held_out) in (5, 6) and -1 not in [*train["label"], *held_out["label"]]
    )
    assert "6 of 6 rows of the split test have no label" in caplog.text
    labelled = loaded.labelled("train")
    assert len(labelled) == 29 and "1 of 30 rows of the split train" in caplog.text


def test_labels_of_a_stranger_are_looked_at_before_training(tmp_path):
    features = Features({"image": Image(), "label": List(ClassLabel(names=["a", "b"]))})
    rows = {"image": list(make_dataset(2)["img"]), "label": [[0], [1, 1]]}
    Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "plain"))
    splits = load_splits(str(tmp_path / "plain"), plain=True)
    with pytest.raises(DatasetError, match="row 1: a label is twice in one list"):
        choose_splits(splits, 0.5, seed=0)


def test_a_sample_is_of_the_whole_split():
    split = make_dataset(90).sort("label")
    chosen = sample(split, 30, seed=0)
    assert len(chosen) == 30 and set(chosen["label"]) == {0, 1, 2} and chosen["label"] == sorted(chosen["label"])
    assert np.array_equal(chosen["img"][0], sample(split, 30, seed=0)["img"][0]) and sample(split, 90, 0) is split
    assert chosen["label"] != sample(split, 30, seed=1)["label"]


def test_accuracy_needs_no_network():
    metric = Accuracy()
    metric.add_batch(predictions=[1, 2, 3, -1], references=[1, 2, 0, 0])
    assert metric.compute() == {"accuracy": 0.5}


def test_loading_back_what_save_to_disk_reads(encrypted_folder):
    assert load_from_disk(str(encrypted_folder))["train"][0]["image"].size == (32, 32)
