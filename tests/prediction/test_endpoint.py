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
import torch
from PIL import Image

from hf_neuracrypt import Classifier, cli
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.data.manifest import checksum, read_manifest, to_text
from hf_neuracrypt.data.record import Record, seal_names
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.stored import stored_as
from hf_neuracrypt.errors import ConfigError, HubError, NeuraCryptError
from hf_neuracrypt.images import prepare, to_png
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.prediction import endpoint
from hf_neuracrypt.prediction.endpoint import Endpoint, is_in_clear
from hf_neuracrypt.prediction.files import answer_files, find_images, writer
from hf_neuracrypt.publish.traces import Traces
from hf_neuracrypt.schemes import make_config
from tests.commands import assert_one_line_error, command
from tests.helpers import ROOT, SMALL, encoded, make_dataset, make_images, save_model  # fmt: skip


ONLINE = {"HF_HUB_OFFLINE": "0"}  # the address is on loopback; nothing else is asked
NAMES = ["cat", "dog", "horse"]
STORED = stored_as(SMALL)


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
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
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
    sealed = seal_names(key, dict(zip(neutral, NAMES)), "")
    save_model(folder / "model", neutral, Record(SMALL, key.id, sealed))
    (folder / "photos" / "ward").mkdir(parents=True)
    for number, pixels in enumerate(make_images(4, 40)):
        Image.fromarray(pixels).save(folder / "photos" / "ward" / f"jane_{number}.jpg")
    splits = {"train": make_dataset(9)}
    plan = make_plan(splits, load_encoder(SMALL, key), hide_labels=True)
    assert run(Job(splits, plan, folder / "encrypted"))
    (folder / "photos" / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def names(work):
    """The true names of hidden labels, as the owner's record has them."""
    return Record.from_dict(read_manifest(work / "encrypted")).true_names(SecretKey.load(work / "a.key"))


def ask(work, *words, **environment):
    own = ("--key-file", work / "a.key", "--encrypted", work / "encrypted")
    return command("predict", *own, *words, **(ONLINE | environment))


def asking(work, address) -> Classifier:
    """What `predict --endpoint` makes of its options."""
    encoder = load_encoder(SMALL, SecretKey.load(work / "a.key"))
    record = Record.from_dict(read_manifest(work / "encrypted"))
    return Classifier(encoder, Endpoint(address, encoder.stored), record.true_names(encoder.key))


def stored(size: int = 32) -> list[dict]:
    """One ciphertext, as a dataset holds it."""
    return STORED.rows(torch.zeros(1, 3, size, size, dtype=torch.uint8))


def encrypted_pixels(key, photo):
    return load_encoder(SMALL, key).encrypt(torch.tensor(prepare(photo, SMALL))[None])[0].numpy()


ANSWER = [{"label": "class_1", "score": 0.9}, {"label": "class_0", "score": 0.1}]


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


# ------------------------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    "status, content, fragment",
    [
        (401, {"error": "Invalid token"}, "asks who you are .*HF_TOKEN"),
        (403, {"error": "no"}, "does not let you ask"),
        (404, {"error": "Not Found"}, "nothing is served at"),
        (503, {"error": "Model owner/vit is currently loading", "estimated_time": 20.0}, "still loading"),
        (400, {"error": "bad \x1b[31mimage"}, "refuses the image .status 400.: bad �\\[31mimage"),
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
        list(Endpoint(address, STORED)(stored(), 3))
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
            list(Endpoint(address, STORED)(stored(), 3))
    assert huggingface_hub.get_session().event_hooks["response"] == hooks


def test_nobody_there_and_nobody_in_time(online, monkeypatch):
    monkeypatch.setattr(endpoint, "TIMEOUT", 0.2)
    with serving((0, None)) as (address, _), pytest.raises(HubError, match=r"has not answered for 0\.2 seconds"):
        list(Endpoint(address, STORED)(stored(), 3))
    with pytest.raises(HubError, match="cannot reach"):
        list(Endpoint("http://127.0.0.1:9/model", STORED)(stored(), 3))
    with pytest.raises(HubError, match="cannot reach"):
        list(Endpoint("http://nowhere.invalid/model", STORED)(stored(), 3))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        list(Endpoint(address, STORED)(stored(), 3))


def test_answers_before_a_failure_are_kept(work, online, tmp_path):
    files = find_images([work / "photos"])
    with serving((200, ANSWER), (200, ANSWER), (503, {"error": "loading"})) as (address, received):
        with pytest.raises(HubError, match="still loading"), writer(tmp_path / "a.csv", False) as show:
            answer_files(asking(work, address), files, 5, show)
    assert len(received) == 3 and len((tmp_path / "a.csv").read_text().splitlines()) == 1 + 2 * 2


def test_an_interrupted_run_says_what_is_left(work, online, tmp_path, monkeypatch, capsys):
    def run(output):
        words = ["--endpoint", "http://127.0.0.1:9", "--encrypted", work / "encrypted", work / "photos"]
        words += ["--output", output]
        monkeypatch.setattr(
            sys, "argv", ["hf-neuracrypt", "predict", "--key-file", *map(str, [work / "a.key", *words])]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err.splitlines()[-1]

    def interrupted(self, png, top_k=None, asked=[]):  # noqa: B006 - counts the questions
        asked.append(png)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ANSWER

    monkeypatch.setattr(endpoint.InferenceClient, "image_classification", interrupted)
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
