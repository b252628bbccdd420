"""The public parameters of every scheme. They are stored with every dataset and model; none is secret.

Every field is bound into what the key derives (`keys.SecretKey.integers`), so the same key with another config is an
unrelated cipher. `EncoderConfig` is that of Color-NeuraCrypt, the scheme this package recommends; the others are here
to be compared with it.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from hf_neuracrypt.errors import ConfigError


PATCH_SIZES = (8, 14, 16, 32)
MAX_IMAGE_SIZE = 1024
MAX_DEPTH = 64
MAX_WIDTH = 4096
MAX_BLOCK_SIZE = 64
WIDTH_STEP = 16
RESIZE_METHODS = ("bilinear",)


class PublicConfig:
    """What the configs of all schemes have in common: four fields, JSON in and out.

    Args:
        algorithm: scheme and version; a version never changes the bytes it produces.
        image_size: height and width of plain and encrypted images, in pixels.
        resize: how plain images are brought to `image_size` *before* encryption: "bilinear", Pillow's (antialiased).
        background: RGB colour, "#rrggbb", that transparent pixels are composited on.
    """

    algorithm: str
    image_size: int
    resize: str
    background: str

    @property
    def scheme(self) -> str:
        """The algorithm without its version, as `--scheme` takes it."""
        return self.algorithm.partition("/")[0]

    @property
    def model_patch_size(self) -> int | None:
        """The patch size that a Vision Transformer must have to learn from the ciphertexts; None: any will do."""
        return None

    @property
    def representation(self) -> tuple[int, int] | None:
        """(patches, values) of a float32 ciphertext; None: the ciphertext is an image."""
        return None

    def to_dict(self) -> dict[str, str | int | bool]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. This text goes into all that is derived from the key."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: dict):
        """The config in `values`. Raises ConfigError for unknown, missing or unsupported fields."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            found = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise ConfigError(f"an encoder config has the fields {sorted(names)}, not {found}")
        return cls(**values)

    def _check_common(self) -> None:
        _check_choice("algorithm", self.algorithm, (type(self).algorithm,))
        _check_choice("resize", self.resize, RESIZE_METHODS)
        if not (isinstance(self.background, str) and len(self.background) == 7 and self.background[0] == "#"):
            raise ConfigError(f"background {self.background!r} is not a colour like #ffffff")
        if set(self.background[1:]) - set("0123456789abcdef"):
            raise ConfigError(f"background {self.background!r} is not a lower-case hex colour like #ffffff")

    def _check_tiles(self, name: str, tile: int) -> None:
        """`image_size` is a whole number of tiles, the field `name` of the config."""
        _check_range("image_size", self.image_size, tile, MAX_IMAGE_SIZE)
        if self.image_size % tile:
            kind = name.removesuffix("_size")
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of {name} {tile}: a {kind} would be cut at the border"
            )


@dataclass(frozen=True)
class EncoderConfig(PublicConfig):
    """Public parameters of Color-NeuraCrypt (Qi, MaungMaung, Kiya; section 3.2).

    Args:
        algorithm, image_size, resize, background: see `PublicConfig`; `image_size` is a multiple of `patch_size`.
        patch_size: 8, 14, 16 or 32 pixels; that of the Vision Transformer which will be trained.
        depth: 1x1 convolutions after the patch embedding (4 in the paper).
        width: channels of the hidden layers, a multiple of 16, at most 4096.

    Raises:
        ConfigError: naming the field and what it may be.
    """

    algorithm: str = "color-neuracrypt/v1"
    image_size: int = 224
    patch_size: int = 16
    depth: int = 4
    width: int = 768
    resize: str = "bilinear"
    background: str = "#ffffff"

    def __post_init__(self):
        self._check_common()
        _check_choice("patch_size", self.patch_size, PATCH_SIZES)
        self._check_tiles("patch_size", self.patch_size)
        _check_range("depth", self.depth, 0, MAX_DEPTH)
        _check_range("width", self.width, WIDTH_STEP, MAX_WIDTH)
        if self.width % WIDTH_STEP:
            raise ConfigError(f"width {self.width} is not a multiple of {WIDTH_STEP}, which int8 matrix products need")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def model_patch_size(self) -> int:
        return self.patch_size


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
        _check_range("block_size", self.block_size, 1, MAX_BLOCK_SIZE)
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
        _check_choice("variant", self.variant, ("correct", "madono"))


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
        _check_range("image_size", self.image_size, 1, MAX_IMAGE_SIZE)
        _check_choice("color_shuffle", self.color_shuffle, (True, False))


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
        _check_range("patch_size", self.patch_size, 1, MAX_BLOCK_SIZE)
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
        _check_range("patch_size", self.patch_size, 1, MAX_BLOCK_SIZE)
        self._check_tiles("patch_size", self.patch_size)
        _check_range("depth", self.depth, 0, MAX_DEPTH)
        _check_range("width", self.width, 1, MAX_WIDTH)
        _check_choice("batch_norm", self.batch_norm, ("batch", "frozen", "none"))

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
        _check_range("scale", self.scale, 1, 255)

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
        _check_choice("channels", self.channels, (1, 3))
        _check_choice("shuffle", self.shuffle, ("image", "off"))

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


def _check_choice(name: str, value: object, choices: tuple) -> None:
    if type(value) is not type(choices[0]) or value not in choices:
        raise ConfigError(f"{name} {value!r} is not supported: choose from {', '.join(map(str, choices))}")


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} {value!r} is not a whole number from {low} to {high}")
