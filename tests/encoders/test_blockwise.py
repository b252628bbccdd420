"""The block-wise ciphers: golden bytes, the published steps again in plain loops, decryption, and what is refused."""

import json

import numpy as np
import pytest
import torch
from datasets import Image, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_neuracrypt import EncoderConfig, SecretKey, load_encoder
from hf_neuracrypt.data.batches import encrypt_rows
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders.blockwise import EtC, choices
from hf_neuracrypt.errors import ConfigError, ImageError, NeuraCryptError
from hf_neuracrypt.images import prepare, to_png
from hf_neuracrypt.schemes import SCHEMES, config_from_dict, make_config
from hf_neuracrypt.training.data import load_splits
from tests.commands import assert_one_line_error, command
from tests.helpers import GOLDEN, KEY_ID, batch, golden_image, make_dataset, make_images, sha256


VECTORS = json.loads((GOLDEN / "blockwise.json").read_text())["ciphertexts"]
CONFIGS = {
    "le": make_config("le", {"image_size": 12}),
    "ele": make_config("ele", {"image_size": 12}),
    "pe": make_config("pe", {"image_size": 7}),
    "pe-negative": make_config("pe", {"image_size": 7, "color_shuffle": False}),
    "etc": make_config("etc", {"image_size": 20}),
    "etc-madono": make_config("etc", {"image_size": 20, "variant": "madono"}),
    "vit-blockwise": make_config("vit-blockwise", {"image_size": 15, "patch_size": 5}),
}
INVERTIBLE = [name for name in CONFIGS if name != "etc-madono"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_golden_ciphertexts(vector):
    config = config_from_dict(vector["config"])
    images = batch(np.stack([golden_image(name, config.image_size) for name in vector["images"]]))
    encrypted = load_encoder(config, SecretKey(bytes.fromhex(vector["key"]))).encrypt(images)
    assert [sha256(image) for image in encrypted] == vector["sha256"]


def test_every_cipher_has_golden_ciphertexts():
    assert {vector["config"]["algorithm"] for vector in VECTORS} == {config.algorithm for config in CONFIGS.values()}


# ----------------------------------------------------------------------- the published steps, one value after the other


def drawn(key, config, purpose: str, count: int, options: int) -> list[int]:
    """The first `count` bytes of the keystream, counted from 0, that lie below the largest multiple of `options`."""
    values = (int(value) + 127 for value in key.integers(config.to_json(), purpose, (4 * count + 100,)))
    return [value % options for value in values if value < 255 // options * options][:count]


def blocks_of(image: np.ndarray, size: int) -> list[np.ndarray]:
    """Blocks (size, size, 3) of an image (S, S, 3), row by row."""
    steps = range(0, len(image), size)
    return [image[top : top + size, left : left + size].copy() for top in steps for left in steps]


def joined(blocks: list[np.ndarray], size: int) -> np.ndarray:
    grid = round(len(blocks) ** 0.5)
    rows = [np.concatenate(blocks[row * grid : (row + 1) * grid], axis=1) for row in range(grid)]
    return np.concatenate(rows, axis=0)


def tanaka(block: np.ndarray, order: list[int]) -> np.ndarray:
    values = [int(value) for value in block.reshape(-1)]
    nibbles = [value % 16 for value in values] + [value // 16 for value in values]
    half = len(nibbles) // 2
    nibbles = [15 - v if order[i] > half else v for i, v in enumerate(nibbles)]
    nibbles = [nibbles[order[i]] for i in range(len(nibbles))]
    nibbles = [15 - v if order[i] > half else v for i, v in enumerate(nibbles)]
    return np.array([16 * nibbles[half + i] + nibbles[i] for i in range(half)], np.uint8).reshape(block.shape)


def le(image, config, key):
    order = key.permutation(config.to_json(), "nibbles", 6 * config.block_size**2)
    return joined([tanaka(block, order) for block in blocks_of(image, config.block_size)], config.block_size)


def ele(image, config, key):
    public, length = config.to_json(), 6 * config.block_size**2
    done = [
        tanaka(block, key.permutation(public, f"nibbles/{number}", length))
        for number, block in enumerate(blocks_of(image, config.block_size))
    ]
    return joined([done[source] for source in key.permutation(public, "blocks", len(done))], config.block_size)


def pe(image, config, key):
    size = config.image_size
    bits, orders = (drawn(key, config, "negative", 3 * size**2, 2), drawn(key, config, "colors", size**2, 6))
    out = np.empty_like(image)
    for y in range(size):
        for x in range(size):
            pixel = [
                255 - image[y, x, c] if bits[c * size**2 + y * size + x] else image[y, x, c] for c in range(3)
            ]  # one bit a colour
            order = COLORS[orders[y * size + x]] if config.color_shuffle else "RGB"
            out[y, x] = [pixel["RGB".index(color)] for color in order]
    return out


COLORS = ("RGB", "RBG", "GRB", "GBR", "BRG", "BGR")


def etc(image, config, key):
    blocks = blocks_of(image, config.block_size)
    count = len(blocks)
    codes = [drawn(key, config, name, count, n) for name, n in
             (("rotation", 4), ("inversion", 2), ("negative", 2), ("colors", 6))]  # fmt: skip
    out = []
    for number, source in enumerate(key.permutation(config.to_json(), "blocks", count)):
        block, (rotation, inversion, negative, colors) = blocks[source], (each[number] for each in codes)
        for _ in range(rotation):
            block = block.transpose(1, 0, 2)[::-1]  # a quarter turn, counter-clockwise
        if inversion:
            block = block[:, ::-1]
        block = 255 - block if negative else block
        out.append(np.stack([block[:, :, "RGB".index(color)] for color in COLORS[colors]], axis=2))
    return joined(out, config.block_size)


def etc_madono(image, config, key):
    """As the original assigns channels: in place, through the alias `out`."""
    blocks = blocks_of(image, config.block_size)
    count, public = len(blocks), config.to_json()
    rotation, mirror, colors = (drawn(key, config, name, count, n) for name, n in
                                (("rotation", 4), ("inversion", 3), ("colors", 6)))  # fmt: skip
    negative = key.permutation(public, "negative", count)
    done = []
    for number, block in enumerate(blocks):
        for _ in range(rotation[number]):
            block = block.transpose(1, 0, 2)[::-1]
        block = 255 - block if negative[number] % 2 else block
        block = (block[::-1], block[:, ::-1], block)[mirror[number]].copy()
        out = block
        for to, source in ((), ((0, 1), (1, 0)), ((0, 2), (2, 0)), ((1, 2), (2, 1)),
                           ((0, 2), (1, 0), (2, 1)), ((0, 1), (1, 2), (2, 0)))[colors[number]]:  # fmt: skip
            out[:, :, to] = block[:, :, source]
        done.append(out)
    return joined([done[source] for source in key.permutation(public, "blocks", count)], config.block_size)


def vit_blockwise(image, config, key):
    patches = blocks_of(image, config.patch_size)
    pixels = key.permutation(config.to_json(), "pixels", 3 * config.patch_size**2)
    shuffled = []
    for patch in patches:
        values = [patch[y, x, c] for c in range(3) for y in range(len(patch)) for x in range(len(patch))]
        values = np.array([values[source] for source in pixels])
        shuffled.append(values.reshape(3, len(patch), len(patch)).transpose(1, 2, 0))
    return joined([shuffled[i] for i in key.permutation(config.to_json(), "blocks", len(patches))], config.patch_size)


LOOPS = {"le": le, "ele": ele, "pe": pe, "pe-negative": pe, "etc": etc, "etc-madono": etc_madono,
         "vit-blockwise": vit_blockwise}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_published_steps_in_plain_loops(name, insecure_key):
    config = CONFIGS[name]
    images = np.random.default_rng(0).integers(0, 256, (2, config.image_size, config.image_size, 3), np.uint8)
    encrypted = load_encoder(config, insecure_key).encrypt(batch(images)).permute(0, 2, 3, 1).numpy()
    assert (encrypted != images).mean() > 0.5
    for image, ciphertext in zip(images, encrypted):
        np.testing.assert_array_equal(LOOPS[name](image, config, insecure_key), ciphertext)


# --------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", INVERTIBLE)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 3), secret=st.binary(min_size=32, max_size=32))
def test_decrypt_undoes_encrypt(name, seed, count, secret):
    encoder, size = load_encoder(CONFIGS[name], SecretKey(secret)), CONFIGS[name].image_size
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8))
    encrypted = encoder.encrypt(images)
    assert encrypted.shape == images.shape and encrypted.dtype == torch.uint8 and encrypted.is_contiguous()
    assert torch.equal(encoder.decrypt(encrypted), images)
    for index in range(count):
        assert torch.equal(encoder.encrypt(images[index : index + 1])[0], encrypted[index])


@pytest.mark.parametrize("name", CONFIGS)
def test_another_key_is_another_cipher(name, insecure_key):
    size = CONFIGS[name].image_size
    images = batch(np.random.default_rng(1).integers(0, 256, (4, size, size, 3), np.uint8))
    encrypted = load_encoder(CONFIGS[name], insecure_key).encrypt(images)
    other = load_encoder(CONFIGS[name], SecretKey(bytes(31) + b"\1"))
    assert (other.encrypt(images) != encrypted).float().mean() > 0.4
    if name in INVERTIBLE:
        assert not torch.equal(other.decrypt(encrypted), images)


def test_madono_loses_colours(insecure_key):
    encoder = load_encoder(CONFIGS["etc-madono"], insecure_key)
    images = batch(make_images(1, 20))
    used = {tuple(codes) for codes in EtC.MADONO_COLORS}
    assert sum(len(set(codes)) == 3 for codes in used) == 1 and (2, 2, 2) in used
    with pytest.raises(NeuraCryptError, match="loses colours"):
        encoder.decrypt(encoder.encrypt(images))


def test_half_of_madonos_blocks_are_inverted(insecure_key):
    encrypted = load_encoder(make_config("etc", {"variant": "madono"}), insecure_key).encrypt(
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    )
    corners = encrypted[0, 0, ::4, ::4]
    assert (corners == 255).sum() == 32 and (corners == 0).sum() == 32


@pytest.mark.parametrize("options", [2, 3, 4, 6])
def test_choices_are_uniform(options, insecure_key):
    counts = np.bincount(choices(insecure_key, "{}", "test", (20, 3000), options).reshape(-1), minlength=options)
    expected = 60_000 / options
    assert len(counts) == options and abs(counts - expected).max() < 5 * expected**0.5


# ------------------------------------------------------------------------------------------------------- configs, CLI


@pytest.mark.parametrize("scheme", SCHEMES)
def test_configs_survive_json(scheme):
    config = make_config(scheme, {"background": "#102030"})
    assert config.scheme == scheme and type(config) is SCHEMES[scheme]
    assert config_from_dict(json.loads(config.to_json())) == config
    assert Record.from_dict(Record(config, KEY_ID).to_dict()).config == config


@pytest.mark.parametrize(
    "scheme, options, reason",
    [
        ("le", {"image_size": 30}, "image_size 30 is not a multiple of block_size 4: a block would be cut"),
        ("ele", {"block_size": 0}, "from 1 to 64"),
        ("etc", {"variant": "paper"}, "choose from correct, madono"),
        ("pe", {"color_shuffle": 1}, "choose from True, False"),
        (
            "pe",
            {"block_size": 4},
            "the scheme pe has no block_size: it has image_size, .*color_shuffle",
        ),
        ("vit-blockwise", {"image_size": 225}, "not a multiple of patch_size 16"),
        ("le", {"algorithm": "ele/v1"}, "has no algorithm"),
        ("aes", {}, "choose from color-neuracrypt, le, pe"),
    ],
)
def test_what_does_not_fit_is_refused(scheme, options, reason):
    with pytest.raises(ConfigError, match=reason):
        make_config(scheme, options)


def test_the_config_says_the_algorithm():
    with pytest.raises(ConfigError, match=r"choose from color-neuracrypt/v1, le/v1"):
        config_from_dict(EncoderConfig().to_dict() | {"algorithm": "le/v2"})


@pytest.mark.parametrize("method", ["encrypt", "decrypt"])
def test_other_images_are_refused(method, insecure_key):
    encoder = load_encoder(CONFIGS["le"], insecure_key)
    with pytest.raises(ImageError, match=rf"{method}\(\) takes .*\(B, 3, 12, 12\)"):
        getattr(encoder, method)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_job_of_another_scheme(key_file, tmp_path):
    """Encryption, `verify`, a query, training's record: none of them knows the scheme."""
    plain = make_dataset(70)
    plain.save_to_disk(str(tmp_path / "plain"))
    result = command(
        "encrypt", "--dataset", tmp_path / "plain", "--key-file", key_file, "--scheme", "etc", "--scheme-option",
        "variant=madono", "--scheme-option", "block_size=8", "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert command("verify", tmp_path / "out").returncode == 0
    config, key = make_config("etc", {"variant": "madono", "block_size": 8}), SecretKey.load(key_file)
    assert load_splits(str(tmp_path / "out")).records == [Record(config, key.id)]
    ((query,),) = encrypt_rows(load_encoder(config, key), [plain[3]["img"]])
    stored = load_from_disk(str(tmp_path / "out"))["train"].cast_column("image", Image(decode=False))
    assert query == stored[3]["image"] and query["bytes"] != to_png(prepare(plain[3]["img"], config))


def test_options_of_another_scheme_are_one_line_errors(key_file, tmp_path):
    start = ("encrypt", "--dataset", tmp_path, "--key-file", key_file, "--output", tmp_path / "out")
    assert_one_line_error(command(*start, "--scheme", "le", "--scheme-option", "depth=3"), "the scheme le has no depth")
    assert_one_line_error(command(*start, "--scheme", "aes"), "there is no scheme 'aes'")
    assert_one_line_error(command(*start, "--scheme-option", "block_size"), "NAME=VALUE")
