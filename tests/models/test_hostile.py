"""What a stranger's model says of itself is one line on the owner's terminal, and nothing of absurd size is built."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.models import load
from tests.commands import assert_one_line_error, command
from tests.helpers import SMALL, make_dataset, save_model, write


@pytest.fixture(scope="module")
def owner(tmp_path_factory):
    """An owner's key, encrypted folder and photo, and a model that answers."""
    folder = tmp_path_factory.mktemp("hostile")
    SecretKey.generate().save(folder / "a.key")
    key = SecretKey.load(folder / "a.key")
    write(folder / "encrypted", load_encoder(SMALL, key), {"train": make_dataset(3)})
    save_model(folder / "good", ["cat", "dog", "horse"], Record(SMALL, key.id))
    make_dataset(1)[0]["img"].save(folder / "photo.png")
    return folder


@pytest.fixture
def ask(owner, tmp_path):
    """Ask the good model, but for `changes` of its config and `files` in its folder; None: none of that name."""

    def ask(changes: dict, *words: object, files: dict[str, bytes | None] | None = None):
        evil = tmp_path / "evil"
        shutil.copytree(owner / "good", evil)
        config = json.loads((evil / "config.json").read_text()) | changes
        (evil / "config.json").write_text(json.dumps(config))
        for name, content in (files or {}).items():
            (evil / name).unlink(missing_ok=True)
            if content is not None:
                (evil / name).write_bytes(content)
        own = ("--encrypted", owner / "encrypted", "--key-file", owner / "a.key", owner / "photo.png")
        return command("predict", "--model", evil, *own, *words)

    return ask


def assert_only_one_line(result) -> None:
    """But for what `predict` itself says of the owner's own parameters."""
    said = [line for line in result.stderr.splitlines() if not line.startswith("Encrypting as ")]
    assert len(said) == 1 and result.returncode == 2 and not result.stdout, result.stderr
    assert "\x1b" not in result.stderr and "\x07" not in result.stderr


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"patch_size": 0}, "the model has patches of 0 pixels"),
        ({"num_attention_heads": 0}, "cannot load the model"),
        ({"hidden_size": -5}, "cannot load the model"),
        ({"hidden_size": "64"}, "cannot load the model"),
        ({"image_size": None}, "cannot load the model"),
        ({"hidden_act": "evil"}, "cannot load the model"),
        ({"dtype": "evil"}, "cannot load the model"),
        ({"model_type": "evil"}, "cannot load the model"),
        ({"return_dict": False}, "cannot use the model"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "cannot load the model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "cannot load the model"),
        ({"_attn_implementation": "evil/kernel"}, "cannot load the model"),
        ({"attn_implementation": "evil/kernel"}, "cannot load the model"),
        ({"id2label": []}, "cannot load the model"),
        ({"id2label": {"x": "cat"}}, "cannot load the model"),
        ({"id2label": {"0": "cat", "5": "dog"}}, "cannot load the model"),
        ({"id2label": {}}, "the model"),
        ({"num_labels": -1}, "the model"),
        ({"neuracrypt": 5}, "something else than a list"),
        ({"neuracrypt": ["x"]}, "it is not an encryption record"),
        ({"neuracrypt": []}, "was not trained on encrypted images"),
        ({"image_size": 64}, "contradicts itself"),
    ],
    ids=str,
)
def test_a_hostile_config_is_one_line(changes, reason, ask):
    result = ask(changes)
    assert_one_line_error(result, reason)
    assert_only_one_line(result)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**7},
        {"hidden_size": 10**9},
        {"intermediate_size": 10**9},
        {"num_channels": 10**9},
        {"image_size": 10**9},
        {"num_labels": 10**9, "id2label": None},
        {"model_type": "resnet", "depths": [10**7]},
        {"vision_config": {"num_hidden_layers": 10**8}},
    ],
    ids=str,
)
def test_nothing_of_an_absurd_size_is_built(changes, ask, monkeypatch):
    """Not waited for: what would build it is not called."""

    def build(*_, **__):
        raise AssertionError("it was built")

    monkeypatch.setattr(load.AutoModelForImageClassification, "from_pretrained", build)
    if "num_labels" in changes:  # a config itself is small, but for the names of its labels
        monkeypatch.setattr(load.AutoConfig, "from_pretrained", build)
    result = ask(changes)
    assert_one_line_error(result)
    assert_only_one_line(result)
    assert "it was built" not in result.stderr


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, (10**15).to_bytes(8, "little") + b"{}", (16).to_bytes(8, "little") + b'{"a":{"dtype":1}'],
    ids=["empty", "junk", "endless header", "damaged header"],
)
def test_hostile_weights_are_one_line(content, ask):
    result = ask({}, files={"model.safetensors": content})
    assert_one_line_error(result, "cannot load the model")
    assert_only_one_line(result)


