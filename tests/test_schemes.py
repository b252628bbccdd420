"""Public configs: what is accepted, what is refused, and that their text never changes."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.data.dataset import keyed_order, keyed_tag
from hf_neuracrypt.data.labels import Labels
from hf_neuracrypt.data.targets import CLASSES, Target
from hf_neuracrypt.errors import ConfigError
from hf_neuracrypt.schemes import SCHEMES, EncoderConfig, SchemeConfig, check_floor, config_from_dict, make_config


def test_canonical_text_is_frozen():
    """It goes into the derivation of every network of v1."""
    assert EncoderConfig().to_json() == (
        '{"algorithm":"color-neuracrypt/v1","background":"#ffffff","depth":4,"image_size":224,"patch_size":16,'
        '"resize":"torch-bilinear","width":768}'
    )
    assert EncoderConfig(resize="bilinear").to_json() == (
        '{"algorithm":"color-neuracrypt/v1","background":"#ffffff","depth":4,"image_size":224,"patch_size":16,'
        '"resize":"bilinear","width":768}'
    )


@pytest.mark.parametrize("patch, size", [(8, 8), (8, 224), (14, 224), (14, 518), (16, 384), (32, 224), (32, 1024)])
def test_supported_sizes_survive_json(patch, size):
    config = EncoderConfig(patch_size=patch, image_size=size)
    assert config.num_patches == (size // patch) ** 2
    assert EncoderConfig.from_dict(json.loads(config.to_json())) == config


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"patch_size": 12}, "choose from 8, 14, 16, 32"),
        ({"patch_size": 16.0}, "choose from"),
        ({"patch_size": True}, "choose from"),
        ({"image_size": 225}, "not a multiple of patch_size 16"),
        ({"image_size": 8}, "from 16 to"),
        ({"image_size": 0}, "whole number"),
        ({"image_size": "224"}, "whole number"),
        ({"image_size": 1 << 20}, "from 16 to 1024"),
        ({"depth": -1}, "from 0 to 64"),
        ({"depth": 65}, "from 0 to 64"),
        ({"depth": 4.0}, "whole number"),
        ({"depth": True}, "whole number"),
        ({"width": 100}, "multiple of 16"),
        ({"width": 8192}, "from 16 to 4096"),
        ({"algorithm": "aes"}, "color-neuracrypt/v1"),
        ({"algorithm": None}, "color-neuracrypt/v1"),
        ({"resize": "nearest"}, "bilinear"),
        ({"background": "white"}, "#ffffff"),
        ({"background": "#FFFFFF"}, "lower-case"),
        ({"background": 0}, "#ffffff"),
    ],
)
def test_unsupported_values_are_refused_with_the_reason(values, reason):
    with pytest.raises(ConfigError, match=reason):
        EncoderConfig(**values)


@pytest.mark.parametrize("values", [None, [], {}, {"depth": 4}, EncoderConfig().to_dict() | {"key": "x"}])
def test_from_dict_wants_exactly_the_fields(values):
    with pytest.raises(ConfigError, match="has the fields"):
        EncoderConfig.from_dict(values)


@pytest.mark.parametrize(
    ("scheme", "options", "said"),
    [
        ("color-neuracrypt", {"depth": 0}, "depth 0 hides next to nothing: give 1 or more"),
        ("color-neuracrypt", {"width": 48}, "width 48"),
        ("color-neuracrypt", {"image_size": 32}, "num_patches 4"),
        ("le", {"block_size": 1}, "tile 1"),
        ("etc", {"image_size": 32, "block_size": 32}, "num_patches 1"),
        ("ele", {"block_size": 2}, "tile 2"),
        ("pe", {"color_shuffle": False}, "color_shuffle False"),
        ("neuracrypt", {"width": 32}, "width 32"),
        ("vit-blockwise", {"image_size": 32}, "num_patches 4"),
    ],
)
def test_parameters_that_hide_next_to_nothing_are_refused(scheme, options, said):
    """Nothing of an owner's is encrypted with them; an experiment may still make such a config."""
    config = make_config(scheme, options)
    with pytest.raises(ConfigError, match=f"{scheme} with {said}"):
        check_floor(config)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_defaults_are_above_the_floors(scheme):
    check_floor(make_config(scheme, {}))


@pytest.mark.parametrize("size", [30, 33, 225])
def test_a_scheme_of_single_pixels_takes_any_size(size):
    check_floor(make_config("pe", {"image_size": size}))


def derived_from(key, monkeypatch, action) -> list[bytes]:
    """The info of every subkey that an action takes from a key."""
    found, derive = [], SecretKey._derive

    def recorded(self, purpose: bytes, length: int) -> bytes:
        if self is key:
            found.append(purpose)
        return derive(self, purpose, length)

    with monkeypatch.context() as patch:
        patch.setattr(SecretKey, "_derive", recorded)
        action()
    return found


