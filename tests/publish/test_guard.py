"""A key planted anywhere in what would be published is found; clean folders pass."""

import base64
import bz2
import gzip
import hashlib
import io
import json
import lzma
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import save_file

from hf_neuracrypt.data.manifest import MANIFEST, UNFINISHED, read_manifest
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import LeakError
from hf_neuracrypt.images import to_png
from hf_neuracrypt.keys import PLAIN_PREFIX, SecretKey
from hf_neuracrypt.publish.guard import CHECKPOINT_FILES, MODEL_FILES, Guard, find_key_file
from tests.helpers import SMALL, batch, encoded, make_images, save_model


SECRET = hashlib.sha256(b"insecure").digest()
KEY = SecretKey(SECRET)
KEY_TEXT = f"{PLAIN_PREFIX}{base64.b32encode(SECRET + b'abc').decode()}".encode()
COLUMNS = ("image", "label")
FEATURES = Features({"image": Image(), "label": Value("int64")})


@pytest.fixture
def model_folder(tmp_path):
    """Every kind of file that a trained model is published with."""
    folder = tmp_path / "model"
    (folder / "runs" / "today").mkdir(parents=True)
    save_file({"weight": torch.arange(64.0)}, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "trainer_state.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps({"model_type": "vit", "values": list(range(64))}))
    (folder / "all_results.json").write_text(json.dumps({"eval_accuracy": 0.9, "epoch": 5}))
    (folder / "README.md").write_text("# A model\n")
    for name in ("training_args.bin", "optimizer.pt"):
        torch.save({"learning_rate": 1e-4, "state": torch.zeros(8)}, folder / name)
    (folder / "runs" / "today" / "events.out.tfevents.1.host").write_bytes(
        (12).to_bytes(8, "little") + bytes(range(256))
    )
    return folder


def test_a_clean_folder_passes(model_folder):
    Guard(KEY, ["hf_token"]).check_folder(model_folder, CHECKPOINT_FILES)
    assert find_key_file(model_folder) is None


def _in_config(folder):
    (folder / "config.json").write_text(json.dumps({"seed": SECRET.hex()}))


def _in_card(folder):
    with open(folder / "README.md", "a") as file:
        file.write(f"Decrypt with {PLAIN_PREFIX}ABCDEF\n")


def _in_weights_metadata(folder):
    text = base64.b64encode(b"x" + SECRET + b"yy").decode()
    save_file({"weight": torch.zeros(4)}, folder / "model.safetensors", metadata={"note": text})


def _in_weights(folder):
    save_file({"weight": torch.tensor(list(bytes(7) + SECRET), dtype=torch.uint8)}, folder / "model.safetensors")


def _in_arguments(folder):
    torch.save({"key": SECRET.hex().upper()}, folder / "training_args.bin")


def _in_pickled_bytes(folder):
    torch.save({"key": SECRET}, folder / "optimizer.pt")


def _in_state(folder):
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"key": list(SECRET)}]}))


def _in_log(folder):
    (folder / "runs" / "today" / "events.out.tfevents.1.host").write_bytes(bytes(99) + SECRET)


def _in_results(folder):
    (folder / "all_results.json").write_text(json.dumps({"args": f"--key {base64.urlsafe_b64encode(SECRET).decode()}"}))


def _in_a_name(folder):
    shutil.copy(folder / "README.md", folder / "runs" / "today" / f"events.out.tfevents.{SECRET.hex()}")


def _as_utf_16(folder):
    (folder / "preprocessor_config.json").write_bytes(f"{PLAIN_PREFIX}ABC".encode("utf-16"))


def _as_a_number(folder):
    (folder / "config.json").write_text(json.dumps({"seed": int.from_bytes(SECRET, "big")}))


def _as_the_key_file(folder):
    KEY.save(folder / "runs" / "today" / "events.out.tfevents.2.host", passphrase="four words")


