"""Recordings of event cameras and of other sources of events: reading them, and adding them up to frames.

N events, T frames, C channels (the polarities), H and W the height and width of a frame.
"""

import functools
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.files import array_of_npy
from rheobase.spiking.graph import Shape

LARGEST = 1 << 28
"""bytes of one unpacked recording; beyond that it is none"""
LONGEST_LABEL = 18
"""digits of a number of 64 bits"""
DAMAGE = (zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, RuntimeError, ValueError)
"""what Python's modules raise for damaged archives; RuntimeError for those that want a password"""


@dataclass(frozen=True, eq=False)
class Recording:
    """Events in the order of their times: x and y [N] in pixels, p [N] 0 or 1, t [N] in microseconds, all int64.

    raises  FormatError: arrays of unequal length, another polarity, or a time before the one before it
    """

    where: str
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    t: np.ndarray

    def __post_init__(self):
        if len({len(each) for each in (self.x, self.y, self.p, self.t)}) != 1:
            raise FormatError(self.where, "four numbers an event", "arrays of several lengths", "fetch it anew")
        if not np.isin(self.p, (0, 1)).all():
            raise FormatError(self.where, "polarities 0 and 1", f"{self.p.min()} to {self.p.max()}", "mend it")
        if (np.diff(self.t) < 0).any():
            at = int(np.argmax(np.diff(self.t) < 0)) + 1
            raise FormatError(f"{self.where}: event {at}", "times that rise", "an earlier one", "sort the events")

    def __len__(self) -> int:
        return len(self.t)


def read_bs2(data: bytes, where: str) -> Recording:
    """Five bytes an event, big-endian: x, y, then one bit of polarity and 23 bits of time in microseconds.

    So are `.bs2` files and the `.bin` files of N-MNIST. There y = 240 is no event but 2^13 microseconds that the
    times after it have passed. Source: Orchard, Jayawant, Cohen and Thakor, Frontiers in Neuroscience 9, 2015, and the
    reader that comes with the set.
    """
    if not data or len(data) % 5:
        raise FormatError(where, "five bytes an event", f"{len(data)} bytes", "fetch the recording anew")
    x, y, *rest = np.frombuffer(data, np.uint8).reshape(-1, 5).T.astype(np.int64)
    word, overflow = (rest[0] << 16) + (rest[1] << 8) + rest[2], y == 240
    t, real = (word & (1 << 23) - 1) + (np.cumsum(overflow) << 13), ~overflow
    return Recording(where, x[real], y[real], (word >> 23)[real], t[real])


def from_structured(events: np.ndarray, where: str) -> Recording:
    """From a structured array with x, t, p and, unless the source is a line of units, y, as tonic's data sets give.

    raises  FormatError: without those fields
    """
    names = events.dtype.names or ()
    if not {"x", "t", "p"} <= set(names):
        raise FormatError(where, "a structured array of x, y, t and p", f"{names}", "give one")
    y = events["y"] if "y" in names else np.zeros(len(events))
    order = np.argsort(events["t"], kind="stable")
    columns = (events["x"], y, events["p"], events["t"])
    return Recording(where, *(np.asarray(column)[order].astype(np.int64) for column in columns))