def test_no_subkey_serves_two_purposes(insecure_key, monkeypatch):
    """Of all schemes, of configs that differ in one public field each, of labels, of rows, of what is sealed."""
    rgb = {"background": "#000000"}
    variants = {
        "color-neuracrypt": [{"image_size": 32}, {"patch_size": 8}, {"depth": 2}, {"width": 64}],
        "le": [{"image_size": 64}, {"block_size": 8}],
        "ele": [{"image_size": 64}, {"block_size": 8}],
        "etc": [{"image_size": 64}, {"block_size": 8}, {"variant": "madono"}],
        "pe": [{"image_size": 64}, {"color_shuffle": False}],
        "vit-blockwise": [{"image_size": 64}, {"patch_size": 8}],
        "color-neuracrypt-float": [{"image_size": 32}, {"width": 64}, {"batch_norm": "none"}, {"scale": 50}],
        "neuracrypt": [{"image_size": 64}, {"channels": 3}, {"batch_norm": "none"}, {"shuffle": "off"}],
    }
    assert variants.keys() == SCHEMES.keys()
    users = {}
    for scheme, options in variants.items():
        small = {"width": 32, "depth": 1} if "neuracrypt" in scheme else {}
        small |= {"patch_size": 16} if scheme == "neuracrypt" else {}
        for option in ({}, rgb, *options):
            config = make_config(scheme, {"image_size": 48, **small, **option})
            users[config.to_json()] = derived_from(insecure_key, monkeypatch, partial(use, config, insecure_key))
    assert all(users.values()) and len(users) == sum(2 + len(options) for options in variants.values())
    for purpose, action in {
        "tags": lambda: keyed_tag(insecure_key, "x", "source"),
        "order": lambda: keyed_order(insecure_key, "x", 9),
        "labels": lambda: Labels(Target(CLASSES, None, ("cat", "dog")), True, insecure_key, "x"),
    }.items():
        users[purpose] = derived_from(insecure_key, monkeypatch, action)
    users["id"] = [b"key-id"]
    for user, purposes in users.items():
        others = {each for other, found in users.items() if other != user for each in found}
        assert purposes and not others.intersection(purposes), user


def use(config, key) -> None:
    """Make an encoder and encrypt with it: some subkeys belong to an image."""
    load_encoder(config, key).encrypt(random_images(config, 1))


# ----------------------------------------------------------------------------- what configs say is true of the encoders

NETWORK = {"image_size": 16, "patch_size": 8, "width": 64, "depth": 1}
CONFIGS = [
    make_config("color-neuracrypt", NETWORK),
    make_config("le", {"image_size": 8}),
    make_config("ele", {"image_size": 8}),
    make_config("pe", {"image_size": 8}),
    make_config("pe", {"image_size": 8, "color_shuffle": False}),
    make_config("etc", {"image_size": 8}),
    make_config("etc", {"image_size": 8, "variant": "madono"}),
    make_config("vit-blockwise", {"image_size": 8, "patch_size": 4}),
    *(make_config("color-neuracrypt-float", NETWORK | {"batch_norm": mode}) for mode in ("batch", "frozen", "none")),
    make_config("neuracrypt", NETWORK),
    make_config("neuracrypt", NETWORK | {"shuffle": "off", "batch_norm": "none"}),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.to_json())
QUIET = pytest.mark.filterwarnings("ignore:batch_norm batch")


def random_images(config, count: int = 3) -> torch.Tensor:
    shape = (count, 3, config.image_size, config.image_size)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def bits_moved(config, key) -> np.ndarray:
    """(bits of an image, bits of its ciphertext): the positions that change with each single bit of a plain image."""
    size, encoder = 3 * config.image_size**2, load_encoder(config, key)
    single = np.packbits(np.eye(8 * size, dtype=bool), axis=1).reshape(-1, 3, config.image_size, config.image_size)
    background = encoder.encrypt(torch.zeros(1, 3, config.image_size, config.image_size, dtype=torch.uint8))
    changed = encoder.encrypt(torch.from_numpy(single)) ^ background
    return np.unpackbits(changed.numpy().reshape(len(single), -1), axis=1).astype(bool)


