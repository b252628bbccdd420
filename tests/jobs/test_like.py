"""`encrypt --like FOLDER`: what an earlier folder was made with, used again under another key."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from hf_neuracrypt import SecretKey
from hf_neuracrypt.data.manifest import read_manifest
from tests.commands import assert_one_line_error, command, encrypt
from tests.helpers import SMALL, make_dataset, problems


@pytest.fixture
def source(tmp_path):
    """Two splits, with a column beside image and label."""
    splits = {name: make_dataset(rows) for name, rows in (("train", 12), ("test", 5))}
    aged = {name: split.add_column("age", list(range(len(split)))) for name, split in splits.items()}
    DatasetDict(aged).save_to_disk(str(tmp_path / "plain"))
    return tmp_path / "plain"


@pytest.fixture
def again(source, tmp_path):
    """What encrypts `old` again under a new key, into `new`."""
    for name in ("old", "new"):
        SecretKey.generate().save(tmp_path / f"{name}.key")

    def run(*words, key="new"):
        given = ("--dataset", source, "--key-file", tmp_path / f"{key}.key", "--output", tmp_path / "new")
        return command("encrypt", "--like", tmp_path / "old", *given, *words)

    return run


def test_config_columns_labels_and_views_are_those_of_the_earlier_folder(again, source, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    made = encrypt(
        source, tmp_path / "old.key", old, "--views", 2, "--flip", "--keep-column", "age", "--hide-labels",
        "--scheme-option", "background=#102030",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    result = again()
    assert result.returncode == 0, result.stderr
    before, after = read_manifest(old), read_manifest(new)
    for name in ("config", "views", "rows"):
        assert after[name] == before[name]
    assert after["config"]["width"] == SMALL.width and after["rows"] == {"train": 24, "test": 5}
    assert after["key_id"] == SecretKey.load(tmp_path / "new.key").id != before["key_id"] and after["sealed_labels"]
    one, other = load_from_disk(str(old)), load_from_disk(str(new))
    assert one["test"].features == other["test"].features and not problems(new)
    assert sorted(one["test"]["age"]) == sorted(other["test"]["age"]) == list(range(5))


def test_it_needs_another_key(again, source, tmp_path):
    assert encrypt(source, tmp_path / "old.key", tmp_path / "old").returncode == 0
    assert_one_line_error(again(key="old"), "was encrypted with this very key: --like needs another one")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words", [("--scheme", "le"), ("--patch-size", 16), ("--scheme-option", "depth=3"), ("--views", 2), ("--flip",)]
)
def test_what_the_folder_says_is_not_said_again(words, again, source, tmp_path):
    assert encrypt(source, tmp_path / "old.key", tmp_path / "old").returncode == 0
    assert_one_line_error(again(*words), "--like takes scheme, sizes and views from", "leave these options out")


def test_a_source_that_changed_is_told(again, source, tmp_path):
    assert encrypt(source, tmp_path / "old.key", tmp_path / "old", "--max-rows", 3).returncode == 0
    assert_one_line_error(again(), "the source has other images now")


def test_folders_that_cannot_be_followed(again, source, tmp_path):
    assert_one_line_error(again(), "is not an encrypted dataset")
    assert encrypt(source, tmp_path / "old.key", tmp_path / "old").returncode == 0
    assert again().returncode == 0
    assert_one_line_error(again(), "already holds a finished encrypted dataset")


def test_another_scheme_is_followed(again, source, tmp_path):
    words = ("--dataset", source, "--key-file", tmp_path / "old.key", "--output", tmp_path / "old")
    made = command("encrypt", *words, "--scheme", "etc", "--scheme-option", "variant=madono", "--image-size", 32)
    assert made.returncode == 0, made.stderr
    assert again().returncode == 0
    assert read_manifest(tmp_path / "new")["config"] == read_manifest(tmp_path / "old")["config"]
    one, other = (load_from_disk(str(tmp_path / name))["test"] for name in ("old", "new"))
    assert isinstance(one, Dataset) and not np.array_equal(np.asarray(one[0]["image"]), np.asarray(other[0]["image"]))
