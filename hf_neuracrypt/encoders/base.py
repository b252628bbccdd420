"""What all encoders have in common: a config, a key, and a check of what they are given."""

import torch

from hf_neuracrypt.configuration import PublicConfig
from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.keys import SecretKey


class Encoder:
    """A keyed map of images; stateless: an image's ciphertext depends on that image alone.

    Args:
        config: public parameters of the scheme.
        key: the secret key. The object holds what was derived from it and is as secret as the key.
        device: where it computes; images are moved there and their ciphertexts back.
    """

    def __init__(self, config: PublicConfig, key: SecretKey, device: str | torch.device = "cpu"):
        self.config, self.key, self.device = config, key, torch.device(device)

    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        """Encrypt a batch.

        Args:
            images: uint8 RGB, (B, 3, image_size, image_size), any strides, any device, B >= 0.

        Returns:
            uint8 RGB of the same shape, contiguous, on the device of `images`; float32 (B, N, width) from a scheme
            whose config has a `representation`.

        Raises:
            ImageError: another dtype or shape.
        """
        raise NotImplementedError

    def _check(self, images: object, method: str = "encrypt") -> None:
        size = self.config.image_size
        if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
            found = (
                f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
            )
            raise ImageError(f"{method}() takes a torch.uint8 tensor of shape (B, 3, {size}, {size}), not {found}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key_id={self.key.id!r}, config={self.config.to_json()})"

    def __reduce__(self):
        # The key goes as a reference to its file; the worker derives the rest again.
        return type(self), (self.config, self.key, str(self.device))
