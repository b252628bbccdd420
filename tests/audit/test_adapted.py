"""An owner's embedding for ciphertexts: what the model then sees, and that it gives away what the owner is told."""

import copy
import re

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from PIL import Image as PILImage
from transformers import ViTConfig, ViTForImageClassification

from hf_neuracrypt import EncoderConfig, load_encoder
from hf_neuracrypt.models.load import stock_processor
from tests.commands import assert_one_line_error, command
from tests.helpers import SMALL_FLAGS, TINY_VIT, make_dataset, scenes


pytest.importorskip("scipy")
pytest.importorskip("skimage")

from hf_neuracrypt.audit.adapted import JUDGED, fit, given_away
from hf_neuracrypt.audit.known import linear_map, quality
from hf_neuracrypt.audit.load import make_pairs
from hf_neuracrypt.audit.pairs import Pairs, join


CONFIG = EncoderConfig(image_size=48, patch_size=8, width=256)
PAIRS = 64


@pytest.fixture(scope="module")
def pairs(insecure_key) -> Pairs:
    plain = scenes(PAIRS + JUDGED, 1).add(1).mul(127.5).round().byte()
    return Pairs(CONFIG, plain.numpy(), load_encoder(CONFIG, insecure_key).encrypt(plain).numpy())


def random_vit(hidden: int = 192, **changes) -> ViTForImageClassification:
    shape = TINY_VIT | {"image_size": 48, "hidden_size": hidden} | changes
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**shape)).eval()


def logits(model, images: np.ndarray | torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(pixel_values=torch.as_tensor(images).float() / 127.5 - 1).logits


def test_the_model_sees_what_the_attack_reconstructs(pairs):
    """Folding changes where the map is computed, not what; and what it sees is nearer to the pictures."""
    plain, known = random_vit(), pairs.take(range(PAIRS))
    model = copy.deepcopy(plain)
    fit(model, pairs, PAIRS)
    weights, middle, mean = linear_map(known, 0)
    others = pairs.take(range(PAIRS, len(pairs)))
    reconstructed = join((others.encrypted_centred - middle) @ weights + mean, 48)
    torch.testing.assert_close(logits(model, others.encrypted), logits(plain, reconstructed), atol=1e-4, rtol=0)
    truth = logits(plain, others.plain)
    far, near = ((logits(each, others.encrypted) - truth).square().mean() for each in (plain, model))
    assert near < far / 4


@pytest.mark.parametrize("count", [1, PAIRS])
def test_the_warning_is_true(pairs, count):
    """From the plain and the adapted model alone, and ciphertexts: the images, as well as is said or nearly."""
    plain = random_vit()
    adapted = copy.deepcopy(plain)
    fit(adapted, pairs, count)
    said = given_away(pairs, count)
    stated, without = (float(re.search(words, said)[1]) for words in (r": ([\d.]+) dB", r"mean image: ([\d.]+) dB"))
    old, new = (each.vit.embeddings.patch_embeddings.projection.weight.flatten(1) for each in (plain, adapted))
    to_plain = torch.linalg.lstsq(old, new).solution.T.detach().numpy()  # new = old @ to_plain.T
    others = pairs.take(range(PAIRS, len(pairs)))
    known = pairs.plain_patches[:count].mean(0) if count > 1 else pairs.plain_patches[:1].mean((0, 1))
    stolen = others.encrypted_centred @ to_plain
    stolen = join((stolen - stolen.mean(0) + known).round().clip(0, 255).astype(np.uint8), 48)
    assert stated > without + 1
    assert quality(others.plain, stolen)[0] > stated - 1.5
    assert f"as from {count} known pair{'s' * (count > 1)}:" in said


@pytest.fixture(scope="module")
def owner(tmp_path_factory, insecure_key):
    """A folder with a plain dataset, what the key makes of it, the key file and a plain model."""
    folder = tmp_path_factory.mktemp("owner")
    DatasetDict({"train": make_dataset(170, 32), "test": make_dataset(10, 32, 1)}).save_to_disk(str(folder / "plain"))
    insecure_key.save(folder / "insecure.key")
    done = command("encrypt", "--dataset", folder / "plain", "--key-file", folder / "insecure.key",
                   "--output", folder / "encrypted", *SMALL_FLAGS)  # fmt: skip
    assert done.returncode == 0, done.stderr
    random_vit(32, image_size=32, num_labels=3).save_pretrained(folder / "vit")
    stock_processor(32, plain=True).save_pretrained(folder / "vit")
    return folder


def adapt(owner, output, *more, **changes):
    words = {"model": owner / "vit", "dataset": owner / "encrypted", "source": owner / "plain"} | changes
    given = [word for name, value in words.items() if value is not None for word in (f"--{name}", value)]
    return command("adapt", *given, "--key-file", owner / "insecure.key", "--output", output, *more)


def test_a_cloud_trains_on_from_what_the_owner_gives_it(owner, tmp_path):
    done = adapt(owner, tmp_path / "adapted", "--pairs", 16)
    assert done.returncode == 0, done.stderr
    assert done.stderr.index("from 16 known pairs") < done.stderr.index("Wrote")
    again = adapt(owner, tmp_path / "again", "--pairs", 16)
    first, second = (ViTForImageClassification.from_pretrained(tmp_path / name) for name in ("adapted", "again"))
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters())), again.stderr
    weights = "vit.embeddings.patch_embeddings.projection.weight"
    assert (first.get_parameter(weights) - random_vit(32, image_size=32).get_parameter(weights)).abs().max() > 1e-3
    trained = command("scripts/train.py", "--dataset_name", owner / "encrypted", "--model_name_or_path",
                      tmp_path / "adapted", "--output_dir", tmp_path / "model", "--max_steps", 1,
                      "--use_cpu", "--report_to", "none")  # fmt: skip
    assert trained.returncode == 0, trained.stderr


def test_what_cannot_be_adapted(owner, tmp_path):
    output = tmp_path / "adapted"
    assert_one_line_error(adapt(owner, output, source=None), "takes --source, plain images of yours")
    assert_one_line_error(adapt(owner, output, source=owner / "encrypted"), "is encrypted: give plain images")
    assert_one_line_error(adapt(owner, output, "--pairs", 500), "has 170 images, 532 are needed")
    assert_one_line_error(adapt(owner, output, "--pairs", 50_000), "too many")
    assert_one_line_error(adapt(owner, owner / "plain" / "adapted"), "lies inside the source")
    assert not output.exists()


@pytest.mark.parametrize(
    "scheme, size, reason",
    [
        ("vit-blockwise", ("--patch-size", 8), "takes no --source"),
        ("etc", ("--scheme-option", "block_size=8"), "no model is adapted to etc"),
    ],
)
def test_other_schemes(owner, tmp_path, scheme, size, reason):
    (tmp_path / "photos").mkdir()
    PILImage.new("RGB", (32, 32)).save(tmp_path / "photos" / "one.png")
    done = command("encrypt", "--dataset", tmp_path / "photos", "--key-file", owner / "insecure.key", "--output",
                   tmp_path / "encrypted", "--scheme", scheme, "--image-size", 32, *size)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_one_line_error(adapt(owner, tmp_path / "adapted", dataset=tmp_path / "encrypted"), reason)


def test_pairs_are_those_of_the_key(owner, insecure_key):
    encoder = load_encoder(EncoderConfig(image_size=32, patch_size=8, depth=2, width=64), insecure_key)
    found = make_pairs(str(owner / "plain"), encoder, 8, seed=0)
    assert len(found) == 8
    assert np.array_equal(found.encrypted, encoder.encrypt(torch.from_numpy(found.plain)).numpy())
