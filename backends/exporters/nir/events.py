"""Events as NIRData: what entered and left each node of a NIR graph, [T, B, n] -> `.nirdata`."""

import io
from collections.abc import Mapping

import numpy as np

from rheobase.spiking.errors import FormatError
from rheobase.spiking.events import Events
from rheobase.spiking.hdf5 import MOST_BYTES
from rheobase.spiking.tally import BINARY, EVENT_KINDS


def observed(values_TBn: np.ndarray, kind: str, dt_s: float):
    """Values of one node as NIRData: binary events, valued events, or a grid where the values are dense."""
    import nir

    if kind not in EVENT_KINDS:
        return nir.TimeGriddedData(np.ascontiguousarray(values_TBn.swapaxes(0, 1)), dt_s)
    events = Events.from_dense(values_TBn.swapaxes(0, 1))
    t_max = events.n_steps * dt_s
    if int(t_max / dt_s) < events.n_steps:  # nir counts steps so
        t_max = np.nextafter(t_max, np.inf)
    per_stream = np.bincount(events.stream, minlength=events.n_streams)
    shape = events.n_streams, int(per_stream.max(initial=0))
    idx, time, value = np.full(shape, -1), np.full(shape, np.inf), np.zeros(shape, events.value.dtype)
    by_stream = np.argsort(events.stream, kind="stable")
    stream = events.stream[by_stream]
    place = np.arange(len(events)) - np.repeat(np.cumsum(per_stream) - per_stream, per_stream)
    idx[stream, place] = events.unit[by_stream]
    time[stream, place] = (events.step[by_stream] + 0.5) * dt_s  # the middle: floor(t / dt) is then the step
    value[stream, place] = events.value[by_stream]
    if kind == BINARY:
        return nir.EventData(idx, time, events.n_units, t_max)
    return nir.ValuedEventData(idx, time, events.n_units, t_max, value)


def dense(data, dt_s: float, dtype) -> np.ndarray:
    """What `observed` was given, [T, B, n]; raises FormatError where it does not fit or would be too large."""
    if hasattr(data, "data"):
        return data.data.swapaxes(0, 1).astype(dtype)
    steps = data.t_max / dt_s if dt_s > 0 else np.inf
    if not steps * data.n_samples * data.n_neurons * np.dtype(dtype).itemsize <= MOST_BYTES:
        got = f"{steps:.3g} steps of {data.n_samples} x {data.n_neurons}"
        raise FormatError("events in NIRData", f"at most {MOST_BYTES} bytes", got, "cut them")
    stream, place = np.nonzero(data.idx >= 0)
    step = np.floor(data.time[stream, place] / dt_s)
    if not ((step >= 0) & (step < round(steps))).all() or (data.idx < -1).any() or data.n_neurons < 0:
        raise FormatError("events in NIRData", f"times of 0 to {data.t_max:g} s", "others", "write them anew")
    x, step = np.zeros((round(steps), data.n_samples, data.n_neurons), dtype), step.astype(int)
    x[step, stream, data.idx[stream, place]] = data.value[stream, place] if hasattr(data, "value") else 1
    return x


def nirdata_bytes(nodes: Mapping[str, object]) -> bytes:
    """The HDF5 file of observations by node."""
    import nir

    buffer = io.BytesIO()
    nir.write_data(buffer, nir.NIRGraphData({n: nir.NIRNodeData({"spikes": o}) for n, o in nodes.items()}))
    return buffer.getvalue()