PLACES = [
    _in_config, _in_card, _in_weights_metadata, _in_weights, _in_arguments, _in_pickled_bytes, _in_state, _in_log,
    _in_results, _in_a_name, _as_utf_16, _as_a_number, _as_the_key_file,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLACES, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_key_is_found(plant, model_folder):
    plant(model_folder)
    with pytest.raises(LeakError, match="secret key"):
        Guard(KEY).check_folder(model_folder, CHECKPOINT_FILES)


def test_without_the_key_its_file_is_still_found(model_folder):
    _as_the_key_file(model_folder)
    with pytest.raises(LeakError, match="text of a secret key file"):
        Guard().check_folder(model_folder, CHECKPOINT_FILES)
    assert find_key_file(model_folder).name == "events.out.tfevents.2.host"


def test_the_error_does_not_repeat_the_key(model_folder):
    _in_a_name(model_folder)
    with pytest.raises(LeakError) as caught:
        Guard(KEY).check_folder(model_folder, CHECKPOINT_FILES)
    assert SECRET.hex() not in str(caught.value)


def test_a_key_across_two_pieces_of_a_large_file_is_found(model_folder, monkeypatch):
    monkeypatch.setattr("hf_neuracrypt.publish.guard.CHUNK_BYTES", 5_000)
    (model_folder / "config.json").write_text("x" * 4_990 + SECRET.hex())
    with pytest.raises(LeakError, match=r"config.json holds the secret key \(hexadecimal digits\)"):
        Guard(KEY).check_folder(model_folder, CHECKPOINT_FILES)


def test_what_was_really_written_passes(owners, tmp_path):
    """An encrypted folder and a saved model, searched for the very key that made them."""
    key, manifest = SecretKey.load(owners / "one.key"), read_manifest(owners / "one")
    record = Record.from_dict(manifest)
    guard = Guard(key, ["hf_token"], record.config)
    guard.check_folder(owners / "one", [*manifest["files"], MANIFEST], [UNFINISHED])
    save_model(tmp_path / "model", ["cat", "dog", "horse"], record)
    guard.check_folder(tmp_path / "model", MODEL_FILES)


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, lambda data: gzip.compress(bz2.compress(data))]
)
def test_archives_are_looked_into(pack, model_folder):
    (model_folder / "README.md").write_bytes(pack(KEY_TEXT))
    with pytest.raises(LeakError, match="holds the text of a secret key file"):
        Guard().check_folder(model_folder, CHECKPOINT_FILES)
    inner, outer = io.BytesIO(), io.BytesIO()
    for file, name, data in ((inner, "key", KEY_TEXT), (outer, "inner.zip", None)):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data or inner.getvalue())
    (model_folder / "README.md").write_text("# A model\n")
    (model_folder / "training_args.bin").write_bytes(outer.getvalue())
    with pytest.raises(LeakError, match="holds the text of a secret key file"):
        Guard().check_folder(model_folder, CHECKPOINT_FILES)


@pytest.mark.parametrize("text", [KEY_TEXT.lower(), KEY_TEXT.title(), KEY_TEXT.decode().encode("utf-32-le")])
def test_the_line_of_a_key_file_is_found_however_it_is_written(text):
    with pytest.raises(LeakError, match="holds the text of a secret key file"):
        Guard().check_bytes(b"x" * 50 + text, "it")


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return file.getvalue()


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("notes/patients_results.json", b"{}", "not on the list"),
        ("patients_results.json", b"{}", "not on the list"),
        ("runs/a/b/events.out.tfevents.1.host", b"", "not on the list"),
        ("eval_results.json", b'{"patient": "Jane Roe"}', "not what its name says"),
        ("train_results.json", b'{"loss": {"Jane Roe": 1}}', "not what its name says"),
        ("all_results.json", b'["Jane Roe"]', "not what its name says"),
        ("last-checkpoint/config.json", b"{}", "not on the list"),
        ("runs/config.json", b"{}", "not on the list"),
        ("optimizer.pt", b"PK Jane Roe", "not what its name says"),
        ("optimizer.pt", zipped("Jane Roe.png"), "not what its name says"),
        ("training_args.bin", zipped("archive/data.pkl", "archive/data/Jane Roe"), "not what its name says"),
        ("config.json", b"Jane Roe", "not what its name says"),
        ("model.safetensors", encoded(PILImage.new("RGB", (64, 64)), "PNG"), "not what its name says"),
        ("training_args.bin", b"Jane Roe", "not what its name says"),
        ("runs/today/events.out.tfevents.2.host", b"Jane Roe, born in spring", "not what its name says"),
    ],
)
def test_names_are_matched_part_by_part_and_contents_must_be_theirs(name, content, reason, model_folder):
    (model_folder / name).parent.mkdir(parents=True, exist_ok=True)
    (model_folder / name).write_bytes(content)
    with pytest.raises(LeakError, match=reason):
        Guard().check_folder(model_folder, CHECKPOINT_FILES)


def test_an_access_token_is_found(model_folder):
    torch.save({"hub_token": "hf_abcdef"}, model_folder / "training_args.bin")
    with pytest.raises(LeakError, match=r"training_args.bin holds an access token"):
        Guard(tokens=["hf_abcdef", None]).check_folder(model_folder, CHECKPOINT_FILES)


@pytest.mark.parametrize(
    "name, reason",
    [(".env", "hidden file"), ("photo.png", "not on the list"), ("notes.txt", "not on the list"),
     ("optimizer.pt", "not on the list"), ("runs/today/.secret", "hidden file"), ("code.py", "not on the list")],
)  # fmt: skip
def test_what_is_not_on_the_list_is_refused(name, reason, model_folder):
    (model_folder / "optimizer.pt").unlink()
    Guard().check_folder(model_folder, MODEL_FILES)
    (model_folder / name).write_bytes(b"anything")
    with pytest.raises(LeakError, match=reason):
        Guard().check_folder(model_folder, MODEL_FILES)


