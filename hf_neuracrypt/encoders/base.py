"""What all encoders have in common: a config, a key, how ciphertexts are stored, and a check of what they are given."""

import numpy as np
import torch

from hf_neuracrypt.encoders.stored import Stored, stored_as
from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import SchemeConfig


class Encoder:
    """A keyed map of images; stateless: an image's ciphertext depends on that image alone.

    Args:
        config: public parameters of the scheme.
        key: the secret key. The object holds what was derived from it and is as secret as the key.
        device: where it computes; images are moved there and their ciphertexts back.

    Attributes:
        stored: how its ciphertexts become rows of a dataset.
    """

    def __init__(self, config: SchemeConfig, key: SecretKey, device: str | torch.device = "cpu"):
        self.config, self.key, self.device = config, key, torch.device(device)
        self.stored: Stored = stored_as(config)

    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        """Encrypt a batch.

        Args:
            images: uint8 RGB, (B, 3, image_size, image_size), any strides, any device, B >= 0.

        Returns:
            uint8 RGB of the same shape, contiguous, on the device of `images`; float32 (B, N, width) from a scheme
            whose config has a `patch_shape`.

        Raises:
            ImageError: another dtype or shape.
        """
        raise NotImplementedError

    def encrypt_in_place(self, images: torch.Tensor) -> torch.Tensor:
        """`encrypt`, for attacks that know how to undo a shuffle: the patches of each image stay where they are."""
        return self.encrypt(images)

    def block_order(self) -> list[int]:
        """Where each patch or block of a ciphertext comes from, alike in all images."""
        return list(range(self.config.num_patches))

    def shuffle_order(self, image: torch.Tensor) -> list[int]:
        """Where each patch of an image's ciphertext comes from, anew for each image, uint8 (3, S, S)."""
        return list(range(self.config.num_patches))

    def secrets(self) -> list[np.ndarray]:
        """What the key becomes under this config, as secret as the key itself: the guard searches for it."""
        return []

    def _check(self, images: object, method: str = "encrypt") -> None:
        size = self.config.image_size
        if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
            found = (
                f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
            )
            raise ImageError(f"{method}() takes a torch.uint8 tensor of shape (B, 3, {size}, {size}), not {found}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key_id={self.key.id!r}, config={self.config.to_json()})"

    def __reduce__(self) -> tuple:
        # The key goes as a reference to its file; the worker derives the rest again.
        return type(self), (self.config, self.key, str(self.device))
