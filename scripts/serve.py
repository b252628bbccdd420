"""A trained model behind HTTP, as an example of the cloud's side: a stock pipeline, no key, nothing of ours.

python scripts/serve.py --model model/ --port 8000

POST an encrypted image (`Content-Type: image/png`), or the JSON that `huggingface_hub.InferenceClient` sends when it
asks for more labels, {"inputs": base64, "parameters": {"top_k": 10, "function_to_apply": "softmax"}}; the answer is
[{"label": …, "score": …}, …], or {"error": the reason} with a status of 400 or more. For a list of inputs it is a list
of such answers. Unasked, scores are what the model's problem_type says: softmax over classes, a sigmoid of each of
several labels, predicted numbers as they are. The owner asks with `hf-neuracrypt predict --endpoint
http://127.0.0.1:8000`. It has no encryption and no passwords of its own: on a network, put a server in front of it that
has both. The model is a stock one, so Inference Endpoints serve it as it is.
"""

import argparse
import base64
import io
import json
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


MAX_BYTES = 10_000_000
MAX_TOP_K, MAX_IMAGES = 1000, 64
FUNCTIONS = ("softmax", "sigmoid", "none")
MAX_CLIENTS = 16  # at a time; others wait until one of them is done
PATIENCE = 10  # seconds for a client to send the whole of its request, and to take the answer


class Refused(Exception):
    """A request that is wrong, with the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Server(ThreadingHTTPServer):
    """Answers with a stock pipeline, which sees one image at a time.

    Args:
        address: host and port.
        classify: the pipeline.
        image_size: (width, height) of the images that the model takes.
    """

    request_queue_size = 128  # that may wait to be let in; with the default, 5, a burst is turned away

    def __init__(self, address: tuple[str, int], classify: Callable[..., Any], image_size: tuple[int, int]):
        super().__init__(address, Handler)
        self.classify, self.image_size = classify, image_size
        self.model, self.places = threading.Lock(), threading.BoundedSemaphore(MAX_CLIENTS)

    def process_request(self, *request: Any) -> None:
        self.places.acquire()
        super().process_request(*request)

    def process_request_thread(self, *request: Any) -> None:
        try:
            super().process_request_thread(*request)
        finally:
            self.places.release()


class Handler(BaseHTTPRequestHandler):
    """GET says that the server is up; POST classifies an image."""

    server: Server
    timeout = PATIENCE  # of each read, and of writing

    def setup(self) -> None:
        super().setup()
        self.clock = threading.Timer(PATIENCE, self._hear_no_more)
        self.clock.daemon = True
        self.clock.start()

    def finish(self) -> None:
        self.clock.cancel()
        super().finish()

    def _hear_no_more(self) -> None:
        with suppress(OSError):  # the client has left
            self.connection.shutdown(socket.SHUT_RD)

    def do_GET(self) -> None:
        self._reply(200, _json({"status": "ready"}))

    def do_POST(self) -> None:
        try:
            images, options = self._read()
            with self.server.model:
                status, answer = 200, _json(self.server.classify(images, **options))
        except Refused as refused:
            status, answer = refused.status, _json({"error": str(refused)})
        except Exception as error:
            self.log_error("%r", error)
            status, answer = 500, _json({"error": "the model fails on this image"})
        self._reply(status, answer)

    def _read(self) -> tuple[Image.Image | list[Image.Image], dict[str, Any]]:
        """The image, decoded, or a list of them, and options of the pipeline. Raises Refused."""
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or len(size) > 10 or int(size) > MAX_BYTES:
            raise Refused(413, f"send images of at most {MAX_BYTES:,} bytes")
        try:
            body = self.rfile.read(int(size))
            if len(body) < int(size):
                raise Refused(408, f"send the whole image within {PATIENCE} seconds")
            if self.headers.get_content_type() != "application/json":
                return self._image(body), {}
            asked = json.loads(body)
            options = self._options(asked.get("parameters") or {})
            inputs = asked["inputs"]
            if not isinstance(inputs, list):
                return self._image(base64.b64decode(inputs, validate=True)), options
            if not 0 < len(inputs) <= MAX_IMAGES:
                raise Refused(400, f"send from 1 to {MAX_IMAGES} images at a time")
            return [self._image(base64.b64decode(each, validate=True)) for each in inputs], options
        except Refused:
            raise
        except Exception:  # whatever a stranger may send
            raise Refused(400, "that is no PNG image, nor JSON with some in base64 under `inputs`") from None

    def _image(self, data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data), formats=["PNG"])  # reads the header alone
        width, height = self.server.image_size
        if (image.mode, image.size) != ("RGB", (width, height)):
            found = f"{image.mode} of {image.width} x {image.height}"
            raise Refused(400, f"the model takes encrypted images, RGB of {width} x {height}; this one is {found}")
        image.load()
        return image

    def _options(self, parameters: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if (top_k := parameters.get("top_k")) is not None:
            if type(top_k) is not int or top_k < 1:
                raise Refused(400, "top_k must be a whole number from 1 on")
            options["top_k"] = min(top_k, MAX_TOP_K)
        if (function := parameters.get("function_to_apply")) is not None:
            if function not in FUNCTIONS:
                raise Refused(400, f"function_to_apply must be one of {', '.join(FUNCTIONS)}")
            options["function_to_apply"] = function
        return options

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _json(content: object) -> bytes:
    """Raises ValueError for scores that are no numbers, which JSON does not have."""
    return json.dumps(content, allow_nan=False).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a model trained on encrypted images")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    options = parser.parse_args()

    from transformers import pipeline

    try:
        classify = pipeline(
            "image-classification", model=options.model, trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )  # fmt: skip
        config = classify.model.config
        side = getattr(config, "vision_config", config).image_size
        height, width = (side, side) if isinstance(side, int) else side
        server = Server((options.host, options.port), classify, (width, height))
    except Exception as error:  # a stranger's model may fail anywhere
        sys.exit(f"error: {(str(error).strip().splitlines() or [repr(error)])[0]}")
    print(f"Serving {options.model} at http://{options.host}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
