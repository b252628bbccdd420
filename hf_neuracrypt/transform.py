"""Images encrypted in memory, as they are needed: `EncryptTransform` for training at home, and the making of queries.

Nothing is written, so nothing here belongs to what is published: `dataset.encrypt_dataset` makes that.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from hf_neuracrypt.columns import find_columns
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.images import prepare


class EncryptTransform:
    """Encrypts the images of a dataset whenever rows are read, for owners who train on their own machine.

    Each image becomes what `encrypt_dataset` would store of it, and whatever happens to the plain image before (a crop,
    a flip) happens anew each time, which a stored ciphertext cannot have. The other columns are passed on as they are.
    It is picklable, for the workers of a DataLoader, if the key came from a file; what goes is the file's path.

    Args:
        encoder: from `load_encoder`.
        image_column: default: the first of `image`, `img`, `pixel_values` that is there.

    Raises:
        DatasetError: there is no such column.
        ImageError: an image cannot be used; it is named by its place in the batch.

    Example:
        >>> encrypt = EncryptTransform(load_encoder(EncoderConfig(), SecretKey.load("hospital.key")))
        >>> encrypted = load_dataset("photos/", split="train").with_transform(encrypt)
        >>> encrypted[0]["image"]  # a PIL image; from a scheme with a patch representation, float32 (N, width)
        >>> varied = load_dataset("photos/", split="train").with_transform(lambda batch: encrypt(augment(batch)))
    """

    def __init__(self, encoder: Encoder, image_column: str | None = None):
        self.encoder, self.image_column = encoder, image_column

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        column = find_columns(batch, self.image_column, None).image
        prepared = []
        for place, image in enumerate(batch[column]):
            try:
                prepared.append(prepare(image, self.encoder.config))
            except ImageError as error:
                raise ImageError(f"image {place} of the batch cannot be encrypted: {error}") from None
        return {**batch, column: list(encrypt_prepared(prepared, self.encoder))}


def encrypt_prepared(prepared: Sequence[np.ndarray], encoder: Encoder) -> list[Image.Image] | torch.Tensor:
    """Ciphertexts of what `prepare` gives, uint8 (S, S, 3) each.

    Returns:
        PIL images that the stock pipeline takes; from a scheme with a patch representation, float32 (B, N, width).
    """
    encrypted = encoder.encrypt(torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2))
    if encoder.config.representation:
        return encrypted
    return [Image.fromarray(pixels) for pixels in encrypted.permute(0, 2, 3, 1).contiguous().numpy()]
