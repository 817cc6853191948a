"""Texts to a folder of token shards with an index: in parallel, in constant memory, with the same files always.

Processes encode units (documents.units_of) into files of their own; this one appends these, in the sources' order, to
shards. A separator, where the tokenizer has one, stands between documents: before each but the first of all.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rheobase.models.training import encoding, token_folder
from rheobase.models.training.documents import Unit, units_of
from rheobase.models.training.tokenizers import Bytes, Tokenizer, Words, named_tokenizer
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.files import new_folder, write_atomic

BLOCK = 1 << 20
"""bytes of text that are encoded at a time, or fewer if a shard has fewer tokens"""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How texts become shards."""

    tokenizer: str = "bytes"
    """"bytes", "words" (of all the texts), or a JSON file"""
    field: str = "text"
    """of JSON Lines and Parquet: where the text is"""
    encoding: str = "utf-8"
    """what text files must be: "utf-8", "ascii" or "bytes" for anything"""
    jobs: int = 1
    """processes; what is written does not depend on it"""
    shard_tokens: int = 100_000_000
    """a shard ends with the first block of text that fills it"""


def prepare(sources: Iterable[str | Path], out: str | Path, config: PrepareConfig) -> dict:
    """Write a folder that `token_folder.open_tokens` opens, whole or not at all; returns its index.

    raises  FormatError: `out` exists; a source that is missing, damaged or not as it should be, by file and line;
            ConfigError: settings that cannot work
    """
    for name in ("jobs", "shard_tokens"):
        if (value := getattr(config, name)) < 1:
            raise ConfigError(f"prepare --{name.replace('_', '-')}", "at least 1", str(value), "raise it")
    kind = named_tokenizer(config.tokenizer)
    if isinstance(kind, type) and kind not in (Bytes, Words):
        wanted = "bytes, words or a .json file, such as the tokenizer.json of a run"
        raise ConfigError("prepare --tokenizer", wanted, repr(config.tokenizer), "name one")
    units = [unit for source in sources for unit in units_of(source)]
    with new_folder(out) as folder:
        with _spool(folder) as spool:
            tokenizer = kind() if kind is Bytes else _words(units, config, spool) if kind is Words else kind
            with contextlib.closing(_Writer(folder, tokenizer, config)) as writer:
                with _each(encoding.encode, units, tokenizer, config, spool) as encoded:
                    for i, unit in enumerate(encoded):
                        writer.add(spool / str(i), unit)
                return writer.finish()


@contextlib.contextmanager
def _spool(folder: Path) -> Iterator[Path]:
    """A folder for the units' files, in the one that is made; it is gone before that one is renamed."""
    spool = folder / "spool"
    spool.mkdir()
    yield spool
    shutil.rmtree(spool)


def _each(work, units: list[Unit], tokenizer: Tokenizer, config: PrepareConfig, spool: Path):
    """What `work` gives for each unit, in a block whose end, however it comes, ends the work."""
    size = min(BLOCK, config.shard_tokens)
    options = {"field": config.field, "encoding": config.encoding, "size": size, "spool": spool}
    setting = encoding.Setting(tokenizer=tokenizer.to_json(), **options)
    return contextlib.closing(encoding.each(work, units, setting, config.jobs))


def _words(units: list[Unit], config: PrepareConfig, spool: Path) -> Words:
    """The vocabulary of all the texts, in the order of first appearance."""
    words: dict[bytes, None] = {}
    with _each(encoding.vocabulary, units, Words([]), config, spool) as vocabularies:
        for found in vocabularies:
            words.update(dict.fromkeys(found.words))
            if len(words) > encoding.MOST_WORDS:
                raise encoding.too_many("prepare --tokenizer words")
    return Words(words)


class _Writer:
    """Appends the files of encoded units to shards."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, config: PrepareConfig):
        self._folder, self._tokenizer, self._full = folder, tokenizer, config.shard_tokens
        self._item, self._separator = tokenizer.dtype.itemsize, encoding.separator_of(tokenizer)
        self._documents, self._starts_digest, self._tokens = 0, hashlib.sha256(), 0
        self._shards: list[dict] = []
        self._file, self._without = None, 0
        """the shard at its end, and the bytes of text since its last token, which count with the next"""

    def add(self, spool: Path, encoded: encoding.Encoded) -> None:
        skip = 1 if encoded.documents and not self._documents and self._separator is not None else 0
        starts = (np.fromfile(f"{spool}.starts", "<i8") + (self._tokens - skip)).astype("<u8")
        with open(self._folder / token_folder.DOCUMENTS, "ab") as file:
            file.write(starts)
        self._starts_digest.update(starts)
        self._documents += encoded.documents
        with open(spool, "rb") as file:
            file.seek(skip * self._item)
            for tokens, n_bytes in encoded.blocks:
                cut = min(skip, tokens)  # blank lines before the first document make blocks without a token
                self._append(file.read((tokens - cut) * self._item), n_bytes)
                skip -= cut
        os.unlink(spool)
        os.unlink(f"{spool}.starts")

    def _append(self, ids: bytes, n_bytes: int) -> None:
        self._without += n_bytes
        if not ids:
            return
        if self._file is None:
            name = token_folder.shard_name(len(self._shards))
            self._file, self._digest = open(self._folder / name, "wb"), hashlib.sha256()
            self._shards.append({"file": name, "tokens": 0, "bytes": 0})
        self._file.write(ids)
        self._digest.update(ids)
        self._tokens += len(ids) // self._item
        shard = self._shards[-1]
        shard["tokens"] += len(ids) // self._item
        shard["bytes"], self._without = shard["bytes"] + self._without, 0
        if shard["tokens"] >= self._full:
            self._end()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _end(self) -> None:
        """End the shard, if there is one."""
        if self._file is not None:
            self.close()
            ids = np.memmap(self._file.name, self._tokenizer.dtype, "r")
            self._shards[-1] |= {"sha256": self._digest.hexdigest(), "ends": token_folder.ends_digest(ids)}
            self._file = None

    def finish(self) -> dict:
        if not self._tokens:
            raise FormatError("prepare", "texts of at least one token", "none", "give longer texts")
        self._end()
        self._shards[-1]["bytes"] += self._without
        index = {
            "format": token_folder.FORMAT,
            "dtype": self._tokenizer.dtype.name,
            "tokens": self._tokens,
            "bytes": sum(shard["bytes"] for shard in self._shards),
            "tokenizer": {"sha256": self._tokenizer.digest, "vocabulary": self._tokenizer.vocabulary},
            "separator": self._separator,
            "documents": {"count": self._documents, "sha256": self._starts_digest.hexdigest()},
            "shards": self._shards,
        }
        write_atomic(self._folder / token_folder.TOKENIZER, self._tokenizer.to_json().encode())
        write_atomic(self._folder / token_folder.INDEX, json.dumps(index, indent=1).encode())
        return index
