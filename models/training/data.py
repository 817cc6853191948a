"""Texts: where they come from, and which of their tokens a step sees.

B streams, T steps of context.
"""

import codecs
import difflib
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rheobase.models.training.cache import unpacked
from rheobase.models.training.datasets import DATA_SETS, locate
from rheobase.models.training.order import Shuffled
from rheobase.models.training.shards import Shards, gather
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError

BUILT_IN = "pydoc"
ENCODINGS = ("utf-8", "ascii", "bytes")
ORDERS = ("streams", "crops", "shuffled")
_PIECE = 1 << 20
_SAMPLES = 1 << 12


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, how it becomes tokens, and how it is cut."""

    text: str = BUILT_IN
    """a file (also .xz); a data set of `datasets.DATA_SETS`; a folder written by `rheobase prepare`, or one of uint16
    token shards (.bin); or "pydoc": the language reference that every CPython carries (pydoc_data.topics)"""
    valid_text: str | None = None
    """a file of its own for validation; without a `test_text` its second half is the test part"""
    test_text: str | None = None
    """a file of its own for the test"""
    folder: str | None = None
    """where named data sets lie; if not given $RHEOBASE_DATA, the cache, or a download"""
    tokenizer: str | None = None
    """"bytes", "characters", "words", or a JSON file: one of ours, or of the tokenizers library; if not given that of a
    folder which `rheobase prepare` wrote, and bytes of any other text"""
    tokenizer_sha256: str | None = None
    """the SHA-256 of the run's tokenizer.json, which a training notes here; none of bytes"""
    unknown: str = ""
    """with "characters": the one that stands for those that the training part lacks; if none, they are refused"""
    encoding: str = "utf-8"
    """what the text must be: "utf-8", "ascii", or "bytes" for anything"""
    splits: tuple[int, ...] = ()
    """bytes (of shards: tokens) of the three parts, in place of `valid` and `test`"""
    valid: float = 0.1
    """fraction of the text, before the test part, that chooses settings"""
    test: float = 0.1
    """fraction of the text, at its end, that is used for nothing but the last figure"""
    order: str = "streams"
    """"streams": B contiguous streams, state carried from step to step; "crops": random crops, state at rest;
    "shuffled": blocks of train.context tokens, each once an epoch, state at rest"""
    workers: int = 0
    """threads that read the next batches while a step computes; the batches are the same for any number"""


def unknown_option(config: DataConfig) -> dict[str, str]:
    """`unknown` as `Characters` takes it, if it is set; raises ConfigError with another tokenizer."""
    if config.unknown and config.tokenizer != "characters":
        wanted = 'none unless data.tokenizer is "characters"'
        raise ConfigError("data.unknown", wanted, repr(config.unknown), "leave it out")
    return {"unknown": config.unknown} if config.unknown else {}


def require_no_files(config: DataConfig, wanted: str) -> None:
    """Refuse files for the parts of a text that is cut otherwise; raises ConfigError."""
    if config.valid_text or config.test_text:
        got = repr(config.valid_text or config.test_text)
        raise ConfigError("data.valid_text, data.test_text", wanted, got, "leave them out")


def read_texts(config: DataConfig, *, utf8: bool = False) -> list[np.ndarray]:
    """The bytes of the text, or of its training, validation and test files, memory-mapped where they are files.

    utf8    whether they must be UTF-8 even if data.encoding is "bytes"
    raises  FormatError: no such file, no bytes, or not in the encoding asked for
    """
    if config.encoding not in ENCODINGS:
        raise ConfigError("data.encoding", f"one of {', '.join(ENCODINGS)}", repr(config.encoding), "mend the config")
    if config.test_text and not config.valid_text:
        raise ConfigError("data.test_text", "a data.valid_text beside it", "none", "give both, or the second alone")
    encoding = required_encoding(config, utf8)
    if config.text == BUILT_IN:
        from pydoc_data.topics import topics

        first = [np.frombuffer("\n\n".join(topics[k] for k in sorted(topics)).encode(), np.uint8)]
    elif config.text in DATA_SETS:
        paths = locate(config.text, config.folder)
        first = [_read(path, path, encoding) for path in paths]
    else:
        first = [read_file(config.text, encoding)]
    if len(first) > 1:
        require_no_files(config, f"none beside {config.text}, which has parts of its own")
    return first + [read_file(name, encoding) for name in (config.valid_text, config.test_text) if name]


def required_encoding(config: DataConfig, utf8: bool) -> str:
    """What a text's bytes must be: as `encoding` says, and UTF-8 at least where a tokenizer reads characters."""
    return "utf-8" if utf8 and config.encoding == "bytes" else config.encoding


def read_file(name: str, encoding: str) -> np.ndarray:
    """The bytes of one file, or of what an .xz file holds; raises FormatError: none there, or in another encoding."""
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, [BUILT_IN, *DATA_SETS], n=1)
        remedy = f"did you mean {near[0]!r}?" if near not in ([], [name]) else "check data.text or --text"
        raise FormatError(path, "a text file", "no file", remedy)
    return _read(path, unpacked(path), encoding)