def members(path: str | Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """(Name without .xz, content) of the wanted files of a folder, a .zip or a .tar, packed or not, read in place.

    Nothing is written, and a name only looked at, so that one with `..` in it harms nothing. A folder's files come in
    the order of their numbers and names, an archive's as they lie in it.

    raises  FormatError: no such file, a damaged archive, or a file of more than `LARGEST` bytes
    """
    path = Path(path)

    def plain(name: PurePosixPath, size: int, read: Callable[[], bytes]) -> tuple[PurePosixPath, bytes]:
        data = read() if size <= LARGEST else b""
        if name.suffix == ".xz":
            unpacking = lzma.LZMADecompressor()
            name, data = name.with_suffix(""), unpacking.decompress(data, LARGEST + 1)
            if len(data) <= LARGEST and (not unpacking.eof or unpacking.unused_data):
                raise FormatError(f"{path}: {name}", "one whole .xz stream", "a cut one or more", "fetch it anew")
        if max(size, len(data)) > LARGEST:
            raise FormatError(f"{path}: {name}", f"at most {LARGEST:,} bytes", "more", "give recordings")
        return name, data

    def is_wanted(name: PurePosixPath) -> bool:
        return wanted(name.with_suffix("") if name.suffix == ".xz" else name)

    try:
        if path.is_dir():
            files = {PurePosixPath(f.relative_to(path).as_posix()): f for f in path.rglob("*") if f.is_file()}
            for name in sorted(files, key=_in_order):
                if is_wanted(name):
                    yield plain(name, files[name].stat().st_size, files[name].read_bytes)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if is_wanted(name := PurePosixPath(entry.filename)):
                        yield plain(name, entry.file_size, functools.partial(_of_zip, path, archive, entry))
        else:
            with tarfile.open(path, "r|*") as archive:
                for entry in archive:
                    if entry.isfile() and is_wanted(name := PurePosixPath(entry.name)):
                        yield plain(name, entry.size, archive.extractfile(entry).read)
    except FormatError:
        raise
    except (*DAMAGE, tarfile.TarError, TypeError) as error:  # the last of tarfile, at an extended header that is cut
        got = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "check the path, or fetch it anew"
        raise FormatError(path, "a folder, .zip or .tar of recordings", got, remedy) from None


def _of_zip(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A member of a .zip; what it unpacks to is bounded by what it says, and what it says by its file."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(f"{path}: {entry.filename}", "a stored or deflated file", "another", "pack it anew")
    if entry.compress_size > path.stat().st_size:
        raise zipfile.BadZipFile("more bytes than the file has")
    with archive.open(entry) as file:
        data = file.read(entry.file_size)
        if len(data) != entry.file_size or file.read(1):
            raise zipfile.BadZipFile("a cut file")
        return data


def labelled(path: str | Path, labels: str | None = None) -> Iterator[tuple[Recording, int]]:
    """The recordings of a folder or archive with their labels, in the order of `members`.

    labels  the name of a file with a line `NAME LABEL` a recording, NAME its file's up to the first dot; lines that
            begin with # say nothing. Without it the label is the number that names the recording's folder (N-MNIST)
            or else the recording (DVS gesture)
    raises  FormatError: a recording without a label, or no recording at all
    """
    table = None
    if labels is not None:
        for name, data in members(path, lambda name: name.name == labels):
            table = _labels(data, f"{path}: {name}")
            break
        else:
            raise FormatError(path, f"the file of labels {labels}", "none", "mend events.labels")
    n = 0
    for name, data in members(path, lambda name: name.suffix in READERS):
        where, own = f"{path}: {name}", name.name.partition(".")[0]
        word = table.get(own, "") if table is not None else name.parent.name if name.parent.name.isdecimal() else own
        if not word.isdecimal() or len(word) > LONGEST_LABEL:
            raise FormatError(where, "a label", "none", "name a file of labels in events.labels")
        yield READERS[name.suffix](data, where), int(word)
        n += 1
    if not n:
        raise FormatError(path, f"recordings, {', '.join(READERS)}", "none", "check the path")


def _labels(data: bytes, where: str) -> dict[str, str]:
    lines = [line.split() for line in data.decode("ascii", "replace").splitlines() if not line.startswith("#")]
    for line in lines:
        if len(line) != 2 or not line[1].isdecimal():
            raise FormatError(where, "a name and a label a line", " ".join(line)[:40], "mend the line")
    table = dict(lines)
    if len(table) < len(lines):
        twice = next(name for i, (name, _) in enumerate(lines) if name in dict(lines[:i]))
        raise FormatError(where, "a line a recording", f"{twice} again", "leave one of them out")
    return table


def _in_order(name: PurePosixPath) -> tuple:
    own = name.name.partition(".")[0]
    return name.parent.parts, len(own) if own.isdecimal() else 0, name.name


def read_npy(data: bytes, where: str) -> Recording:
    """Rows of x, y, polarity and time in milliseconds, as the DVS gesture set is passed on by tonic."""
    rows = array_of_npy(data, where, "a .npy file of numbers")
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf":
        raise FormatError(where, "rows of x, y, p and t", f"{rows.dtype} {rows.shape}", "fetch the recording anew")
    x, y, p, t = columns = rows.T.astype(np.float64)
    if not (np.abs(columns) < 1 << 40).all():
        raise FormatError(where, "finite numbers below 2^40", "others", "fetch the recording anew")
    return Recording(where, *(each.astype(np.int64) for each in (x, y, p, np.rint(1000 * t))))


READERS = {".bs2": read_bs2, ".bin": read_bs2, ".npy": read_npy}


def frame(
    recording: Recording, size: Shape, steps: int, *, by: str = "time", window_ms: float | None = None, pool: int = 1
) -> np.ndarray:
    """Numbers of events by frame, polarity and pixel, [T, 2, H, W] uint16.

    size       (height, width) of the sensor; H and W are those over `pool`, upwards
    steps      T
    by         "time": frame floor(T (t - t_0) / d) of an event, t_0 the first event's time and d the window or, without
               one, the time up to the last event's end;  "count": frame floor(T i / N) of the i-th event
    window_ms  what is read of a recording from its first event on; later events are left out. All of it if not given
    pool       pixels along each axis that one of the frame adds up
    raises     FormatError: no event, one outside the sensor, or 65,536 or more at one place
               ConfigError: another `by`, or a size below 1
    """
    if by not in ("time", "count") or min(steps, pool, *size) < 1 or (window_ms is not None and window_ms <= 0):
        got = f"by {by!r}, {steps} steps, pool {pool}, window {window_ms} ms"
        raise ConfigError("frames", '"time" or "count", and sizes above 0', got, "mend it")
    height, width = size
    x, y, p, t = recording.x, recording.y, recording.p, recording.t
    if not len(t):
        raise FormatError(recording.where, "events", "none", "leave it out")
    if x.min() < 0 or y.min() < 0 or x.max() >= width or y.max() >= height:
        got = f"x {x.min()} to {x.max()}, y {y.min()} to {y.max()}"
        wanted = f"events of x 0 to {width - 1}, y 0 to {height - 1}"
        raise FormatError(recording.where, wanted, got, "set the size of the sensor")
    since = t - t[0]
    span = since[-1] + 1 if window_ms is None else max(round(1000 * window_ms), 1)
    kept = since < span
    n = int(kept.sum())
    at = np.arange(n) * steps // n if by == "count" else since[kept] * steps // span
    shape = (steps, 2, -(-height // pool), -(-width // pool))
    where = np.ravel_multi_index((at, p[kept], y[kept] // pool, x[kept] // pool), shape)
    counts = np.bincount(where, minlength=int(np.prod(shape))).reshape(shape)
    if counts.max() > np.iinfo(np.uint16).max:
        raise FormatError(recording.where, "at most 65535 events a pixel and frame", f"{counts.max()}", "more frames")
    return counts.astype(np.uint16)
