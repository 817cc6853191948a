"""Files that are either whole or absent: written beside, flushed to disk, then renamed."""

import contextlib
import hashlib
import io
import os
import shutil
import stat
import uuid
from pathlib import Path

import numpy as np

from rheobase.spiking.errors import FormatError


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_atomic(path: str | Path):
    """Yield a binary file to fill; a reader, or a crash at any moment, sees the old content or the whole new one.

    A link stays one: the file that it leads to is written.

    raises  FormatError: `path` is a device or a pipe, which a renamed file would replace
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FormatError(path, "a file, or none yet", "a device or a pipe", "choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say where
        raise
    _sync_folder(path.parent)


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a whole file by `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


def array_of_npy(data: bytes, where: object, expected: str) -> np.ndarray:
    """The array of a .npy file's bytes; raises FormatError where it is damaged or holds objects, not `expected`."""
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header goes through Python's tokenizer and parser, which raise many kinds
        got = f"{type(error).__name__}: {error}"[:200]
        raise FormatError(where, expected, got, "save it anew with numpy.save") from None


@contextlib.contextmanager
def new_folder(path: str | Path):
    """Yield a folder to fill, and rename it to `path` when the block ends well; on an error nothing is left.

    raises  FormatError: `path` exists already
    """
    path = Path(path)
    if path.exists():
        raise FormatError(path, "a folder that does not exist yet", "an existing one", "choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    beside.mkdir()
    try:
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        os.rename(beside, path)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


def read_bytes(path: str | Path, what: str) -> bytes:
    """Read a whole file; raises FormatError that says `what` was expected where it cannot be read, or has no end."""
    try:
        if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
            raise FormatError(path, what, "a pipe or a device", "put a plain file there")
        return Path(path).read_bytes()
    except OSError as error:
        raise FormatError(path, what, error.strerror or str(error), "check the path") from None
