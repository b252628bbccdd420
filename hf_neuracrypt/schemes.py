"""Every scheme: its public parameters, and all that is true of it, said once.

The parameters are stored with every dataset and model; none is secret. Every field is bound into what the key derives
(`keys.SecretKey.integers`), so the same key with another config is an unrelated cipher. What is true of a scheme stands
beside them as class attributes and properties, from which nothing is derived.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

from hf_neuracrypt.errors import ConfigError


MAX_IMAGE_SIZE = 1024
LATER = {"window", "burned_in"}  # fields that older configs do not have
WINDOW = r"(-?\d{1,6}(\.\d{1,3})?,[1-9]\d{0,5}(\.\d{1,3})?)?"


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Raises ConfigError unless `value` is one of `choices`, and of their type."""
    if type(value) is not type(choices[0]) or value not in choices:
        raise ConfigError(f"{name} {value!r} is not supported: choose from {', '.join(map(str, choices))}")


def check_range(name: str, value: object, low: int, high: int, step: int = 1) -> None:
    """Raises ConfigError unless `value` is a whole number from `low` to `high`, and a multiple of `step`."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} {value!r} is not a whole number from {low} to {high}")
    if value % step:
        raise ConfigError(f"{name} {value} is not a multiple of {step}, which int8 matrix products need")


def check_text(name: str, value: object, pattern: str, what: str) -> None:
    """Raises ConfigError unless `value` is text of the whole `pattern`."""
    if not (isinstance(value, str) and re.fullmatch(pattern, value)):
        raise ConfigError(f"{name} {value!r} is not {what}")


def checked(check: Callable[..., None], default: Any, **bounds: Any) -> Any:
    """A field of a config whose value a function above checks."""
    return dataclasses.field(default=default, metadata={"check": partial(check, **bounds)})


one_of, within, like = (partial(checked, check) for check in (check_choice, check_range, check_text))


@dataclass(frozen=True, kw_only=True)
class SchemeConfig:
    """What the configs of all schemes have in common. Raises ConfigError naming the field and what it may be.

    Args:
        algorithm: scheme and version; a version never changes the bytes it produces.
        image_size: height and width of plain and encrypted images, in pixels; a multiple of the patches or blocks.
        resize: how plain images are resized *before* encryption; "bilinear" is Pillow's, that of earlier datasets.
        background: RGB colour, "#rrggbb", that transparent pixels are composited on.
        window, burned_in: how DICOM is read; see `images.dicom.decode`.

    Attributes:
        title: what it is and who published it, as the cards say it.
        exact: ciphertexts are the same bytes on every machine.
        tile_name: the field that holds the side of its patches or blocks; None: each pixel is encrypted by itself.
        fits_patches: a Vision Transformer must have the same patches to learn from the ciphertexts.
        symbol_bits: of what a permutation cipher moves: 8, bytes, or 4, their halves; None: it is a random network.
        moves_blocks: blocks change places, alike in all images.
    """

    title: ClassVar[str]
    exact: ClassVar[bool] = True
    tile_name: ClassVar[str | None] = None
    fits_patches: ClassVar[bool] = False
    symbol_bits: ClassVar[int | None] = None
    moves_blocks: ClassVar[bool] = False

    algorithm: str = ""
    image_size: int = 224
    resize: str = one_of("torch-bilinear", choices=("torch-bilinear", "bilinear"))
    background: str = like("#ffffff", pattern="#[0-9a-f]{6}", what="a lower-case hex colour like #ffffff")
    window: str = like("", pattern=WINDOW, what="CENTER,WIDTH, like 40,400, with a width of 1 or more")
    burned_in: bool = one_of(False, choices=(True, False))

    def __post_init__(self) -> None:
        check_choice("algorithm", self.algorithm, (type(self).algorithm,))
        for field in dataclasses.fields(self):
            if "check" in field.metadata:
                field.metadata["check"](field.name, getattr(self, field.name))
        check_range("image_size", self.image_size, self.tile if self.tile_name else 1, MAX_IMAGE_SIZE)
        if self.tile_name and self.image_size % self.tile:
            cut = f"a {self.tile_name.removesuffix('_size')} would be cut at the border"
            raise ConfigError(f"image_size {self.image_size} is not a multiple of {self.tile_name} {self.tile}: {cut}")

    @property
    def scheme(self) -> str:
        """The algorithm without its version, as `--scheme` takes it."""
        return self.algorithm.partition("/")[0]

    @property
    def tile(self) -> int:
        """Side of its patches or blocks, in pixels; without any, the largest of which an image has 4 x 4 or more."""
        if self.tile_name:
            return getattr(self, self.tile_name)
        size = self.image_size
        return next(tile for tile in (16, 8, 4, 2, 1) if size % tile == 0 and (size >= 4 * tile or tile == 1))

    @property
    def num_patches(self) -> int:
        """Patches or blocks of an image."""
        return (self.image_size // self.tile) ** 2

    @property
    def patch_shape(self) -> tuple[int, int] | None:
        """(patches, values) of a ciphertext that is float32 patches; None: the ciphertext is an image."""
        return None

    @property
    def invertible(self) -> bool:
        """Whether the key's holder can decrypt exactly."""
        return self.symbol_bits is not None

    @property
    def shuffles(self) -> bool:
        """Whether the patches of each image change places anew."""
        return getattr(self, "shuffle", "off") == "image"

    @property
    def depends_on_batch(self) -> bool:
        """Whether a ciphertext depends on the images it is encrypted with."""
        return getattr(self, "batch_norm", "none") == "batch"

    def to_dict(self) -> dict[str, str | int | bool]:
        """All fields by their names; of those that came later, the ones that are not as before: keys give the same."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value or name not in LATER}

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. This text goes into all that is derived from the key."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """The config in `values`. Raises ConfigError for unknown, missing or unsupported fields."""
        names, found = {field.name for field in dataclasses.fields(cls)}, type(values).__name__
        if isinstance(values, dict) and names - LATER <= set(values) <= names:
            return cls(**values)
        found = str(sorted(map(str, values))) if isinstance(values, dict) else found
        raise ConfigError(f"an encoder config has the fields {sorted(names)}, not {found}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(SchemeConfig):
    """Public parameters of Color-NeuraCrypt (Qi, MaungMaung, Kiya; section 3.2); see `SchemeConfig` for the others.

    Args:
        patch_size: pixels; that of the Vision Transformer which will be trained.
        depth: 1x1 convolutions after the patch embedding (4 in the paper).
        width: channels of the hidden layers.
    """

    title = "Color-NeuraCrypt (Qi, MaungMaung and Kiya), a random network whose output is again an image"
    tile_name, fits_patches = "patch_size", True
    algorithm: str = "color-neuracrypt/v1"
    patch_size: int = one_of(16, choices=(8, 14, 16, 32))
    depth: int = within(4, low=0, high=64)
    width: int = within(768, low=16, high=4096, step=16)


@dataclass(frozen=True, kw_only=True)
class LEConfig(SchemeConfig):
    """Public parameters of LE (Tanaka 2018), one key for all blocks; defaults: its block, the size of CIFAR-10."""

    title = "LE (Tanaka 2018), pixels of each block permuted and inverted alike"
    tile_name, symbol_bits = "block_size", 4
    algorithm: str = "le/v1"
    image_size: int = 32
    block_size: int = within(4, low=1, high=64)


@dataclass(frozen=True, kw_only=True)
class ELEConfig(LEConfig):
    """Public parameters of ELE (Madono et al. 2020): LE under a key for each block, then a shuffle of the blocks."""

    title = "ELE (Madono et al. 2020), pixels of each block permuted and inverted, and blocks permuted"
    moves_blocks = True
    algorithm: str = "ele/v1"


@dataclass(frozen=True, kw_only=True)
class EtCConfig(LEConfig):
    """Public parameters of EtC (Chuman et al. 2018); `variant` "madono" is the lossy one of the published 89.09 %."""

    title = "EtC (Chuman et al. 2018), blocks permuted, turned, mirrored and inverted"
    symbol_bits, moves_blocks = 8, True
    algorithm: str = "etc/v1"
    variant: str = one_of("correct", choices=("correct", "madono"))

    @property
    def invertible(self) -> bool:
        return self.variant == "correct"


@dataclass(frozen=True, kw_only=True)
class PEConfig(SchemeConfig):
    """Public parameters of PE (Sirichotedumrong et al. 2019); `color_shuffle`: the colours of a pixel, too."""

    title = "pixel-based encryption (Sirichotedumrong et al. 2019), pixels inverted, their colours permuted"
    symbol_bits = 8
    algorithm: str = "pe/v1"
    image_size: int = 32
    color_shuffle: bool = one_of(True, choices=(True, False))


@dataclass(frozen=True, kw_only=True)
class ViTBlockwiseConfig(SchemeConfig):
    """Public parameters of the block-wise cipher for Vision Transformers (Qi et al. 2022; Kiya, Iijima 2023)."""

    title = "block-wise encryption for ViT (Qi et al. 2022), patches and the pixels in them permuted"
    tile_name, fits_patches = "patch_size", True
    symbol_bits, moves_blocks = 8, True
    algorithm: str = "vit-blockwise/v1"
    patch_size: int = within(16, low=1, high=64)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(SchemeConfig):
    """What the float32 networks share. `batch_norm` "batch" is that of the original, by the statistics of the batch, so
    that a ciphertext depends on the images beside it; "frozen" takes those of keyed synthetic images."""

    exact, tile_name = False, "patch_size"
    patch_size: int = within(16, low=1, high=64)
    depth: int = within(4, low=0, high=64)
    width: int = within(768, low=1, high=4096)
    batch_norm: str = one_of("frozen", choices=("batch", "frozen", "none"))


@dataclass(frozen=True, kw_only=True)
class FloatConfig(NetworkConfig):
    """Public parameters of Color-NeuraCrypt as published, in float32; `scale`: grey levels of a unit of its output."""

    title = "Color-NeuraCrypt (Qi, MaungMaung and Kiya) in float32, as published"
    fits_patches = True
    algorithm: str = "color-neuracrypt-float/v1"
    scale: int = within(51, low=1, high=255)


@dataclass(frozen=True, kw_only=True)
class NeuraCryptConfig(NetworkConfig):
    """Public parameters of NeuraCrypt (Yala et al. 2021), whose ciphertexts are no images; defaults: its X-rays.

    `depth` 4 is the paper's "depth 7"; `width`, the values of a patch, must be that of the model to be trained; with
    `shuffle` "image" the patches of each image change places, by the key and the image.
    """

    title = "NeuraCrypt (Yala et al. 2021), a random network whose output is a list of patch representations"
    algorithm: str = "neuracrypt/v1"
    image_size: int = 256
    width: int = within(2048, low=1, high=4096)
    channels: int = one_of(1, choices=(1, 3))
    shuffle: str = one_of("image", choices=("image", "off"))

    @property
    def patch_shape(self) -> tuple[int, int]:
        return self.num_patches, self.width


SCHEMES: dict[str, type[SchemeConfig]] = {
    config.algorithm.partition("/")[0]: config
    for config in (
        EncoderConfig, LEConfig, PEConfig, EtCConfig, ELEConfig, ViTBlockwiseConfig, FloatConfig, NeuraCryptConfig
    )
}  # fmt: skip


def make_config(scheme: str, options: Mapping[str, Any]) -> SchemeConfig:
    """The config of a scheme: its defaults, but for `options`. Raises ConfigError for what it does not have."""
    if scheme not in SCHEMES:
        raise ConfigError(f"there is no scheme {scheme!r}: choose from {', '.join(SCHEMES)}")
    names = [field.name for field in dataclasses.fields(SCHEMES[scheme]) if field.name != "algorithm"]
    if unknown := [name for name in options if name not in names]:
        raise ConfigError(f"the scheme {scheme} has no {unknown[0]}: it has {', '.join(names)}")
    return SCHEMES[scheme](**options)


def config_from_dict(values: object) -> SchemeConfig:
    """The config of any scheme. Raises ConfigError for an unknown algorithm or unsupported fields."""
    known = {config.algorithm: config for config in SCHEMES.values()}
    algorithm = values.get("algorithm") if isinstance(values, dict) else EncoderConfig.algorithm
    check_choice("algorithm", algorithm, tuple(known))
    return known[str(algorithm)].from_dict(values)


def check_floor(config: SchemeConfig) -> None:
    """Raises ConfigError for parameters under which a ciphertext hides next to nothing; experiments may use them."""
    tile = "tile" if config.tile_name else ""  # else each pixel is encrypted by itself
    for name, least in (("num_patches", 16), (tile, 4), ("depth", 1), ("width", 64), ("color_shuffle", True)):
        if (value := getattr(config, name, least)) < least:
            raise ConfigError(f"{config.scheme} with {name} {value} hides next to nothing: give {least} or more")
