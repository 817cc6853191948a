"""Packed files as streams in constant memory: .gz, .xz and, by the zstandard package, .zst."""

import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rheobase.spiking.errors import ConfigError, FormatError

PACKED = (".gz", ".xz", ".zst")
Read = Callable[[int], bytes]
_FEED = 1 << 10
"""bytes of .zst at a time: they may stand for 128 KiB in every 4"""


@contextlib.contextmanager
def unpacking(path: Path) -> Iterator[Read]:
    """A function that reads the next n bytes of the content, fewer at its end.

    raises  FormatError: a truncated or damaged file;  ConfigError: .zst without the zstandard package
    """
    try:
        if path.suffix == ".zst":
            with open(path, "rb") as file:
                yield _unpacking_zst(path, file)
        else:
            with (gzip if path.suffix == ".gz" else lzma).open(path) as file:
                yield io.BufferedReader(file).read
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise FormatError(path, f"a whole {path.suffix} file", str(error).lower(), "fetch the file anew") from None


def _unpacking_zst(path: Path, file) -> Read:
    try:
        import zstandard
    except ImportError:
        raise ConfigError(path, "the zstandard package", "none", "pip install 'rheobase[data]'") from None

    def pieces():
        frame = None
        while piece := file.read(_FEED):
            while piece:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(piece)
                except zstandard.ZstdError as error:
                    raise EOFError(str(error)) from None
                piece, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        if frame:
            raise EOFError("a frame without its end")  # the library's own stream takes it for a shorter text

    held, coming = bytearray(), pieces()

    def read(n: int) -> bytes:
        while len(held) < n and (piece := next(coming, None)) is not None:
            held.extend(piece)
        taken = bytes(held[:n])
        del held[:n]
        return taken

    return read
