"""HDF5 files of strangers, read in a process of its own (`_hdf5_program.py`) with limits of time and memory.

The HDF5 library was seen to turn in circles and to crash on damaged files, which cannot be caught from inside. The
program looks a file over before it reads any of it: links elsewhere are refused, and so are data that lie in another
file and objects without end. Starting it takes a fraction of a second a file.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rheobase.spiking import _hdf5_program
from rheobase.spiking.errors import FormatError

SECONDS, PATIENCE = 10, 600
"""for one answer: of the processor, of which a small one takes a fraction of one, and of the clock"""
MOST_BYTES = ROOM = 1 << 30
"""of one array; and of the program's memory, beside the file where that is given as bytes"""
MOST_INFLATION = 1100
"""deflate shrinks by a factor of 1,032 at most; an array of more is one that was never written, and refused as well"""
LONGEST_LINE = 1 << 26
_ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}
"""the last one: no filters from libraries that lie on this machine"""


@dataclass(frozen=True)
class Item:
    """A group or, with a shape, a dataset.

    kind   NumPy's name of a type of numbers, "text", "rows" of numbers, each of its own length, or "other"
    piece  bytes of a compressed piece, which is unpacked whole for any part of it
    """

    attributes: Mapping
    kind: str | None
    shape: tuple[int, ...] | None
    piece: int

    @property
    def nbytes(self) -> int:
        """Of all its numbers; of rows and text at least."""
        each = 1 if self.kind in ("text", "rows", "other") else np.dtype(self.kind).itemsize
        return each * int(np.prod(self.shape, dtype=object))


class Hdf5:
    """An open file: `items` by path, the root's is ""; `most`, the bytes that can be in it.

    raises  FormatError: damage, or what the program refuses, wherever it is met
    """

    def __init__(self, process: subprocess.Popen, where: object, what: str, size: int):
        self._process, self.where, self._what = process, where, what
        self.most = MOST_INFLATION * size
        table = self._answer(None)
        try:
            self.items = {path: Item(a, k, None if s is None else tuple(s), n) for path, (a, k, s, n) in table.items()}
        except (ValueError, TypeError, AttributeError):
            raise self._ended() from None

    def dataset(self, path: str) -> Item:
        """What is said of a dataset."""
        if path not in self.items or self.items[path].shape is None:
            raise FormatError(self.where, f"the dataset {path}", "none", "it is damaged or another file")
        return self.items[path]

    def read(self, path: str, *index: int | slice, most: int = MOST_BYTES) -> np.ndarray:
        """A dataset, or the part of it at an index, text as bytes, of at most `most` bytes."""
        self.dataset(path)
        assert all(i.step in (None, 1) for i in index if isinstance(i, slice))
        plain = [[i.start, i.stop] if isinstance(i, slice) else i for i in index]
        return self._answer([path, plain, min(most, self.most)])

    def _answer(self, request):
        """The next answer, after a request."""
        try:
            if request:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            n = int.from_bytes(self._exactly(np.empty(4, np.uint8)).tobytes(), "little")
            if n > LONGEST_LINE:
                raise ValueError(n)
            head = json.loads(self._exactly(np.empty(n, np.uint8)).tobytes())
            if isinstance(head, list) and len(head) == 3:
                raise FormatError(self.where, head[0] or self._what, head[1], "do not use it, or write it anew")
            if not request:
                return head
            dtype, shape = np.dtype(head[0]), tuple(head[1])
            if dtype.kind not in "iufbS" or dtype.itemsize * int(np.prod(shape, dtype=object)) > request[2]:
                raise ValueError(head)
            array = np.empty(shape, dtype)
            self._exactly(array.reshape(-1).view(np.uint8))
            return array
        except FormatError:
            raise
        except (EOFError, OSError, ValueError, TypeError, LookupError, RecursionError):
            raise self._ended() from None

    def _exactly(self, room: np.ndarray) -> np.ndarray:
        """Fill an array of bytes."""
        view, done = room.data, 0
        while done < len(room):
            n = self._process.stdout.readinto(view[done:])
            if not n:
                raise EOFError
            done += n
        return room

    def _ended(self) -> FormatError:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._process.kill()
        got = f"status {self._process.wait()} of the reader"
        return FormatError(self.where, f"{self._what} that is read in {SECONDS} s", got, "do not use it")


@contextlib.contextmanager
def open_hdf5(source: str | Path | bytes | BinaryIO, where: object, what: str = "HDF5") -> Iterator[Hdf5]:
    """Yield a file, or the bytes of one, as Hdf5 that can be read while the block lasts.

    An open file is read by its descriptor, so that what was looked at before is what is read, whatever its name is now.

    what    what it should be, for messages
    raises  FormatError, as Hdf5
    """
    inside, handed = isinstance(source, bytes), ()
    if inside:
        name, size = "-", len(source)
        if size > MOST_BYTES:
            raise FormatError(where, f"at most {MOST_BYTES} bytes", str(size), "do not use it")
    else:
        if not isinstance(source, str | Path):
            handed = (source.fileno(),)
            source = f"/dev/fd/{source.fileno()}"
        if not Path(source).is_file():
            raise FormatError(where, what, "no file", "check the path")
        name, size = source if handed else str(Path(source).resolve()), Path(source).stat().st_size
    arguments = [sys.executable, "-P", _hdf5_program.__file__, name, *map(str, (SECONDS, PATIENCE, ROOM))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(arguments, **pipes, env=os.environ | _ALONE, pass_fds=handed)
    try:
        if inside:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(size.to_bytes(8, "little") + source)
                process.stdin.flush()
        yield Hdf5(process, where, what, size)
    finally:
        process.kill()
        process.stdout.close()
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.wait()
