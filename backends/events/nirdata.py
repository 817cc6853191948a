"""NIRData, the Neuromorphic Intermediate Representation's own events, here as pixels of one row.

A model's edge is also written so, and read again with its values, or as a camera sees an edge (`_edge`).

Own reading, in a process of its own (`spiking.hdf5`): nir.read_data holds all in memory and trusts it. Unit u is pixel
x = u % W, y = u // W; `value` of a ValuedEventData keeps its sign alone. Source: nir 1.0.8, `nir.write_data`.
"""

import re
from pathlib import Path

import numpy as np

from rheobase.backends.events._edge import as_camera, seen
from rheobase.backends.events._hdf5 import chosen, without_loss
from rheobase.backends.events._record import CHUNK, Recording, events, in_range
from rheobase.backends.nir_file import load_nir, read_nirdata
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.events import Events
from rheobase.spiking.files import open_atomic
from rheobase.spiking.hdf5 import open_hdf5

OBSERVABLE, VALUES = "spikes", "values: only their sign is kept"
LARGEST_PIECE = 64 << 20
"""bytes of a compressed piece of a column, which is unpacked whole for any part of it"""

SUFFIXES = (".nirdata",)
OPTIONS = ("sample", "signal", "sensor")


def read(
    file, where: object, sample: int | None = None, signal: str | None = None, sensor=None, about=None
) -> Recording:
    """One sample of one observable, "node.observable", of an open file, or the only one.

    about   its sidecar, which says whether it is a model's edge
    raises  LossyExportError: an edge with two steps within one microsecond
    """
    recording = Recording(None, sensor)
    with open_hdf5(file, where, "events in HDF5") as h5:
        said = {path: item.attributes for path, item in h5.items.items()}
        parts = [path.split("/") for path in said if re.fullmatch("nodes/[^/]+/observables/[^/]+", path)]
        parts = [p for p in parts if said["/".join(p[:2])].get("__type__") == "NIRNodeData"]
        found = {f"{node}.{name}": f"nodes/{node}/observables/{name}" for _, node, _, name in parts}
        if not found:
            raise FormatError(where, "a node's observables", "none", "it is damaged or another file")
        path = found.get(signal) if signal else next(iter(found.values())) if len(found) == 1 else None
        if path is None:
            got = repr(signal) if signal else f"{len(found)} signals"
            raise ConfigError(where, "one signal", got, f"choose --signal from {', '.join(found)}")
        if said[path].get("__type__") not in ("EventData", "ValuedEventData"):
            raise FormatError(where, "events", str(said[path].get("__type__")), "choose another --signal")
        n, (rows, *_) = said[path].get("n_neurons"), (*h5.dataset(f"{path}/idx").shape, 0)
        if type(n) is not int:
            raise FormatError(where, "a number of units", repr(n), "write it anew")
        row = chosen(where, rows, "samples", sample)
    if about and about.get("kind") == "model edge":
        steps, dt_s = _edge_of(where, about, n)
        recording = as_camera(n, steps, dt_s, sensor, remedy="keep it as .nirdata, or write it with another --dt")
        recording.chunks = _chunks(file, where, path, row, n, recording, (steps, dt_s))
        return recording
    recording.sensor = in_range(sensor or (max(n, 1), 1))
    if recording.sensor[0] * recording.sensor[1] < n:
        raise ConfigError(where, f"room for {n:,} units", f"{recording.sensor}", "give a larger --sensor WxH")
    recording.chunks = _chunks(file, where, path, row, n, recording)
    return recording


def _edge_of(where: object, about, n: int) -> tuple[int, float]:
    """Steps and seconds a step of an edge, by its sidecar; raises FormatError where it has not these n units."""
    try:
        said = about["mapping"]
        steps, units, dt_s = int(said["steps"]), int(said["units"]), float(said["dt_s"])
        if units != n or steps < 0 or not dt_s > 0:
            raise ValueError(f"{units} units, {steps} steps of {dt_s} s")
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise FormatError(where, "an edge as its sidecar says", str(error), "write it anew") from None
    return steps, dt_s


