"""A trained model behind HTTP, as an example of the cloud's side: a stock pipeline, no key, nothing of ours.

python scripts/serve.py --model model/ --port 8000

POST an encrypted image (`Content-Type: image/png`), or the JSON that `huggingface_hub.InferenceClient` sends when it
asks for more labels, {"inputs": base64, "parameters": {"top_k": 10}}; the answer is [{"label": …, "score": …}, …].
The owner asks with `hf-neuracrypt predict --endpoint http://127.0.0.1:8000`. It answers one request after the other,
without encryption or passwords of its own: on a network, put a server in front of it that has both.
"""

import argparse
import base64
import io
import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from PIL import Image


MAX_BYTES = 50_000_000
MAX_TOP_K = 1000
PATIENCE = 10  # seconds for a client to send what it announced


class Server(HTTPServer):
    """Answers one request after the other with a stock pipeline."""

    def __init__(self, address: tuple[str, int], classify: Callable[..., Any]):
        super().__init__(address, Handler)
        self.classify = classify


class Handler(BaseHTTPRequestHandler):
    """GET says that the server is up; POST classifies an image."""

    server: Server
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._reply(200, {"status": "ready"})

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MAX_BYTES:
            return self._reply(413, {"error": f"send an image of at most {MAX_BYTES:,} bytes"})
        try:
            image, options = self._read(self.rfile.read(int(size)))
        except Exception:  # whatever a stranger may send
            return self._reply(400, {"error": "that is no image, nor JSON with one in base64 under `inputs`"})
        self._reply(200, self.server.classify(image, **options))

    def _read(self, body: bytes) -> tuple[Image.Image, dict[str, int]]:
        options: dict[str, int] = {}
        if self.headers.get_content_type() == "application/json":
            asked = json.loads(body)
            body = base64.b64decode(asked["inputs"], validate=True)
            top_k = (asked.get("parameters") or {}).get("top_k")
            options = {} if top_k is None else {"top_k": min(max(1, int(top_k)), MAX_TOP_K)}
        return Image.open(io.BytesIO(body), formats=["PNG"]).convert("RGB"), options

    def _reply(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a model trained on encrypted images")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    options = parser.parse_args()

    from transformers import pipeline

    try:
        classify = pipeline("image-classification", model=options.model, model_kwargs={"use_safetensors": True})
        server = Server((options.host, options.port), classify)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {str(error).strip().splitlines()[0]}")
    print(f"Serving {options.model} at http://{options.host}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
