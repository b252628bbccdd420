"""Public configs: what is accepted, what is refused, and that their text never changes."""

import json

import pytest

from hf_neuracrypt.schemes import EncoderConfig
from hf_neuracrypt.errors import ConfigError


def test_canonical_text_is_frozen():
    """It goes into the derivation of every network of v1."""
    assert EncoderConfig().to_json() == (
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
