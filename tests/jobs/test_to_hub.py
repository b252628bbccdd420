"""`encrypt --output hf://datasets/OWNER/NAME`: what `push` of a local folder publishes, without that folder."""

import os
import subprocess
import tempfile
from pathlib import Path

import dill
import pytest
from datasets import Dataset, Image, load_from_disk
from huggingface_hub import HfApi

from hf_neuracrypt import SecretKey
from hf_neuracrypt.data.manifest import read_manifest
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.publish.push import new_revision
from hf_neuracrypt.training.data import load_splits
from tests.commands import assert_one_line_error, command, encrypt, push, started_with
from tests.helpers import leaks, make_dataset, pixels, secret_of


REPO = "hf://datasets/owner/straight"


def straight(hub, owners, *words, source="plain", key="one.key", token="hf_owner"):
    environment = hub.environment(owners / "home", token)
    with started_with(environment):
        return encrypt(owners / source, owners / key, REPO, "--shard-size", 1, *words)


@pytest.fixture
def scratch(monkeypatch, tmp_path):
    """Where this process and those it starts have what is on its way."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("processes", [1, 2])
def test_the_same_repository_as_by_way_of_a_folder(processes, hub, owners, scratch):
    result = straight(hub, owners, "--num-proc", processes)
    assert result.returncode == 0, result.stderr
    assert push(hub, owners, "one", "owner/folder").returncode == 0
    one, other = (hub.files("dataset", f"owner/{name}") for name in ("straight", "folder"))
    for files in (one, other):
        files.pop("README.md")
    assert one == other and sum(name.startswith("data/") for name in one) >= 3
    assert len(hub.repos["dataset", "owner/straight"].commits) == 2, "the repository's own, and one"
    assert hub.repos["dataset", "owner/straight"].private
    assert not list(scratch.iterdir())


def test_an_upload_finds_one_file_on_the_disk(hub, owners, scratch, monkeypatch):
    """Ciphertexts as Parquet, and no longer as Arrow, which no mapping keeps on the disk."""
    seen, upload = [], HfApi.preupload_lfs_files

    def watched(*args, **options):
        files = [path.suffix for path in scratch.rglob("*") if path.suffix in (".arrow", ".parquet")]
        seen.append((files, "shard.arrow" in Path("/proc/self/maps").read_text()))
        return upload(*args, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", watched)
    assert straight(hub, owners).returncode == 0
    assert seen.pop() == ([], False), "the commit"
    assert len(seen) >= 3 and all(each == ([".parquet"], False) for each in seen)


def test_it_is_loaded_by_its_address(hub, owners, tmp_path):
    assert straight(hub, owners).returncode == 0
    with started_with(hub.environment(tmp_path / "home")):
        splits = load_splits([REPO], plain=False)
    local = load_from_disk(str(owners / "one"))
    assert (pixels(splits.data["test"]) == pixels(local["test"])).all()


def test_what_arrived_is_not_sent_again(hub, owners):
    """The machine that began is lost; another one encrypts again, and the Hub knows what it has."""
    hub.faults.append([r"PUT /storage", 2, 400])
    assert_one_line_error(straight(hub, owners), "the Hub", "owner/straight")
    assert hub.done("PUT", "/storage") == 2 and "neuracrypt.json" not in hub.files("dataset", "owner/straight")
    assert straight(hub, owners).returncode == 0
    shards = [name for name in hub.files("dataset", "owner/straight") if name.startswith("data/")]
    assert hub.done("PUT", "/storage") == len(shards)


@pytest.mark.parametrize(
    "fault", [[r"PUT /storage", 1, 503], [r"PUT /storage", 1, "lost"], [r"POST .*/commit", 0, "lost"]]
)
def test_what_the_client_mends_by_itself(fault, hub, owners):
    hub.faults.append(list(fault))
    result = straight(hub, owners)
    assert result.returncode == 0, result.stderr
    assert not hub.faults and "neuracrypt.json" in hub.files("dataset", "owner/straight")


@pytest.mark.parametrize("action, said", [(500, "the Hub has trouble with owner/straight"), ("race", "somebody else")])
def test_a_commit_that_fails_publishes_nothing(action, said, hub, owners):
    """Two that fill one repository at once: one commit is made, the other refused. The same again sends no shard."""
    hub.faults.append([r"POST .*/commit", 0, action])
    assert_one_line_error(straight(hub, owners), said, "try again")
    assert "neuracrypt.json" not in hub.files("dataset", "owner/straight")
    sent = hub.done("PUT", "/storage")
    assert straight(hub, owners).returncode == 0 and hub.done("PUT", "/storage") == sent


def test_what_a_killed_process_left_on_the_disk_goes(hub, owners, scratch):
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    for process in (ended.pid, os.getpid(), "page"):
        (scratch / f"neuracrypt-{process}-x").mkdir()
    (scratch / f"neuracrypt-{ended.pid}-x" / "data-0.arrow").write_bytes(bytes(9))
    assert straight(hub, owners).returncode == 0
    assert {path.name for path in scratch.iterdir()} == {f"neuracrypt-{os.getpid()}-x", "neuracrypt-page-x"}


def test_repositories_of_others(hub, owners):
    assert straight(hub, owners).returncode == 0
    assert_one_line_error(straight(hub, owners, key="two.key"), "holds images of the key")
    assert_one_line_error(straight(hub, owners, token="hf_other"), "your token may not write to owner/straight")
    assert_one_line_error(straight(hub, owners, "--world-size", 2), "leave --rank and --world-size out")


def test_a_repository_that_is_source_and_output(hub, owners):
    for name in (REPO, REPO.removeprefix("hf://datasets/")):
        assert_one_line_error(encrypt(name, owners / "one.key", REPO), "is or holds the source")


def test_a_bucket_of_the_hub_that_is_not_there(hub, owners):
    with started_with(hub.environment(owners / "home")):
        result = encrypt(owners / "plain", owners / "one.key", "hf://buckets/owner/none/out")
    assert_one_line_error(result, "hf://buckets/owner/none/out", "look at the name and your credentials")


def test_what_goes_to_other_machines_holds_no_token(hub, owners):
    record = Record.from_dict(read_manifest(owners / "one"))
    with started_with(hub.environment(owners / "home")):
        revision = new_revision("owner/straight", record, SecretKey.load(owners / "one.key"))
        packed = dill.dumps(revision.shipment.send)
    assert b"hf_owner" not in packed and not leaks(secret_of(owners / "one.key"), packed)


def test_rows_that_were_left_out_are_said(hub, owners, tmp_path):
    rows = make_dataset(20).cast_column("img", Image(decode=False)).to_list()
    rows[7]["img"] = {"bytes": b"", "path": None}
    Dataset.from_list(rows, features=make_dataset(1).features).save_to_disk(str(tmp_path / "bad"))
    result = straight(hub, owners, "--max-bad-fraction", 0.1, source=tmp_path / "bad")
    assert result.returncode == 3 and '"row": 7' in result.stderr, result.stderr


def test_it_is_verified_by_its_address(hub, owners, tmp_path):
    assert straight(hub, owners).returncode == 0
    environment = hub.environment(tmp_path / "home")
    assert command("verify", REPO, **environment).returncode == 0
    name = next(name for name in hub.files("dataset", "owner/straight") if name.startswith("data/test"))
    hub.files("dataset", "owner/straight")[name] = b"another file"
    damaged = command("verify", REPO, **environment)
    assert_one_line_error(damaged, "1 file(s)")
    assert f"{REPO}/{name} does not have its sha256" in damaged.stdout
