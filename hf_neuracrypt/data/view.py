"""Encryption in memory, row by row, for training at home. Nothing here belongs to what is published."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset, Image
from torch.utils.data import Dataset as TorchDataset

from hf_neuracrypt.data.batches import encrypt_rows
from hf_neuracrypt.data.columns import array_dtype, find_columns, picture_like
from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import ImageError, NeuraCryptError
from hf_neuracrypt.images import as_array
from hf_neuracrypt.schemes import check_floor


class EncryptedView(TorchDataset):
    """A dataset whose images are encrypted whenever rows are read, for owners who train on their own machine.

    Each image becomes what `encrypt_dataset` would store of it, and whatever `augment` does to the plain image before
    (a crop, a flip) happens anew each time, which a stored ciphertext cannot have. The other columns are passed on as
    they are, but for those that hold pictures or other binary data: they would be in clear. **What lies underneath
    stays plain**: so this is no `datasets.Dataset`, and whatever would publish or store it is refused. It is picklable,
    for the workers of a DataLoader, if the key came from a file: the pickle holds the path of that file, and the
    dataset as it is, plain.

    Args:
        dataset: plain images.
        encoder: from `load_encoder`.
        image_column: default: the first of `image`, `img`, `pixel_values` that is there.
        augment: a batch of rows, a dict of lists, -> the same with other plain images.

    Raises:
        DatasetError: there is no such column.
        ImageError: an image cannot be used; it is named by its row.

    Example:
        >>> encoder = load_encoder(EncoderConfig(), SecretKey.load("hospital.key"))
        >>> encrypted = EncryptedView(load_dataset("photos/", split="train"), encoder)
        >>> encrypted[0]["image"]  # a PIL image; from a scheme with a patch representation, float32 (N, width)
    """

    def __init__(
        self,
        dataset: Dataset,
        encoder: Encoder,
        image_column: str | None = None,
        augment: Callable[[dict[str, list]], dict[str, list]] | None = None,
    ):
        check_floor(encoder.config)
        self.dataset, self.encoder, self.augment = dataset, encoder, augment
        self.image_column = find_columns(dataset.features, image_column, None).image
        feature = dataset.features[self.image_column]
        self._dtype, self._rows = array_dtype(feature), dataset
        if augment is None and dataset.format["type"] is None and feature == Image():  # nothing else is done to images
            self._rows = dataset.cast_column(self.image_column, Image(decode=False))
        self.left_out = {name for name, kind in dataset.features.items() if picture_like(kind)} - {self.image_column}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """Several rows at once, as a DataLoader asks for them."""
        batch = self._rows[rows]
        batch = self.augment(batch) if self.augment else batch
        images = encrypt_rows(self.encoder, [as_array(image, self._dtype) for image in batch[self.image_column]])
        encrypted = []
        for place, (row, stored) in enumerate(zip(rows, images)):
            if isinstance(stored, ImageError):
                raise ImageError(f"row {row} cannot be encrypted: {stored}")
            values = {name: column[place] for name, column in batch.items() if name not in self.left_out}
            encrypted.append(values | {self.image_column: self.encoder.stored.shown(stored[0])})
        return encrypted

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("to_", "save_", "push_")):
            raise NeuraCryptError(
                f"{name} would write plain images: they are encrypted only when rows are read; use encrypt_dataset"
            )
        raise AttributeError(f"'EncryptedView' object has no attribute {name!r}")
