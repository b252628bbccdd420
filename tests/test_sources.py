"""Where a dataset comes from, and whether it is encrypted already."""

import pytest

from hf_neuracrypt import cli, sources
from hf_neuracrypt.errors import DatasetError, HubError
from hf_neuracrypt.sources import load_source, stored_record
from tests.conftest import SMALL, make_dataset, write


@pytest.fixture
def encrypted(tmp_path, small_encoder):
    write(tmp_path / "encrypted", small_encoder, {"train": make_dataset(6)})
    return tmp_path / "encrypted"


def test_a_local_dataset(encrypted, plain_folder, small_encoder):
    record = stored_record(str(encrypted))
    assert (record.config, record.key_id) == (SMALL, small_encoder.key.id)
    assert stored_record(str(plain_folder)) is None
    (encrypted / "neuracrypt.json").write_text("{")
    with pytest.raises(DatasetError, match="damaged"):
        stored_record(str(encrypted))


def test_a_published_dataset_is_as_encrypted_as_a_local_one(encrypted, small_encoder, key_file, tmp_path, monkeypatch):
    text = (encrypted / "neuracrypt.json").read_text()
    monkeypatch.setattr(sources, "read_small_file", lambda name, file, *_: text)
    assert stored_record("ward/photos").key_id == small_encoder.key.id
    words = ["encrypt", "--dataset", "ward/photos", "--key-file", str(key_file), "--output", str(tmp_path / "out")]
    with pytest.raises(DatasetError, match=rf"ward/photos is already encrypted .key {small_encoder.key.id}"):
        cli.app(words, standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_offline_a_dataset_that_is_not_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert stored_record("ward/photos") is None
    with pytest.raises(HubError, match="cannot reach ward/photos: HF_HUB_OFFLINE is set"):
        load_source("ward/photos")


def test_a_name_that_is_no_hub_id():
    assert stored_record("a/b/c/d") is None
