"""The two functions that do the work everywhere: prepare many images, and take a batch the whole way to stored rows.

An image goes its whole way (decode, resize, encrypt, PNG) on one core. A batch is cut into parts; a part is done by one
thread, whose torch uses one thread, so that nobody waits for anybody: on a loaded machine, threads that share one
matrix product spin while they wait for each other.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from hf_neuracrypt.encoders.base import Encoder
from hf_neuracrypt.errors import ImageError
from hf_neuracrypt.images import make_views, prepare
from hf_neuracrypt.schemes import SchemeConfig


PART = 16  # images that one thread does at a time, at most
Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Cores this process may use: by its affinity mask, and by the CPU quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            words = Path(quota).read_text().split() + (Path(period).read_text().split() if period else [])
            if words[0] not in ("max", "-1"):
                return max(1, min(allowed, math.ceil(int(words[0]) / int(words[1]))))
        except (OSError, ValueError, IndexError):
            continue
    return allowed


def use_own_cores() -> None:
    """Let torch use no more threads than `cores()`: by itself it does not see the quota of a container."""
    torch.set_num_threads(_threads())


def on_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of each item, in order, on as many threads as torch may use; torch uses one thread in each."""
    own, threads = torch.get_num_threads(), min(_threads(), len(items))
    if threads <= 1:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(own)  # threads that are started later would begin with one


def _threads() -> int:
    return min(torch.get_num_threads(), cores())


def prepare_all(sources: Sequence[object], config: SchemeConfig) -> list[np.ndarray | ImageError]:
    """Each image as `images.prepare` gives it, uint8 (3, S, S), or the reason why it cannot be used."""
    return on_threads(partial(_prepared, config=config), sources)


def encrypt_all(encode: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray) -> np.ndarray:
    """Ciphertexts of uint8 images (N, 3, S, S), some at a time; `encode` is a method of an encoder."""
    size = min(PART, math.ceil(len(images) / _threads()) or 1)
    parts = [images[start : start + size] for start in range(0, max(1, len(images)), size)]
    return np.concatenate(on_threads(lambda part: encode(torch.from_numpy(part)).numpy(), parts))


def encrypt_rows(
    encoder: Encoder, sources: Sequence[object], views: int = 1, flip: bool = False
) -> list[list[Any] | ImageError]:
    """Images the whole way to what is stored of them.

    Args:
        encoder: from `load_encoder`.
        sources: anything that `images.prepare` takes.
        views: rows of each image, itself the first; see `images.make_views`.
        flip: see there.

    Returns:
        For each image its `views` stored ciphertexts (see `encoders.stored`), or the reason why it cannot be used.
    """
    size = max(1, PART // views)
    if encoder.config.depends_on_batch:
        size = max(1, len(sources))
    elif encoder.config.exact:  # float32 ciphertexts may depend on the size of a part in their last digits
        size = min(size, math.ceil(len(sources) / _threads()) or 1)
    parts = [sources[start : start + size] for start in range(0, len(sources), size)]
    return [each for part in on_threads(partial(_part, encoder, views, flip), parts) for each in part]


def _part(encoder: Encoder, views: int, flip: bool, sources: Sequence[object]) -> list[list[Any] | ImageError]:
    prepared = [_prepared(source, encoder.config) for source in sources]
    plain = [image for image in prepared if not isinstance(image, ImageError)]
    if not plain:
        return [image for image in prepared if isinstance(image, ImageError)]
    if views > 1:
        plain = [view for image in plain for view in make_views(image, views, flip)]
    rows = iter(encoder.stored.rows(encoder.encrypt(torch.from_numpy(np.stack(plain)))))
    return [image if isinstance(image, ImageError) else list(islice(rows, views)) for image in prepared]


def _prepared(source: object, config: SchemeConfig) -> np.ndarray | ImageError:
    try:
        return prepare(source, config)
    except ImageError as error:
        return error