def _chunks(file, where, path, sample, n, recording, edge=None):
    """edge  (steps, seconds a step) of a model's edge, whose steps then are the times"""
    width = recording.sensor[0]
    with open_hdf5(file, where, "events in HDF5") as h5:
        names = [f"{path}/idx", f"{path}/time", *([f"{path}/value"] if f"{path}/value" in h5.items else [])]
        columns = [h5.dataset(name) for name in names]
        for column in columns:
            if column.kind[1:2] not in tuple("iuf") or column.piece > LARGEST_PIECE:
                got = f"{column.kind} in pieces of {column.piece:,} bytes"
                raise FormatError(where, f"numbers in pieces of {LARGEST_PIECE:,} bytes at most", got, "write it anew")
            if column.nbytes > h5.most:
                raise FormatError(where, "no more numbers than bytes", f"{column.nbytes} bytes", "do not use it")
        if len({column.shape for column in columns}) != 1 or len(columns[0].shape) != 2:
            raise FormatError(where, "a time for each index", str([c.shape for c in columns]), "the file is damaged")
        for start in range(0, columns[0].shape[1], CHUNK):
            unit, seconds, *value = (h5.read(name, sample, slice(start, start + CHUNK)) for name in names)
            sent = unit != -1
            unit, seconds = unit[sent].astype(np.int64), seconds[sent]
            if len(unit) and not 0 <= unit.min() <= unit.max() < n:
                raise FormatError(where, f"units of 0 to {n - 1}", f"{unit.min()} to {unit.max()}", "mend the file")
            value = value[0][sent] if value else np.ones(len(unit))
            if VALUES not in recording.lost and (np.abs(value) != 1).any():
                recording.lost.append(VALUES)
            if edge:
                yield seen(_steps(seconds, where, *edge), unit, value > 0, width, recording.about["mapping"]["step_us"])
            else:
                yield events(without_loss(seconds, where, recording.lost), unit % width, unit // width, value > 0)


def _steps(seconds: np.ndarray, where: object, steps: int, dt_s: float) -> np.ndarray:
    """The step of each time, as `write_edge` put it in the middle."""
    with np.errstate(over="ignore"):
        step = np.floor(seconds / dt_s)
    if not ((step >= 0) & (step < steps)).all():
        raise FormatError(where, f"times within {steps:,} steps of {dt_s:g} s", "others", "write it anew")
    return step.astype(np.int64)


def write_edge(path: Path, edge: str, sent: Events, kind: str, dt_s: float) -> dict:
    """Write a model's edge as the observable "spikes" of a node of its name; returns what its sidecar is to say.

    An event of step s is at (s + 1/2) dt: binary ones are EventData, others ValuedEventData with their values.
    """
    from rheobase.backends.exporters.nir.events import nirdata_bytes, observed

    load_nir()
    with open_atomic(path) as file:
        file.write(nirdata_bytes({edge: observed(sent.to_dense().swapaxes(0, 1), kind, dt_s)}))
    said = {"t": "(step + 0.5) * dt_s", "units": sent.n_units, "steps": sent.n_steps, "dt_s": dt_s}
    return {"kind": "model edge", "edge": edge, "mapping": said | {"value": sent.value.dtype.name}}


def read_edge(path: Path, about: dict) -> Events:
    """The edge again, values and all; raises FormatError where the file or its sidecar is none of an edge."""
    from rheobase.backends.exporters.nir.events import dense

    try:
        said = about["mapping"]
        dt_s, shape = float(said["dt_s"]), (int(said["steps"]), 1, int(said["units"]))
        if np.dtype(said["value"]).kind not in "iuf":
            raise ValueError(f"values of {said['value']}")
        values = dense(read_nirdata(path)[about["edge"]][OBSERVABLE], dt_s, np.dtype(said["value"]))
        if values.shape != shape:
            raise ValueError(f"{values.shape}, not {shape}")
    except FormatError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise FormatError(path, "an edge as its sidecar says", str(error), "write it anew") from None
    return Events.from_dense(values.swapaxes(0, 1), dt_s)
