"""`encrypt --output hf://datasets/OWNER/NAME`: what `push` of a local folder publishes, without that folder."""

import os
import subprocess
import tempfile

import pytest
from datasets import Dataset, Image, load_from_disk

from hf_neuracrypt.training.data import load_splits
from tests.helpers import assert_one_line_error, command, encrypt, make_dataset, pixels, push, started_with


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
