"""A GPU in software for Triton: it compiles for one, and what it launches runs on the memory of tensors on the CPU."""

import contextlib
import ctypes
import gc
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from ptx import Kernel
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

from rheobase.spiking.ops import choice

OPS = ("lif", "wkv", "egru")


class Memory:
    """What launches may read and write of the host's: stretches of (address, bytes). How much they do is counted."""

    def __init__(self, stretches):
        self.read = self.written = 0
        self.starts, self.sizes = np.array(sorted(set(stretches)), "u8").reshape(-1, 2).T
        self.bytes = [np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start))
                      for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True)]  # fmt: skip

    def _places(self, addresses: np.ndarray, size: int):
        if (addresses % np.uint64(size)).any():
            raise ValueError("an address is not a multiple of the size of what lies there")
        which = np.searchsorted(self.starts, addresses, "right") - 1
        if (which < 0).any() or (addresses + np.uint64(size) > (self.starts + self.sizes)[which]).any():
            raise IndexError("an address lies in none of the tensors")
        for one in np.unique(which):
            threads = np.flatnonzero(which == one)
            first = addresses[threads] - self.starts[one]
            yield threads, self.bytes[one], first[:, None] + np.arange(size, dtype="u8")

    def load(self, addresses: np.ndarray, size: int) -> np.ndarray:
        self.read += size * len(addresses)
        found = np.empty((len(addresses), size), "u1")
        for threads, memory, places in self._places(addresses, size):
            found[threads] = memory[places]
        return found.view(f"u{size}")[:, 0]

    def store(self, addresses: np.ndarray, bits: np.ndarray) -> None:
        self.written += bits.itemsize * len(addresses)
        if len(np.unique(addresses)) < len(addresses):
            raise ValueError("two threads write to one place")
        for threads, memory, places in self._places(addresses, bits.itemsize):
            memory[places] = np.ascontiguousarray(bits[threads])[:, None].view("u1")


class Launch(NamedTuple):
    """Of a kernel, and the bytes that it read and wrote."""

    name: str
    read: int
    written: int


class Launcher:
    """What Triton calls with a compiled kernel's arguments, every one in order."""

    launched = []

    def __init__(self, source, metadata):
        self.signature = list(source.signature.values())
        self.kernel = Kernel(Path(get_cache_manager(metadata.hash).get_file(f"{metadata.name}.ptx")).read_text())
        self.memory = None

    def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        given, stretches = [], []
        for argument, kind in zip(arguments, self.signature, strict=True):
            if isinstance(argument, torch.Tensor) and kind != "constexpr":
                assert argument.is_contiguous()
                stretches += [(argument.data_ptr(), argument.nbytes)] if argument.nbytes else []
                argument = argument.data_ptr()
            if kind != "constexpr":
                assert isinstance(argument, int) and kind[0] in "*i"
                given.append(argument)
        if stretches:  # later launches of the same tensors may be by their addresses
            self.memory = Memory(stretches)
        memory, before = self.memory, (self.memory.read, self.memory.written)
        self.kernel((x, y, z), given, memory)
        self.launched.append(Launch(function, memory.read - before[0], memory.written - before[1]))


def _forget() -> None:
    """What was compiled, and the sources that it was compiled from."""
    Launcher.launched.clear()
    for op in OPS:
        for thing in vars(importlib.import_module(f"rheobase.spiking.ops.{op}.triton")).values():
            if hasattr(thing, "device_caches"):
                thing.device_caches.clear()
                thing.hash = None
    gc.collect()  # what was compiled is unloaded, by the driver of the time


@contextlib.contextmanager
def software_gpu(capability: int = 90) -> Iterator[list[Launch]]:
    """Within, Triton's kernels take tensors on the CPU, compiled for a GPU of that compute capability; yields what was
    launched."""
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232_448, "multiprocessor_count": 132, "warpSize": 32},
        load_binary=lambda name, *_: (1, name, 32, 0, 1024),
        unload_module=lambda module: None,
    )
    gpu = SimpleNamespace(
        utils=utils,
        launcher_cls=Launcher,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )

    def missing(op, form, device, asked=choice.missing):
        return None if form == "triton" else asked(op, form, device)

    missing._dynamo_marked_constant = True
    driver.set_active(gpu)
    try:
        _forget()
        with mock.patch.object(choice, "missing", missing):
            yield Launcher.launched
    finally:
        _forget()
        driver.set_active(None)
