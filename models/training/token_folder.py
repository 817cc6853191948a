"""A folder of token shards with an index, as `rheobase prepare` writes it: read, checked, memory-mapped.

index.json has `format`, `dtype` (of little-endian ids), `tokens`, `bytes` (of text, without separators), `tokenizer`
(its SHA-256, which is that of tokenizer.json), `separator` (an id, or null), `documents` (how many, and the SHA-256 of
documents.bin, the uint64 position of the first token of each) and `shards`: file, tokens, bytes, `sha256` of the file,
and `ends`, the SHA-256 of its first and last 64 KiB, which is checked whenever the folder is opened.
"""

import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rheobase.models.training.shards import ENDS, Shards
from rheobase.models.training.tokenizers import Tokenizer, read_tokenizer
from rheobase.spiking.errors import FormatError
from rheobase.spiking.files import read_bytes, sha256

FORMAT = "rheobase-tokens/1"
INDEX, TOKENIZER, DOCUMENTS = "index.json", "tokenizer.json", "documents.bin"
DTYPES = ("uint8", "uint16", "uint32")
_AGAIN = "prepare or copy the folder anew"
_BLOCK = 1 << 20


def shard_name(i: int) -> str:
    """The file of shard i."""
    return f"shard-{i:05}.bin"


def is_prepared(path: str | Path) -> bool:
    """Whether a path is a folder that `rheobase prepare` wrote."""
    return (Path(path) / INDEX).is_file()


@dataclass(frozen=True)
class TokenFolder:
    """What an index says, its tokenizer, and the ids: shards that are memory-mapped."""

    path: Path
    index: dict
    tokenizer: Tokenizer
    shards: Shards
    digest: str
    """SHA-256 of index.json, which holds those of all files"""

    def documents(self) -> np.ndarray:
        """The position of the first token of each document [n] uint64, memory-mapped."""
        return _mapped(self.path / DOCUMENTS, "<u8") if self.index["documents"]["count"] else np.zeros(0, "<u8")

    def verify(self, progress: Callable[[int], object]) -> None:
        """Hash every file, calling `progress` with the bytes done; raises FormatError for the first that differs."""
        wanted = {entry["file"]: entry["sha256"] for entry in self.index["shards"]}
        wanted[DOCUMENTS] = self.index["documents"]["sha256"]
        for name, digest in wanted.items():
            found = hashlib.sha256()
            with open(self.path / name, "rb") as file:
                while block := file.read(_BLOCK):
                    found.update(block)
                    progress(len(block))
            _same(self.path / name, "sha256", digest, found.hexdigest())


def open_tokens(path: str | Path) -> TokenFolder:
    """Open a prepared folder; sizes and the ends of every shard are checked.

    raises  FormatError: an index, a tokenizer or a shard that is missing, damaged, or not as the index says
    """
    path = Path(path)
    text = read_bytes(path / INDEX, "the index of a prepared folder")
    index = _checked(path / INDEX, text)
    tokenizer = read_tokenizer(path / TOKENIZER)
    _same(path / TOKENIZER, "sha256", index["tokenizer"]["sha256"], tokenizer.digest)
    item = np.dtype(index["dtype"]).newbyteorder("<")
    if tokenizer.dtype.itemsize != item.itemsize:
        raise FormatError(path / INDEX, f"ids of {tokenizer.dtype}, as its tokenizer's", index["dtype"], _AGAIN)
    _sized(path / DOCUMENTS, 8 * index["documents"]["count"])
    arrays = []
    for entry in index["shards"]:
        file = path / entry["file"]
        _sized(file, item.itemsize * entry["tokens"])
        arrays.append(_mapped(file, item))
        _same(file, "ends", entry["ends"], ends_digest(arrays[-1]))
    return TokenFolder(path, index, tokenizer, Shards(arrays), sha256(text))


def ends_digest(ids: np.ndarray) -> str:
    """The SHA-256 of the first and the last 64 KiB of some ids."""
    n = ENDS // ids.dtype.itemsize
    return sha256(ids[:n].tobytes() + ids[-n:].tobytes())


def _checked(where: Path, text: bytes) -> dict:
    """An index whose fields have the types and the sums that they must have."""
    try:
        index = json.loads(text)
        name = index["format"]
        if name != FORMAT:
            raise FormatError(where, f"format {FORMAT}", repr(name)[:60], "read it with the version that wrote it")
        shards, documents = index["shards"], index["documents"]
        numbers = [
            index["tokens"],
            index["bytes"],
            documents["count"],
            *(s[k] for s in shards for k in ("tokens", "bytes")),
        ]
        texts = [index["tokenizer"]["sha256"], documents["sha256"], *(s[k] for s in shards for k in ("sha256", "ends"))]
        good = (
            index["dtype"] in DTYPES
            and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
            and all(isinstance(t, str) for t in texts)
            and [s["file"] for s in shards] == [shard_name(i) for i in range(len(shards))]
            and all(s["tokens"] for s in shards)
            and all(sum(s[k] for s in shards) == index[k] for k in ("tokens", "bytes"))
            and index["tokens"] > 0
            and (index["separator"] is None or type(index["separator"]) is int)
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        good = False
    if not good:
        raise FormatError(where, "an index as rheobase prepare writes it", "another", _AGAIN)
    return index


def _sized(file: Path, wanted: int) -> None:
    try:
        size = file.stat().st_size
    except OSError:
        raise FormatError(file, f"{wanted:,} bytes", "no file", _AGAIN) from None
    if size != wanted:
        raise FormatError(file, f"{wanted:,} bytes", f"{size:,}", _AGAIN)


def _mapped(file: Path, dtype) -> np.ndarray:
    try:
        return np.memmap(file, dtype, "r")
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        remedy = "prepare with a larger --shard-tokens, or raise ulimit -n"
        raise FormatError(file, "one more file to be opened", "too many open", remedy) from None


def _same(where: Path, what: str, wanted: str, got: str) -> None:
    if got != wanted:
        raise FormatError(where, f"{what} {wanted[:12]}…", f"{got[:12]}…", _AGAIN)
