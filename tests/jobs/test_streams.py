"""Jobs that read their source once: the rows of the dataset, in bounded memory, resumable."""

import numpy as np
import pytest
from datasets import IterableDataset, load_from_disk

from hf_neuracrypt.jobs.job import BATCH_SIZE, units_of
from hf_neuracrypt.jobs.writer import claim, write_unit
from tests.helpers import SPLITS, digests, job_of, make_dataset, pixels, problems, stream_of, write, write_interrupted


@pytest.mark.parametrize("shards", [1, 3])
def test_a_stream_gives_the_rows_of_the_dataset(shards, finished, small_encoder, tmp_path):
    splits = {name: stream_of(split, shards) for name, split in SPLITS.items()}
    write(tmp_path / "encrypted", small_encoder, splits)
    loaded, expected = load_from_disk(str(tmp_path / "encrypted")), load_from_disk(str(finished))
    for name in SPLITS:
        np.testing.assert_array_equal(pixels(loaded[name]), pixels(expected[name]))
        assert loaded[name]["label"] == expected[name]["label"]
    assert len(list((tmp_path / "encrypted" / "train").glob("*.arrow"))) == (4 if shards == 1 else 6)
    assert not problems(tmp_path / "encrypted")


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 5])
def test_an_interrupted_stream_continues_to_the_same_bytes(batches, small_encoder, tmp_path):
    splits = {"train": stream_of(SPLITS["train"]), "test": stream_of(SPLITS["test"], 2)}
    write(tmp_path / "whole", small_encoder, splits)
    write_interrupted(batches, tmp_path / "resumed", small_encoder, splits)
    write(tmp_path / "resumed", small_encoder, splits)
    assert digests(tmp_path / "resumed") == digests(tmp_path / "whole")


def test_a_stream_is_never_held(small_encoder, tmp_path):
    """When a row is read, all but the last few batches are already encrypted."""
    read, encrypted, largest = [0], [0], [0]

    def rows():
        for row in make_dataset(64):
            for _ in range(20):
                read[0] += 1
                largest[0] = max(largest[0], read[0] - encrypted[0])
                yield row

    splits = {"train": IterableDataset.from_generator(rows)}
    job = job_of(tmp_path / "encrypted", small_encoder, splits)
    assert claim(job)
    (unit,) = units_of(job)
    for _ in write_unit(job, unit, progress=lambda count: encrypted.__setitem__(0, encrypted[0] + count)):
        pass
    assert encrypted[0] == 1280 and largest[0] <= 4 * BATCH_SIZE


def test_an_empty_stream_shard(small_encoder, tmp_path):
    splits = {"train": stream_of(make_dataset(128)).filter(lambda row, index: index < 64, with_indices=True)}
    write(tmp_path / "encrypted", small_encoder, splits)
    assert len(load_from_disk(str(tmp_path / "encrypted"))["train"]) == 64
