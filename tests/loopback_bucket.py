"""An S3 server on loopback, moto's, with faults to come. Everything is in memory."""

import re
import socket
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server


class LoopbackBuckets:
    """`with LoopbackBuckets() as server:` then run clients with `server.environment` set.

    A fault is [regex of "METHOD /path", how many requests pass first, action]: a status; the code and text of a 403;
    "cut": the connection ends in the middle of what is sent or answered; "lost": done, not answered; a callable: called
    before it is done.
    """

    def __init__(self):
        self.application = DomainDispatcherApplication(create_backend_app)
        self.faults: list[list] = []
        self.log: list[str] = []
        self.lock = threading.Lock()
        self.server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Quiet)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server.server_port}", "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
        }  # fmt: skip

    def __enter__(self) -> "LoopbackBuckets":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()

    def __call__(self, environ, start_response):
        """The WSGI application."""
        line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        with self.lock:
            self.log.append(line)
            action = self._fault(line)
        if isinstance(action, (int, tuple)):
            status, (code, message) = (action, ("Planned", "a fault")) if isinstance(action, int) else (403, action)
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} planned", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]
        if action == "cut" and environ["REQUEST_METHOD"] == "PUT":
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]) // 2)
            return self._cut(environ)
        if callable(action):
            action()
        content = b"".join(self.application(environ, start_response))
        if action == "lost":
            return self._cut(environ)
        if action == "cut":
            return self._half(environ, content)
        return [content]

    def _fault(self, line: str):
        for fault in self.faults:
            if re.search(fault[0], line):
                fault[1] -= 1
                if fault[1] < 0:
                    self.faults.remove(fault)
                    return fault[2]
        return None

    def _half(self, environ, content: bytes):
        yield content[: len(content) // 2]
        self._cut(environ)

    def _cut(self, environ):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionError("planned")


class _Quiet(MotoRequestHandler):
    def log(self, *_):
        pass
