"""Memory for large results of the kernels that is used again.

The C library's allocator gives large blocks back to the system, which fills each with zeros, page by page, before it
hands it out again: that takes longer than a kernel that writes a number once. Blocks whose tensors are gone wait
here instead.
"""

import mmap
import os
import threading
import weakref
from math import prod

import torch
from torch import Tensor

PAGE = 1 << 20
"""bytes of which a block is a multiple; the C library's allocator keeps what is smaller itself"""
MOST = 1 << 28
"""bytes that may wait"""

_waiting: list[mmap.mmap] = []
_lock = threading.RLock()


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)  # a thread that the child lacks may hold the old one


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As `torch.empty`, on a CPU, whatever the default device is."""
    count = prod(shape)
    if count * dtype.itemsize < PAGE:
        return torch.empty(shape, dtype=dtype, device="cpu")
    block = _take(-(-count * dtype.itemsize // PAGE) * PAGE)
    view = memoryview(block)
    weakref.finalize(view, _give_back, block).atexit = False
    storage = torch.frombuffer(view, dtype=dtype, count=count).untyped_storage()
    tensor = torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:
        tensor.fill_(torch.nan)
    return tensor


def _take(size: int) -> mmap.mmap:
    with _lock:
        for block in reversed(_waiting):  # the last one may be in a cache yet
            if size <= len(block) <= 2 * size:
                _waiting.remove(block)
                return block
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_back(block: mmap.mmap) -> None:
    with _lock:
        _waiting.append(block)
        while sum(map(len, _waiting)) > MOST:
            _waiting.pop(0)
