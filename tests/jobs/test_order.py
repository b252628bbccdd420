"""The order of rows: that of the source, or the key's, where the source's own would give labels away."""

import numpy as np
import pytest
from datasets import load_from_disk

from hf_neuracrypt import SecretKey, encrypt_dataset, load_encoder
from hf_neuracrypt.data.dataset import keyed_order, make_plan
from hf_neuracrypt.data.manifest import read_manifest
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from tests.helpers import SMALL, digests, make_dataset, pixels, stream_of, write, write_interrupted


BY_CLASS = {"train": make_dataset(150).sort("label")}


def test_rows_sorted_by_class_are_stored_in_the_keys_order(small_encoder, tmp_path):
    write(tmp_path / "encrypted", small_encoder, BY_CLASS)
    manifest, stored = read_manifest(tmp_path / "encrypted"), load_from_disk(str(tmp_path / "encrypted"))["train"]
    assert manifest["order"] == "keyed"
    order = list(keyed_order(small_encoder.key, manifest["source"]["train"], 150))
    assert sorted(order) == list(range(150)) != order
    assert stored["label"] == [BY_CLASS["train"]["label"][row] for row in order]
    straight = encrypt_dataset(BY_CLASS["train"].to_iterable_dataset(), small_encoder)
    np.testing.assert_array_equal(pixels(stored), pixels(straight)[order])
    assert len(set(stored["label"][:20])) == 3, "classes are mixed"


def test_the_order_is_the_same_whoever_does_the_work(small_encoder, tmp_path):
    """By `encrypt_dataset`, in one go, by a team, resumed."""
    write(tmp_path / "whole", small_encoder, BY_CLASS)
    write_interrupted(1, tmp_path / "resumed", small_encoder, BY_CLASS)
    write(tmp_path / "resumed", small_encoder, BY_CLASS)
    plan = make_plan(BY_CLASS, small_encoder, origin="made in code")
    team = Job(BY_CLASS, plan, tmp_path / "team", shard_bytes=250_000)
    assert [run(team, rank=rank, world_size=2) for rank in range(2)] == [False, True]
    assert digests(tmp_path / "whole") == digests(tmp_path / "resumed") == digests(tmp_path / "team")
    mapped, stored = encrypt_dataset(BY_CLASS["train"], small_encoder), load_from_disk(str(tmp_path / "whole"))["train"]
    assert mapped["label"] == stored["label"]
    np.testing.assert_array_equal(pixels(mapped), pixels(stored))


def test_another_key_is_another_order(small_encoder, key_file):
    other = load_encoder(SMALL, SecretKey.load(key_file))
    labels = [encrypt_dataset(BY_CLASS["train"], encoder)["label"] for encoder in (small_encoder, other)]
    assert labels[0] != labels[1] and sorted(labels[0]) == sorted(labels[1])


def test_mixed_rows_keep_their_order(small_encoder, tmp_path):
    mixed = {"train": make_dataset(70)}
    write(tmp_path / "encrypted", small_encoder, mixed)
    assert "order" not in read_manifest(tmp_path / "encrypted")
    assert load_from_disk(str(tmp_path / "encrypted"))["train"]["label"] == mixed["train"]["label"]


@pytest.mark.parametrize(
    "labels, keyed",
    [
        ([0, 0, 1, 1, 2, 2], True), ([2, 2, 1, 0, 0], True), ([1, 1, 2, 2, 2, 0], True), ([0, 1, 2], True),
        ([1, 0, 2], False), ([0, 0, 1, 0, 2], False), ([1, 1, 1], False), ([0], False),
    ],
)  # fmt: skip
def test_rows_that_come_class_by_class_are_known_whatever_the_order_of_classes(labels, keyed, small_encoder):
    plain = make_dataset(len(labels)).remove_columns("label").add_column("label", labels)
    assert make_plan({"train": plain}, small_encoder).keyed_order == keyed


def test_hidden_labels_are_in_the_keys_order(small_encoder):
    """Or the first row of each class, in a source whose order is known, would name it."""
    plain = make_dataset(60)
    hidden = encrypt_dataset(plain, small_encoder, hide_labels=True)
    assert make_plan({"train": plain}, small_encoder, hide_labels=True).keyed_order
    labels = list(hidden["label"])
    assert labels != [labels[row % 3] for row in range(60)]  # as the source's classes follow each other
    with pytest.raises(DatasetError, match="keyed order, which a stream cannot have"):
        make_plan({"train": stream_of(plain)}, small_encoder, hide_labels=True)


def test_a_bad_row_is_named_by_its_number_in_the_source(small_encoder, tmp_path):
    labels = list(BY_CLASS["train"]["label"])
    bad = BY_CLASS["train"].remove_columns("label").add_column("label", [*labels[:97], 7, *labels[98:]])
    bad.info.features["label"] = BY_CLASS["train"].features["label"]
    plan = make_plan({"train": bad}, small_encoder, hide_labels=True)
    with pytest.raises(DatasetError, match="row 97 cannot be encrypted: the label 7"):
        run(Job({"train": bad}, plan, tmp_path / "encrypted"))
