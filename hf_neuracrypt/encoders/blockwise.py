"""Block-wise and pixel-wise ciphers: `le/v1`, `ele/v1`, `pe/v1`, `etc/v1`, `vit-blockwise/v1`.

Each of them moves symbols of an image (bytes, or the two nibbles of each byte) and inverts the bits of some. So the
published steps are carried out once, on the *positions* of the symbols; an image is then encrypted by one gather and
one exclusive or, whatever the scheme:

    ciphertext[i] = plain[index[i]] ^ mask[i]

Notable decisions
- The key is our `SecretKey`, one subkey for each purpose. The originals seed Python's, NumPy's or torch's generator;
  Madono's EtC and ELE hard-code the seed 30, so that everybody has the key of the published figures.
- 255 - q and q ^ 255 are the same for bytes, 15 - v and v ^ 15 for nibbles: nothing is ever rounded.
- An image size that is no multiple of the block size is refused. Tanaka's code replicates the border instead, but then
  a ciphertext is larger than its image, which a model of one fixed size could not take.

All of these are permutation ciphers with one key for all images: three to five chosen images give it away.
"""

import itertools
import math

import numpy as np
import torch
from einops import rearrange

from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import EtCConfig, LEConfig, PEConfig, SchemeConfig, ViTBlockwiseConfig


Table = tuple[np.ndarray, np.ndarray]  # where each symbol comes from, and the bits it is inverted by; of equal shape
COLOR_ORDERS = list(itertools.permutations(range(3)))


