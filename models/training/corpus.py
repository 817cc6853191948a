"""A corpus: the training, validation and test part of a text as token ids, and the tokenizer that made them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rheobase.models.training.cache import cached_array
from rheobase.models.training.data import (
    BUILT_IN,
    DataConfig,
    read_file,
    read_texts,
    require_no_files,
    required_encoding,
    unknown_option,
)
from rheobase.models.training.datasets import DATA_SETS
from rheobase.models.training.shards import Shards, read_shards
from rheobase.models.training.token_folder import is_prepared, open_tokens
from rheobase.models.training.tokenizers import PIECE, Tokenizer, named_tokenizer, pieces
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError

CUTS = b"3"
"""to be raised where a tokenizer cuts or reads a text in another way, so that ids of before are not taken"""
PARTS = ("train", "valid", "test")
Ids = np.ndarray | Shards


@dataclass(frozen=True)
class Splits:
    """The three parts of a text as ids, which may be memory-mapped; they do not overlap.

    parts    the ids of "train", "valid" and, unless the text at hand ends before it, "test"
    n_bytes  bytes of each part's text; empty for shards unless their tokens are bytes
    """

    parts: dict[str, Ids]
    n_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def train(self) -> Ids:
        return self.parts["train"]

    @property
    def valid(self) -> Ids:
        return self.parts["valid"]

    @property
    def test(self) -> Ids:
        """The test part; raises FormatError where the text at hand ends before it."""
        if "test" not in self.parts:
            remedy = "use the whole text, or the figure of the validation part"
            raise FormatError("the test part", "a text that reaches to it", "one that ends before it", remedy)
        return self.parts["test"]


@dataclass(frozen=True)
class Corpus:
    """Splits, their tokenizer, and a SHA-256 of the text they are made of."""

    splits: Splits
    tokenizer: Tokenizer
    digest: str


def names_prepared(text: str) -> bool:
    """Whether `data.text` is a folder that `rheobase prepare` wrote; a data set's name is none, whatever lies here."""
    return text not in (BUILT_IN, *DATA_SETS) and is_prepared(text)


def load_corpus(config: DataConfig, context: int, tokenizer: Tokenizer | None = None) -> Corpus:
    """Read, cut and encode the text of a configuration.

    context    each part must be longer than this many tokens
    tokenizer  if None it is made as the configuration says, a vocabulary from the training part alone
    raises     ConfigError: splits that leave nothing;  ShapeError: a part that is too short;  FormatError: a text
               that is not there, damaged, or holds what the tokenizer does not know
    """
    options = unknown_option(config)
    if names_prepared(config.text):
        return _load_prepared(config, context, tokenizer)
    kind = tokenizer or named_tokenizer(config.tokenizer or "bytes")
    folder = Path(config.text)
    if config.text not in (BUILT_IN, *DATA_SETS) and folder.is_dir():
        return _load_shards(folder, config, context, kind)
    parts = _cut(read_texts(config, utf8=kind.utf8), config, kind.boundary)
    if isinstance(kind, type):
        tokenizer = kind.from_text(pieces(kind.boundary, parts["train"], "vocabulary"), **options)
    else:
        tokenizer = kind
    whole, ids, n_bytes = hashlib.sha256(), {}, {}
    for name, part in parts.items():
        whole.update(part)
        ids[name] = encode(tokenizer, part, f"{name} part of the text")
        _check_length(name, ids[name], context, tokenizer.unit)
        n_bytes[name] = len(part)
    return Corpus(Splits(ids, n_bytes), tokenizer, whole.hexdigest())


