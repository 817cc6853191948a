"""Bytes of text: where they come from, how they are split, and which of them a step sees.

B streams, T steps of context, N bytes.
"""

import codecs
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rheobase.spiking.errors import ConfigError, FormatError, ShapeError

BUILT_IN = "pydoc"
ENCODINGS = ("utf-8", "ascii", "bytes")
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, and how it is cut."""

    text: str = BUILT_IN
    """a file, or "pydoc": the language reference that every CPython carries (pydoc_data.topics)"""
    encoding: str = "utf-8"
    """what the file must be: "utf-8", "ascii", or "bytes" for anything; the model sees bytes in every case"""
    valid: float = 0.1
    """fraction of the text, before the test part, that chooses settings"""
    test: float = 0.1
    """fraction of the text, at its end, that is used for nothing but the last figure"""
    order: str = "streams"
    """"streams": B contiguous streams, state carried from step to step; "crops": random crops, state at rest"""


@dataclass(frozen=True)
class Splits:
    """The three parts of a text, arrays of bytes that may be memory-mapped; they do not overlap."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def read_text(config: DataConfig) -> np.ndarray:
    """The bytes of a text, memory-mapped where it is a file.

    raises  FormatError: no such file, no bytes, or not in the encoding asked for
    """
    if config.encoding not in ENCODINGS:
        raise ConfigError("data.encoding", f"one of {', '.join(ENCODINGS)}", repr(config.encoding), "mend the config")
    if config.text == BUILT_IN:
        from pydoc_data.topics import topics

        return np.frombuffer("\n\n".join(topics[k] for k in sorted(topics)).encode(), np.uint8)
    path = Path(config.text)
    if not path.is_file():
        raise FormatError(path, "a text file", "no file", "check data.text or --text")
    if path.stat().st_size < 2:
        raise FormatError(path, "at least 2 bytes of text", f"{path.stat().st_size}", "give a longer text")
    data = np.memmap(path, np.uint8, "r")
    if config.encoding != "bytes":
        decoder = codecs.getincrementaldecoder(config.encoding)()
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE].tobytes()
            try:
                decoder.decode(piece, final=start + _PIECE >= len(data))
            except UnicodeDecodeError as error:
                at = start + error.start
                raise FormatError(
                    path,
                    f"{config.encoding} text",
                    f"the byte 0x{error.object[error.start]:02x} near byte {at}",
                    'give a text in that encoding or set data.encoding = "bytes"',
                ) from None
    return data


def text_digest(text: np.ndarray) -> str:
    """The SHA-256 of a text's bytes."""
    return hashlib.sha256(np.ascontiguousarray(text)).hexdigest()


def split(text: np.ndarray, config: DataConfig, context: int) -> Splits:
    """Train, validation and test part, in the order of the text.

    raises  ConfigError: fractions that leave nothing;  ShapeError: a part shorter than the context
    """
    if not (0 < config.valid and 0 < config.test and config.valid + config.test < 1):
        raise ConfigError(
            "data.valid, data.test",
            "fractions with a sum below 1",
            f"{config.valid}, {config.test}",
            "mend them",
        )
    n_test, n_valid = int(len(text) * config.test), int(len(text) * config.valid)
    n_train = len(text) - n_test - n_valid
    parts = {
        "train": text[:n_train],
        "valid": text[n_train : n_train + n_valid],
        "test": text[n_train + n_valid :],
    }
    for name, part in parts.items():
        if len(part) <= context:
            raise ShapeError(
                f"the {name} part of the text",
                f"more than the context of {context} bytes",
                f"{len(part)}",
                "give a longer text or lower train.context",
            )
    return Splits(**parts)


class Batches:
    """Batches of (tokens, targets, fresh), a pure function of the step, so that a run can resume at any step.

    order "streams"  B contiguous streams through the text; `fresh` is True where they start anew
    order "crops"    B random crops, drawn from (seed, step); always fresh
    """

    def __init__(self, data: np.ndarray, batch: int, context: int, order: str, seed: int):
        if order not in ("streams", "crops"):
            raise ConfigError("data.order", "'streams' or 'crops'", repr(order), "mend the config")
        self.data, self.batch, self.context, self.order, self.seed = data, batch, context, order, seed
        self.stride = (len(data) - 1) // batch
        if order == "streams" and self.stride < context:
            raise ShapeError(
                "the training text",
                f"{batch} streams of {context} bytes, {batch * context + 1} in all",
                f"{len(data)} bytes",
                "give a longer text, or lower train.batch or train.context",
            )

    def __call__(self, step: int) -> tuple[Tensor, Tensor, bool]:
        """tokens [B, T], targets [B, T] one byte later, and whether the state starts at rest."""
        if self.order == "crops":
            starts = np.random.default_rng((self.seed, step)).integers(0, len(self.data) - self.context, self.batch)
            fresh = True
        else:
            segment = step % (self.stride // self.context)
            starts = np.arange(self.batch) * self.stride + segment * self.context
            fresh = segment == 0
        rows = np.stack([self.data[s : s + self.context + 1] for s in starts]).astype(np.int64)
        both = torch.from_numpy(rows)
        return both[:, :-1], both[:, 1:], fresh


def each_once(data: np.ndarray, batch: int, context: int):
    """Yield (tokens [B, T], targets [B, T]) such that every byte but the first is a target exactly once.

    B contiguous streams whose state is to be carried, of lengths that differ by at most one; where a stream has
    ended its target is -100.
    """
    n = len(data) - 1
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
