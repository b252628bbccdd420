"""Serve a Gradio page to one person: who else is on this machine, and what websites do, gets nothing of it."""

import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hf_neuracrypt.errors import NeuraCryptError


if TYPE_CHECKING:
    import gradio
    from starlette.types import ASGIApp, Receive, Scope, Send

PORTS = range(7860, 7960)
FOLDER = "neuracrypt-page-"  # of the temporary files
THIS_MACHINE = ("127.0.0.1", "localhost")


def interrupt(*_: object) -> NoReturn:
    """SIGTERM ends the page as Ctrl-C does."""
    raise KeyboardInterrupt


@contextmanager
def temporary_pictures() -> Iterator[None]:
    """Gradio keeps uploads in files: here, in a folder that only its owner reads and that goes with this process.

    To be entered before Gradio is imported: no variable of the environment changes what it serves.
    """
    signal.signal(signal.SIGTERM, interrupt)
    with tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as folder, _locked(folder):
        _sweep()
        for name in [name for name in os.environ if name.startswith("GRADIO_")]:
            del os.environ[name]
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        yield


@contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder; it ends with the process, however that ends. Raises OSError if another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sweep() -> None:
    """Remove what this user's killed pages left: the folders whose lock nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with suppress(OSError), _locked(folder):
            state = folder.lstat()
            if state.st_uid == os.getuid() and stat.S_IMODE(state.st_mode) == 0o700:
                shutil.rmtree(folder)


def same_site(app: "ASGIApp") -> "ASGIApp":
    """Answer the page's own requests alone: those whose `Host`, and `Origin` if there is one, are its own.

    A website can have its own name lead to this machine (DNS rebinding), or be served at another port of it.
    """
    from starlette.datastructures import Headers
    from starlette.responses import PlainTextResponse

    async def guarded(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "lifespan":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            if host.split(":")[0] not in THIS_MACHINE or origin not in (None, f"http://{host}"):
                return await PlainTextResponse("This page answers no other site.", 403)(scope, receive, send)
        await app(scope, receive, send)

    return guarded


def listen(port: int | None) -> socket.socket:
    """A socket that only this machine reaches. Raises NeuraCryptError if the port is taken."""
    for number in PORTS if port is None else [port]:
        with suppress(OSError, OverflowError):
            return socket.create_server(("127.0.0.1", number))
    raise NeuraCryptError(f"port {port or 'from 7860 on'} is taken on this machine: give another --port")


def serve(blocks: "gradio.Blocks", css: str, port: int | None, key_file: Path) -> None:
    """Serve the page below a random token, and nothing anywhere else, until Ctrl-C."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    theme = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"],
                           font_mono=["ui-monospace", "monospace"])  # fmt: skip
    token = secrets.token_urlsafe()
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), blocks.queue(api_open=False), f"/{token}", theme=theme, css=css, footer_links=[],
        allowed_paths=[], blocked_paths=[str(key_file.resolve())], max_file_size="100mb", ssr_mode=False,
        show_error=False, mcp_server=False, enable_monitoring=False, run_history=False,
    )  # fmt: skip
    config = uvicorn.Config(same_site(app), log_level="warning", proxy_headers=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)  # it cuts what browsers hold open
    with listen(port) as listener, suppress(KeyboardInterrupt):
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
        print(f"Open {address} on this machine. Ctrl-C ends it and removes the pictures.", flush=True)
        server.run(sockets=[listener])
