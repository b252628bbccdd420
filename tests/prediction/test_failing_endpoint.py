"""Queries over HTTP on loopback that fail: what the owner is told, and what is kept."""

import gzip
import json
import sys

import huggingface_hub
import pytest

from hf_neuracrypt import cli
from hf_neuracrypt.errors import HubError
from hf_neuracrypt.prediction import endpoint
from hf_neuracrypt.prediction.endpoint import Endpoint
from hf_neuracrypt.prediction.files import answer_files, find_images, writer
from tests.prediction.serving import ANSWER, STORED, asking, serving, stored


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
