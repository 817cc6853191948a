"""Documents of text files, JSON Lines and Parquet, packed or not, as a stream of blocks in constant memory.

A source is cut into units that are read apart from each other: stretches of 64 MiB of a plain file, row groups of a
Parquet file, the whole of a packed one. The cut depends on nothing but the source.
"""

import contextlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rheobase.models.training.packed import PACKED, Read, unpacking
from rheobase.models.training.tokenizers import Characters, Tokenizer
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.registry import nearest

UNIT = 1 << 26
"""bytes of a plain file that one process reads at a time"""
FAR = 1 << 24
"""bytes within which a text must have a place to cut, and a line of JSON must end"""
LINES = (".jsonl", ".ndjson", ".json")
Boundary = Callable[[bytes, int], int]


class Wrong(Exception):
    """What is wrong at a line (or a row; None: nowhere in particular) of a unit: (line, expected, got, remedy)."""


@dataclass(frozen=True)
class Unit:
    """A part of a source: `kind` "text" or "lines", from the first boundary in its bytes from `low` on to that from
    `high` on, or "table", row group `number`."""

    path: str
    kind: str
    number: int
    low: int
    high: int


@dataclass(frozen=True)
class Block:
    """Some text, whether a document starts with it, and the line (or row) of its unit where it starts, from 1 on.

    The last block of a unit is an empty one, whose line is that after the last.
    """

    text: bytes
    starts: bool
    line: int


