"""Prophesee's EVT 2.0: a word of 32 bits an event, the upper 28 bits of the time in words of their own.

Own code: expelliarmus and faery read and write it rightly, but take a file that is cut within a word in silence, and
expelliarmus loses the size of the sensor.
Source: Prophesee's public description of EVT 2.0; checked against expelliarmus and faery.
"""

import numpy as np

from rheobase.backends.events._percent import header_sensor, read_header
from rheobase.backends.events._record import Limits, Recording, events, words
from rheobase.spiking.errors import FormatError

SUFFIXES = (".raw",)
LIMITS = Limits(t=1 << 34, x=1 << 11, y=1 << 11)
NEEDS_SENSOR = False
_TIME_HIGH = 8
_SILENT = {0x0A: "triggers", 0x0E: "words of other kinds", 0x0F: "words of other kinds"}


def owns(head: bytes) -> bool:
    """Whether a file that begins so is EVT 2.0."""
    return head.startswith(b"% ") and (b"% evt 2.0" in head or b"format EVT2;" in head)


def read(file, where: object) -> Recording:
    """A recording from an open file."""
    recording = Recording(None, header_sensor(read_header(file, where)))
    recording.chunks = _chunks(file, where, recording.lost)
    return recording


def _chunks(file, where, lost):
    high, turns, skipped = None, 0, dict.fromkeys(_SILENT.values(), 0)
    for block in words(file, "<u4", where):
        kind = block >> 28
        if not np.isin(kind, (0, 1, _TIME_HIGH, *_SILENT)).all():
            odd = int(kind[~np.isin(kind, (0, 1, _TIME_HIGH, *_SILENT))][0])
            raise FormatError(where, "words of EVT 2.0", f"one of kind {odd}", "the file is damaged")
        for silent, what in _SILENT.items():
            skipped[what] += int((kind == silent).sum())
        is_event, is_high = kind <= 1, kind == _TIME_HIGH
        highs = (block[is_high] & 0x0FFF_FFFF).astype(np.int64)
        if high is None:
            if is_event.any() and (not len(highs) or np.argmax(is_event) < np.argmax(is_high)):
                raise FormatError(where, "a time before the first event", "none", "the file's beginning is missing")
            high = int(highs[0]) if len(highs) else None
            if high is None:
                continue
        known = np.concatenate([[high], highs])
        known += (turns + np.cumsum(np.diff(known, prepend=high) < -(1 << 27))) << 28
        high, turns = int(known[-1] & 0x0FFF_FFFF), int(known[-1] >> 28)
        word, upper = block[is_event], known[np.cumsum(is_high)[is_event]]
        t = upper << 6 | word >> 22 & 0x3F
        yield events(t, word >> 11 & 0x7FF, word & 0x7FF, kind[is_event])
    lost += [f"{n:,} {what} left out" for what, n in skipped.items() if n]


def write(file, where: object, sensor, chunks) -> None:
    """Events into an open file, with a word of time wherever the upper bits change."""
    size = f";height={sensor[1]};width={sensor[0]}\n% geometry {sensor[0]}x{sensor[1]}" if sensor else ""
    file.write(f"% evt 2.0\n% format EVT2{size}\n% end\n".encode())
    last = -1
    for chunk in chunks:
        t = chunk["t"]
        high = t >> 6
        new = np.diff(high, prepend=last) != 0
        place = np.arange(len(chunk)) + np.cumsum(new)
        out = np.empty(len(chunk) + int(new.sum()), "<u4")
        p, x, y = (chunk[name].astype(np.uint32) for name in ("p", "x", "y"))
        out[place] = p << 28 | (t & 0x3F).astype(np.uint32) << 22 | x << 11 | y
        out[place[new] - 1] = _TIME_HIGH << 28 | high[new].astype(np.uint32)
        last = int(high[-1])
        file.write(out.data)
