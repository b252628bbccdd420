"""Encrypted datasets to the Hub and back, with the real clients, on a loopback Hub."""

import io
import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import DatasetCard, HfApi

from hf_neuracrypt.data.manifest import parse_manifest, read_manifest
from hf_neuracrypt.data.record import records_of
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.publish.guard import Guard
from hf_neuracrypt.publish.shards import write_parquet
from tests.commands import assert_one_line_error, command, load_script, notes, push, started_with
from tests.helpers import SMALL, SMALL_FLAGS, key_id, make_dataset, make_images, write


def test_what_is_published(published, owners):
    files = published.files("dataset", "owner/photos")
    shards = sorted(name for name in files if name.startswith("data/"))
    assert shards[-1].startswith("data/train-") and len(shards) > 2
    assert set(files) == {*shards, "README.md", "neuracrypt.json", ".gitattributes"}
    assert published.repos["dataset", "owner/photos"].private
    manifest = parse_manifest(files["neuracrypt.json"].decode(), "it")
    assert manifest["key_id"] == key_id(owners / "one.key") and manifest["rows"] == {"train": 300, "test": 30}
    assert set(manifest["files"]) == set(shards)
    for name in shards:
        table = pq.read_table(io.BytesIO(files[name]))
        assert table.column_names == ["image", "label"] and len(table) == manifest["files"][name]["rows"]
        assert not any(row["path"] for row in table["image"].to_pylist())
    guard, source = Guard(SecretKey.load(owners / "one.key"), config=SMALL), read_manifest(owners / "one")["source"]
    for name, content in [*files.items(), *published.blobs.items()]:
        guard.check_bytes(content, name)
        assert str(owners).encode() not in content and not any(tag.encode() in content for tag in source.values())
    card = DatasetCard(files["README.md"].decode())
    assert manifest["key_id"] in card.text and card.data.to_dict()["configs"][0]["data_files"]


def test_stock_datasets_loads_and_streams_it(published, owners):
    with started_with(published.environment(owners / "home")):
        loaded = datasets.load_dataset("owner/photos", cache_dir=str(owners / "cache"))
        stream = datasets.load_dataset("owner/photos", cache_dir=str(owners / "cache"), streaming=True)
        rows = [[row["image"].tobytes() for row in split] for split in (loaded["train"], stream["train"])]
    local = datasets.load_from_disk(str(owners / "one"))
    assert rows[0] == rows[1] == [row["image"].tobytes() for row in local["train"]]
    assert loaded["test"]["label"][:] == local["test"]["label"][:]
    # The record travels with the data.
    assert loaded["train"].info.description == local["train"].info.description


