"""Queries over HTTP on loopback: what the server is sent, what the owner is told when it fails, what is kept."""

import base64
import gzip
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep

import huggingface_hub
import pytest
from PIL import Image

from hf_neuracrypt import answers, cli, prediction, endpoint, writer
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.errors import ConfigError, HubError, KeyMismatchError, NeuraCryptError
from hf_neuracrypt.images import prepare, to_png
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.schemes import make_config
from hf_neuracrypt.data.manifest import read_manifest
from hf_neuracrypt.publish.guard import find_key
from tests.helpers import (
    ROOT,
    SMALL,
    TINY_VIT,
    assert_one_line_error,
    batch,
    command,
    encoded,
    make_dataset,
    make_images,
    save_model,
)  # fmt: skip


ONLINE = {"HF_HUB_OFFLINE": "0"}  # the address is on loopback; nothing else is asked
NAMES = ["cat", "dog", "horse"]


@contextmanager
def serving(*replies: tuple[int, object], **headers: str):
    """A server that gives these replies, the last one for ever; yields its address, and what it is sent."""
    received, rest = [], list(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, dict(self.headers), body))
            status, content = rest.pop(0) if len(rest) > 1 else rest[0]
            if status == 0:  # never answers in time
                sleep(1)
                return
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/model", received
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def online(monkeypatch):
    """The client in this process may send requests, with somebody's token at hand."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """An owner with a key and photos, and a model of random weights whose labels are hidden."""
    folder = tmp_path_factory.mktemp("remote")
    SecretKey.generate().save(folder / "a.key")
    key = SecretKey.load(folder / "a.key")
    neutral = [f"class_{number}" for number in range(3)]
    sealed = key.seal(json.dumps(dict(zip(neutral, NAMES))), "label names")
    save_model(folder / "model", neutral, Record(SMALL, key.id, sealed))
    (folder / "photos" / "ward").mkdir(parents=True)
    for number, pixels in enumerate(make_images(4, 40)):
        Image.fromarray(pixels).save(folder / "photos" / "ward" / f"jane_{number}.jpg")
    splits = {"train": make_dataset(9)}
    plan = make_plan(splits, load_encoder(SMALL, key), hide_labels=True)
    assert writer.work(writer.Job(splits, plan, folder / "encrypted"))
    (folder / "photos" / "notes.txt").write_text("not an image")
    return folder


def ask(work, *words, **environment):
    return command("predict", "--key-file", work / "a.key", *words, **(ONLINE | environment))


def encrypted_pixels(key, photo):
    return load_encoder(SMALL, key).encrypt(batch(prepare(photo, SMALL)[None].copy()))[0].permute(1, 2, 0).numpy()


ANSWER = [{"label": "class_1", "score": 0.9}, {"label": "class_0", "score": 0.1}]


# ------------------------------------------------------------------------------------------------------- what is sent


def test_the_server_gets_the_encrypted_png_and_nothing_else(work):
    photo = work / "photos" / "ward" / "jane_0.jpg"
    key = SecretKey.load(work / "a.key")
    with serving((200, ANSWER)) as (address, received):
        result = ask(work, "--endpoint", address, "--model", work / "model", photo, HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{photo}: dog 0.900, cat 0.100\n" and "over http" not in result.stderr
    ((path, headers, body),) = received
    assert body == to_png(encrypted_pixels(key, photo))
    assert path == "/model" and headers["content-type"] == "image/png"
    told = json.dumps(headers)
    assert "jane" not in told and "ward" not in told and str(work) not in told and "hf_secret" not in told
    assert not find_key(key, body, told.encode()) and key.id not in told


def test_more_labels_are_asked_for_in_json(work, online):
    with serving((200, ANSWER)) as (address, received):
        (answer,) = endpoint.Endpoint(address)([Image.new("RGB", (32, 32))], 7)
    assert [entry["label"] for entry in answer] == ["class_1", "class_0"]
    asked = json.loads(received[0][2])
    assert asked["parameters"] == {"top_k": 7} and base64.b64decode(asked["inputs"]).startswith(b"\x89PNG")
    assert "application/json" in received[0][1].get("content-type", "application/json")


@pytest.mark.parametrize(
    "address, trusted",
    [
        ("owner/vit", True), ("https://x1.eu-west-1.aws.endpoints.huggingface.cloud", True),
        ("https://owner-vit.hf.space/ask", True), ("http://x1.endpoints.huggingface.cloud", False),
        ("https://evilhuggingface.co", False), ("https://huggingface.co.evil.example", False),
    ],
)  # fmt: skip
def test_the_token_goes_to_hugging_face_alone(address, trusted, online, monkeypatch):
    sent = []

    def record(self, request, **_):
        sent.append((request.url, request.headers))
        raise huggingface_hub.errors.InferenceTimeoutError("x")

    monkeypatch.setattr(endpoint.InferenceClient, "_inner_post", record)
    helper = "huggingface_hub.inference._providers.hf_inference._check_supported_task"
    monkeypatch.setattr(helper, lambda *_: None)
    with pytest.raises(HubError, match="has not answered for 60 seconds"):
        list(endpoint.Endpoint(address)([Image.new("RGB", (8, 8))], 1))
    ((url, headers),) = sent
    assert url == (address if "://" in address else "https://router.huggingface.co/hf-inference/models/owner/vit")
    assert headers.get("authorization") == ("Bearer hf_secret" if trusted else None)


@pytest.mark.parametrize(
    "endpoint, warned",
    [
        ("http://x.example/model", True), ("http://10.0.0.7:8000", True), ("http://localhost.x.example", True),
        ("http://127.0.0.1:8000/model", False), ("http://[::1]:8000", False), ("http://localhost", False),
        ("https://x.example", False), ("owner/vit", False),
    ],
)  # fmt: skip
def test_http_is_in_clear_but_on_this_machine(endpoint, warned):
    assert endpoint.is_in_clear(endpoint) == warned


def test_http_to_another_machine_is_warned_of(work):
    photo = work / "photos" / "ward" / "jane_0.jpg"
    result = ask(work, "--endpoint", "http://nowhere.invalid/model?word=1", "--model", work / "model", photo)
    assert_one_line_error(result, "cannot reach")
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: over http")]
    assert "word" not in warning


def test_another_key_is_refused_before_anything_is_sent(work, online):
    with serving((200, ANSWER)) as (address, received):
        for said_by in ({"model": str(work / "model")}, {"encrypted": str(work / "encrypted")}):
            with pytest.raises(KeyMismatchError, match=SecretKey.load(work / "a.key").id):
                endpoint.remote_classifier(address, SecretKey.generate(), **said_by)
    assert not received


def test_an_encrypted_dataset_says_how_to_encrypt_and_what_labels_mean(work, online):
    key, photo = SecretKey.load(work / "a.key"), make_images(1, 40)[0]
    manifest = read_manifest(work / "encrypted")
    shown = json.loads(key.unseal(manifest["sealed_labels"], "label names"))
    with serving((200, ANSWER)) as (address, received):
        classifier = endpoint.remote_classifier(address, key, encrypted=str(work / "encrypted"))
        ((best, _),) = classifier.answer(encrypt_images([photo], classifier.encoder, ["it"]), 5)
    assert best == {"label": shown["class_1"], "score": 0.9} and best["label"] in NAMES
    assert received[0][2] == to_png(encrypted_pixels(key, photo))


def test_what_does_not_go_together(work, online, tmp_path):
    key = SecretKey.load(work / "a.key")
    for endpoint, options, fragment in [
        ("https://x.example", {}, "give --model, or --encrypted"),
        ("https://x.example", {"model": "a", "encrypted": "b"}, "give one of them"),
        ("https://me:word@x.example", {"model": "a"}, "leave them out"),
        ("https://", {"model": "a"}, "is no address"),
        ("https://x.example:99999", {"model": "a"}, "is no address"),
        ("ftp://x.example", {"model": "a"}, "is no endpoint"),
        ("./model", {"model": "a"}, "is no endpoint"),
        ("https://x.example", {"encrypted": str(work / "photos")}, "is not encrypted"),
    ]:
        with pytest.raises(NeuraCryptError, match=fragment) as caught:
            endpoint.remote_classifier(endpoint, key, **options)
        assert "word" not in str(caught.value).replace("password", "")
    record = Record(make_config("neuracrypt", {}), key.id)
    (tmp_path / "neuracrypt").mkdir()
    config = TINY_VIT | {"neuracrypt": [record.to_dict()]}
    (tmp_path / "neuracrypt" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="are no images"):
        endpoint.remote_classifier("https://x.example", key, model=str(tmp_path / "neuracrypt"))
    assert_one_line_error(ask(work, work / "photos"), "who is to be asked")
    assert_one_line_error(ask(work, "--model", work / "model", "--encrypted", "x", work / "photos"), "--endpoint")


# ------------------------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    "status, content, fragment",
    [
        (401, {"error": "Invalid token"}, "asks who you are .*HF_TOKEN"),
        (403, {"error": "no"}, "does not let you ask"),
        (404, {"error": "Not Found"}, "nothing is served at"),
        (503, {"error": "Model owner/vit is currently loading", "estimated_time": 20.0}, "still loading"),
        (400, {"error": "bad \x1b[31mimage"}, r"refuses the image \(status 400\): bad \[31mimage"),
        (500, b"<html>oops", "refuses the image .status 500."),
        (200, b"<html>a login page", "gives no answer"),
        (200, b"\xff\xfe", "gives no answer"),
        (200, b"[" * 100_000, "gives no answer"),
        (200, {"error": "x"}, "gives no answer"),
        (200, [], "no list of labels and scores"),
        (200, [{"label": "cat"}], "no list of labels and scores"),
        (200, [{"label": "\x1b[2Jcat", "score": 0.5}], "no list of labels and scores"),
        (200, b'[{"label": "cat", "score": NaN}]', "no answer|no list"),
        (200, [{"generated_text": "cat"}], "no list of labels and scores"),
        (200, ["cat"], "gives no answer"),
    ],
)
def test_answers_that_are_none(status, content, fragment, online):
    with serving((status, content)) as (address, _), pytest.raises(HubError, match=fragment) as caught:
        list(endpoint.Endpoint(address)([Image.new("RGB", (32, 32))], 3))
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("packed", [False, True])
def test_an_endless_answer_is_not_read(status, packed, online, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_ANSWER_BYTES", 100_000)
    hooks = list(huggingface_hub.get_session().event_hooks["response"])
    content = json.dumps([{"label": "x" * 10_000_000, "score": 1}]).encode()
    headers = {"Content-Encoding": "gzip"} if packed else {}
    with serving((status, gzip.compress(content) if packed else content), **headers) as (address, _):
        with pytest.raises(HubError, match=r"larger than 100,000 bytes: it serves no image classification"):
            list(endpoint.Endpoint(address)([Image.new("RGB", (32, 32))], 3))
    assert huggingface_hub.get_session().event_hooks["response"] == hooks


def test_nobody_there_and_nobody_in_time(online, monkeypatch):
    monkeypatch.setattr(endpoint, "TIMEOUT", 0.2)
    with serving((0, None)) as (address, _), pytest.raises(HubError, match=r"has not answered for 0\.2 seconds"):
        list(endpoint.Endpoint(address)([Image.new("RGB", (32, 32))], 3))
    with pytest.raises(HubError, match="cannot reach"):
        list(endpoint.Endpoint("http://127.0.0.1:9/model")([Image.new("RGB", (32, 32))], 3))
    with pytest.raises(HubError, match="cannot reach"):
        list(endpoint.Endpoint("http://nowhere.invalid/model")([Image.new("RGB", (32, 32))], 3))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        list(endpoint.Endpoint(address)([Image.new("RGB", (32, 32))], 3))


def test_answers_before_a_failure_are_kept(work, online, tmp_path):
    key, files = SecretKey.load(work / "a.key"), find_images([work / "photos"])
    with serving((200, ANSWER), (200, ANSWER), (503, {"error": "loading"})) as (address, received):
        classifier = endpoint.remote_classifier(address, key, str(work / "model"))
        with pytest.raises(HubError, match="still loading"), writer(tmp_path / "a.csv", False) as show:
            answer_files(classifier, files, 5, show)
    assert len(received) == 3 and len((tmp_path / "a.csv").read_text().splitlines()) == 1 + 2 * 2


def test_an_interrupted_run_says_what_is_left(work, online, tmp_path, monkeypatch, capsys):
    def run(output):
        words = ["--endpoint", "http://127.0.0.1:9", "--model", work / "model", work / "photos", "--output", output]
        monkeypatch.setattr(
            sys, "argv", ["hf-neuracrypt", "predict", "--key-file", *map(str, [work / "a.key", *words])]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err.splitlines()[-1]

    def interrupted(self, png, top_k, asked=[]):  # noqa: B006 - counts the questions
        asked.append(png)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ANSWER

    monkeypatch.setattr(endpoint.Endpoint, "_ask", interrupted)
    output = tmp_path / "a.csv"
    code, said = run(output)
    assert code == 130 and said.startswith(f"error: interrupted; the answers so far are in {output}; a new run needs")
    before = output.read_text()
    assert len(before.splitlines()) == 1 + 2 * 2
    code, said = run(output)
    assert code == 2 and said == f"error: {output} exists: choose another name" and output.read_text() == before
    assert run(tmp_path / "b.csv")[0] == 0 and (tmp_path / "b.csv").read_text().startswith(before)


# ------------------------------------------------------------------------------------------- a stock pipeline, served


def test_a_served_model_answers_as_a_local_one(work, online, tmp_path):
    """Every image of a folder, through scripts/serve.py: hidden labels by their names, the same scores."""
    good = sorted((work / "photos" / "ward").iterdir())
    (work / "photos" / "ward" / "jane_1b.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG")[:40])
    model, output = ("--model", work / "model"), tmp_path / "answers.jsonl"
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "serve.py"), *map(str, model), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    try:
        address = server.stdout.readline().split()[-1]
        result = ask(work, "--endpoint", address, *model, "--top-k", 6, "--output", output, work / "photos")
        classifier = endpoint.remote_classifier(address, SecretKey.load(work / "a.key"), str(work / "model"))
        ((best,),) = classifier.answer(encrypt_images(good[:1], classifier.encoder, ["it"]), 1)
        session = huggingface_hub.get_session()
        refused = [session.post(address, content=b"GIF89a"), session.post(address, json={"inputs": ["x"]})]
    finally:
        server.terminate()
        server.wait(10)
    assert result.returncode == 3 and not result.stdout, result.stderr
    assert "jane_1b.png cannot be encrypted" in result.stderr and "1 of 5 images" in result.stderr
    answered = [json.loads(line) for line in output.read_text().splitlines()]
    here = predict(str(work / "model"), SecretKey.load(work / "a.key"), good, [file.name for file in good])
    assert [entry["image"] for entry in answered] == [str(file) for file in good]
    for there, local in zip(answered, here, strict=True):
        assert {entry["label"] for entry in local} == set(NAMES)
        for one, other in zip(there["predictions"], local, strict=True):
            assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert best["label"] == here[0][0]["label"]
    assert [response.status_code for response in refused] == [400, 400]
