"""What is written about a training while it runs: log.jsonl, and how well the machine is used."""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rheobase.models._pretrained import LanguageModel
from rheobase.spiking.errors import FormatError

SIZES = {"cpu": 512, "cuda": 8192}
"""of the square matrices whose product shows what a device can do; on a GPU it takes long beside its launch"""


class Log:
    """log.jsonl, from a number of bytes on, what lies behind them being dropped; nothing where `path` is None.

    show  is also called with each record, if given
    """

    def __init__(self, path: Path | None, keep: int, show: Callable[[dict], None] | None = None):
        self._show, self._path = show, path
        self._file = None if path is None else open(path, "ab")
        if self._file:
            if 0 < (held := self._file.tell()) < keep:
                expected, remedy = f"the {keep:,} bytes of log of the checkpoint", "put it back, or delete it"
                self._file.close()
                raise FormatError(path, expected, f"{held:,}", remedy)
            self._file.truncate(min(keep, held))
            self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()

    def write(self, **record) -> None:
        """Add a line."""
        if self._file:
            with _named(self._path):
                self._file.write(json.dumps(record).encode() + b"\n")
                self._file.flush()
            if self._show:
                self._show(record)

    def synced(self) -> int:
        """How long it is, once that is on the disk."""
        if not self._file:
            return 0
        with _named(self._path):
            os.fsync(self._file.fileno())
        if not self._path.is_file() or not os.path.samefile(self._path, self._file.fileno()):
            got, remedy = "none, or another one", "leave the run's folder where it is until it ends"
            raise FormatError(self._path, "the log of this training", got, remedy)
        return self._file.tell()


@contextlib.contextmanager
def _named(path: Path):
    """An error of the system within, such as a full disk, says which file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class Meter:
    """Tokens a second, of all ranks, and how much of the machine they use.

    utilisation  of a language model: 6 N tokens/s over what the ranks could do in a dense product of their precision,
                 N the weights of the model's products: forward 2 N operations a token, backward 4 N, as if nothing
                 were sparse. A matrix product timed at the start is taken for what a rank could do
    cpu_share    CPU time of this process over the wall clock's: 1 is one core
    memory       most bytes that this process held: on a GPU by torch, else of the whole process
    """

    def __init__(self, model, device: str, precision: str, world: int):
        self.device, self.world = torch.device(device), world
        once = model.products() if isinstance(model, LanguageModel) else ()  # others use a weight many times a token
        self.weights = sum(model.get_parameter(name).numel() for name in once)
        self.peak = matmul_peak(self.device, precision)
        self.restart()

    def restart(self) -> None:
        """Begin a new stretch, once what was asked of a GPU is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seen, self.wall, self.cpu = 0, time.monotonic(), time.process_time()

    def read(self) -> dict:
        """The figures of the stretch that ends now."""
        wall = max(time.monotonic() - self.wall, 1e-9)
        speed = self.seen / wall
        figures = {
            "tokens_per_s": speed,
            "cpu_share": (time.process_time() - self.cpu) / wall,
            "memory": peak_memory(self.device),
        }
        if self.weights:
            figures["utilisation"] = 6 * self.weights * speed / (self.world * self.peak)
        self.restart()
        return figures


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: on a GPU by torch, else resident, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):  # ru_maxrss would count what the parent held when it started this process
            return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def matmul_peak(device: torch.device, precision: str) -> float:
    """Operations a second of a square matrix product, the best of six, the first of which warms up."""
    dtype = {"float64": torch.float64, "bf16": torch.bfloat16}.get(precision, torch.float32)
    n, best = SIZES[device.type], float("inf")
    own = torch.Generator(device).manual_seed(0)  # a GPU is quicker with numbers that are all alike
    a = torch.randn(n, n, dtype=dtype, device=device, generator=own)
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    if device.type == "cuda":
        del a
        torch.cuda.reset_peak_memory_stats(device)  # `peak_memory` is the training's
    return 2 * n**3 / best
