"""Every scheme by its name: public parameters of those that Color-NeuraCrypt is compared with, and one dict of all."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from hf_neuracrypt.configuration import (
    MAX_DEPTH,
    MAX_IMAGE_SIZE,
    MAX_WIDTH,
    EncoderConfig,
    PublicConfig,
    check_choice,
    check_range,
)
from hf_neuracrypt.errors import ConfigError


MAX_BLOCK_SIZE = 64


@dataclass(frozen=True)
class LEConfig(PublicConfig):
    """Public parameters of LE (Tanaka 2018), one key for all blocks; defaults: its block, the size of CIFAR-10.

    Args:
        block_size: pixels; `image_size` is a multiple of it.
    """

    algorithm: str = "le/v1"
    image_size: int = 32
    block_size: int = 4
    resize: str = "bilinear"
    background: str = "#ffffff"

    def __post_init__(self):
        self._check_common()
        check_range("block_size", self.block_size, 1, MAX_BLOCK_SIZE)
        self._check_tiles("block_size", self.block_size)


@dataclass(frozen=True)
class ELEConfig(LEConfig):
    """Public parameters of ELE (Madono et al. 2020): LE under a key for each block, then a shuffle of the blocks."""

    algorithm: str = "ele/v1"


@dataclass(frozen=True)
class EtCConfig(LEConfig):
    """Public parameters of EtC (Chuman et al. 2018).

    Args:
        block_size: pixels; 4 in Madono et al. 2020, 16 for a ViT in MaungMaung and Kiya.
        variant: "correct", as defined and invertible; "madono", the lossy one of the published 89.09 %.
    """

    algorithm: str = "etc/v1"
    variant: str = "correct"

    def __post_init__(self):
        super().__post_init__()
        check_choice("variant", self.variant, ("correct", "madono"))


@dataclass(frozen=True)
class PEConfig(PublicConfig):
    """Public parameters of PE, pixel-based encryption (Sirichotedumrong et al. 2019).

    Args:
        color_shuffle: shuffle the colour components of each pixel, too.
    """

    algorithm: str = "pe/v1"
    image_size: int = 32
    color_shuffle: bool = True
    resize: str = "bilinear"
    background: str = "#ffffff"

    def __post_init__(self):
        self._check_common()
        check_range("image_size", self.image_size, 1, MAX_IMAGE_SIZE)
        check_choice("color_shuffle", self.color_shuffle, (True, False))


@dataclass(frozen=True)
class ViTBlockwiseConfig(PublicConfig):
    """Public parameters of the block-wise cipher for Vision Transformers (Qi et al. 2022; Kiya, Iijima 2023).

    Args:
        patch_size: pixels; the cipher's block, and the patch of the Vision Transformer.
    """

    algorithm: str = "vit-blockwise/v1"
    image_size: int = 224
    patch_size: int = 16
    resize: str = "bilinear"
    background: str = "#ffffff"

    def __post_init__(self):
        self._check_common()
        check_range("patch_size", self.patch_size, 1, MAX_BLOCK_SIZE)
        self._check_tiles("patch_size", self.patch_size)

    @property
    def model_patch_size(self) -> int:
        return self.patch_size


class NetworkConfig(PublicConfig):
    """What the configs of the float32 networks share; see `FloatConfig`."""

    patch_size: int
    depth: int
    width: int
    batch_norm: str

    def _check_network(self) -> None:
        self._check_common()
        check_range("patch_size", self.patch_size, 1, MAX_BLOCK_SIZE)
        self._check_tiles("patch_size", self.patch_size)
        check_range("depth", self.depth, 0, MAX_DEPTH)
        check_range("width", self.width, 1, MAX_WIDTH)
        check_choice("batch_norm", self.batch_norm, ("batch", "frozen", "none"))

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class FloatConfig(NetworkConfig):
    """Public parameters of Color-NeuraCrypt as published, in float32.

    Args:
        patch_size, depth, width: as in `EncoderConfig`.
        batch_norm: "batch", by the statistics of the batch, as published, so that a ciphertext depends on the images
            beside it; "frozen", by those of keyed synthetic images; "none".
        scale: grey levels a unit of the network's output is stored in; 51 puts four standard deviations into a byte.
    """

    algorithm: str = "color-neuracrypt-float/v1"
    image_size: int = 224
    patch_size: int = 16
    depth: int = 4
    width: int = 768
    batch_norm: str = "frozen"
    scale: int = 51
    resize: str = "bilinear"
    background: str = "#ffffff"

    def __post_init__(self):
        self._check_network()
        check_range("scale", self.scale, 1, 255)

    @property
    def model_patch_size(self) -> int:
        return self.patch_size


@dataclass(frozen=True)
class NeuraCryptConfig(NetworkConfig):
    """Public parameters of NeuraCrypt (Yala et al. 2021), whose ciphertexts are no images; defaults: its X-rays.

    Args:
        patch_size, batch_norm: as in `FloatConfig`.
        channels: 1, grey, or 3.
        depth: 1x1 convolutions after the first; 4 is the paper's "depth 7".
        width: values of a patch: 2048 in the paper; that of the model to be trained.
        shuffle: "image": the patches of each image change places, by the key and the image; "off".
    """

    algorithm: str = "neuracrypt/v1"
    image_size: int = 256
    patch_size: int = 16
    channels: int = 1
    depth: int = 4
    width: int = 2048
    batch_norm: str = "frozen"
    shuffle: str = "image"
    resize: str = "bilinear"
    background: str = "#ffffff"

    def __post_init__(self):
        self._check_network()
        check_choice("channels", self.channels, (1, 3))
        check_choice("shuffle", self.shuffle, ("image", "off"))

    @property
    def representation(self) -> tuple[int, int]:
        return self.num_patches, self.width


SCHEMES: dict[str, type[PublicConfig]] = {
    "color-neuracrypt": EncoderConfig,
    "le": LEConfig,
    "pe": PEConfig,
    "etc": EtCConfig,
    "ele": ELEConfig,
    "vit-blockwise": ViTBlockwiseConfig,
    "color-neuracrypt-float": FloatConfig,
    "neuracrypt": NeuraCryptConfig,
}


def make_config(scheme: str, options: dict[str, str | int | bool]) -> PublicConfig:
    """The config of a scheme: its defaults, but for `options`.

    Raises:
        ConfigError: there is no such scheme, the scheme has no such option, or the value is not supported.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"there is no scheme {scheme!r}: choose from {', '.join(SCHEMES)}")
    names = [field.name for field in dataclasses.fields(SCHEMES[scheme]) if field.name != "algorithm"]
    for name in options:
        if name not in names:
            raise ConfigError(f"the scheme {scheme} has no {name}: it has {', '.join(names)}")
    return SCHEMES[scheme](**options)


def parse_options(pairs: Sequence[str]) -> dict[str, str | int | bool]:
    """Options as a command line has them: ["block_size=8", "color_shuffle=false"]. Raises ConfigError."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"the option {pair!r} is not of the form NAME=VALUE")
        whole = value.isascii() and value.removeprefix("-").isdigit()
        options[name.replace("-", "_")] = {"true": True, "false": False}.get(value, int(value) if whole else value)
    return options


def config_from_dict(values: dict) -> PublicConfig:
    """The config of any scheme. Raises ConfigError for an unknown algorithm or unsupported fields."""
    algorithm = values.get("algorithm") if isinstance(values, dict) else EncoderConfig.algorithm
    for config in SCHEMES.values():
        if config.algorithm == algorithm:
            return config.from_dict(values)
    known = ", ".join(config.algorithm for config in SCHEMES.values())
    raise ConfigError(f"algorithm {algorithm!r} is not supported: choose from {known}")