def _read(where: Path, path: Path, encoding: str) -> np.ndarray:
    """The bytes of an unpacked file, checked piece by piece."""
    if path.stat().st_size < 2:
        raise FormatError(where, "at least 2 bytes of text", f"{path.stat().st_size}", "give a longer text")
    data = np.memmap(path, np.uint8, "r")
    if encoding != "bytes":
        decoder = codecs.getincrementaldecoder(encoding)()
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE].tobytes()
            try:
                decoder.decode(piece, final=start + _PIECE >= len(data))
            except UnicodeDecodeError as error:
                at = start + len(piece) - len(error.object) + error.start
                raise FormatError(
                    where,
                    f"{encoding} text",
                    f"the byte 0x{error.object[error.start]:02x} at byte {at}",
                    'give a text in that encoding, or data.encoding = "bytes" and data.tokenizer "bytes" or "words"',
                ) from None
    return data


class Batches:
    """Batches of (tokens, targets, fresh), a pure function of the step, so that a run can resume at any step.

    order "streams"  B contiguous streams through the text; `fresh` is True where they start anew
    order "crops"    B random crops, drawn from (seed, step); always fresh
    order "shuffled" blocks of T tokens, block i from token i T on, each once an epoch in the order of `Shuffled`; row
                     r of a step is sample step B + r; always fresh. The last `left_out` tokens, fewer than T, are no
                     targets
    vocabulary       ids must be below it
    unit             what a token is called, for messages
    """

    def __init__(
        self,
        data: np.ndarray | Shards,
        batch: int,
        context: int,
        order: str,
        seed: int,
        *,
        vocabulary: int | None = None,
        unit: str = "byte",
    ):
        if order not in ORDERS:
            raise ConfigError("data.order", f"one of {', '.join(ORDERS)}", repr(order), "mend the config")
        self.vocabulary = vocabulary
        self.data, self.batch, self.context, self.order, self.seed = data, batch, context, order, seed
        self.stride = (len(data) - 1) // batch
        if order == "streams" and self.stride < context:
            raise ShapeError(
                "the training text",
                f"{batch} streams of {context} {unit}s, {batch * context + 1} in all",
                f"{len(data)} {unit}s",
                "give a longer text, or lower train.batch or train.context",
            )
        blocks, self.left_out = divmod(len(data) - 1, context)
        if not blocks:
            wanted, got = f"more than the context of {context} {unit}s", f"{len(data)}"
            raise ShapeError("the training text", wanted, got, "give a longer text or lower train.context")
        if order == "shuffled":
            self._at_once = -(-_SAMPLES // batch)
            self._blocks = functools.lru_cache(4)(
                functools.partial(_shuffled, Shuffled(blocks, seed), self._at_once, batch)
            )

    def __call__(self, step: int, part: slice = slice(None)) -> tuple[Tensor, Tensor, bool]:
        """tokens [B, T], targets [B, T] one token later, and whether the state starts at rest; of the rows `part` of
        the batch only, and no others are read."""
        if self.order == "crops":
            starts = np.random.default_rng((self.seed, step)).integers(0, len(self.data) - self.context, self.batch)
            fresh = True
        elif self.order == "shuffled":
            starts = self._blocks(step // self._at_once)[step % self._at_once] * self.context
            fresh = True
        else:
            segment = step % (self.stride // self.context)
            starts = np.arange(self.batch) * self.stride + segment * self.context
            fresh = segment == 0
        rows = gather(self.data, starts[part], self.context + 1)
        if self.vocabulary is not None:
            require_below(self.vocabulary, rows, "the training tokens")
        both = torch.from_numpy(rows)
        return both[:, :-1], both[:, 1:], fresh


def require_below(vocabulary: int, ids: np.ndarray | Shards, where: str) -> None:
    """Refuse an id that is not below a model's vocabulary; raises ShapeError."""
    for start in range(0, len(ids), _PIECE):
        most = ids[start : start + _PIECE].max()
        if most >= vocabulary:
            remedy = "check data.tokenizer and model.vocabulary"
            raise ShapeError(where, f"ids from 0 to {vocabulary - 1}", str(most), remedy)


def _shuffled(order: Shuffled, steps: int, batch: int, i: int) -> np.ndarray:
    """The blocks [steps, batch] of the i-th so many steps: to work out one step's takes as long."""
    n = steps * batch
    return order(np.arange(i * n, (i + 1) * n)).reshape(steps, batch)


def each_once(data: np.ndarray | Shards, batch: int, context: int):
    """Yield (tokens [B, T], targets [B, T]) such that every token but the first is a target exactly once.

    B contiguous streams whose state is to be carried, of lengths that differ by at most one; where a stream has
    ended its target is -100.

    raises  ShapeError: fewer than 2 tokens
    """
    n = len(data) - 1
    if n < 1:
        raise ShapeError("the text", "at least 2 tokens, as the first is not predicted", f"{n + 1}", "give more")
    batch = min(batch, n)
    bounds = [n * b // batch for b in range(batch + 1)]
    length = -(-n // batch)
    for start in range(0, length, context):
        width = min(context, length - start)
        tokens = np.zeros((batch, width), np.int64)
        targets = np.full((batch, width), -100, np.int64)
        for b in range(batch):
            low = bounds[b] + start
            high = min(low + width, bounds[b + 1])
            if high > low:
                tokens[b, : high - low] = data[low:high]
                targets[b, : high - low] = data[low + 1 : high + 1]
        yield torch.from_numpy(tokens), torch.from_numpy(targets)
