"""What is trained here leaves as stock models do: as ONNX, and at the size that people use."""

import os

import numpy as np
import pytest
import torch
import transformers
from transformers import ViTConfig, ViTForImageClassification, ViTModel, pipeline

from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.models.load import stock_processor
from hf_neuracrypt.schemes import EncoderConfig
from tests.commands import load_script
from tests.helpers import SMALL, TINY_VIT, make_dataset


def test_onnx_gives_the_same_answers(small_encoder, tmp_path):
    """By torch's own exporter, of ciphertexts as the saved processor reads them, in batches of any size."""
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**TINY_VIT)).eval()
    pixels = small_encoder.encrypt(torch.from_numpy(np.stack(make_dataset(5, size=32)["img"])).permute(0, 3, 1, 2))
    given = stock_processor(SMALL.image_size)(list(pixels), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=given).logits.numpy()
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        model, (), tmp_path / "model.onnx", kwargs={"pixel_values": given[:2]}, dynamic_shapes=shapes, verbose=False
    )
    session = onnx.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    answers = session.run(None, {"pixel_values": given.numpy()})[0]
    np.testing.assert_allclose(answers, expected, atol=1e-4)
    assert np.abs(expected - expected[0]).max() > 1e-3  # the images differ


@pytest.mark.skipif("NEURACRYPT_SLOW" not in os.environ, reason="half a minute: set NEURACRYPT_SLOW")
def test_the_shape_that_people_fine_tune(insecure_key, tmp_path):
    """That of google/vit-base-patch16-224-in21k, with random weights: trained for a step, saved, and asked."""
    torch.manual_seed(0)
    base = ViTModel(ViTConfig())  # with a pooler, and without a head
    assert 86_000_000 < base.num_parameters() < 87_000_000
    base.save_pretrained(tmp_path / "base")
    encoder = load_encoder(EncoderConfig(image_size=224, patch_size=16), insecure_key)
    splits = {"train": make_dataset(4, size=224), "test": make_dataset(2, size=224, seed=1)}
    run(Job(splits, make_plan(splits, encoder), tmp_path / "encrypted"))
    script, output = load_script("train"), tmp_path / "out"
    flags = ("--dataset_name", tmp_path / "encrypted", "--model_name_or_path", tmp_path / "base", "--max_steps", 1)
    flags += ("--output_dir", output, "--warmup_steps", 0, "--per_device_train_batch_size", 4, "--use_cpu")
    script.main(*script.parse(list(map(str, flags))))
    image = script.load_splits(str(tmp_path / "encrypted")).data["test"][0]["image"]
    answer = pipeline("image-classification", str(output))(image)
    assert {entry["label"] for entry in answer} == {"cat", "dog", "horse"}
    saved = transformers.AutoModel.from_pretrained(output).state_dict()
    moved = (saved["embeddings.cls_token"] - base.state_dict()["embeddings.cls_token"]).abs().max()
    assert 0 < moved < 1e-2
