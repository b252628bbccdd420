"""Where a dataset comes from: folders, tables, archives, the Hub; whether it is encrypted already."""

import io
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
from datasets import DatasetDict, Image, load_from_disk

from hf_neuracrypt import cli
from hf_neuracrypt.data import sources
from hf_neuracrypt.data.manifest import MANIFEST
from hf_neuracrypt.data.sources import load_source, stored_record
from hf_neuracrypt.errors import DatasetError, HubError
from tests.commands import assert_one_line_error, command, encrypt
from tests.helpers import SMALL, SMALL_FLAGS, encoded, make_dataset, write


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


# ----------------------------------------------------------------------------------------------------------- containers


def test_tables_and_archives(key_file, tmp_path):
    """Parquet with and without the metadata of `datasets`, a folder of Parquet, a WebDataset tar: the same pixels."""
    plain = make_dataset(6, size=32)
    plain.to_parquet(tmp_path / "with.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "with.parquet").replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, tmp_path / "without.parquet")
    (tmp_path / "folder").mkdir()
    for index in range(2):
        pyarrow.parquet.write_table(table.slice(index * 3, 3), tmp_path / "folder" / f"train-{index}.parquet")
    with tarfile.open(tmp_path / "web.tar", "w") as tar:
        for index, row in enumerate(plain):
            for suffix, content in (("png", encoded(row["img"], "PNG")), ("cls", str(row["label"]).encode())):
                member = tarfile.TarInfo(f"jane{index}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    rows = []
    for name, flags in [
        ("with.parquet", ()), ("without.parquet", ()), ("folder", ()),
        ("web.tar", ("--image-column", "png", "--label-column", "cls")),
    ]:  # fmt: skip
        made = encrypt(tmp_path / name, key_file, tmp_path / f"out-{name}", *flags)
        assert made.returncode == 0, made.stderr
        loaded = load_from_disk(str(tmp_path / f"out-{name}"))["train"]
        rows.append([(row["label"], row["image"].tobytes()) for row in loaded])
        assert all(b"jane" not in path.read_bytes() for path in (tmp_path / f"out-{name}").rglob("*") if path.is_file())
    assert rows[0] == rows[1] == rows[2] == rows[3]


LAYOUTS = [
    "plain.parquet", "folder/plain.parquet", "folder/data/train-00000-of-00001.parquet", "folder/train/0.gpq",
    "folder/a.b/0.geoparquet", "folder/data/metadata-of-patients.parquet",
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_are_not_copied_into_the_cache_in_clear(layout, key_file, tmp_path):
    """Whatever kind of table `datasets` knows, wherever in a folder."""
    (tmp_path / layout).parent.mkdir(parents=True, exist_ok=True)
    make_dataset(6, size=32).to_parquet(tmp_path / layout)
    made = command(
        "encrypt", "--dataset", tmp_path / layout.split("/")[0], "--key-file", key_file, "--output", tmp_path / "out",
        *SMALL_FLAGS, HF_HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert not list((tmp_path / "home").rglob("*.arrow"))
    assert load_from_disk(str(tmp_path / "out"))["train"].num_rows == 6


def test_a_table_that_changed_is_another_source(key_file, tmp_path):
    make_dataset(6, size=32).to_parquet(tmp_path / "plain.parquet")
    bad = make_dataset(6, size=32).cast_column("img", Image(decode=False))
    bad = bad.map(lambda row, index: {"img": {"bytes": b"", "path": None}} if index == 5 else {}, with_indices=True)
    bad.to_parquet(tmp_path / "plain.parquet")
    assert_one_line_error(encrypt(tmp_path / "plain.parquet", key_file, tmp_path / "out"), "row 5 cannot")
    make_dataset(6, size=32).to_parquet(tmp_path / "plain.parquet")
    assert_one_line_error(encrypt(tmp_path / "plain.parquet", key_file, tmp_path / "out"), "another source")


def test_damaged_containers_are_one_line(key_file, tmp_path):
    plain = make_dataset(6, size=32)
    plain.to_parquet(tmp_path / "plain.parquet")
    content = (tmp_path / "plain.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.parquet").write_bytes(b"PAR1 is how it starts")
    (tmp_path / "empty.parquet").write_bytes(b"")
    plain.save_to_disk(str(tmp_path / "saved"))
    (shard,) = (tmp_path / "saved").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:100])
    (tmp_path / "nothing").mkdir()
    DatasetDict({"train": plain.select([])}).save_to_disk(str(tmp_path / "no-rows"))
    for name in ("cut.parquet", "text.parquet", "empty.parquet", "saved", "nothing", "no-rows"):
        result = encrypt(tmp_path / name, key_file, tmp_path / "out")
        assert_one_line_error(result)
        assert not (tmp_path / "out" / MANIFEST).exists()