def units_of(path: str | Path) -> list[Unit]:
    """The units of a source, whose kind its name says; raises FormatError where it is missing, empty or damaged."""
    path = Path(path)
    if not path.is_file():
        got, remedy = ("a folder", "name the files in it") if path.is_dir() else ("no file", "check the path")
        raise FormatError(path, "a file of text, JSON Lines or Parquet", got, remedy)
    size = path.stat().st_size
    if not size:
        raise FormatError(path, "a text", "an empty file", "leave it out")
    packed = path.suffix in PACKED
    inner = Path(path.stem).suffix if packed else path.suffix
    kind = "table" if path.suffix == ".parquet" else "lines" if inner in LINES else "text"
    if kind == "table":
        groups = _opened_table(path).num_row_groups
        bounds = [size * i // groups for i in range(groups + 1)]
    else:
        bounds = [0, size] if packed else [*range(0, size, UNIT), size]
    return [Unit(str(path), kind, i, low, high) for i, (low, high) in enumerate(itertools.pairwise(bounds))]


def blocks(unit: Unit, field: str, encoding: str, tokenizer: Tokenizer, size: int) -> Iterator[Block]:
    """The blocks of a unit, each of about `size` bytes at most unless its text has no nearer place to cut.

    raises  Wrong: the first line or row that is not as it should be
    """
    boundary = Characters.boundary if tokenizer.unit == "byte" and encoding != "bytes" else tokenizer.seam
    if unit.kind == "text":
        encoding = "utf-8" if tokenizer.utf8 and encoding == "bytes" else encoding
        yield from _of_text(unit, encoding, boundary, size)
        return
    for line, text in _of_table(unit, field) if unit.kind == "table" else _of_lines(unit, field):
        if text is None:
            yield Block(b"", False, line)
            continue
        for i, piece in enumerate(_cut(io.BytesIO(text).read, boundary, size) if len(text) > size else [text]):
            _check_size(piece, size, line)
            yield Block(piece, not i, line)


def _of_text(unit: Unit, encoding: str, boundary: Boundary, size: int) -> Iterator[Block]:
    line, first = 1, unit.number == 0
    with _opened(unit, boundary) as read:
        for text in _cut(read, boundary, size):
            try:
                if encoding != "bytes":
                    text.decode(encoding)
            except UnicodeDecodeError as error:
                at, got = line + text.count(b"\n", 0, error.start), f"the byte 0x{text[error.start]:02x}"
                remedy = 'give it in that encoding; --encoding bytes if the tokenizer is "bytes" or "words"'
                raise Wrong(at, f"{encoding} text", got, remedy) from None
            _check_size(text, size, line)
            yield Block(text, first, line)
            line, first = line + text.count(b"\n"), False
    yield Block(b"", False, line)


def _cut(read: Read, boundary: Boundary, size: int) -> Iterator[bytes]:
    """A stream in pieces that end at the first boundary from `size` bytes on, or where it is too far."""
    held = b""
    while more := read(max(size, len(held))):
        held += more
        while len(held) > size and ((at := boundary(held, size)) < len(held) or at > FAR + size):
            yield held[:at]
            held = held[at:]
    if held:
        yield held


def _check_size(text: bytes, size: int, line: int) -> None:
    if len(text) > FAR + size:
        raise Wrong(line, f"a place to cut the text within {FAR:,} bytes", "none", "give JSON Lines of shorter texts")


@contextlib.contextmanager
def _opened(unit: Unit, boundary: Boundary) -> Iterator[Read]:
    """A function that reads the unit's bytes, from one boundary to another."""
    path = Path(unit.path)
    if path.suffix in PACKED:
        with unpacking(path) as read:
            yield read
        return
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        low, high = (_boundary_from(file, at, size, boundary) for at in (unit.low, unit.high))
        file.seek(low)
        yield lambda n: file.read(min(n, high - file.tell()))


def _boundary_from(file, at: int, size: int, boundary: Boundary) -> int:
    """The first boundary of a file from `at` on."""
    if not 0 < at < size:
        return min(at, size)
    window = 1 << 12
    while True:
        file.seek(at - 1)
        found = boundary(text := file.read(window), 1)
        if found < len(text):
            return at - 1 + found
        if at - 1 + len(text) >= size:
            return size
        if window > FAR:
            wanted = f"a place to cut the text within {FAR:,} bytes of byte {at:,}"
            raise Wrong(None, wanted, "none", "give JSON Lines of shorter texts")
        window *= 4


def _next_line(text: bytes, at: int) -> int:
    found = text.find(b"\n", at - 1)
    return found + 1 if found >= 0 else len(text)


def _of_lines(unit: Unit, field: str) -> Iterator[tuple[int, bytes | None]]:
    """(line, document) of JSON Lines, None for a line of white space and at the end."""
    number = 0
    with _opened(unit, _next_line) as read:
        for number, line in enumerate(_split(read), 1):
            if len(line) > FAR:
                raise Wrong(number, f"a line of at most {FAR:,} bytes", "a longer one", "cut its document")
            yield number, _field(line, number, field) if line.strip() else None
    yield number + 1, None


def _split(read: Read) -> Iterator[bytes]:
    held = b""
    while more := read(1 << 20):
        *lines, held = (held + more).split(b"\n")
        yield from lines
        if len(held) > FAR:
            break
    if held:
        yield held


def _field(line: bytes, number: int, field: str) -> bytes:
    wanted = f"a JSON object with the text {field!r}"
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        got = f"the byte 0x{line[error.start]:02x}"
        raise Wrong(number, "JSON in UTF-8", got, "mend the line or give the file in UTF-8") from None
    except json.JSONDecodeError as error:
        raise Wrong(
            number, wanted, f"{error.msg.removesuffix(' at')} at column {error.colno}", "mend the line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Wrong(number, wanted, str(error), "mend the line") from None
    if not isinstance(record, dict):
        raise Wrong(number, wanted, f"{type(record).__name__} {line[:40]!r}", "write an object a line")
    if field not in record:
        remedy = f"name another --field; {nearest(field, record)}" if record else "mend the line"
        raise Wrong(number, wanted, "an object without", remedy)
    return _utf8(record[field], number, wanted)


def _utf8(text, number: int, wanted: str) -> bytes:
    if not isinstance(text, str):
        raise Wrong(number, wanted, f"{type(text).__name__} {text!r:.40}", "mend it or name another --field")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Wrong(number, wanted, f"half a surrogate pair, {text[error.start]!a}", "mend it") from None


def _of_table(unit: Unit, field: str) -> Iterator[tuple[int, bytes | None]]:
    """(row, document) of a row group, None at the end."""
    import pyarrow

    table = _opened_table(unit.path)
    names = table.schema_arrow.names
    if field not in names:
        raise Wrong(None, f"a column {field!r}", f"others; {nearest(field, names)}", "name it with --field")
    number, wanted = 0, f"a text in column {field!r}"
    try:
        for batch in table.iter_batches(256, [unit.number], [field], use_threads=False):
            for text in batch.column(0).to_pylist():
                number += 1
                yield number, _utf8(text, number, wanted)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Wrong(number + 1, wanted, str(error).splitlines()[0], "write the file anew") from None
    yield number + 1, None


def _opened_table(path: str | Path):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(path, "the pyarrow package", "none", "pip install 'rheobase[data]'") from None
    try:
        return parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise FormatError(path, "a whole Parquet file", str(error).splitlines()[0], "fetch it anew") from None
