"""The public parameters of a scheme. They are stored with every dataset and model; none is secret.

Every field is bound into what the key derives (`keys.SecretKey.integers`), so the same key with another config is an
unrelated cipher. `EncoderConfig` is that of Color-NeuraCrypt; those of the other schemes are in `schemes`.
"""

import dataclasses
import json
from dataclasses import dataclass

from hf_neuracrypt.errors import ConfigError


PATCH_SIZES = (8, 14, 16, 32)
MAX_IMAGE_SIZE = 1024
MAX_DEPTH = 64
MAX_WIDTH = 4096
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
        """All fields by their names."""
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
        check_choice("algorithm", self.algorithm, (type(self).algorithm,))
        check_choice("resize", self.resize, RESIZE_METHODS)
        if not (isinstance(self.background, str) and len(self.background) == 7 and self.background[0] == "#"):
            raise ConfigError(f"background {self.background!r} is not a colour like #ffffff")
        if set(self.background[1:]) - set("0123456789abcdef"):
            raise ConfigError(f"background {self.background!r} is not a lower-case hex colour like #ffffff")

    def _check_tiles(self, name: str, tile: int) -> None:
        """`image_size` is a whole number of tiles, the field `name` of the config."""
        check_range("image_size", self.image_size, tile, MAX_IMAGE_SIZE)
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
        check_choice("patch_size", self.patch_size, PATCH_SIZES)
        self._check_tiles("patch_size", self.patch_size)
        check_range("depth", self.depth, 0, MAX_DEPTH)
        check_range("width", self.width, WIDTH_STEP, MAX_WIDTH)
        if self.width % WIDTH_STEP:
            raise ConfigError(f"width {self.width} is not a multiple of {WIDTH_STEP}, which int8 matrix products need")

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def model_patch_size(self) -> int:
        return self.patch_size


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Raises ConfigError unless `value` is one of `choices`, and of their type."""
    if type(value) is not type(choices[0]) or value not in choices:
        raise ConfigError(f"{name} {value!r} is not supported: choose from {', '.join(map(str, choices))}")


def check_range(name: str, value: object, low: int, high: int) -> None:
    """Raises ConfigError unless `value` is a whole number from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} {value!r} is not a whole number from {low} to {high}")
