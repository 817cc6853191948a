"""Event Stream (.es), version 2, events of a DVS: a byte of polarity and time since the last event, then x and y.

Own code: event_stream, the format's own library, is GPL, and takes a file that is cut within an event in
silence. 0xFF adds 127 us, 0xFE does nothing. y is taken as it is stored, which the format counts from the bottom; faery
turns it around.
Source: the public description of Event Stream; checked against event_stream.
"""

import numpy as np

from rheobase.backends.events._record import Limits, Recording, events
from rheobase.spiking.errors import FormatError

SUFFIXES = (".es",)
LIMITS = Limits(t=1 << 32, x=(1 << 16) - 1, y=(1 << 16) - 1)
"""The format sets no limit to the time; beyond this one the bytes of 127 us would outweigh the events. The sensor's
size takes two bytes a side."""
READ_LIMITS = Limits()
NEEDS_SENSOR = True
_BLOCK = 1 << 16
_MAGIC, _DVS = b"Event Stream", 1
_EVENT = np.dtype([("tp", "u1"), ("x", "<u2"), ("y", "<u2")])


def read(file, where: object) -> Recording:
    """A recording from an open file."""
    head = file.read(20)
    if len(head) < 20 or head[:12] != _MAGIC or head[12] != 2 or head[15] != _DVS:
        got = f"{head[:12]!r}, version and kind {head[12:16].hex()}"
        raise FormatError(where, "Event Stream version 2 of DVS events", got, "it is damaged or another kind")
    sensor = int.from_bytes(head[16:18], "little"), int.from_bytes(head[18:20], "little")
    return Recording(_chunks(file, where), sensor)


def _chunks(file, where):
    t, left = 0, b""
    while data := file.read(_BLOCK):
        data = np.frombuffer(left + data, "u1")
        size, over = len(data), data >= 0xFE
        following = np.minimum(np.arange(size + 1, dtype=np.int32) + np.append(np.where(over, 1, 5), 0), size)
        places = np.zeros(1, np.int32)
        while places[-1] < size:  # the first places, then twice as many: `following` goes twice as far each time
            places, following = np.concatenate([places, following[places]]), following[following]
        places = places[places < size]
        cut = not over[places[-1]] and places[-1] + 5 > size
        left, places = (data[places[-1] :].tobytes(), places[:-1]) if cut else (b"", places)
        sent = ~over[places]
        first = data[places]
        times = t + np.cumsum(np.where(sent, first >> 1, np.where(first == 0xFF, 127, 0)), dtype=np.int64)
        t = int(times[-1]) if len(times) else t
        event = data[places[sent, None] + np.arange(5)].reshape(-1, 5).view(_EVENT).ravel()
        yield events(times[sent], event["x"], event["y"], event["tp"] & 1)
    if left:
        raise FormatError(where, "a whole last event", f"{len(left)} bytes of it", "the file is cut: fetch it anew")


def write(file, where: object, sensor, chunks) -> None:
    """Events into an open file."""
    file.write(_MAGIC + bytes([2, 0, 0, _DVS]) + b"".join(size.to_bytes(2, "little") for size in sensor))
    last = 0
    for chunk in chunks:
        over, rest = np.divmod(np.diff(chunk["t"], prepend=last), 127)
        last = int(chunk["t"][-1])
        event = np.empty(len(chunk), _EVENT)
        event["tp"], event["x"], event["y"] = rest << 1 | chunk["p"], chunk["x"], chunk["y"]
        end = np.cumsum(over + 5)
        out = np.full(end[-1], 0xFF, "u1")
        out[end[:, None] - 5 + np.arange(5)] = event.view("u1").reshape(-1, 5)
        file.write(out.data)
