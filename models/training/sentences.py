"""Files of labelled sentences, a label and a sentence a line, as SST-2, SST-5, MR and Subj are passed on.

N sentences, B of them in a batch, T tokens of the longest.
"""

import codecs
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rheobase.models.training.cache import unpacked
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError

LARGEST = 1 << 28
"""bytes of an unpacked file; beyond that it is no file of sentences"""
DIGITS = 4
"""of a label, at most"""


@dataclass(frozen=True)
class Sentences:
    """Sentences and their labels, in the file's order; `labels` is [N] int64."""

    texts: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, which: np.ndarray) -> "Sentences":
        """The sentences of some indices."""
        return Sentences(tuple(self.texts[i] for i in which), self.labels[which])


def read_sentences(path: str | Path, classes: int, encoding: str = "utf-8") -> Sentences:
    """Read a file with a label from 0 to classes - 1, a blank and a sentence on each line, packed by xz or not.

    raises  FormatError: the file is missing, damaged, too large, empty or in another encoding, or a line has no
            such label or no sentence; the line's number is given;  ConfigError: no such encoding or number of classes
    """
    if not 2 <= classes <= 10**DIGITS:
        raise ConfigError("sentences.classes", f"from 2 to {10**DIGITS}", str(classes), "mend it")
    if not Path(path).is_file():
        raise FormatError(path, "a file of sentences", "none", "check sentences.train and sentences.dev")
    plain = unpacked(Path(path))
    if plain.stat().st_size > LARGEST:
        raise FormatError(path, f"at most {LARGEST:,} bytes of sentences", "more", "give a file of sentences")
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ConfigError("sentences.encoding", "an encoding", repr(encoding), 'such as "utf-8" or "latin-1"') from None
    texts, labels = [], []
    for number, line in enumerate(plain.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        where = f"{path} line {number}"
        try:
            label, _, text = line.decode(encoding).strip().partition(" ")
        except UnicodeDecodeError as error:
            got = f"the byte 0x{line[error.start]:02x}"
            raise FormatError(where, f"{encoding} text", got, "name the file's encoding") from None
        if not (label.isascii() and label.isdigit() and int(label[:DIGITS]) < classes and len(label) <= DIGITS):
            expected = f"a label from 0 to {classes - 1} and a sentence"
            raise FormatError(where, expected, repr(line[:40].decode(encoding, "replace")), "mend the line")
        if not text.strip():
            raise FormatError(where, "a sentence after the label", "none", "mend the line")
        texts.append(text.strip())
        labels.append(int(label))
    return Sentences(tuple(texts), np.array(labels, np.int64))


def part(sentences: Sentences, fraction: float) -> tuple[Sentences, Sentences]:
    """(The rest, a fraction taken out at random): always the same cut of a file, so that runs can be compared.

    raises  ShapeError: one of the two would be empty
    """
    n = round(fraction * len(sentences))
    if not 0 < n < len(sentences):
        got = f"{n} of {len(sentences)}"
        raise ShapeError("a part of the sentences", "some and not all", got, "give more sentences or another fraction")
    order = np.random.default_rng(0).permutation(len(sentences))
    return sentences[np.sort(order[n:])], sentences[np.sort(order[:n])]


def pad(rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Token rows of any lengths -> (tokens [B, T], 0 to the right of a row's end; lengths [B])."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for into, row in zip(tokens, rows, strict=True):
        into[: len(row)] = torch.from_numpy(row)
    return tokens, lengths