def test_a_link_is_refused(model_folder):
    (model_folder / "config.json").unlink()
    (model_folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(LeakError, match="is a link"):
        Guard().check_folder(model_folder, CHECKPOINT_FILES)


# ------------------------------------------------------------------------------------------------------ rows


@pytest.fixture
def table(small_encoder):
    """Four rows as `encrypt` writes them."""
    images = small_encoder.stored.rows(small_encoder.encrypt(batch(make_images(4, 32))))
    return Dataset.from_dict({"image": images, "label": [0, 1, 2, 0]}, features=FEATURES).data.table


def replaced(table, row, image):
    images = table.column("image").to_pylist()
    images[row] = image
    return table.set_column(0, "image", pa.array(images, table.schema.field("image").type))


def test_encrypted_rows_pass(table):
    Guard(KEY).check_rows(table, "train", COLUMNS, SMALL)


def test_an_image_path_is_refused(table):
    named = replaced(table, 2, {"bytes": table["image"][0].as_py()["bytes"], "path": "jane_roe.png"})
    with pytest.raises(LeakError, match="row 12 of train keeps the path"):
        Guard(KEY).check_rows(named, "train", COLUMNS, SMALL, first_row=10)
    with pytest.raises(LeakError, match="row 1 of train has no image bytes"):
        Guard(KEY).check_rows(replaced(table, 1, {"bytes": None, "path": "a.png"}), "train", COLUMNS, SMALL)


def test_a_plain_or_recoded_image_is_refused(table):
    plain = np.asarray(PILImage.fromarray(make_images(1, 64)[0]).resize((32, 32)))
    exif = PILImage.Exif()
    exif[0x010E] = "a name"
    cipher = PILImage.open(io.BytesIO(table["image"][0].as_py()["bytes"]))
    for image, reason in (
        (encoded(PILImage.fromarray(plain), "PNG"), "not an image that `encrypt` wrote"),
        (encoded(PILImage.fromarray(plain), "JPEG"), "not an image that `encrypt` wrote"),
        (encoded(cipher, "PNG", exif=exif), "not an image that `encrypt` wrote"),
        (to_png(np.zeros((3, 16, 16), np.uint8)), "not an image that `encrypt` wrote"),
        (table["image"][0].as_py()["bytes"] + b"a name", "not an image that `encrypt` wrote"),
        (to_png(plain.transpose(2, 0, 1)), "looks like a plain image"),
        (to_png(np.zeros((3, 32, 32), np.uint8)), "looks like a plain image"),
    ):
        with pytest.raises(LeakError, match=reason):
            Guard(KEY).check_rows(replaced(table, 3, {"bytes": image, "path": None}), "train", COLUMNS, SMALL)


def test_a_column_nobody_named_is_refused(table):
    wider = table.append_column("patient", pa.array(["a", "b", "c", "d"]))
    with pytest.raises(LeakError, match="column 'patient', stored in clear"):
        Guard(KEY).check_rows(wider, "train", COLUMNS, SMALL)
    Guard(KEY).check_rows(wider, "train", (*COLUMNS, "patient"), SMALL)


@pytest.mark.parametrize("wrap", [lambda png: png, lambda png: [png], lambda png: [{"bytes": png, "path": None}],
                                  lambda png: {"view": {"bytes": png, "path": None}}, lambda png: [[png], []]],
                         ids=["binary", "list", "list of images", "struct", "list of lists"])  # fmt: skip
def test_pictures_in_kept_columns_are_refused(wrap, table):
    """Though they were named: plain pictures are never published in clear, at any depth."""
    plain = encoded(PILImage.fromarray(make_images(1, 32)[0]), "PNG")
    wider = table.append_column("views", pa.array([wrap(plain)] * 4))
    with pytest.raises(LeakError, match="views"):
        Guard(KEY).check_rows(wider, "train", (*COLUMNS, "views"), SMALL)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_a_key_is_found_in_every_kind_of_text_column(kind, table):
    texts = pa.array(["", "", f"see {SECRET.hex()}", ""]).cast(kind)
    with pytest.raises(LeakError, match="column 'note' of train holds the secret key"):
        Guard(KEY).check_rows(table.append_column("note", texts), "train", (*COLUMNS, "note"), SMALL)


def test_harmless_kept_columns_pass(table):
    for name, values in {"age": [1, 2, 3, 4], "ward": ["a", "b", "c", "d"], "scores": [[0.5]] * 4}.items():
        Guard(KEY).check_rows(table.append_column(name, pa.array(values)), "train", (*COLUMNS, name), SMALL)


def test_a_key_in_rows_is_found(table):
    texts = pa.array(["", "", f"see {SECRET.hex()}", ""])
    for planted, place in (
        (table.replace_schema_metadata({"note": SECRET.hex()}), "the metadata of train"),
        (table.append_column("note", texts), "column 'note' of train"),
        (table.append_column(SECRET.hex(), pa.array([1, 2, 3, 4])), "a column name of train"),
    ):
        with pytest.raises(LeakError, match=f"{place} holds the secret key"):
            Guard(KEY).check_rows(planted, "train", (*COLUMNS, "note"), SMALL)
