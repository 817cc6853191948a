"""Camera-like events in bounded chunks: what every reader gives and every writer takes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rheobase.spiking.errors import ConfigError, FormatError

EVENT = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "?")])
"""Time in microseconds, column, row, and whether the brightness (or the value of a unit) rose."""

CHUNK = 1 << 18
"""At most so many events in a chunk, whatever the file holds."""


class Limits(NamedTuple):
    """What a format can hold: times below t, columns below x, rows below y."""

    t: int = 1 << 62
    x: int = 1 << 16
    y: int = 1 << 16


@dataclass(eq=False)
class Recording:
    """One recording: read once, chunk by chunk, in the order of time.

    chunks  arrays of EVENT; a damaged file raises FormatError where the damage is reached
    sensor  (width, height) in pixels, or None where the file does not say
    about   what else is known, such as the mapping of a model's units; it goes into the sidecar
    lost    what the file held that EVENT cannot; complete once the chunks are through
    """

    chunks: Iterable[np.ndarray]
    sensor: tuple[int, int] | None = None
    about: dict = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def in_range(sensor: tuple[int, int]) -> tuple[int, int]:
    """The same sensor; raises ConfigError where x or y would not fit in EVENT."""
    if not all(1 <= size <= 1 << 16 for size in sensor):
        got = "x".join(map(str, sensor))
        raise ConfigError("sensor", "1x1 to 65536x65536 pixels", got, "give --sensor WxH with room for every unit")
    return sensor


def events(t, x, y, p) -> np.ndarray:
    """Four arrays of one length as an array of EVENT."""
    made = np.empty(len(t), EVENT)
    made["t"], made["x"], made["y"], made["p"] = t, x, y, p
    return made


def from_array(array: np.ndarray, sensor: tuple[int, int] | None = None) -> Recording:
    """A structured array with the fields t, x, y and p (on, polarity, timestamp), as tonic and others have it.

    Without y, as tonic's SHD and SSC are, it is of one row: y = 0.
    """
    return Recording(array_chunks(array, "array"), sensor)


def array_chunks(array: np.ndarray, where: object) -> Iterator[np.ndarray]:
    """The chunks of a structured array, which may lie in a file; polarity is what is above 0."""
    names = array.dtype.names or ()
    aliases = (("t", "timestamp"), ("x",), ("y",), ("p", "on", "polarity"))
    fields = [next((name for name in alias if name in names), None) for alias in aliases]
    given = [name for name in fields if name]
    lacking = {"t", "x", "p"} - {alias[0] for alias, name in zip(aliases, fields, strict=True) if name}
    if lacking or array.ndim != 1 or any(array.dtype[name].kind not in "biu" for name in given):
        raise FormatError(where, "integer fields t, x, y and p", str(array.dtype), "rename or convert the fields")
    for start in range(0, len(array), CHUNK):
        part = array[start : start + CHUNK]
        t, x, y, p = (part[name] if name else np.zeros(len(part), np.uint16) for name in fields)
        for name, pixel in (("x", x), ("y", y)):
            if pixel.min() < 0 or pixel.max() >= 1 << 16:
                raise FormatError(where, f"{name} of 0 to 65535", f"{pixel.min()} to {pixel.max()}", "mend it")
        yield events(t, x, y, p > 0)


def checked(
    chunks: Iterable[np.ndarray], where: object, sensor: tuple[int, int] | None, limits: Limits = Limits()
) -> Iterator[np.ndarray]:
    """The same chunks, none too large or empty; raises FormatError at the first event out of order or of bounds."""
    x_end, y_end = np.minimum(sensor or limits[1:], limits[1:])
    last = n = 0
    for whole in chunks:
        for start in range(0, len(whole), CHUNK):
            chunk = whole[start : start + CHUNK]
            t = chunk["t"]
            if t[0] < last or (np.diff(t) < 0).any():
                at = int(np.argmax(np.diff(t, prepend=last) < 0))
                before = int(t[at - 1]) if at else last
                got = f"{t[at]} us after {before} us at event {n + at:,}"
                raise FormatError(where, "times from 0 on that never fall", got, "sort the events by time")
            if t[-1] >= limits.t:
                got = f"{t[-1]} us"
                raise FormatError(where, f"times below {limits.t} us", got, "cut it, or shift it to begin at 0")
            for name, end in (("x", x_end), ("y", y_end)):
                if chunk[name].max() >= end:
                    got = f"{name} = {chunk[name].max()}"
                    raise FormatError(where, f"{name} of 0 to {end - 1}", got, "check the sensor, or another format")
            last, n = int(t[-1]), n + len(chunk)
            yield chunk


def words(file, dtype: str, where: object) -> Iterator[np.ndarray]:
    """The rest of a file as words of one type; raises FormatError where it ends within a word."""
    size = np.dtype(dtype).itemsize
    while data := file.read(CHUNK * size):
        if len(data) % size:
            got = f"{len(data) % size} bytes left at byte {file.tell():,}"
            raise FormatError(where, f"whole words of {size} bytes", got, "the file is cut: fetch it anew")
        yield np.frombuffer(data, dtype)