@pytest.mark.parametrize("config", [config for config in CONFIGS if config.symbol_bits], ids=SchemeConfig.to_json)
def test_a_permutation_cipher_moves_symbols_of_its_size(config, insecure_key):
    """`symbol_bits` go together, and not two groups of them; it is a bijection of bits iff `invertible`."""
    moved = bits_moved(config, insecure_key)
    bijection = (moved.sum(1) == 1).all() and (moved.sum(0) == 1).all()
    assert bijection == config.invertible
    assert (moved.sum(0) == 1).all(), "each bit of a ciphertext is one bit of the image, inverted or not"
    source = moved.argmax(0).reshape(-1, config.symbol_bits)
    assert (source // config.symbol_bits == source[:, :1] // config.symbol_bits).all()
    if config.symbol_bits == 4:
        halves = (source[:, 0] // 4).reshape(-1, 2)
        assert (halves[:, 0] // 2 != halves[:, 1] // 2).any(), "the halves of a byte part"


@QUIET
@pytest.mark.parametrize("config", [config for config in CONFIGS if not config.symbol_bits], ids=SchemeConfig.to_json)
def test_a_random_network_mixes_the_values_of_a_patch(config, insecure_key):
    encoder, images = load_encoder(config, insecure_key), random_images(config)
    other = images.clone()
    other[:, :, 0, :4] ^= 128
    changed = encoder.encrypt_in_place(other) != encoder.encrypt_in_place(images)
    assert changed.flatten(1).sum(1).min() > 5 and not config.invertible


def patches_of(config, values: torch.Tensor) -> torch.Tensor:
    """(B, patches, values) of images or of patch representations."""
    if values.ndim == 3:
        return values
    grid = config.image_size // config.tile
    cut = values.unflatten(2, (grid, config.tile)).unflatten(4, (grid, config.tile))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def changes(config, key, method: str) -> np.ndarray:
    """(plain patch, patch of the ciphertext): whether changing the one changes the other."""
    encoder = load_encoder(config, key)
    images, table = random_images(config, 1), np.zeros((config.num_patches, config.num_patches), bool)
    for number, (row, column) in enumerate(np.ndindex(2 * (config.image_size // config.tile,))):
        other, tile = images.clone(), config.tile
        other[:, :, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile] ^= 255
        before, after = (patches_of(config, getattr(encoder, method)(each)) for each in (images, other))
        table[number] = (before != after)[0].any(1).numpy()
    return table


@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.depends_on_batch], ids=SchemeConfig.to_json)
def test_where_patches_go(config, insecure_key):
    """Each is encrypted by itself, into the place that `block_order` says; `moves_blocks`: not always its own."""
    encoder = load_encoder(config, insecure_key)
    order = encoder.block_order()
    assert sorted(order) == list(range(config.num_patches))
    assert (order != sorted(order)) == config.moves_blocks
    expected = np.zeros((config.num_patches, config.num_patches), bool)
    expected[order, range(config.num_patches)] = True
    np.testing.assert_array_equal(changes(config, insecure_key, "encrypt_in_place"), expected)


@QUIET
@every_config
def test_a_shuffle_is_anew_for_each_image(config, insecure_key):
    encoder, images = load_encoder(config, insecure_key), random_images(config, 8)
    orders = [encoder.shuffle_order(image) for image in images]
    assert all(sorted(order) == list(range(config.num_patches)) for order in orders)
    assert (len(set(map(tuple, orders))) > 1) == config.shuffles
    encrypted, in_place = (patches_of(config, each(images)) for each in (encoder.encrypt, encoder.encrypt_in_place))
    for number, order in enumerate(orders):
        torch.testing.assert_close(encrypted[number], in_place[number, order])


@QUIET
@every_config
def test_what_a_ciphertext_is(config, insecure_key):
    """Its shape; whether its neighbours in a batch matter; exact ones are the same on any number of threads."""
    encoder, images = load_encoder(config, insecure_key), random_images(config, 9)
    together = encoder.encrypt(images)
    alone = torch.cat([encoder.encrypt(image[None]) for image in images])
    assert tuple(together.shape[1:]) == (config.patch_shape or (3, config.image_size, config.image_size))
    assert together.dtype == (torch.float32 if config.patch_shape else torch.uint8)
    near = torch.isclose(together.float(), alone.float(), atol=1.0 if together.dtype == torch.uint8 else 1e-3)
    assert bool(near.all()) != config.depends_on_batch
    if config.exact:
        assert torch.equal(together, alone)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(3 - min(before, 2))
            assert torch.equal(encoder.encrypt(images), together)
        finally:
            torch.set_num_threads(before)


def test_how_dicom_is_read_is_part_of_a_config_and_older_ones_stay_as_they_were():
    plain, windowed = EncoderConfig(), EncoderConfig(window="-600,1500.5", burned_in=True)
    assert not {"window", "burned_in"} & set(plain.to_dict()) and config_from_dict(plain.to_dict()) == plain
    assert config_from_dict(json.loads(windowed.to_json())) == windowed
    for values in ({"window": "400"}, {"window": "0,0"}, {"window": 40}, {"window": None}, {"burned_in": 1}):
        with pytest.raises(ConfigError, match=r"window|burned_in"):
            config_from_dict(plain.to_dict() | values)
