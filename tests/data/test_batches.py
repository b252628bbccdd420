"""Batches of images: the same bytes on any number of threads, an error for each image, and nothing left changed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_neuracrypt import load_encoder
from hf_neuracrypt.data import batches
from hf_neuracrypt.data.batches import cores, encrypt_all, encrypt_rows, prepare_all
from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.images import make_views, prepare
from hf_neuracrypt.schemes import make_config
from tests.helpers import SMALL, make_images


SOURCES = [*make_images(70, 20), b"no image"]
SCHEMES = {
    "color-neuracrypt": SMALL,
    "etc": make_config("etc", {"image_size": 32}),
    "neuracrypt": make_config("neuracrypt", {"image_size": 32, "patch_size": 8, "width": 16}),
}


@pytest.fixture(params=[1, 2, 5])
def threads(request, monkeypatch):
    """Torch may use so many threads, and the machine has as many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(batches, "cores", lambda: request.param)
    yield request.param
    torch.set_num_threads(before)


def plain(count: int) -> np.ndarray:
    return np.stack([prepare(source, SMALL) for source in SOURCES[:count]])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [0, 1, 16, 17, 70])
def test_rows_are_those_of_each_image_alone(scheme, count, threads, insecure_key):
    encoder = load_encoder(SCHEMES[scheme], insecure_key)
    rows = encrypt_rows(encoder, SOURCES[:count])
    assert [len(each) for each in rows] == [1] * count
    found = encoder.stored.arrays([row for (row,) in rows])
    alone = [encoder.encrypt(torch.from_numpy(image[None]))[0].numpy() for image in plain(70)[:count]]
    if encoder.config.exact:
        assert all(map(np.array_equal, found, alone))
    elif count:
        np.testing.assert_allclose(found, alone, atol=1e-4)


def test_ciphertexts_are_those_of_one_call(threads, small_encoder):
    for count in (0, 1, 33, 70):
        images = plain(70)[:count]
        expected = small_encoder.encrypt(torch.from_numpy(images)).numpy()
        np.testing.assert_array_equal(encrypt_all(small_encoder.encrypt, images), expected)
    assert torch.get_num_threads() == threads


def test_an_image_that_cannot_be_used_is_an_error_in_its_place(threads, small_encoder):
    sources = [SOURCES[0], b"", SOURCES[1], None, SOURCES[2]]
    bad = [False, True, False, True, False]
    prepared, rows = prepare_all(sources, SMALL), encrypt_rows(small_encoder, sources)
    assert [isinstance(each, ImageError) for each in prepared] == bad
    assert [isinstance(each, ImageError) for each in rows] == bad
    assert "supported format" in str(rows[1]) and "empty" in str(rows[3])
    np.testing.assert_array_equal(prepared[4], prepare(SOURCES[2], SMALL))
    assert rows[4] == encrypt_rows(small_encoder, [SOURCES[2]])[0]
    assert all(isinstance(each, ImageError) for each in encrypt_rows(small_encoder, [b"", b"x"]))


def test_views_follow_their_image(threads, small_encoder):
    sources = [*SOURCES[:20], b"", *SOURCES[20:30]]
    rows = encrypt_rows(small_encoder, sources, views=3, flip=True)
    assert isinstance(rows.pop(20), ImageError)
    for image, stored in zip(plain(30), rows, strict=True):
        expected = small_encoder.encrypt(torch.from_numpy(np.stack(make_views(image, 3, flip=True)))).numpy()
        np.testing.assert_array_equal(small_encoder.stored.arrays(stored), expected)


@pytest.mark.filterwarnings("ignore:batch_norm batch")
def test_a_scheme_that_looks_at_the_batch_gets_it_whole(threads, insecure_key):
    options = {"image_size": 32, "patch_size": 8, "width": 16, "batch_norm": "batch"}
    encoder = load_encoder(make_config("neuracrypt", options), insecure_key)
    rows = encrypt_rows(encoder, SOURCES[:40])
    expected = encoder.encrypt(torch.from_numpy(plain(40))).numpy()
    np.testing.assert_allclose(encoder.stored.arrays([row for (row,) in rows]), expected, atol=1e-4)


def test_the_callers_threads_are_as_before(threads, small_encoder):
    """Also after an error, which an encoder raises for images of another size."""
    prepare_all(SOURCES, SMALL)
    encrypt_rows(small_encoder, SOURCES)
    with pytest.raises(ImageError, match="takes a"):
        encrypt_all(small_encoder.encrypt, np.zeros((40, 3, 8, 8), np.uint8))
    assert torch.get_num_threads() == threads
    seen = []
    encrypt_all(lambda part: (seen.append(torch.get_num_threads()), small_encoder.encrypt(part))[1], plain(70))
    assert set(seen) == {1}, "each thread is alone with its images"


# ---------------------------------------------------------------------------------------------------------- the quota


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "9999999 100000"}, 64),
        ({"cpu.max": "nonsense"}, 64),
        ({"cpu.max": ""}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000"}, 64),
    ],
    ids=str,
)
def test_a_containers_quota_counts(files, expected, monkeypatch):
    """Both versions of control groups; on a machine of 64 cores."""

    def read_text(path: Path) -> str:
        name = str(path).removeprefix("/sys/fs/cgroup/")
        if name not in files:
            raise FileNotFoundError(path)
        return files[name] + "\n"

    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert cores() == expected
