"""An encrypted dataset on disk: what it holds, and that any change of it is found."""

import functools
import hashlib
import json
import operator
import os
import random
import shutil

import numpy as np
import pytest
from datasets import DatasetDict, load_from_disk

from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.manifest import (
    MANIFEST,
    checksum,
    parse_manifest,
    read_manifest,
    to_text,
    views_of,
)
from hf_neuracrypt.data.places import atomic_write
from hf_neuracrypt.data.record import Record, records_of
from hf_neuracrypt.errors import DatasetError, NeuraCryptError
from tests.commands import assert_one_line_error, command
from tests.helpers import SMALL, SPLITS, digests, leaks, problems


def test_layout_and_content(finished, small_encoder):
    shards = [f"train/data-0000{i}.arrow" for i in range(4)] + [f"test/data-0000{i}.arrow" for i in range(2)]
    small = [f"{split}/{name}" for split in SPLITS for name in ("dataset_info.json", "state.json")]
    assert sorted(digests(finished)) == sorted(["neuracrypt.json", "dataset_dict.json", *shards, *small])
    loaded = load_from_disk(str(finished))
    assert isinstance(loaded, DatasetDict)
    assert {name: len(split) for name, split in loaded.items()} == {"train": 240, "test": 100}
    assert loaded["train"].split == "train" and loaded["train"]["label"] == SPLITS["train"]["label"]
    plan = make_plan(SPLITS, small_encoder)
    whole = plan.apply("train", SPLITS["train"], plan.rows("train"))
    for row, expected in zip(loaded["train"], whole):
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(expected["image"]))
    assert [record.key_id for record in records_of(loaded)] == [small_encoder.key.id]


def test_manifest(finished, small_encoder):
    manifest = read_manifest(finished)
    assert manifest["key_id"] == small_encoder.key.id and manifest["config"] == SMALL.to_dict()
    assert manifest["rows"] == {"train": 240, "test": 100}
    for file, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((finished / file).read_bytes()).hexdigest()
    for path in finished.rglob("*.json"):
        assert not leaks(bytes(range(32)), path.read_bytes())


def test_a_link_in_the_way_is_not_written_through(tmp_path):
    """Of a name that can be guessed, in a folder that others may have prepared."""
    link = tmp_path / f".audit.html.{os.getpid()}.tmp"
    link.symlink_to(tmp_path / "elsewhere")
    atomic_write(tmp_path / "audit.html", "a picture")
    assert (tmp_path / "audit.html").read_text() == "a picture" and not (tmp_path / "audit.html").is_symlink()
    assert os.listdir(tmp_path) == ["audit.html"]


# ------------------------------------------------------------------------------------------------------------- verify


def copy_of(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_verify_accepts_what_was_written(finished):
    assert not problems(finished)


def test_verify_finds_any_flipped_bit(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    generator = np.random.default_rng(0)
    for name in digests(folder):
        path = folder / name
        content = path.read_bytes()
        for position in [0, len(content) - 1, *generator.integers(0, len(content), 5)]:
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(generator.integers(8))
            path.write_bytes(damaged)
            if name == MANIFEST:
                with pytest.raises(DatasetError, match=r"neuracrypt\.json is damaged"):
                    problems(folder)
            else:
                assert list(problems(folder)) == [name]
        path.write_bytes(content)
    assert not problems(folder)


def test_verify_finds_changes_that_json_does_not_see(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace("  ", " \t", 1))
    with pytest.raises(DatasetError, match="fails its own checksum"):
        problems(folder)


def test_names_of_files_do_not_steer_the_terminal(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    (folder / "train" / "\x1b]0;pwned\x07\udcff.png").write_bytes(b"")
    found = command("verify", folder)
    assert_one_line_error(found, "1 file(s)")
    assert found.stdout == f"{folder}/train/\ufffd]0;pwned\ufffd\ufffd.png is not in the manifest\n"
    manifest = read_manifest(finished)
    manifest["files"]["\x1b[2J\ud800.arrow"] = {"sha256": "0"}
    with pytest.raises(DatasetError, match="not inside its folder"):
        parse_manifest(to_text(manifest | {"sha256": checksum(manifest)}), "it")


def test_verify_names_missing_and_foreign_files(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    os.remove(folder / "test" / "state.json")
    (folder / "train" / "jane.png").write_bytes(b"")
    assert problems(folder) == {"test/state.json": "is missing", "train/jane.png": "is not in the manifest"}


@pytest.mark.parametrize("content", ["", "{", "[]", "null", json.dumps({"neuracrypt": 1}), "x" * 1000])
def test_hostile_manifests(content, finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    (folder / MANIFEST).write_text(content)
    with pytest.raises(DatasetError, match="damaged"):
        read_manifest(folder)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_manifest_that_never_ends_is_not_read(kind, tmp_path):
    path = tmp_path / MANIFEST
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with pytest.raises(DatasetError, match="is no regular file"):
        read_manifest(tmp_path)


ODD = [
    None, True, -1, 0, 10**30, 1e308, float("nan"), "", "x" * 99, "../../x", "\ud800\x1b[2J", [], {}, [[]],
    {"a": [None]},
]  # fmt: skip


def places_in(content, above=()):
    """Where something stands in nested dicts and lists."""
    yield above
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from places_in(content[key], (*above, key))


def mutated(content, generator: random.Random):
    """A copy with one to three values taken away, exchanged for odd ones, or under other names."""
    content = json.loads(json.dumps(content))
    for _ in range(generator.randint(1, 3)):
        *above, last = generator.choice([place for place in places_in(content) if place])
        inside = functools.reduce(operator.getitem, above, content)
        value, action = generator.choice(ODD), generator.choice(("exchange", "exchange", "remove", "rename", "add"))
        if action == "exchange":
            inside[last] = value
        elif action == "add" and isinstance(inside, dict):
            inside[f"new{generator.random()}"] = value
        else:
            taken = inside.pop(last)
            if action == "rename" and isinstance(inside, dict):
                inside[str(value)] = taken
    return content


def test_mutated_manifests_are_an_error_or_a_manifest(finished):
    """A stranger's, whose checksum is right: what is not refused can be used."""
    good, generator, accepted = read_manifest(finished), random.Random(0), 0
    for _ in range(3_000):
        content = mutated(good, generator)
        try:
            manifest = parse_manifest(to_text(content | {"sha256": checksum(content)}), "it")
        except NeuraCryptError as error:
            assert "\n" not in str(error)
            continue
        accepted += 1
        record = Record.from_dict(manifest)
        assert record == Record.from_dict(record.to_dict()) and views_of(manifest, "train") >= 1
        assert all((finished / file).resolve().is_relative_to(finished.resolve()) for file in manifest["files"])
        assert all(count >= 0 for count in manifest["rows"].values())
    assert 100 < accepted < 2_900


@pytest.mark.parametrize(("count", "flip"), [(0, False), (True, False), ("2", False), (3, 1), (7, True)])
def test_views_that_cannot_be(count, flip, finished):
    """A stranger's manifest may say anything; 240 rows are not seven views of each image."""
    manifest = read_manifest(finished) | {"views": {"count": count, "flip": flip}}
    with pytest.raises(DatasetError, match=r"how many views|not 7 for each"):
        parse_manifest(to_text(manifest | {"sha256": checksum(manifest)}), "it")
