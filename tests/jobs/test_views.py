"""Jobs with several rows for each training image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk

from hf_neuracrypt.data.manifest import read_manifest
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.images import make_views, prepare
from hf_neuracrypt.jobs.run import run
from tests.helpers import SHARD_BYTES, SMALL, SPLITS, digests, job_of, pixels, problems, write, write_interrupted


VIEWS = {"views": 3, "flip": True, "shard_bytes": 3 * SHARD_BYTES}


@pytest.fixture(scope="module")
def with_views(tmp_path_factory, small_encoder) -> Path:
    """SPLITS with three rows for each training image."""
    folder = tmp_path_factory.mktemp("views") / "encrypted"
    write(folder, small_encoder, **VIEWS)
    return folder


def test_views_follow_each_image_of_train(with_views, finished, small_encoder):
    loaded, alone = load_from_disk(str(with_views)), load_from_disk(str(finished))
    np.testing.assert_array_equal(pixels(loaded["train"])[::3], pixels(alone["train"]))
    np.testing.assert_array_equal(pixels(loaded["test"]), pixels(alone["test"]))
    assert loaded["train"]["label"] == [label for label in alone["train"]["label"] for _ in range(3)]
    plain = make_views(prepare(SPLITS["train"][100]["img"], SMALL), 3, flip=True)
    expected = small_encoder.encrypt(torch.from_numpy(np.stack(plain))).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pixels(loaded["train"])[300:303], expected)
    manifest = read_manifest(with_views)
    assert manifest["rows"] == {"train": 720, "test": 100} and manifest["views"] == {"count": 3, "flip": True}
    assert not problems(with_views)


def test_views_are_the_same_bytes_whoever_does_the_work(with_views, small_encoder, tmp_path):
    assert [run(job_of(tmp_path / "team", small_encoder, **VIEWS), rank=rank, world_size=3) for rank in range(3)][-1]
    write_interrupted(2, tmp_path / "resumed", small_encoder, **VIEWS)
    with pytest.raises(DatasetError, match="another views"):
        write(tmp_path / "resumed", small_encoder, **(VIEWS | {"flip": False}))
    write(tmp_path / "resumed", small_encoder, **VIEWS)
    assert digests(tmp_path / "team") == digests(tmp_path / "resumed") == digests(with_views)
