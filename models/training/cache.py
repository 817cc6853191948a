"""What is made once and kept in the user's cache folder: unpacked files and encoded texts."""

import hashlib
import lzma
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rheobase.spiking.errors import FormatError
from rheobase.spiking.files import open_atomic

_BLOCK = 1 << 20
LARGEST, INFLATION = 1 << 30, 100
"""bytes that any .xz file may unpack to, and times its own size beside; text shrinks to a tenth, a bomb to a 7000th"""


def cache_folder() -> Path:
    """$RHEOBASE_CACHE, or `rheobase` in the user's cache folder."""
    given = os.environ.get("RHEOBASE_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rheobase"


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """A hash of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def unpacked(path: Path) -> Path:
    """The file itself, or the content of an .xz file, which is unpacked into the cache once.

    raises  FormatError: a truncated or damaged .xz file
    """
    if path.suffix != ".xz":
        return path
    out = cache_folder() / "unpacked" / file_digest(path)
    if not out.exists():
        most = LARGEST + INFLATION * path.stat().st_size
        try:
            with lzma.open(path) as packed, open_atomic(out) as file:
                while block := packed.read(_BLOCK):
                    file.write(block)
                    if file.tell() > most:
                        raise FormatError(path, f"at most {most:,} bytes of text", "more", "unpack it by hand")
        except (EOFError, lzma.LZMAError) as error:
            raise FormatError(path, "a whole .xz file", str(error).lower(), "fetch the file anew") from None
    return out


def cached_array(key: str, dtype: np.dtype, pieces: Iterable[np.ndarray]) -> np.ndarray:
    """The concatenation of some arrays, written under `key` once, memory-mapped.

    raises  FormatError: the file in the cache is damaged
    """
    path = cache_folder() / "tokens" / f"{key}.npy"
    if not path.exists():
        length = 0
        with open_atomic(path) as file:
            _write_header(file, dtype, length)
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, dtype))
                length += len(piece)
            file.seek(0)
            _write_header(file, dtype, length)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        raise FormatError(path, "a whole .npy file", "a damaged one", "delete it") from None


def _write_header(file, dtype: np.dtype, length: int) -> None:
    """A header of the same size for every length: NumPy leaves room for the longest."""
    table = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, table)
