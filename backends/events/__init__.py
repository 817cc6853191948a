"""Event files: recordings of cameras and of models' edges, read and written chunk by chunk, never as a whole.

Each format lies in a file of its own, found by its name: SUFFIXES, LIMITS, `read(file, where)` and, where it is
written, NEEDS_SENSOR and `write(file, where, sensor, chunks)`, or `write_edge` and `read_edge` where it holds the
values of a model's edge, and then `read` takes the sidecar, `about`; OPTIONS where `read` takes some; `owns(head)`
where another format shares the suffix. READ_LIMITS where more can be read than is written.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from rheobase.backends.events._edge import STEP_US, from_edge, to_edge
from rheobase.backends.events._record import CHUNK, EVENT, Limits, Recording, checked, from_array, in_range
from rheobase.backends.events._sidecar import read_sidecar, write_sidecar
from rheobase.spiking import registry
from rheobase.spiking.errors import ConfigError, FormatError, UnsupportedError
from rheobase.spiking.events import Events
from rheobase.spiking.files import open_atomic


@functools.cache
def _every() -> tuple[ModuleType, ...]:
    return tuple(registry.get(__name__, name) for name in registry.names(__name__))


def formats(suffix: str) -> list[ModuleType]:
    """The formats of a suffix; raises ConfigError with all suffixes where there is none."""
    found = [module for module in _every() if suffix.lower() in module.SUFFIXES]
    if not found:
        known = sorted({s for module in _every() for s in module.SUFFIXES})
        raise ConfigError("event file", "a known suffix", repr(suffix), registry.nearest(suffix, known))
    return found


@contextlib.contextmanager
def open_events(path: str | Path, *, sensor: tuple[int, int] | None = None, **options) -> Iterator[Recording]:
    """Yield the Recording of an event file, whose chunks can be read while the block lasts.

    sensor   (width, height), where neither the file nor its sidecar says it, or says it wrongly
    options  sample=N of shd and nirdata, signal="node.observable" of nirdata
    raises   FormatError: no file, another format, damage, an event beyond the sensor, or not what the sidecar says
             ConfigError: an unknown suffix, or an option that the format does not have
             UnsupportedError: a library is missing that the file needs
    """
    path, sensor = Path(path), sensor and in_range(sensor)
    candidates = formats(path.suffix)
    try:
        file = open(path, "rb")
    except OSError as error:
        raise FormatError(path, "an event file", error.strerror or str(error), "check the path") from None
    with file:
        about = read_sidecar(path, file)
        head = file.read(1 << 12)
        file.seek(0)
        chosen = [module for module in candidates if len(candidates) == 1 or module.owns(head)]
        if not chosen:
            got = repr(head[:24])
            names = " or ".join(module.__name__.rpartition(".")[2] for module in candidates)
            raise FormatError(path, names, got, "it is damaged or another format")
        module, accepted = chosen[0], getattr(chosen[0], "OPTIONS", ())
        given = {name: value for name, value in options.items() if value is not None}
        if odd := [name for name in given if name not in accepted]:
            raise ConfigError(f"--{odd[0]}", f"another format than {path.suffix}", str(given[odd[0]]), "leave it out")
        sensor = sensor or (about.get("sensor") and tuple(about["sensor"]))
        given |= {"sensor": sensor} if "sensor" in accepted else {}
        given |= {"about": about} if hasattr(module, "read_edge") else {}
        recording = module.read(file, path, **given)
        recording.sensor = sensor or recording.sensor
        recording.about = {n: about[n] for n in ("kind", "edge", "mapping") if n in about} | recording.about
        recording.lost[:0] = about.get("lost", [])
        limits = getattr(module, "READ_LIMITS", getattr(module, "LIMITS", Limits()))._replace(t=Limits().t)
        chunks = checked(recording.chunks, path, recording.sensor, limits)
        recording.chunks = _restored(chunks, path, about) if about else chunks
        yield recording


def _restored(chunks, path, about):
    n = 0
    for chunk in chunks:
        n += len(chunk)
        chunk["t"] += about["shift_us"]
        yield chunk
    if n != about["events"]:
        raise FormatError(path, f"{about['events']:,} events", f"{n:,}", "the file and its sidecar differ")


def event_writer(path: str | Path) -> ModuleType:
    """The format that a file of this name is written in; raises ConfigError or UnsupportedError where there is none."""
    suffix = Path(path).suffix
    written = [module for module in formats(suffix) if hasattr(module, "write")]
    if not written:
        raise UnsupportedError(path, "a format that is written", f"{suffix}, read only", "write .aedat4 or .raw")
    return written[0]


def write_events(path: str | Path, recording: Recording, *, shift: bool = False) -> dict:
    """Write a recording, whole or not at all, and its sidecar; returns what the sidecar holds.

    shift   take the first event's time off every time; the sidecar keeps it
    raises  FormatError: an event that the format cannot hold, or what reading the recording raises
            ConfigError: the format needs a sensor and there is none, or one of no pixels; an unknown suffix
            UnsupportedError: the format is read only
    """
    path, sensor = Path(path), recording.sensor and in_range(recording.sensor)
    module = event_writer(path)
    if sensor is None and module.NEEDS_SENSOR:
        raise ConfigError(path, "a sensor's size", "none in what is read", "give --sensor WxH")
    if sensor and (sensor[0] > module.LIMITS.x or sensor[1] > module.LIMITS.y):
        most, got = f"at most {module.LIMITS.x}x{module.LIMITS.y} pixels", f"{sensor[0]}x{sensor[1]}"
        raise FormatError(path, most, got, "choose another format")
    chunks = filter(len, recording.chunks)
    first = next(chunks, None)
    taken = max(int(first["t"][0]), 0) if shift and first is not None else 0
    counted = _Counted(itertools.chain([] if first is None else [first], chunks), taken)
    with open_atomic(path) as file:
        module.write(file, path, sensor, checked(counted, path, sensor, module.LIMITS))
        file.flush()
        table = {"events": counted.n, "sensor": sensor and list(sensor), "kind": "camera", **recording.about}
        table |= {"shift_us": taken, "lost": recording.lost}
        # before the file is in its place, which without a sidecar would be read as one of other times
        return write_sidecar(path, table, Path(file.name))


def edge_writer(path: str | Path) -> ModuleType:
    """The format of a file of this name that a model's edge can be written in; raises as `event_writer`."""
    module = formats(Path(path).suffix)[0]
    return module if hasattr(module, "write_edge") else event_writer(path)