def test_weights_of_other_shapes_are_one_line(owner, ask, tmp_path):
    weights = load_file(owner / "good" / "model.safetensors")
    save_file({name: torch.cat([weight, weight]) for name, weight in weights.items()}, tmp_path / "other")
    result = ask({}, files={"model.safetensors": (tmp_path / "other").read_bytes()})
    assert_one_line_error(result, "cannot load the model")
    assert_only_one_line(result)


def test_pickled_weights_are_not_opened(owner, ask, tmp_path):
    torch.save(load_file(owner / "good" / "model.safetensors"), tmp_path / "pickled")
    pickled = {"pytorch_model.bin": (tmp_path / "pickled").read_bytes(), "model.safetensors": None}
    assert_one_line_error(ask({}, files=pickled), "cannot load the model")


HOSTILE_NAMES = {"0": "\x1b]0;pwned\x07\x1b[2Jcat", "1": '=HYPERLINK("http://evil/"&A1)', "2": "dog\r\nhorse: 1.000"}


def test_label_names_do_not_steer_the_terminal(ask, tmp_path):
    result = ask({"id2label": HOSTILE_NAMES})
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.isprintable() and "cat" in line and "horse: 1.000" in line
    assert not {"\x1b", "\x07"} & set(result.stderr)


def test_nor_do_names_that_are_none(ask):
    result = ask({"id2label": {"0": ["x"], "1": {}, "2": None}})
    assert "Traceback" not in result.stderr and result.returncode in (0, 2)


def test_sizes_that_are_harmless_alone_are_not_built_together(ask):
    """19 GB of weights, each size of them below its bound."""
    result = ask({"hidden_size": 20_000, "num_attention_heads": 4, "intermediate_size": 80_000})
    assert_one_line_error(result, "more than 3,000,000,000 weights", "no model of images needs")
    assert_only_one_line(result)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "resnet", "depths": [1000] * 60, "hidden_sizes": [8] * 60, "embedding_size": 8},
        {"model_type": "efficientnet", "depth_coefficient": 1e5},
        {"model_type": "efficientnet", "num_block_repeats": [10**6] * 7},
    ],
    ids=str,
)
def test_numbers_of_layers_that_are_harmless_alone_are_not_built_together(changes, ask, monkeypatch):
    """Whatever a config calls them, a float or a list: building stops, and no hook stays for what follows."""
    monkeypatch.setattr(load, "MAX_MODULES", 500)
    hooks = torch.nn.modules.module._global_module_registration_hooks
    before = len(hooks)
    result = ask({"patch_size": 8} | changes)
    assert_one_line_error(result, "more than 500 layers", "no model of images needs")
    assert_only_one_line(result)
    assert len(hooks) == before


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda weights: weights.pop("classifier.weight"), "lack 1 of its weights, classifier.weight"),
        (lambda weights: weights["classifier.bias"].fill_(torch.nan), "its scores are no numbers"),
    ],
    ids=["missing", "NaN"],
)
def test_weights_that_cannot_answer_do_not(change, reason, owner, ask, tmp_path):
    weights = load_file(owner / "good" / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "weights")
    result = ask({}, files={"model.safetensors": (tmp_path / "weights").read_bytes()})
    assert_one_line_error(result, reason)
    assert_only_one_line(result)


def test_what_transformers_says_of_a_config_does_not_either(ask):
    """It logs fields that it cannot set, as they are."""
    result = ask({"use_return_dict": "\x1b[2Jpwned"})
    assert_one_line_error(result, "cannot load the model")
    assert_only_one_line(result)


def test_json_has_no_control_characters(ask):
    result = ask({"id2label": HOSTILE_NAMES}, "--json")
    (line,) = result.stdout.splitlines()
    assert line.isprintable() and json.loads(line)["predictions"]


def test_a_processor_of_a_stranger_is_not_read(owner, ask):
    """The owner's ciphertexts are given to the model as they are."""
    own = ("--encrypted", owner / "encrypted", "--key-file", owner / "a.key", owner / "photo.png")
    expected = command("predict", "--model", owner / "good", "--json", *own)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": 60_000, "image_mean": "x", "do_resize": True}
    found = ask({}, "--json", files={"preprocessor_config.json": json.dumps(processor).encode()})
    assert expected.returncode == 0 and found.stdout == expected.stdout


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_no_code_of_a_model_runs(name, ask, tmp_path):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
    auto_map = {"AutoConfig": "code.C", "AutoModelForImageClassification": "code.M", "AutoImageProcessor": "code.P"}
    files = {"code.py": code, "preprocessor_config.json": json.dumps({"auto_map": auto_map}).encode()}
    result = ask({"auto_map": auto_map} if name == "config.json" else {}, files=files)
    assert result.returncode in (0, 2) and "Traceback" not in result.stderr
    assert not (tmp_path / "ran").exists()
