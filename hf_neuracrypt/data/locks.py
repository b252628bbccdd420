"""One job at a time in a folder, or below an address."""

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from tqdm.auto import tqdm

from hf_neuracrypt.data.places import is_address
from hf_neuracrypt.errors import DatasetError, printable


BEAT = 5  # seconds after which the lock in a bucket is written again
BEATS = 12  # that may be missed before its owner counts as dead


@contextmanager
def at_work(folder: Path, shared: bool = False) -> Iterator[Callable[[], None]]:
    """Nobody else is at work in a folder, or only others that share it. Raises DatasetError.

    Yields what is to be called now and then: it raises DatasetError once somebody else has taken over.
    """
    lock, who = folder / "lock", f"process {os.getpid()} on {socket.gethostname()}\n"
    if is_address(folder):
        _wait_for_the_dead(lock)
        with nullcontext(lambda: None) if shared else _lease(lock, who) as check:
            yield check
        return
    with open(lock, "a+") as file:  # the system drops the lock when the process ends, however it ends
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _is_at_work(file.read(), folder) from None
        file.truncate(0)
        file.write(who)
        file.flush()
        yield lambda: None


def _is_at_work(who: str, folder: Path) -> DatasetError:
    name = (who.splitlines() or ["another process"])[0]
    return DatasetError(f"{name} is writing to {folder.parent}: wait for it, or stop it")


def _wait_for_the_dead(lock: Path) -> None:
    """A bucket has no locks: whoever is at work writes an object again at every beat, and one that stays the same for
    many beats, as seen from here, is that of a process that died. So no clocks are compared; and whatever goes wrong
    with it, work is done twice, to the same bytes. Those who share the folder only look."""
    if not (first := _content(lock)):
        return
    for _ in tqdm(range(BEATS), desc=f"Is {printable(first.splitlines()[0])} still at work", unit=" looks"):
        time.sleep(BEAT)
        if (now := _content(lock)) != first:
            if now:
                raise _is_at_work(now, lock.parent)
            return


@contextmanager
def _lease(lock: Path, who: str) -> Iterator[Callable[[], None]]:
    mine, ended = f"{who}{uuid.uuid4()}\n", threading.Event()

    def renew() -> None:
        while not ended.wait(BEAT):
            with suppress(Exception):  # the next beat comes
                if not _content(lock).startswith(mine):
                    return
                lock.write_text(f"{mine}{uuid.uuid4()}")

    def check() -> None:
        if not beating.is_alive():
            raise DatasetError(f"another job has begun to write to {lock.parent.parent}: this one stops")

    lock.write_text(mine)
    beating = threading.Thread(target=renew, name=str(lock), daemon=True)
    beating.start()
    try:
        yield check
    finally:
        ended.set()
        beating.join()
        with suppress(Exception):
            if _content(lock).startswith(mine):
                lock.unlink()


def _content(file: Path) -> str:
    """Of a small file in a bucket, as it is now; empty if it is not there."""
    file.fs.invalidate_cache()  # type: ignore[attr-defined]
    try:
        return file.fs.cat_file(file.path).decode()  # type: ignore[attr-defined]
    except FileNotFoundError:
        return ""
