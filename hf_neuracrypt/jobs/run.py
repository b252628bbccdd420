"""Run a `Job`: its units go to an executor of `concurrent.futures`, or are done here; their notes complete the folder.

Notable decisions
- Resuming is: skip what has a note. Any process or machine may be killed at any time, and any number may continue.
- An executor starts, feeds and watches workers: processes of this machine, or a Dask cluster, which has launchers of
  its own. A job reaches them pickled, the key in it as the path of its file, which each reads itself.
- Ranks of a job array share the units without an executor and never wait for each other: the last completes the folder.
"""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, islice

import dill  # what `datasets` pickles with: it can send generator functions
import torch
from tqdm.auto import tqdm

from hf_neuracrypt.data.batches import cores
from hf_neuracrypt.data.locks import at_work
from hf_neuracrypt.data.manifest import UNFINISHED, is_unfinished
from hf_neuracrypt.data.places import reachable, remove
from hf_neuracrypt.errors import DatasetError, NeuraCryptError, first_line
from hf_neuracrypt.jobs.job import Job, Unit, rows_of, units_of
from hf_neuracrypt.jobs.writer import SCRATCH, Note, check_rejected, claim, complete, name_of, read_notes, write_unit


IN_FLIGHT = 256  # units that an executor holds at once
SCHEDULER_SECONDS = 30  # that a Dask scheduler may need to answer


def run(
    job: Job,
    num_proc: int = 1,
    rank: int = 0,
    world_size: int = 1,
    dask: str | None = None,
    arrived: Callable[[Note], object] = lambda note: None,
) -> bool:
    """Do the units of a job that nobody did before, and complete its folder if all are done.

    Args:
        job: what, and where to.
        num_proc: worker processes; 1: this one does the work.
        rank: of this machine in a job array, which does every `world_size`-th unit.
        world_size: how many machines the array has.
        dask: the address of a Dask scheduler whose workers do the work, on machines that share the output.
        arrived: called with the note of each shard.

    Returns:
        Whether the folder is complete; False when other ranks have units left to do.

    Raises:
        DatasetError: the folder holds something else, somebody else is at work on it, or rows cannot be encrypted.
        NeuraCryptError: what stopped a worker. The same call again continues.
    """
    with reachable(job.output):
        if not claim(job, repeatable=world_size > 1):
            return True
        with at_work(job.output / UNFINISHED, shared=world_size > 1) as check:
            if world_size == 1:
                for left in (job.output / UNFINISHED).glob(f"{SCRATCH}*"):  # what a killed worker was writing
                    remove(left)
            units = units_of(job)
            total, units = rows_of(units), units[rank::world_size]
            notes = read_notes(job, units, {})
            known, rejected = list(notes.values()), list[dict]()
            parts, done = Counter(note["unit"] for note in known), {note["unit"] for note in known if note["last"]}
            tasks = [(unit, parts[unit.name]) for unit in units if unit.name not in done]
            seen = sum(note["source_rows"] for note in known)
            with tqdm(total=rows_of(units), initial=seen, desc="Encrypting", unit=" images") as bar:
                for note in chain(known, _write_all(job, tasks, num_proc, dask, bar)):
                    check()
                    notes[name_of(note)] = note
                    rejected += note["rejected"]
                    check_rejected(job, rejected, total)
                    arrived(note)
            try:
                complete(job, notes)
            except FileNotFoundError:  # another rank may have completed it, and tidied up, meanwhile
                if is_unfinished(job.output):
                    raise
            return not is_unfinished(job.output)


def _write_all(
    job: Job, tasks: Sequence[tuple[Unit, int]], num_proc: int, dask: str | None, bar: tqdm
) -> Iterator[Note]:
    """Do the tasks: a unit, and how many of its shards are there."""
    if num_proc == 1 and dask is None:
        for unit, first in tasks:
            yield from write_unit(job, unit, first, bar.update)
        return
    with _dask(dask) if dask else _processes(num_proc, job) as executor:
        for note in _results(executor, job, tasks):
            bar.update(note["source_rows"])
            yield note


@contextmanager
def _processes(count: int, job: Job) -> Iterator[Executor]:
    """Worker processes: spawned, since forked ones deadlock once torch was used. They end with this one."""
    begin = (max(1, cores() // count), job.plan.encoder.device.type == "cuda")
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, begin)
    try:
        yield pool
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int, on_gpu: bool) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if on_gpu:
        number = int(multiprocessing.current_process().name.rpartition("-")[2])
        torch.cuda.set_device(number % torch.cuda.device_count())


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster; one that dies has its units done by others."""
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise NeuraCryptError("--dask needs Dask: pip install 'hf-neuracrypt[dask]'") from None
    try:
        client = Client(address, timeout=SCHEDULER_SECONDS)
    except (OSError, ValueError, TypeError) as error:
        raise NeuraCryptError(f"cannot reach a Dask scheduler at {address}: {first_line(error)}") from None
    with client:
        yield client.get_executor(pure=False)


def _results(executor: Executor, job: Job, tasks: Sequence[tuple[Unit, int]]) -> Iterator[Note]:
    """What workers write of the tasks."""
    try:
        packed = dill.dumps(job)
    except TypeError as error:  # a key that cannot be sent
        raise NeuraCryptError(str(error)) from None
    left, waiting = iter(tasks), set[Future[list[Note]]]()
    try:
        while True:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:  # workers that an executor starts now inherit this: the driver decides
                waiting |= {executor.submit(_write, packed, *each) for each in islice(left, IN_FLIGHT - len(waiting))}
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
    except (NeuraCryptError, OSError):
        raise
    except Exception as error:  # of the executor: a worker ran out of memory, a scheduler went away
        reason = first_line(error)
        raise DatasetError(f"a worker ended ({reason}): the same command again continues") from None


def _write(packed: bytes, unit: Unit, first: int) -> list[Note]:
    """What a worker does: the shards of a unit from number `first` on."""
    job = _unpacked(packed)
    with reachable(job.output):
        return list(write_unit(job, unit, first))


_unpacked = lru_cache(maxsize=1)(dill.loads)