def test_parquet_files_are_small_and_the_same_each_time(tmp_path, small_encoder):
    """zstd, in pieces cut by content and listed in an index; nothing is lost."""
    write(tmp_path / "encrypted", small_encoder, {"train": make_dataset(128)})
    shard = Dataset.from_file(str(next((tmp_path / "encrypted" / "train").glob("*.arrow"))))
    write_parquet(shard, tmp_path / "one.parquet")
    write_parquet(shard, tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert (tmp_path / "one.parquet").stat().st_size < 0.95 * sum(
        len(row["bytes"]) for row in shard.data["image"].to_pylist()
    )
    read = Dataset.from_parquet(str(tmp_path / "one.parquet"), cache_dir=str(tmp_path / "cache"))
    assert read.features == shard.features and read.with_format("arrow")[:].to_pydict() == shard.data.table.to_pydict()
    column = pq.ParquetFile(tmp_path / "one.parquet").metadata.row_group(0).column(0)
    assert column.compression == "ZSTD" and column.has_offset_index


def test_what_a_push_says(hub, owners):
    """What goes where, and what to run next, with the owner's name where none was given."""
    result = push(hub, owners, "one", "photos", "--key-file", owners / "one.key")
    before, published, *following = (line for line in notes(result) if not line.startswith("shard.parquet"))
    images = "train 300 images, test 30 images"
    assert before == f"Publishing {owners / 'one'} ({images}) in the private repository photos."
    assert published == "Published. Next, on a rented GPU:" and "owner/photos/commit/" in result.stdout
    flags = " ".join(following).replace("\\", "").split()
    assert flags[:6] == ["hf", "jobs", "uv", "run", "scripts/train.py", "--dataset_name"] and flags[6] == "owner/photos"
    named = [*flags[5:], "unknown-model"]
    with started_with(hub.environment(owners / "home")):
        _, data_args, training_args = load_script("train").parse([word for word in named if word != "…"])
    assert data_args.dataset_name == ["owner/photos"] and training_args.hub_model_id == "owner/photos-model"


def test_a_failed_upload_resumes_without_sending_again(hub, owners):
    hub.faults.append([r"PUT /storage", 1, 400])
    assert_one_line_error(push(hub, owners, "one", "owner/photos"), "the Hub", "owner/photos")
    assert list(hub.files("dataset", "owner/photos")) == [".gitattributes"] and hub.done("PUT", "/storage") == 1
    assert push(hub, owners, "one", "owner/photos").returncode == 0
    shards = [name for name in hub.files("dataset", "owner/photos") if name.startswith("data/")]
    assert hub.done("PUT", "/storage") == len(shards)


def test_a_lost_answer_to_the_commit_is_no_failure(hub, owners):
    hub.faults.append([r"POST .*/commit/", 0, "lost"])
    result = push(hub, owners, "one", "owner/photos")
    assert result.returncode == 0, result.stderr
    commits = hub.repos["dataset", "owner/photos"].commits
    assert len(commits) == 2 and commits[-1][0] in result.stdout


def test_of_two_that_push_at_once_one_is_told(hub, owners):
    hub.faults.append([r"POST .*/commit/", 0, "race"])
    assert_one_line_error(push(hub, owners, "one", "owner/photos"), "somebody else published to owner/photos")
    assert "neuracrypt.json" not in hub.files("dataset", "owner/photos")


def test_a_new_revision_replaces_the_old_shards(hub, owners, tmp_path):
    assert push(hub, owners, "one", "owner/photos").returncode == 0
    SecretKey.generate().save(tmp_path / "new.key")
    again = command(
        "encrypt", "--like", owners / "one", "--dataset", owners / "plain", "--key-file", tmp_path / "new.key",
        "--output", tmp_path / "new",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    replaced = push(hub, tmp_path, "new", "owner/photos", "--replace-key")
    assert replaced.returncode == 0 and "stays readable to whoever has it" in replaced.stderr, replaced.stderr
    files = hub.files("dataset", "owner/photos")
    manifest = parse_manifest(files["neuracrypt.json"].decode(), "it")
    assert manifest["key_id"] == key_id(tmp_path / "new.key")
    assert {name for name in files if name.startswith("data/")} == set(manifest["files"])
    assert manifest["config"] == read_manifest(owners / "one")["config"]
    assert len(hub.repos["dataset", "owner/photos"].commits) == 3
    refused = push(hub, owners, "one", "owner/photos")
    assert_one_line_error(refused, "holds images of the key", key_id(owners / "one.key"), "--replace-key")


def test_where_nobody_meant_to_write(hub, owners):
    environment = hub.environment(owners / "home")
    with started_with(environment):
        api = HfApi()
        api.create_repo("owner/open", repo_type="dataset", private=False)
        api.create_repo("owner/taken", repo_type="dataset", private=True)
        api.upload_file(path_or_fileobj=b"a,b", path_in_repo="table.csv", repo_id="owner/taken", repo_type="dataset")
    assert_one_line_error(push(hub, owners, "one", "owner/open"), "owner/open is public: give --public")
    assert_one_line_error(push(hub, owners, "one", "owner/taken"), "holds something else than an encrypted dataset")
    assert_one_line_error(push(hub, owners, "one", "other/photos"), "your token may not write to other/photos")
    assert_one_line_error(push(hub, owners, "one", "a/b/c"), "'a/b/c' is no name of a repository")
    offline = command("push", owners / "one", "owner/photos", **environment | {"HF_HUB_OFFLINE": "1"})
    assert_one_line_error(offline, "HF_HUB_OFFLINE is set")
    wrong = push(hub, owners, "one", "owner/photos", "--key-file", owners / "two.key")
    assert_one_line_error(wrong, "this key is", key_id(owners / "two.key"))
    assert ("dataset", "owner/photos") not in hub.repos
    public = push(hub, owners, "one", "owner/open", "--public", "--gated")
    assert public.returncode == 0 and hub.repos["dataset", "owner/open"].gated == "manual"


@pytest.mark.parametrize(
    "plant, reason",
    [
        (lambda folder: (folder / ".env").write_text("x"), "hidden file"),
        (lambda folder: (folder / "before-after.png").write_bytes(b"x"), "not on the list of files that are published"),
        (lambda folder: SecretKey.generate().save(folder / "train" / "notes.txt"), "text of a secret key file"),
    ],
)
def test_a_folder_with_something_else_is_refused(plant, reason, hub, owners, tmp_path):
    shutil.copytree(owners / "one", tmp_path / "copy")
    plant(tmp_path / "copy")
    assert_one_line_error(push(hub, tmp_path, "copy", "owner/photos"), reason)
    assert not hub.log


def test_kept_columns_are_published_only_when_named(hub, owners, tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"]), "age": datasets.Value("int64")})
    rows = Dataset.from_dict({"image": list(make_images(2, 20)), "label": [0, 1], "age": [50, 60]}, features=features)
    rows.save_to_disk(str(tmp_path / "plain"))
    encrypt = command(
        "encrypt", "--dataset", tmp_path / "plain", "--key-file", owners / "one.key", "--output", tmp_path / "kept",
        "--keep-column", "age", *SMALL_FLAGS,
    )  # fmt: skip
    assert encrypt.returncode == 0, encrypt.stderr
    refused = push(hub, tmp_path, "kept", "owner/photos")
    assert_one_line_error(refused, "column 'age', stored in clear", "--keep-column age")
    assert push(hub, tmp_path, "kept", "owner/photos", "--keep-column", "age").returncode == 0
    assert "publish `age` in clear" in hub.files("dataset", "owner/photos")["README.md"].decode()


@pytest.mark.parametrize(
    "scheme, shape, options",
    [
        ("pe", (32, 32, 3), ()),
        ("neuracrypt", (16, 64), ("--patch-size", 8, "--scheme-option", "width=64", "--scheme-option", "depth=1")),
    ],
)
def test_other_schemes_are_published_alike(scheme, shape, options, hub, owners, tmp_path):
    encrypt = command(
        "encrypt", "--dataset", owners / "plain", "--key-file", owners / "one.key", "--output", tmp_path / "other",
        "--scheme", scheme, "--max-rows", 3, "--image-size", 32, *options,
    )  # fmt: skip
    assert encrypt.returncode == 0, encrypt.stderr
    result = push(hub, tmp_path, "other", "owner/other", "--key-file", owners / "one.key")
    assert result.returncode == 0, result.stderr
    with started_with(hub.environment(tmp_path / "home")):
        loaded = datasets.load_dataset("owner/other", cache_dir=str(tmp_path / "cache"))
    assert np.asarray(loaded["train"][0]["image"]).shape == shape
    assert records_of(loaded)[0].config.scheme == scheme
