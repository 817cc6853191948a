"""Spikes of units in HDF5 as the SHD and SSC data sets have them: rows of times in seconds and of units.

h5py does the work, reading in a process of its own (`spiking.hdf5`). Times are written in float64: float16, as in the
data sets, is off by up to 1 ms from 2 s on, and what is read from such a file is recorded as rounded. A row is one
piece in HDF5, read and written whole, so its length is bounded. A unit is x + W y, and of falling events
x + W (y + H); without a sidecar x is the unit and y is 0.
"""

import contextlib

import numpy as np

from rheobase.backends.events._hdf5 import chosen, without_loss
from rheobase.backends.events._record import Limits, Recording, events
from rheobase.spiking.errors import FormatError
from rheobase.spiking.hdf5 import open_hdf5

SUFFIXES = (".h5", ".hdf5")
LIMITS = Limits(t=1 << 48)
NEEDS_SENSOR = True
LONGEST_ROW = 1 << 23
OPTIONS = ("sample", "sensor")
COLUMNS = ("spikes/times", "spikes/units")


def owns(head: bytes) -> bool:
    """Whether a file that begins so is HDF5."""
    return head.startswith(b"\x89HDF")


def read(file, where: object, sample: int | None = None, sensor=None) -> Recording:
    """One row of an open file: `sample`, or the only one."""
    recording = Recording(None, sensor)
    recording.chunks = _chunks(file, where, sample, sensor, recording.lost)
    return recording


def _chunks(file, where, sample, sensor, lost):
    with open_hdf5(file, where, "events in HDF5") as h5:
        (rows, *_), (other, *_) = ((*h5.dataset(name).shape, 0) for name in COLUMNS)
        if rows != other:
            raise FormatError(where, "times and units of one length", f"{rows} and {other} rows", "fetch it anew")
        row = chosen(where, rows, "rows", sample)
        seconds, unit = (h5.read(name, row, most=8 * LONGEST_ROW) for name in COLUMNS)
    if len(seconds) > LONGEST_ROW:
        raise FormatError(where, f"rows of at most {LONGEST_ROW:,} events", "more", "cut it")
    if seconds.shape != unit.shape or seconds.ndim != 1 or seconds.dtype.kind != "f" or unit.dtype.kind not in "iu":
        got = f"{seconds.dtype} {seconds.shape} and {unit.dtype} {unit.shape}"
        raise FormatError(where, "a float time for each integer unit", got, "the file is damaged")
    t = without_loss(seconds, where, lost)
    width, height = sensor or (1 << 16, 1)
    if len(unit) and (unit.min() < 0 or unit.max() >= (2 * width * height if sensor else width)):
        end = 2 * width * height if sensor else width
        raise FormatError(where, f"units of 0 to {end - 1}", f"{unit.min()} to {unit.max()}", "give another --sensor")
    unit = unit.astype(np.int64)
    yield events(t, unit % width, unit // width % height, unit < width * height)


def write(file, where: object, sensor, chunks) -> None:
    """Events into an open file, as its only row, with label 0."""
    import h5py

    width, height = sensor
    kept, n = [], 0
    for chunk in chunks:
        n += len(chunk)
        if n > LONGEST_ROW:
            raise FormatError(where, f"at most {LONGEST_ROW:,} events", "more", "write .aedat4 or .raw, or cut it")
        unit = chunk["x"] + width * (chunk["y"] + height * (~chunk["p"]).astype(np.int64))
        seconds = chunk["t"] / 1e6
        short = seconds * 1e6 < chunk["t"]  # a reader that cuts off, as tonic does, would come to 1 us less
        kept.append((np.where(short, np.nextafter(seconds, np.inf), seconds), unit))
    unit_type = np.uint16 if 2 * width * height <= 1 << 16 else np.uint32
    with contextlib.closing(h5py.File(file.name, "w")) as h5:
        for name, dtype, column in (("times", np.float64, 0), ("units", unit_type, 1)):
            rows = h5.create_dataset(f"spikes/{name}", (1,), h5py.vlen_dtype(dtype), track_times=False)
            rows[0] = np.concatenate([np.empty(0, dtype), *(part[column] for part in kept)]).astype(dtype)
        h5["labels"] = np.zeros(1, np.uint16)
        h5["extra/keys"] = np.array([b"unknown"])
        h5["extra/speaker"] = np.zeros(1, np.uint16)
