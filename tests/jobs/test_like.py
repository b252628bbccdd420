"""Encryption again under a new key, and what it takes over from the old folder."""

import pytest
from datasets import DatasetDict

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.audit.pairs import load_pairs
from hf_neuracrypt.data.manifest import read_manifest
from hf_neuracrypt.errors import DatasetError, KeyMismatchError
from hf_neuracrypt.jobs.run import encrypt_again, encrypt_source
from tests.helpers import (
    SMALL,
    make_dataset,
)


def test_views_are_rotated_and_audited(plain_folder, small_encoder, key_file, tmp_path):
    """By the manifest alone: nobody has to say again how many there are."""
    source, other = str(plain_folder), SecretKey.load(key_file)
    encrypt_source(source, SMALL, small_encoder.key, tmp_path / "old", views=2, flip=True)
    assert encrypt_again(tmp_path / "old", source, other, tmp_path / "new") == {"train": 48, "test": 9}
    assert read_manifest(tmp_path / "new")["views"] == {"count": 2, "flip": True}
    pairs = load_pairs(tmp_path / "new", source, load_encoder(SMALL, other), 100, 0)
    assert len(pairs) == 33 and not pairs.wrong
    DatasetDict({"test": make_dataset(4)}).save_to_disk(str(tmp_path / "test-only"))
    with pytest.raises(DatasetError, match="--views are of the split 'train'"):
        encrypt_source(str(tmp_path / "test-only"), SMALL, other, tmp_path / "none", views=2)


def test_a_finished_folder_of_a_third_key_is_refused(plain_folder, small_encoder, key_file, tmp_path):
    source, third = str(plain_folder), SecretKey.generate()
    encrypt_source(source, SMALL, small_encoder.key, tmp_path / "old")
    encrypt_source(source, SMALL, third, tmp_path / "new")
    with pytest.raises(KeyMismatchError, match=f"new was encrypted under the key {third.id}; this key is"):
        encrypt_again(tmp_path / "old", source, SecretKey.load(key_file), tmp_path / "new")
