"""A server on loopback that gives the replies it is told to, and the owner who asks it."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep

import torch

from hf_neuracrypt import Classifier
from hf_neuracrypt.data.manifest import read_manifest
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.encoders.stored import stored_as
from hf_neuracrypt.images import prepare
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.prediction.endpoint import Endpoint
from tests.commands import command
from tests.helpers import SMALL


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
