"""Errors a user can act on. Commands print them as one line and exit with status 2; the Python API raises them."""

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class NeuraCryptError(Exception):
    """Base of every error this package raises on purpose: what is wrong, where, and what to do, in one line."""


class KeyFileError(NeuraCryptError):
    """A key file that is missing, damaged, readable by others, or locked with another passphrase."""


class KeyMismatchError(NeuraCryptError):
    """Two things that were encrypted under different keys, or with different public configs, were brought together."""


class ConfigError(NeuraCryptError):
    """A public parameter that the scheme does not support."""


class ImageError(NeuraCryptError):
    """An image that cannot be read, or an array that is not an image."""


class DatasetError(NeuraCryptError):
    """A dataset that cannot be used as asked: columns, labels, splits, folders."""


class LeakError(NeuraCryptError):
    """A file that must not be published: it holds a key, a plain image, or is none of those that are published."""


class HubError(NeuraCryptError):
    """The Hub, or a model's endpoint, cannot be reached, refuses, or holds something else."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For scripts: an error a user can act on is one line on stderr and exit status 2; Ctrl-C is status 130."""
    try:
        yield
    except NeuraCryptError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted; the same command again goes on from what was finished", 130)
    except OSError as error:
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)


_WARNINGS = threading.Lock()  # files are read on several threads; warning filters belong to all of them


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence libraries whose warnings may quote the file that they read."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """Text that may be a stranger's, as it is shown: what could steer a terminal or break a line is replaced."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def fail(text: str, status: int) -> NoReturn:
    """Print one line and end the process."""
    print(f"error: {printable(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(status)