def encode_file(path: str, config: DataConfig, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """The ids of a whole file, which no part of `config` need name, and the number of its bytes; raises FormatError."""
    text = read_file(path, required_encoding(config, tokenizer.utf8))
    return encode(tokenizer, text, path), len(text)


def encode(tokenizer: Tokenizer, text: np.ndarray, where: str = "text") -> np.ndarray:
    """The ids of a text: its own bytes, or an array, which for a long text lies in the cache, memory-mapped."""
    if tokenizer.unit == "byte":
        return text

    def arrays():
        done = 0
        for piece in pieces(tokenizer.seam, text, "encoding"):
            ids = tokenizer.encode(piece, done, where)
            done += len(ids)
            yield ids

    if len(text) < PIECE:
        return np.concatenate([np.zeros(0, tokenizer.dtype), *arrays()])
    key = hashlib.sha256(CUTS + hashlib.sha256(text).digest() + tokenizer.digest.encode()).hexdigest()
    return cached_array(key, tokenizer.dtype, arrays())


def _cut(texts: list[np.ndarray], config: DataConfig, boundary) -> dict[str, np.ndarray]:
    """The bytes of each part. Of two files the second is halved; one is cut by counts or by fractions."""
    if len(texts) > 1 and config.splits:
        wanted = "none where parts are files of their own"
        raise ConfigError("data.splits", wanted, str(list(config.splits)), "leave it out")
    if len(texts) == 3:
        return dict(zip(PARTS, texts, strict=True))
    if len(texts) == 2:
        middle = boundary(texts[1], len(texts[1]) // 2)
        return {"train": texts[0], "valid": texts[1][:middle], "test": texts[1][middle:]}
    text = texts[0]
    splits = config.splits or (DATA_SETS[config.text].splits if config.text in DATA_SETS else ())
    ends = [boundary(text, at) for at in _ends(len(text), splits, config)]
    cuts = {name: text[low:high] for name, low, high in zip(PARTS, [0, *ends[:-1]], ends, strict=True)}
    return cuts if len(cuts["test"]) or not splits else {"train": cuts["train"], "valid": cuts["valid"]}


def _ends(length: int, splits: tuple[int, ...], config: DataConfig) -> list[int]:
    """Where the three parts end: by counts, of which the last may reach beyond the text, or by fractions."""
    if splits:
        if len(splits) != 3 or min(splits[:2]) < 1 or splits[2] < 0:
            raise ConfigError("data.splits", "three counts", str(list(splits)), "such as [90000000, 5000000, 5000000]")
        train, valid = splits[0], splits[0] + splits[1]
        if valid > length:
            raise ShapeError("data.splits", f"a text of {valid:,} at least", f"{length:,}", "give the whole text")
        test = valid + splits[2]
        if valid < length < test:
            raise ShapeError(
                "data.splits", f"a text of {valid:,} (no test part) or {test:,}", f"{length:,}", "give the whole text"
            )
        return [train, valid, min(test, length)]
    if not (0 < config.valid and 0 < config.test and config.valid + config.test < 1):
        raise ConfigError(
            "data.valid, data.test",
            "fractions with a sum below 1",
            f"{config.valid}, {config.test}",
            "mend them",
        )
    n_test, n_valid = int(length * config.test), int(length * config.valid)
    return [length - n_test - n_valid, length - n_test, length]


def _load_shards(folder: Path, config: DataConfig, context: int, kind) -> Corpus:
    if isinstance(kind, type):
        wanted = "the JSON file of the tokenizer that made the shards"
        raise ConfigError("data.tokenizer", wanted, repr(config.tokenizer or "bytes"), "name it")
    return _cut_shards(*read_shards(folder), config, context, kind)


def _load_prepared(config: DataConfig, context: int, given: Tokenizer | None) -> Corpus:
    """A prepared folder's shards with its own tokenizer; another that is named is refused."""
    tokens = open_tokens(config.text)
    if given or config.tokenizer is not None:
        kind, own = given or named_tokenizer(config.tokenizer), tokens.tokenizer
        if not (type(own) is kind if isinstance(kind, type) else own.digest == kind.digest):
            wanted = f"that of {config.text}, {own.vocabulary:,} {own.unit}s"
            raise ConfigError("data.tokenizer", wanted, "another", "leave it out, or prepare the texts with it")
    return _cut_shards(tokens.shards, tokens.digest, config, context, tokens.tokenizer)


def _cut_shards(shards: Shards, digest: str, config: DataConfig, context: int, tokenizer: Tokenizer) -> Corpus:
    require_no_files(config, f"none beside {config.text}, a folder of tokens, which data.splits cuts")
    ends = _ends(len(shards), config.splits, config)
    parts = {name: shards.cut(low, high) for name, low, high in zip(PARTS, [0, *ends[:-1]], ends, strict=True)}
    parts = {name: part for name, part in parts.items() if len(part) or name != "test"}
    for name, part in parts.items():
        _check_length(name, part, context, tokenizer.unit)
    n_bytes = {name: len(part) for name, part in parts.items()} if tokenizer.unit == "byte" else {}
    return Corpus(Splits(parts, n_bytes), tokenizer, digest)


def _check_length(name: str, part: Ids, context: int, unit: str) -> None:
    if len(part) <= context:
        raise ShapeError(
            f"the {name} part of the text",
            f"more than the context of {context} {unit}s",
            f"{len(part)}",
            "give a longer text or lower train.context",
        )
