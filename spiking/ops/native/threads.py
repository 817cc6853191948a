"""The kernels in C on as many threads as torch uses: ctypes lets go of the interpreter's lock while C runs."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

GRAIN = 1 << 15
"""Elements below which a thread costs more than it saves"""


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "rheobase")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def spread(run: Callable[[int, int], None], blocks: int, elements: int) -> None:
    """run(first, end) for ranges of blocks that together are all, side by side on `torch.get_num_threads()` threads.

    blocks    how many pieces there are that do not know of each other
    elements  how many numbers they have together

    An interrupt may end the call before the others are done: `run` must hold the memory that it reads and writes.
    """
    threads = min(torch.get_num_threads(), blocks, elements // GRAIN)
    if threads < 2:
        return run(0, blocks)
    own, *others = pairwise(blocks * i // threads for i in range(threads + 1))
    running = []
    for part in others:
        try:
            running.append(_pool(threads - 1).submit(run, *part))
        except RuntimeError:
            run(*part)  # no thread is to be had, as after the end of the main one
    run(*own)
    for part in running:
        part.result()
