"""Queries over HTTP on loopback: what the server is sent, and what the owner is told."""

import base64
import json
import os
import subprocess
import sys

import huggingface_hub
import pytest
from PIL import Image

from hf_neuracrypt import Classifier
from hf_neuracrypt.data.manifest import checksum, read_manifest, to_text
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders.stored import stored_as
from hf_neuracrypt.errors import ConfigError, HubError, NeuraCryptError
from hf_neuracrypt.images import to_png
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.prediction import endpoint
from hf_neuracrypt.prediction.endpoint import Endpoint, is_in_clear
from hf_neuracrypt.publish.traces import Traces
from hf_neuracrypt.schemes import make_config
from tests.commands import assert_one_line_error, command
from tests.helpers import ROOT, SMALL, encoded, make_images
from tests.prediction.serving import ANSWER, NAMES, ONLINE, STORED, ask, asking, encrypted_pixels, serving, stored


# ------------------------------------------------------------------------------------------------------- what is sent


def test_the_server_gets_the_encrypted_png_and_nothing_else(work, names):
    photo = work / "photos" / "ward" / "jane_0.jpg"
    key = SecretKey.load(work / "a.key")
    with serving((200, ANSWER)) as (address, received):
        result = ask(work, "--endpoint", address, photo, HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    widest = max(len(names["class_0"]), len(names["class_1"]))
    shown = f"{photo}  0.900 {names['class_1']:{widest}}  0.100 {names['class_0']}\n"
    assert result.stdout == shown and "over http" not in result.stderr
    assert f"Encrypting as {SMALL.to_json()} under the key {key.id}" in result.stderr
    ((path, headers, body),) = received
    assert body == to_png(encrypted_pixels(key, photo))
    assert path == "/model" and headers["content-type"] == "image/png"
    told = json.dumps(headers)
    assert "jane" not in told and "ward" not in told and str(work) not in told and "hf_secret" not in told
    assert not Traces(key, SMALL).find(body, told.encode()) and key.id not in told


def test_more_labels_are_asked_for_in_json(work, online):
    with serving((200, ANSWER)) as (address, received):
        (answer,) = Endpoint(address, STORED)(stored(), 7)
    assert [entry["label"] for entry in answer] == ["class_1", "class_0"]
    asked = json.loads(received[0][2])
    assert asked["parameters"] == {"top_k": 7} and base64.b64decode(asked["inputs"]).startswith(b"\x89PNG")
    assert "application/json" in received[0][1].get("content-type", "application/json")


@pytest.mark.parametrize(
    "address, trusted",
    [
        ("owner/vit", True), ("https://router.huggingface.co/hf-inference/models/owner/vit", True),
        ("https://x1.eu-west-1.aws.endpoints.huggingface.cloud", False), ("https://owner-vit.hf.space/ask", False),
        ("http://huggingface.co/x", False),
        ("https://evilhuggingface.co", False), ("https://huggingface.co.evil.example", False),
    ],
)  # fmt: skip
def test_the_token_goes_to_the_hub_alone_unless_it_is_sent_on_purpose(address, trusted, online, monkeypatch):
    sent = []

    def record(self, request, **_):
        sent.append((request.url, request.headers))
        raise huggingface_hub.errors.InferenceTimeoutError("x")

    monkeypatch.setattr(endpoint.InferenceClient, "_inner_post", record)
    helper = "huggingface_hub.inference._providers.hf_inference._check_supported_task"
    monkeypatch.setattr(helper, lambda *_: None)
    for on_purpose in (False, True):
        with pytest.raises(HubError, match="has not answered for 60 seconds"):
            list(Endpoint(address, STORED, on_purpose)(stored(), 1))
    (url, headers), (_, headers_on_purpose) = sent
    assert headers_on_purpose.get("authorization") == "Bearer hf_secret"
    assert url == (address if "://" in address else "https://router.huggingface.co/hf-inference/models/owner/vit")
    assert headers.get("authorization") == ("Bearer hf_secret" if trusted else None)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_takes_no_token_along(status, online):
    """Not even one that was sent on purpose: it was meant for the address that was given."""
    with serving((200, ANSWER)) as (other, elsewhere):
        other = other.replace("127.0.0.1", "localhost")
        with serving((status, ""), Location=other) as (address, received):
            try:
                list(Endpoint(address, STORED, send_token=True)(stored(), 1))
            except HubError:
                assert status in (301, 302)  # asked again by GET, which that server does not take
    assert received[0][1]["authorization"] == "Bearer hf_secret"
    assert status in (301, 302) or elsewhere
    told = json.dumps([headers for _, headers, _ in elsewhere]).lower()
    assert "hf_secret" not in told and "authorization" not in told


@pytest.mark.parametrize(
    "address, warned",
    [
        ("http://x.example/model", True), ("http://10.0.0.7:8000", True), ("http://localhost.x.example", True),
        ("http://127.0.0.1:8000/model", False), ("http://[::1]:8000", False), ("http://localhost", False),
        ("https://x.example", False), ("owner/vit", False),
    ],
)  # fmt: skip
def test_http_is_in_clear_but_on_this_machine(address, warned):
    assert is_in_clear(address) == warned


def test_http_to_another_machine_is_warned_of(work):
    photo = work / "photos" / "ward" / "jane_0.jpg"
    result = ask(work, "--endpoint", "http://nowhere.invalid/model?word=1", photo)
    assert_one_line_error(result, "cannot reach")
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: over http")]
    assert "word" not in warning


def test_a_record_below_the_floors_sends_nothing(work, tmp_path):
    key, photo = SecretKey.load(work / "a.key"), work / "photos" / "ward" / "jane_0.jpg"
    weak = Record(make_config("etc", {"image_size": 32, "block_size": 32}), key.id)
    manifest = read_manifest(work / "encrypted") | weak.to_dict()
    (tmp_path / "neuracrypt.json").write_text(to_text(manifest | {"sha256": checksum(manifest)}))
    with serving((200, ANSWER)) as (address, received):
        words = ("--key-file", work / "a.key", "--encrypted", tmp_path / "neuracrypt.json", photo)
        assert_one_line_error(command("predict", "--endpoint", address, *words, **ONLINE), "hides next to nothing")
    assert not received


def test_parameters_from_the_hub_send_nothing_without_consent(work, published, owners, tmp_path):
    """And with it, what the repository says, which was shown."""
    photo, environment = work / "photos" / "ward" / "jane_0.jpg", published.environment(tmp_path / "home")
    words = ("--key-file", owners / "one.key", "--encrypted", "owner/photos", photo)
    with serving((200, ANSWER)) as (address, received):
        refused = command("predict", "--endpoint", address, *words, **environment)
        assert_one_line_error(refused, "owner/photos on the Hub", "--yes")
        assert SMALL.to_json() in refused.stderr and not received
        agreed = command("predict", "--endpoint", address, *words, "--yes", **environment)
    assert agreed.returncode == 0 and SMALL.to_json() in agreed.stderr, agreed.stderr
    key = SecretKey.load(owners / "one.key")
    assert [body for _, _, body in received] == [to_png(encrypted_pixels(key, photo))]


def test_another_key_is_refused_before_anything_is_sent(work, tmp_path):
    SecretKey.generate().save(tmp_path / "other.key")
    with serving((200, ANSWER)) as (address, received):
        words = ("--key-file", tmp_path / "other.key", "--encrypted", work / "encrypted", work / "photos")
        result = command("predict", "--endpoint", address, *words, **ONLINE)
    assert_one_line_error(result, SecretKey.load(work / "a.key").id, SecretKey.load(tmp_path / "other.key").id)
    assert not received


def test_the_owners_record_says_what_labels_mean(work, names, online):
    photo = make_images(1, 40)[0]
    with serving((200, ANSWER)) as (address, received):
        (answer,) = asking(work, address).predict([photo])
    assert answer[0] == {"label": names["class_1"], "score": 0.9} and set(names.values()) == set(NAMES)
    assert received[0][2] == to_png(encrypted_pixels(SecretKey.load(work / "a.key"), photo))


def test_what_does_not_go_together(work):
    for address, fragment in [
        ("https://me:word@x.example", "leave them out"),
        ("https://", "is no address"),
        ("https://x.example:99999", "is no address"),
        ("https://\u00e9..example", "is no address"),
        ("https://\ud800.example", "is no address"),
        ("https://x.example/\x00", "is no address"),
        ("ftp://x.example", "is no endpoint"),
        ("./model", "is no endpoint"),
    ]:
        with pytest.raises(NeuraCryptError, match=fragment) as caught:
            Endpoint(address, STORED)
        assert "word" not in str(caught.value).replace("password", "")
    with pytest.raises(ConfigError, match="are no images"):
        Endpoint("https://x.example", stored_as(make_config("neuracrypt", {})))
    photos, key = work / "photos", ("--key-file", work / "a.key")
    either = "give either --model (a model on this machine) or --endpoint"
    assert_one_line_error(ask(work, photos), either)
    assert_one_line_error(ask(work, "--model", work / "model", "--endpoint", "x/y", photos), either)
    plain = command("predict", "--model", work / "model", "--encrypted", photos, *key, photos)
    assert_one_line_error(plain, "is not encrypted")
    assert_one_line_error(command("predict", "--model", work / "model", *key, photos), "--encrypted")


# ------------------------------------------------------------------------------------------- a stock pipeline, served


def test_a_served_model_answers_as_a_local_one(work, online, tmp_path):
    """Every image of a folder, through scripts/serve.py: hidden labels by their names, the same scores."""
    good = sorted((work / "photos" / "ward").iterdir())
    (work / "photos" / "ward" / "jane_1b.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG")[:40])
    output = tmp_path / "answers.jsonl"
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "serve.py"), "--model", str(work / "model"), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    try:
        address = server.stdout.readline().split()[-1]
        result = ask(work, "--endpoint", address, "--top-k", 6, "--output", output, work / "photos")
        ((best,),) = asking(work, address).predict(good[:1], top_k=1)
        session = huggingface_hub.get_session()
        refused = [session.post(address, content=b"GIF89a"), session.post(address, json={"inputs": ["x"]})]
    finally:
        server.terminate()
        server.wait(10)
    assert result.returncode == 3 and not result.stdout, result.stderr
    assert "jane_1b.png cannot be encrypted" in result.stderr and "1 of 5 images" in result.stderr
    answered = [json.loads(line) for line in output.read_text().splitlines()]
    own = asking(work, address)
    record = Record.from_dict(read_manifest(work / "encrypted"))
    here = Classifier.from_pretrained(str(work / "model"), own.encoder, record).predict(good)
    assert [entry["image"] for entry in answered] == [str(file) for file in good]
    for there, local in zip(answered, here, strict=True):
        assert {entry["label"] for entry in local} == set(NAMES)
        for one, other in zip(there["predictions"], local, strict=True):
            assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert best["label"] == here[0][0]["label"]
    assert [response.status_code for response in refused] == [400, 400]
