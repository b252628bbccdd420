"""Run a `Job` with a progress bar: in this process, or in several that this one starts.

Worker processes are spawned, since forked ones deadlock once torch was used. Each reads the key file itself (a pickled
key is a reference to its file) and expands the key once. They end when their parent does, whatever ended it.
"""

import json
import os
import signal
import threading

import multiprocess  # the variant of multiprocessing that `datasets` uses: it can send generator functions
import torch
from datasets import Dataset
from multiprocess.connection import wait
from tqdm.auto import tqdm

from hf_neuracrypt.data.batches import cores
from hf_neuracrypt.data.manifest import is_unfinished
from hf_neuracrypt.data.sources import quiet_datasets
from hf_neuracrypt.errors import DatasetError, NeuraCryptError
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.writer import claim, work


def run(job: Job, num_proc: int = 1, rank: int = 0, world_size: int = 1) -> bool:
    """Do the share of machine `rank` of `world_size` with `num_proc` processes; see `writer.work`.

    Returns:
        Whether the folder is complete; False when other machines have shards left to write.

    Raises:
        NeuraCryptError: what stopped a worker. The same call again continues.
    """
    lengths = [len(split) if isinstance(split, Dataset) else None for split in job.splits.values()]
    total = None if None in lengths or world_size > 1 else sum(length or 0 for length in lengths)
    with quiet_datasets(), tqdm(total=total, desc="Encrypting", unit=" images") as bar:
        if num_proc == 1:
            return work(job, rank, world_size, bar.update)
        if not claim(job, repeatable=world_size > 1):
            return True
        _run_processes(job, num_proc, rank, world_size, bar)
    return not is_unfinished(job.output)


def _run_processes(job: Job, num_proc: int, rank: int, world_size: int, bar: tqdm) -> None:
    context = multiprocess.get_context("spawn")
    failures = context.SimpleQueue()
    counted: set[str] = set()
    threads = max(1, cores() // num_proc)
    arguments = [(job, rank * num_proc + i, world_size * num_proc, threads, failures) for i in range(num_proc)]
    processes = [context.Process(target=_worker, args=each, daemon=True) for each in arguments]
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit this: the parent decides
        for process in processes:
            process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        while running := [process for process in processes if process.is_alive()]:
            wait([process.sentinel for process in running], timeout=0.5)
            _show_progress(job, bar, counted)
            if not failures.empty():
                raise NeuraCryptError(failures.get())
        if not failures.empty():
            raise NeuraCryptError(failures.get())
        killed = [process.exitcode for process in processes if process.exitcode]
        if killed:
            raise DatasetError(
                f"a worker process ended with status {killed[0]} (out of memory?): the same command again continues"
            )
    except TypeError as error:  # a key that cannot be sent
        raise NeuraCryptError(str(error)) from None
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()  # its lock is free from here on


def _worker(job: Job, rank: int, world_size: int, threads: int, failures) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        with quiet_datasets():
            work(job, rank, world_size)
    except NeuraCryptError as error:
        failures.put(str(error))


def _end_with_parent() -> None:
    wait([multiprocess.parent_process().sentinel])
    os._exit(1)


def _show_progress(job: Job, bar: tqdm, counted: set[str]) -> None:
    """Count the rows of shards finished since the last call; nothing is left to count once the folder is complete."""
    try:
        for path in job.notes.glob("*.json"):
            if path.name not in counted:
                bar.update(json.loads(path.read_text())["source_rows"])
                counted.add(path.name)
    except OSError:
        return
