"""Prophesee's DAT, version 2: 32 bits of time and 32 of place and polarity an event.

Own code: expelliarmus and faery read it rightly, but take a file that is cut within an event in silence; expelliarmus
loses the size of the sensor, faery refuses the kind "2d" of older files.
Source: Prophesee's public description of DAT; checked against both.
"""

import numpy as np

from rheobase.backends.events._percent import header_sensor, read_header
from rheobase.backends.events._record import Limits, Recording, events, words
from rheobase.spiking.errors import FormatError

SUFFIXES = (".dat",)
LIMITS = Limits(t=1 << 32, x=1 << 14, y=1 << 14)
NEEDS_SENSOR = False
_KINDS = (0x00, 0x0C)
"""2d and CD: the same eight bytes."""


def read(file, where: object) -> Recording:
    """A recording from an open file; time wraps after 2^32 us and is carried on."""
    header = read_header(file, where)
    kind = file.read(2)
    if header.get("version") != "2" or len(kind) < 2 or kind[0] not in _KINDS or kind[1] != 8:
        got = f"version {header.get('version', 'none')}, kind and size {kind.hex() or 'none'}"
        raise FormatError(where, "DAT version 2 with change events of 8 bytes", got, "it is damaged or another format")
    return Recording(_chunks(file, where), header_sensor(header))


def _chunks(file, where):
    last, turns = 0, 0
    for block in words(file, "<u8", where):
        raw = (block & 0xFFFF_FFFF).astype(np.int64)
        turn = turns + np.cumsum(np.diff(raw, prepend=last) < -(1 << 31))
        last, turns = int(raw[-1]), int(turn[-1])
        place = block >> np.uint64(32)
        if (place >> np.uint64(29)).any():
            raise FormatError(where, "a polarity of 0 or 1", "more", "the file is damaged")
        yield events(turn << 32 | raw, place & 0x3FFF, place >> np.uint64(14) & 0x3FFF, place >> np.uint64(28))


def write(file, where: object, sensor, chunks) -> None:
    """Events into an open file."""
    size = f"% Width {sensor[0]}\n% Height {sensor[1]}\n" if sensor else ""
    file.write(f"% Version 2\n{size}% end\n".encode() + bytes([_KINDS[1], 8]))
    for chunk in chunks:
        t, x, y, p = (chunk[name].astype(np.uint64) for name in "txyp")
        file.write((p << np.uint64(60) | y << np.uint64(46) | x << np.uint64(32) | t).astype("<u8").data)
