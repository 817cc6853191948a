"""N-MNIST's five bytes an event (.bs2, .bin): column, row, then one bit of polarity and 23 bits of time, big-endian.

Own code: tonic reads it whole, without a check, and is GPL. Row 240 stands for an overflow that adds 2^13 us to what
follows (source: the data set's own reader, as tonic has it), so no event is written there. The file has no header.
"""

import numpy as np

from rheobase.backends.events._record import Limits, Recording, events, words

SUFFIXES = (".bs2", ".bin")
LIMITS = Limits(t=1 << 23, x=1 << 8, y=240)
READ_LIMITS = Limits(x=1 << 8, y=1 << 8)
NEEDS_SENSOR = False
_OVERFLOW_ROW, _OVERFLOW_US = 240, 1 << 13
_BYTES = np.dtype([("x", "u1"), ("y", "u1"), ("pt", "u1", 3)])


def read(file, where: object) -> Recording:
    """A recording from an open file."""
    return Recording(_chunks(file, where))


def _chunks(file, where):
    added = 0
    for block in words(file, _BYTES, where):
        high, middle, low = (block["pt"][:, i].astype(np.int64) for i in range(3))
        overflow = block["y"] == _OVERFLOW_ROW
        t = ((high & 0x7F) << 16 | middle << 8 | low) + added + _OVERFLOW_US * np.cumsum(overflow)
        added += _OVERFLOW_US * int(overflow.sum())
        yield events(t, block["x"], block["y"], high >> 7)[~overflow]


def write(file, where: object, sensor, chunks) -> None:
    """Events into an open file."""
    for chunk in chunks:
        out, t = np.empty(len(chunk), _BYTES), chunk["t"]
        out["x"], out["y"] = chunk["x"], chunk["y"]
        out["pt"] = np.stack([t >> 16 | chunk["p"].astype(np.int64) << 7, t >> 8 & 0xFF, t & 0xFF], 1)
        file.write(out.tobytes())