class PermutationCipher(Encoder):
    """A cipher that is a gather and an exclusive or. Subclasses say which, in `table`."""

    def __init__(self, config: SchemeConfig, key: SecretKey, device: str | torch.device = "cpu"):
        super().__init__(config, key, device)
        self.nibbles = config.symbol_bits == 4
        index, mask = (part.reshape(-1) for part in self.table())
        self._index = torch.from_numpy(index).to(self.device)
        self._mask = torch.from_numpy(mask.astype(np.uint8)).to(self.device)

    def table(self) -> Table:
        """(index, mask) of all symbols: (3, S, S) for bytes, (2, 3, S, S) for nibbles, the low ones first."""
        raise NotImplementedError

    def secrets(self) -> list[np.ndarray]:
        return [self._index.cpu().numpy()]

    def encrypt(self, images: torch.Tensor) -> torch.Tensor:
        self._check(images)
        symbols = self._split(images.to(self.device))
        return self._join(symbols.index_select(1, self._index) ^ self._mask).to(images.device)

    def decrypt(self, images: torch.Tensor) -> torch.Tensor:
        """The plain images of `encrypt`'s ciphertexts, of the same shape.

        Raises:
            ImageError: another dtype or shape.
            NeuraCryptError: the scheme is lossy.
        """
        self._check(images, "decrypt")
        if not self.config.invertible:
            raise NeuraCryptError(f"{self.config.to_json()} loses colours: its ciphertexts cannot be decrypted")
        symbols = self._split(images.to(self.device)) ^ self._mask
        return self._join(symbols.index_select(1, torch.argsort(self._index))).to(images.device)

    def block_order(self) -> list[int]:
        size, tile = self.config.image_size, self.config.tile
        positions = (self._index.cpu().numpy() % (3 * size**2)).reshape(self._positions().shape)
        first = to_blocks(positions, tile).reshape(self.config.num_patches, -1)[:, 0]
        rows, columns = np.divmod(first % size**2, size)
        return (rows // tile * (size // tile) + columns // tile).tolist()

    def _split(self, images: torch.Tensor) -> torch.Tensor:
        if self.nibbles:
            images = torch.stack([images & 15, images >> 4], dim=1)
        return images.flatten(1)

    def _join(self, symbols: torch.Tensor) -> torch.Tensor:
        shape = (len(symbols), 3, self.config.image_size, self.config.image_size)
        if self.nibbles:
            low, high = symbols.chunk(2, dim=1)
            symbols = high << 4 | low
        return symbols.reshape(shape)

    def _positions(self) -> np.ndarray:
        size = self.config.image_size
        shape = (2, 3, size, size) if self.nibbles else (3, size, size)
        return np.arange(math.prod(shape)).reshape(shape)

    def _order(self, purpose: str, size: int) -> np.ndarray:
        return np.array(self.key.permutation(self.config.to_json(), purpose, size))

    def _choices(self, purpose: str, shape: tuple[int, ...], options: int) -> np.ndarray:
        return choices(self.key, self.config.to_json(), purpose, shape, options)


class LE(PermutationCipher):
    """Tanaka, "Learnable image encryption", ICCE-TW 2018; github.com/mastnk/ICCE-TW2018.

    A block of B x B pixels is flattened in the order (row, column, colour), its bytes are split into all low nibbles,
    then all high ones, v. With a keyed permutation K of these 6 B^2 nibbles and the mask R[i] = (K[i] > 3 B^2):

        invert v[i] where R[i]  ->  v = v[K]  ->  invert v[i] where R[i]  ->  bytes again

    The paper speaks of an independent mask (Madono et al. count (6 B^2)! 2^(6 B^2) keys), but the published code
    derives it from the permutation, off by one from half (47 of 96). We follow the code: it made the figures.
    """

    config: LEConfig

    def table(self) -> Table:
        return self._join_blocks(*self._scramble(self._nibbles_of_blocks(), shared=True))

    def _nibbles_of_blocks(self) -> np.ndarray:
        """(N, 6 B^2) positions of nibbles, in the order that a block is flattened in."""
        blocks = to_blocks(self._positions(), self.config.block_size)
        return blocks.transpose(0, 1, 3, 4, 2).reshape(len(blocks), -1)

    def _scramble(self, blocks: np.ndarray, shared: bool) -> Table:
        index, mask, length = np.empty_like(blocks), np.empty_like(blocks), blocks.shape[1]
        order = self._order("nibbles", length) if shared else None
        for number, block in enumerate(blocks):
            permutation = order if shared else self._order(f"nibbles/{number}", length)
            reverse = permutation > length // 2
            index[number] = block[permutation]
            mask[number] = 15 * (reverse[permutation] ^ reverse)
        return index, mask

    def _join_blocks(self, index: np.ndarray, mask: np.ndarray) -> Table:
        size = self.config.block_size
        shaped = (part.reshape(-1, 2, size, size, 3).transpose(0, 1, 4, 2, 3) for part in (index, mask))
        index, mask = (from_blocks(part) for part in shaped)
        return index, mask


class ELE(LE):
    """Madono et al., "Block-wise Scrambled Image Recognition Using Adaptation Network", arXiv 2001.07761.

    LE with a permutation (and the mask that follows from it) for each block, by the position the block comes from; then
    the blocks change places: block i of the ciphertext is block P[i]. That is the order of the published code; the
    paper's Fig. 2 shuffles first, which is the same family with other names for the keys.
    """

    def table(self) -> Table:
        index, mask = self._scramble(self._nibbles_of_blocks(), shared=False)
        order = self._order("blocks", len(index))
        return self._join_blocks(index[order], mask[order])


class PE(PermutationCipher):
    """Sirichotedumrong, Kinoshita, Kiya, "Pixel-based image encryption without key management", 2019.

    For each pixel and each colour, a keyed bit says whether its value q becomes 255 - q; then the three colours of each
    pixel are shuffled by one of six keyed orders (`color_shuffle`). One key for all images, so that the trained model
    may rely on it; the paper's own experiments also draw a new one for each image. Kiya's group attacks a version
    without the shuffle.
    """

    config: PEConfig

    def table(self) -> Table:
        index = self._positions()
        mask = 255 * self._choices("negative", index.shape, 2)
        if self.config.color_shuffle:
            orders = np.array(COLOR_ORDERS)[self._choices("colors", index.shape[1:], 6)].transpose(2, 0, 1)
            index, mask = np.take_along_axis(index, orders, 0), np.take_along_axis(mask, orders, 0)
        return index, mask


class EtC(PermutationCipher):
    """Encryption-then-Compression: Chuman, Sirichotedumrong, Kiya 2018, in two variants.

    "correct", as defined: the blocks change places (block i of the ciphertext is block P[i]); then each is rotated by 0
    to 3 quarter turns and mirrored or not (8 symmetries), inverted (255 - q) or not, and its colours shuffled (6).

    "madono": github.com/MADONOKOUKI/Block-wise-Scrambled-Image-Recognition, from which the published 89.09 % come. For
    each block rotate (4), invert exactly half of the blocks, mirror (up-down, left-right, not at all), shuffle colours,
    and then move the blocks. Its colour shuffle assigns channels in place, through an alias, so that five of the six
    codes copy one channel over another: it is lossy, and cannot be decrypted.

    MaungMaung and Kiya (github.com/fugokidi/etc-classify) define EtC as "correct" does, on blocks of 16 pixels; their
    code ties mirroring to rotation by using the wrong key. That is a bug without a figure of its own, so not offered.
    """

    config: EtCConfig

    # What assigning in place makes of the codes 0 to 5: the channel that each channel ends up with.
    MADONO_COLORS = ((0, 1, 2), (1, 1, 2), (2, 1, 2), (0, 2, 2), (2, 2, 2), (1, 2, 1))

    def table(self) -> Table:
        blocks = to_blocks(self._positions(), self.config.block_size)
        count, madono = len(blocks), self.config.variant == "madono"
        order = self._order("blocks", count)
        turns = self._choices("rotation", (count,), 4)
        mirror = self._choices("inversion", (count,), 3 if madono else 2)
        negative = self._order("negative", count) % 2 if madono else self._choices("negative", (count,), 2)
        colors = self._choices("colors", (count,), 6)
        if not madono:
            blocks = blocks[order]
        index = np.empty_like(blocks)
        for number, block in enumerate(blocks):
            block = np.rot90(block, turns[number], axes=(1, 2))  # counter-clockwise
            if madono:
                block = block[:, ::-1] if mirror[number] == 0 else block[:, :, ::-1] if mirror[number] == 1 else block
            elif mirror[number]:
                block = block[:, :, ::-1]
            index[number] = block[list((self.MADONO_COLORS if madono else COLOR_ORDERS)[colors[number]])]
        mask = np.broadcast_to(255 * negative[:, None, None, None], index.shape)
        if madono:
            index, mask = index[order], mask[order]
        return from_blocks(index), from_blocks(mask)


class ViTBlockwise(PermutationCipher):
    """Block scrambling and pixel shuffling for Vision Transformers: Qi et al. 2022; Kiya, Iijima 2023.

    One keyed permutation of the 3 P^2 values (colour, row, column) of a patch, the same for all patches, and one of the
    patches: value i of patch j of the ciphertext is value `pixel_order[i]` of patch `patch_order[j]`. The two commute.
    A model whose patch and position embeddings are permuted alike cannot tell the difference: see `models.embeddings`.
    """

    config: ViTBlockwiseConfig

    @property
    def pixel_order(self) -> np.ndarray:
        return self._order("pixels", 3 * self.config.patch_size**2)

    @property
    def patch_order(self) -> np.ndarray:
        return self._order("blocks", self.config.num_patches)

    def table(self) -> Table:
        patches = to_blocks(self._positions(), self.config.patch_size)
        index = patches.reshape(len(patches), -1)[self.patch_order][:, self.pixel_order]
        return from_blocks(index.reshape(patches.shape)), np.zeros(index.shape, np.uint8)


def to_blocks(image: np.ndarray, size: int) -> np.ndarray:
    """(..., S, S) -> (N, ..., size, size), blocks in row-major order."""
    return rearrange(image, "... (h p) (w q) -> (h w) ... p q", p=size, q=size)


def from_blocks(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `to_blocks`: (N, ..., size, size) -> (..., S, S)."""
    return rearrange(blocks, "(h w) ... p q -> ... (h p) (w q)", h=math.isqrt(len(blocks)))


def choices(key: SecretKey, public: str, purpose: str, shape: tuple[int, ...], options: int) -> np.ndarray:
    """Keyed numbers, uniform on range(options), of `shape`: bytes of the keystream above a multiple are discarded."""
    count, limit = math.prod(shape), 255 // options * options
    drawn = count + count // 16 + 16
    while True:
        values = key.integers(public, purpose, (drawn,)).astype(np.int64) + 127  # uniform on 0 to 254
        values = values[values < limit]
        if len(values) >= count:
            return (values[:count] % options).reshape(shape)
        drawn *= 2  # reads further in the same keystream: the first values stay what they are