def write_edge(
    path: str | Path,
    edge: str,
    sent: Events,
    kind: str,
    *,
    sensor: tuple[int, int] | None = None,
    dt_s: float | None = None,
) -> dict:
    """Write the events of a model's edge, of one stream, and a sidecar; returns what the sidecar holds.

    edge     its name, such as "layers.0.y";  kind: "BINARY", "TERNARY" or "GRADED", as the graph says
    sensor   of formats of cameras: (width, height), the smallest near-square unless given
    dt_s     seconds a step; that of the events unless given, and 1 ms where they have none
    raises   ConfigError, FormatError, UnsupportedError, LossyExportError, as `from_edge` and `write_events`
    """
    path, module = Path(path), edge_writer(path)
    if not hasattr(module, "write_edge"):
        recording = from_edge(sent, sensor, dt_s)
        recording.about["edge"] = edge
        return write_events(path, recording)
    if sensor:
        raise ConfigError("sensor", f"none with {path.suffix}, which holds units", str(sensor), "leave it out")
    if sent.n_streams != 1:
        raise ConfigError("events", "one stream", f"{sent.n_streams}", "record the streams one by one")
    dt_s = next(s for s in (dt_s, sent.dt_s, STEP_US / 1e6) if s is not None)
    if not 0 < dt_s < math.inf:
        raise ConfigError("dt", "seconds a step, above 0", f"{dt_s}", "give another --dt")
    table = module.write_edge(path, edge, sent, kind, dt_s)
    return write_sidecar(path, {"events": len(sent), "sensor": None, "shift_us": 0, "lost": [], **table})


def read_edge(path: str | Path) -> Events:
    """The edge that `write_edge` wrote: with its values from a format that holds them, else with 1 and -1.

    raises  FormatError: no such file, another recording, or damage
    """
    module = formats(Path(path).suffix)[0]
    if not hasattr(module, "read_edge"):
        with open_events(path) as recording:
            return to_edge(recording)
    try:
        with open(path, "rb") as file:
            return module.read_edge(path, read_sidecar(Path(path), file))
    except OSError as error:
        raise FormatError(path, "an event file", error.strerror or str(error), "check the path") from None


class _Counted:
    """Chunks with a time taken off, counted as they pass."""

    def __init__(self, chunks, taken: int):
        self.chunks, self.taken, self.n = chunks, taken, 0

    def __iter__(self):
        for chunk in self.chunks:
            self.n += len(chunk)
            if self.taken:
                chunk = chunk.copy()
                chunk["t"] -= self.taken
            yield chunk


def convert(
    source: str | Path, out: str | Path, *, sensor: tuple[int, int] | None = None, shift: bool = False, **options
) -> dict:
    """Read one event file and write another, in bounded memory; returns what the sidecar of `out` holds.

    Arguments and errors are those of open_events and write_events.
    """
    with open_events(source, sensor=sensor, **options) as recording:
        return write_events(out, recording, shift=shift)


def described(path: str | Path, sidecar: dict) -> str:
    """A written file in a line, and one for each loss."""
    size = "x".join(map(str, sidecar["sensor"])) + " pixels" if sidecar["sensor"] else "a sensor of unknown size"
    lines = [f"{path}: {sidecar['events']:,} events of {size}"]
    return "\n".join(lines + [f"lost: {loss}" for loss in sidecar["lost"]])


__all__ = [
    "CHUNK",
    "EVENT",
    "Recording",
    "convert",
    "described",
    "edge_writer",
    "event_writer",
    "from_array",
    "from_edge",
    "open_events",
    "read_edge",
    "to_edge",
    "write_edge",
    "write_events",
]
