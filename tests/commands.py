"""The ways in which tests run a command: inside this process, in one of its own, against a Hub on this machine."""

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import huggingface_hub
import torch

from tests.helpers import ROOT, SMALL_FLAGS


def command(*words: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`hf-neuracrypt …`, or `python scripts/….py …`, inside this process: without a second for Python and torch.

    What a command changes of the process is put back; `environment` is seen as if the process had started with it.
    Signals, locks, workers and what needs a fresh interpreter are tested with `process`.
    """
    first, streams = str(words[0]), [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    script = ROOT / first if first.endswith(".py") else None
    argv = [str(script or "hf-neuracrypt"), *map(str, words[1 if script else 0 :])]
    path = [str(script.parent), *sys.path] if script else list(sys.path)
    with (
        started_with(environment), _state_put_back(), mock.patch.multiple(sys, argv=argv, path=path),
        mock.patch.object(sys, "stdin", io.StringIO(stdin or "")), _log_to(streams[1]),
        contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]),
    ):  # fmt: skip
        code = _status_of(script)
    out, err = (stream.buffer.getvalue().decode() for stream in streams)
    return subprocess.CompletedProcess(argv, code, out, err)


def _status_of(script: Path | None) -> int:
    """The exit status that an interpreter would end with."""
    try:
        if script:
            runpy.run_path(str(script), run_name="__main__")
        else:
            main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")  # of a console script
            try:  # no `mock.patch.dict`: it would forget what a command imported, and some modules load but once
                importlib.import_module("hf_neuracrypt.cli").main()
            finally:
                sys.modules["__main__"] = main
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _state_put_back() -> Iterator[None]:
    """Signal handlers, threads and random numbers of torch, filters of warnings, how loud transformers is."""
    from transformers.utils import logging as transformers_logging

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads, verbosity = torch.get_num_threads(), transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _log_to(stream) -> Iterator[None]:
    """Handlers that hold the stderr of the time when a library was imported write to `stream`."""

    def point(target) -> None:
        for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
            for handler in getattr(logger, "handlers", []):
                if type(handler) is logging.StreamHandler:
                    handler.setStream(target)

    point(stream)
    try:
        yield
    finally:
        point(sys.__stderr__)


@contextlib.contextmanager
def started_with(environment: dict[str, str]) -> Iterator[None]:
    """`os.environ`, and what Hugging Face's libraries made of it when they were imported, with `environment` in it."""
    import datasets.config

    modules = (huggingface_hub.constants, datasets.config)
    before = [_imported_again(module) for module in modules] if environment else []
    with mock.patch.dict(os.environ, environment), contextlib.ExitStack() as stack:
        for module, old in zip(modules, before):
            new = _imported_again(module)
            for name in [name for name, value in new.items() if value != old[name]]:
                stack.enter_context(mock.patch.object(module, name, new[name]))
        if before:
            endpoint = huggingface_hub.constants.ENDPOINT
            stack.enter_context(mock.patch.object(huggingface_hub.hf_api.api, "endpoint", endpoint))
            huggingface_hub.HfFileSystem.clear_instance_cache()
        yield


def _imported_again(module) -> dict[str, object]:
    """The plain values among the globals of a module, as they would be if it were imported now."""
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_again", module.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    plain = (str, bool, int, float, Path, type(None))
    return {name: value for name, value in vars(again).items() if isinstance(value, plain) and name[:2] != "__"}


def process(*words: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`command` as a user runs it, in a process of its own."""
    if words and str(words[0]).endswith(".py"):
        return _run([sys.executable, ROOT / str(words[0]), *words[1:]], environment, stdin)
    return _run([sys.executable, "-m", "hf_neuracrypt", *words], environment, stdin)


def launch(program: str, *words: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a launcher that is installed beside Python: torchrun, accelerate."""
    return _run([Path(sys.executable).parent / program, *words], {"OMP_NUM_THREADS": "1"} | environment)


def _run(words: list, environment: dict[str, str], stdin: str | None = None) -> subprocess.CompletedProcess:
    """A minute's work has ten: a test machine may be busy."""
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, input=stdin, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


def wait_until(happened) -> None:
    """Wait for an event, however busy the machine is."""
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def encrypt(dataset, key_file, output, *flags, run=command) -> subprocess.CompletedProcess:
    """`hf-neuracrypt encrypt` with SMALL."""
    return run("encrypt", "--dataset", dataset, "--key-file", key_file, "--output", output, *SMALL_FLAGS, *flags)


def load_script(name: str):
    """scripts/NAME.py or scripts/experiments/NAME.py as a module; what it imports may lie beside it."""
    folders = [str(ROOT / "scripts"), str(ROOT / "scripts" / "experiments")]
    with mock.patch.object(sys, "path", [*folders, *sys.path]):
        return importlib.import_module(name)


def notes(result: subprocess.CompletedProcess) -> list[str]:
    """The lines on stderr, without progress bars."""
    lines = result.stderr.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip("\x1b[A ") and "it/s]" not in line and "%|" not in line]


def assert_one_line_error(result: subprocess.CompletedProcess, *fragments: str) -> None:
    """Status is not 0, and stderr ends in one line that says what is wrong, without a traceback."""
    assert result.returncode not in (0, 1), result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    for fragment in fragments:
        assert fragment in errors[0], errors[0]


def push(hub, owners, folder, repo, *words, token="hf_owner") -> subprocess.CompletedProcess:
    return command("push", owners / folder, repo, *words, **hub.environment(owners / "home", token))


def python(hub, code, home, token="hf_owner") -> str:
    """Run code that a user might write; returns what it prints."""
    result = _run([sys.executable, "-c", code], hub.environment(home, token))
    assert result.returncode == 0, result.stderr
    return result.stdout
