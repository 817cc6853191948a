"""Prophesee's EVT 3.0, read only: words of 16 bits that set the row, the time or the column, or give events.

Own code: evt3 and evlib read it rightly, but leave out triggers and events before the first time without a word;
faery lets no time fall back, and so gives 1,455 events of a real recording up to 11 us late, where a camera sends two
times in a row; expelliarmus wraps the time wrongly. EVT 2.0 is written in its place, which the same readers take.
Source: Prophesee's public description of EVT 3.0; checked against evt3 and evlib.
"""

import numpy as np

from rheobase.backends.events._percent import header_sensor, read_header
from rheobase.backends.events._record import Limits, Recording, events, words
from rheobase.spiking.errors import FormatError

SUFFIXES = (".raw",)
LIMITS = Limits(x=1 << 11, y=1 << 11)
_Y, _X, _BASE, _VECTOR_12, _VECTOR_8, _LOW, _HIGH = 0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x8
_SILENT = {0x7: "words of other kinds", 0xA: "triggers", 0xE: "words of other kinds", 0xF: "words of other kinds"}
_BITS = np.arange(12)


def owns(head: bytes) -> bool:
    """Whether a file that begins so is EVT 3.0."""
    return head.startswith(b"% ") and (b"% evt 3.0" in head or b"format EVT3;" in head)


def read(file, where: object) -> Recording:
    """A recording from an open file; events before the first time or row are counted as lost."""
    recording = Recording(None, header_sensor(read_header(file, where)))
    recording.chunks = _chunks(file, where, recording.lost)
    return recording


def _chunks(file, where, lost):
    carried, turns, early = np.empty(0, "<u2"), 0, 0
    skipped = dict.fromkeys(_SILENT.values(), 0)
    known = (_Y, _X, _BASE, _VECTOR_12, _VECTOR_8, _LOW, _HIGH, *_SILENT)
    for block in words(file, "<u2", where):
        kind = block >> 12
        if not np.isin(kind, known).all():
            odd = int(kind[~np.isin(kind, known)][0])
            raise FormatError(where, "words of EVT 3.0", f"one of kind {odd}", "the file is damaged")
        for silent, what in _SILENT.items():
            skipped[what] += int((kind == silent).sum())
        block = np.concatenate([carried, block])  # the state of the last block, as the words that would set it
        kind, value = block >> 12, (block & 0xFFF).astype(np.int64)
        place = np.arange(len(block))

        highs = np.flatnonzero(kind == _HIGH)
        raw = value[highs]
        wrapped = turns + np.cumsum(np.diff(raw, prepend=raw[:1]) < -2048)
        of_high = np.searchsorted(highs, place, side="right") - 1
        changed = np.zeros(len(block), bool)
        changed[highs] = np.diff(raw, prepend=-1) != 0
        low = _latest(kind == _LOW)
        low = np.where(low > _latest(changed), value[low], 0)  # a new upper half begins at its first microsecond
        row, base = _latest(kind == _Y), _latest(kind == _BASE)
        width = np.where(kind == _VECTOR_12, 12, np.where(kind == _VECTOR_8, 8, 0))
        passed = np.cumsum(width) - width
        gives = (kind == _X) | (kind == _VECTOR_12) | (kind == _VECTOR_8)
        ready = (of_high >= 0) & (row >= 0) & ((kind == _X) | (base >= 0))
        bits = np.where(kind == _X, 1, np.where(kind == _VECTOR_8, value & 0xFF, value))
        early += int(np.bitwise_count(bits[gives & ~ready]).sum())
        at = place[gives & ready]
        on = (bits[at, None] >> _BITS & 1).astype(bool)
        word, bit = np.nonzero(on)
        at = at[word]
        single = kind[at] == _X
        x = np.where(single, value[at] & 0x7FF, (value[base[at]] & 0x7FF) + passed[at] - passed[base[at]] + bit)
        p = np.where(single, value[at], value[base[at]]) >> 11
        if len(at):
            upper = wrapped[of_high[at]] << 12 | raw[of_high[at]]
            yield events(upper << 12 | low[at], x, value[row[at]] & 0x7FF, p)
        carried = _carry(block, kind, value, highs, row, base, passed + width)
        if len(raw):
            turns = int(wrapped[-1])
    lost += [f"{n:,} {what} left out" for what, n in skipped.items() if n]
    lost += [f"{early:,} events before the first time and row left out"] if early else []


def _latest(of: np.ndarray) -> np.ndarray:
    """For each place the last one up to it where `of` holds, -1 before the first."""
    return np.maximum.accumulate(np.where(of, np.arange(len(of)), -1))


def _carry(block, kind, value, highs, row, base, passed) -> np.ndarray:
    """Words that set time, row and column as they stand at the end of a block."""
    low = _latest(kind == _LOW)[-1]
    kept = [block[highs[-1]]] if len(highs) else []
    new = np.flatnonzero(np.diff(value[highs], prepend=-1) != 0)
    kept += [block[low]] if low >= 0 and (not len(new) or low > highs[new[-1]]) else []
    kept += [block[row[-1]]] if row[-1] >= 0 else []
    if base[-1] >= 0:
        column = (value[base[-1]] & 0x7FF) + passed[-1] - passed[base[-1]]
        kept.append(_BASE << 12 | value[base[-1]] & 0x800 | min(int(column), 0x7FF))
    return np.array(kept, "<u2")
