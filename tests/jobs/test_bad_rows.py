"""Jobs with rows that cannot be encrypted: they stop there, or list them and go on."""

import json

import PIL.Image
import pytest
from datasets import Dataset, Image, load_from_disk

from hf_neuracrypt import SecretKey, load_encoder
from hf_neuracrypt.audit.load import load_pairs
from hf_neuracrypt.data.manifest import is_unfinished, read_manifest
from hf_neuracrypt.errors import DatasetError
from hf_neuracrypt.jobs.run import run
from tests.commands import encrypt
from tests.helpers import SMALL, job_of, make_dataset, problems, stream_of, write, write_interrupted


@pytest.fixture
def some_bad(tmp_path) -> dict[str, Dataset]:
    """130 rows, of which 3, 70 and 71 cannot be read. Labels fall from 129."""
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "good.png")
    (tmp_path / "jane_roe.png").write_bytes(b"not an image")
    names = ["jane_roe.png" if row in (3, 70, 71) else "good.png" for row in range(130)]
    rows = {"image": [str(tmp_path / name) for name in names], "label": [129 - row for row in range(130)]}
    return {"train": Dataset.from_dict(rows).cast_column("image", Image())}


@pytest.mark.parametrize("streamed", [False, True])
def test_skipped_rows_are_listed(streamed, some_bad, small_encoder, tmp_path):
    splits = {"train": stream_of(some_bad["train"])} if streamed else some_bad
    write(tmp_path / "encrypted", small_encoder, splits, max_bad_fraction=0.1)
    loaded = load_from_disk(str(tmp_path / "encrypted"))["train"]
    assert loaded["label"] == [129 - row for row in range(130) if row not in (3, 70, 71)]
    text = (tmp_path / "encrypted" / "rejected.jsonl").read_text()
    rejected = [json.loads(line) for line in text.splitlines()]
    assert [(each["split"], each["row"]) for each in rejected] == [("train", 3), ("train", 70), ("train", 71)]
    assert all("format" in each["reason"] for each in rejected) and "jane" not in text
    assert read_manifest(tmp_path / "encrypted")["rows"] == {"train": 127}
    assert not problems(tmp_path / "encrypted")


def test_too_many_bad_rows_stop_the_job(some_bad, small_encoder, tmp_path):
    with pytest.raises(DatasetError, match=r"2 of 130 rows .*--max-bad-fraction 0\.01|3 of 130 rows"):
        write(tmp_path / "encrypted", small_encoder, some_bad, max_bad_fraction=0.01)
    assert is_unfinished(tmp_path / "encrypted")
    write(tmp_path / "encrypted", small_encoder, some_bad, max_bad_fraction=0.5)


def test_a_bad_row_stops_and_leaves_a_resumable_folder(some_bad, small_encoder, tmp_path):
    with pytest.raises(DatasetError, match="row 3 cannot"):
        write(tmp_path / "encrypted", small_encoder, some_bad)
    with pytest.raises(DatasetError, match=r"row 7[01] cannot"):  # in the keyed order
        write(
            tmp_path / "later",
            small_encoder,
            {"train": some_bad["train"].select([0, *range(4, 130)]).select([0, 0, 0, 0, *range(1, 127)])},
        )
    PIL.Image.new("RGB", (20, 20)).save(tmp_path / "jane_roe.png")
    write(tmp_path / "encrypted", small_encoder, some_bad)
    assert len(load_from_disk(str(tmp_path / "encrypted"))["train"]) == 130
    assert not (tmp_path / "encrypted" / "rejected.jsonl").exists()


def test_views_of_a_stream_with_a_bad_row(some_bad, small_encoder, tmp_path):
    write(tmp_path / "encrypted", small_encoder, {"train": stream_of(some_bad["train"])}, max_bad_fraction=0.1, views=2)
    loaded = load_from_disk(str(tmp_path / "encrypted"))["train"]
    assert loaded["label"] == [129 - row for row in range(130) if row not in (3, 70, 71) for _ in range(2)]
    rejected = (tmp_path / "encrypted" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rejected] == [3, 70, 71]
    assert read_manifest(tmp_path / "encrypted")["rows"] == {"train": 254}
    assert not problems(tmp_path / "encrypted")


@pytest.mark.parametrize("shards", [None, 1, 3])
def test_the_bound_holds_in_every_run_and_at_the_end(shards, some_bad, small_encoder, tmp_path):
    """Also where an earlier run, which was allowed more, listed the rows; a larger bound completes the folder."""
    splits = {"train": stream_of(some_bad["train"], shards)} if shards else some_bad
    for folder, first in (("one", 0.01), ("other", 0.5)):
        if first == 0.01:
            for _ in range(2):
                with pytest.raises(DatasetError, match=r"of 130 rows .*--max-bad-fraction 0\.01 allows"):
                    write(tmp_path / folder, small_encoder, splits, max_bad_fraction=first)
        else:
            write_interrupted(2, tmp_path / folder, small_encoder, splits, max_bad_fraction=first)
        for bound in (0.0, 0.005):
            with pytest.raises(DatasetError, match=f"--max-bad-fraction {bound} allows|row 7[01] cannot be encrypted"):
                write(tmp_path / folder, small_encoder, splits, max_bad_fraction=bound)
        assert is_unfinished(tmp_path / folder)
        write(tmp_path / folder, small_encoder, splits, max_bad_fraction=0.5)
        assert read_manifest(tmp_path / folder)["rows"] == {"train": 127}


@pytest.mark.parametrize("team", [1, 3])
def test_rows_of_a_stream_are_numbered_as_the_splits(team, some_bad, small_encoder, tmp_path):
    splits = {"train": stream_of(some_bad["train"], 3)}  # 44, 43 and 43 rows
    job = job_of(tmp_path / "encrypted", small_encoder, splits, max_bad_fraction=0.1)
    assert [run(job, rank=rank, world_size=team) for rank in reversed(range(team))][-1]
    rejected = (tmp_path / "encrypted" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rejected] == [3, 70, 71]
    good_start = {"train": stream_of(some_bad["train"].select(range(4, 130)), 3)}
    with pytest.raises(DatasetError, match=r"row 24 of part 1 of the source cannot.*split train.*--max-bad-fraction"):
        write(tmp_path / "stopped", small_encoder, good_start)


def test_an_audit_of_a_stream_leaves_out_the_same_rows(key_file, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for index in range(2):
        rows = make_dataset(12, seed=index).cast_column("img", Image(decode=False))
        if index:
            rows = rows.map(lambda row, at: {"img": {"bytes": b"no"}} if at == 3 else {}, with_indices=True)
        rows.to_parquet(folder / f"train-{index}.parquet")
    assert encrypt(folder, key_file, tmp_path / "out", "--max-bad-fraction", "0.1").returncode == 3
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["row"] == 15
    encoder = load_encoder(SMALL, SecretKey.load(key_file))
    pairs = load_pairs(tmp_path / "out", str(folder), encoder, 100, 0)
    assert len(pairs) == 23 and not pairs.wrong
