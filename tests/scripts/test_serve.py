"""The example of an endpoint against clients that are slow, many, wrong or hostile: always an answer, never a wait."""

import ast
import base64
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from tests.commands import load_script
from tests.helpers import ROOT, encoded


serve = load_script("serve")
IMAGE = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
PNG = encoded(IMAGE, "PNG")
ANSWER = [{"label": "cat", "score": 1.0}]


@contextmanager
def serving(classify=lambda image, **options: ANSWER):
    with serve.Server(("127.0.0.1", 0), classify, (16, 16)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address
        finally:
            server.shutdown()


def post(address, body: bytes | dict, kind: str = "image/png") -> tuple[int, object]:
    if isinstance(body, dict):
        body, kind = json.dumps(body).encode(), "application/json"
    asked = urllib.request.Request("http://{}:{}".format(*address), body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(asked, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def inputs(**parameters: object) -> dict:
    return {"inputs": base64.b64encode(PNG).decode(), "parameters": parameters}


def test_images_and_options_reach_the_pipeline():
    asked = []
    with serving(lambda image, **options: asked.append((image, options)) or ANSWER) as address:
        for body in (PNG, inputs(), inputs(top_k=None), inputs(top_k=3), inputs(top_k=10**9)):
            assert post(address, body) == (200, ANSWER)
    assert all(np.array_equal(image, IMAGE) for image, _ in asked)
    assert [options for _, options in asked] == [{}, {}, {}, {"top_k": 3}, {"top_k": serve.MAX_TOP_K}]


def test_the_function_to_apply_and_lists_of_images():
    asked = []
    with serving(lambda images, **options: asked.append((images, options)) or [ANSWER, ANSWER]) as address:
        several = inputs(function_to_apply="sigmoid") | {"inputs": [inputs()["inputs"]] * 2}
        assert post(address, several) == (200, [ANSWER, ANSWER])
        for wrong, reason in (
            (inputs(function_to_apply="argmax"), "function_to_apply must be one of softmax, sigmoid, none"),
            (inputs(function_to_apply=[]), "function_to_apply must be one of"),
            ({"inputs": []}, "from 1 to 64 images"),
            ({"inputs": [inputs()["inputs"]] * 65}, "from 1 to 64 images"),
            ({"inputs": [inputs()["inputs"], "x"]}, "no PNG image"),
        ):
            status, content = post(address, wrong)
            assert status == 400 and reason in content["error"]
    ((images, options),) = asked
    assert options == {"function_to_apply": "sigmoid"} and all(np.array_equal(image, IMAGE) for image in images)


def test_nothing_of_ours():
    tree = ast.parse((ROOT / "scripts" / "serve.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"PIL", "transformers"}


# ---------------------------------------------------------------------------------------------- what a stranger sends


@pytest.mark.parametrize("top_k", ["NaN", "Infinity", "-Infinity", "1e400", "-1", "0", "2.5", '"5"', "[]", "true"])
def test_numbers_that_are_none(top_k):
    body = json.dumps(inputs())[:-3] + f'{{"top_k": {top_k}}}}}'
    with serving() as address:
        status, content = post(address, body.encode(), "application/json")
        assert status == 400 and "top_k must be a whole number" in content["error"]


def bomb(side: int) -> bytes:
    """A PNG whose header announces more than its few bytes hold."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("a", "x" * 10_000_000, zip=True)


@pytest.mark.parametrize(
    "body, found",
    [
        (encoded(Image.new("RGB", (17, 16)), "PNG"), "RGB of 16 x 16; this one is RGB of 17 x 16"),
        (encoded(Image.new("L", (16, 16)), "PNG"), "this one is L of 16 x 16"),
        (encoded(Image.new("RGBA", (16, 16)), "PNG"), "this one is RGBA of 16 x 16"),
        (encoded(Image.new("P", (16, 16)), "PNG"), "this one is P of 16 x 16"),
        (bomb(9_000), "this one is L of 9000 x 9000"),
    ],
    ids=["large", "grey", "alpha", "palette", "bomb"],
)
def test_images_of_another_kind_are_not_decoded(body, found, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with serving() as address:
        status, content = post(address, body)
        assert status == 400 and content["error"].endswith(found)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"GIF89a", PNG[:-40], PNG.replace(b"IDAT", b"IDAx"), encoded(IMAGE, "JPEG"), encoded(IMAGE, "BMP"),
        bomb(20_000), encoded(IMAGE, "PNG", pnginfo=TEXT),
    ],
    ids=["nothing", "gif", "cut", "chunk", "jpeg", "bmp", "bomb", "text"],
)  # fmt: skip
def test_what_is_no_image(body):
    with serving() as address:
        status, content = post(address, body)
        assert status == 400 and "that is no PNG image" in content["error"]
        assert post(address, PNG)[0] == 200


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "null", '{"inputs": 5}', '{"inputs": "*"}', "[" * 100_000, '{"inputs": ' + "9" * 5000, "{}"]
)
def test_what_is_no_question(text):
    with serving() as address:
        assert post(address, text.encode(), "application/json")[0] == 400
        assert post(address, json.dumps(inputs() | {"parameters": [5]}).encode(), "application/json")[0] == 400


@pytest.mark.parametrize("size", [None, "-1", "x", "1e3", "99999999999", "9" * 5000, str(10**8), "²"])
def test_lengths_that_are_none(size):
    with serving() as address, socket.create_connection(address) as client:
        line = "" if size is None else f"Content-Length: {size}\r\n"
        client.sendall(f"POST / HTTP/1.1\r\n{line}\r\n".encode("latin-1"))
        client.settimeout(60)
        assert client.recv(1000).split()[1] == b"413"


@pytest.mark.parametrize("error", [RuntimeError("out of \x1b[2J memory"), ValueError("shape"), KeyError(1), OSError()])
def test_a_model_that_fails(error, capfd):
    def classify(image, **options):
        raise error

    with serving(classify) as address:
        assert post(address, PNG) == (500, {"error": "the model fails on this image"})
    assert type(error).__name__ in (said := capfd.readouterr().err) and "\x1b" not in said


@pytest.mark.parametrize("score", [float("nan"), float("inf"), b"x"])
def test_scores_that_are_no_numbers_are_an_answer_too(score):
    with serving(lambda image, **options: [{"label": "cat", "score": score}]) as address:
        assert post(address, PNG) == (500, {"error": "the model fails on this image"})


# -------------------------------------------------------------------------------------------------- slow and many ones


def test_slow_clients_are_ended_and_stop_nobody(monkeypatch):
    """One that drips its headers, one that drips its body, one that says nothing: a deadline for all of a request."""
    monkeypatch.setattr(serve, "PATIENCE", 3)
    begin = time.monotonic()
    head = b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n"
    with serving() as address:
        slow = [socket.create_connection(address) for _ in range(3)]
        for client, start in zip(slow, (head, head + b"\r\n", b""), strict=True):
            client.sendall(start)
        assert post(address, PNG) == (200, ANSWER)
        assert time.monotonic() - begin < 2.9
        answers = [b""] * 3
        while not all(answers) and time.monotonic() - begin < 30:
            for number, client in enumerate(slow):
                client.settimeout(0.1)
                try:
                    answers[number] = answers[number] or client.recv(1000) or b"closed"
                    client.sendall(b"x" * (number < 2))
                except TimeoutError:
                    client.sendall(b"x" * (number < 2))
                except ConnectionError:
                    answers[number] = answers[number] or b"closed"
        assert answers[1].split()[1] == b"408" and all(answers)
        assert 2.9 < time.monotonic() - begin < 20
        for client in slow:
            client.close()
        assert post(address, PNG) == (200, ANSWER)


def test_one_image_at_a_time_and_a_bounded_number_of_threads(monkeypatch):
    monkeypatch.setattr(serve, "MAX_CLIENTS", 4)
    inside, most, threads, others = [], [], [], set(threading.enumerate())

    def classify(image, **options):
        inside.append(1)
        most.append(len(inside))
        own = set(threading.enumerate()) - others
        threads.append(sum("process_request_thread" in thread.name for thread in own))
        time.sleep(0.02)
        inside.pop()
        return ANSWER

    with serving(classify) as address, ThreadPoolExecutor(16) as clients:
        assert all(answer == (200, ANSWER) for answer in clients.map(lambda _: post(address, PNG), range(40)))
    assert set(most) == {1} and 1 < max(threads) <= 4


# ----------------------------------------------------------------------------------------------------- the whole of it


def test_a_strangers_model_is_one_line_and_runs_nothing(tmp_path):
    classes = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": classes}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "serve.py"), "--model", str(tmp_path), "--port", "0"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    assert result.returncode == 1 and not (tmp_path / "ran").exists()
    assert "Traceback" not in result.stderr and result.stderr.splitlines()[-1].startswith("error: ")


def test_no_code_of_the_model_and_its_own_size(monkeypatch, capsys):
    """`pipeline` is told so in words: without, transformers may ask at a terminal."""
    from transformers import ViTConfig

    told = {}

    def pipeline(task, **options):
        told.update(options)
        model = torch.nn.Module()
        model.config = ViTConfig(image_size=[8, 24])
        return type("Pipeline", (), {"model": model})()

    def ended(server):
        told["size"] = server.image_size
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(pipeline=pipeline))
    monkeypatch.setattr(serve.Server, "serve_forever", ended)
    monkeypatch.setattr(sys, "argv", ["serve.py", "--model", "m", "--port", "0"])
    serve.main()
    assert told["trust_remote_code"] is False and told["model_kwargs"] == {"use_safetensors": True}
    assert told["size"] == (24, 8) and "Serving m at http://127.0.0.1:" in capsys.readouterr().out
