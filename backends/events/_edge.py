"""A model's edge as a recording of a camera, and back: x = u % W, y = u // W, p = sign, t = step x step_us."""

import math
from collections.abc import Iterator

import numpy as np

from rheobase.backends.events._record import CHUNK, Recording, events, in_range
from rheobase.spiking.errors import ConfigError, FormatError, LossyExportError
from rheobase.spiking.events import Events

STEP_US = 1000.0
"""A step where neither the events nor the caller say how long it is."""


def from_edge(sent: Events, sensor: tuple[int, int] | None = None, dt_s: float | None = None) -> Recording:
    """Events of one stream as a recording.

    sensor   (width, height) with room for every unit; the smallest near-square unless given
    dt_s     seconds a step; that of the events unless given, and 1 ms where they have none
    raises   ConfigError: several streams, or too small a sensor
             LossyExportError: two steps within one microsecond
    """
    if sent.n_streams != 1:
        raise ConfigError("events", "one stream", f"{sent.n_streams}", "record the streams one by one")
    recording = as_camera(sent.n_units, sent.n_steps, sent.dt_s if dt_s is None else dt_s, sensor)
    said, values = recording.about["mapping"], np.unique(sent.value).tolist()
    if not set(values) <= {-1, 1}:
        recording.lost.insert(0, f"values: only their sign is kept, of {min(values):g} to {max(values):g}")
    recording.chunks = _chunks(sent, said["width"], said["step_us"])
    return recording


def as_camera(
    units: int,
    steps: int,
    dt_s: float | None,
    sensor: tuple[int, int] | None = None,
    *,
    remedy: str = "give another --dt",
) -> Recording:
    """A recording of an edge whose chunks are still to come; arguments and errors as of `from_edge`."""
    width = max(1, math.isqrt(units - 1) + 1) if units else 1
    sensor = in_range(sensor or (width, max(1, -(-units // width))))
    if sensor[0] * sensor[1] < units:
        got = f"{sensor[0]}x{sensor[1]}"
        raise ConfigError("sensor", f"room for {units:,} units", got, "give a larger --sensor WxH")
    step_us = STEP_US if dt_s is None else dt_s * 1e6
    whole_us = round(step_us) if math.isfinite(step_us) else 0
    step_us = float(whole_us) if abs(step_us - whole_us) < 1e-9 * step_us else step_us
    if not 1 <= step_us < 2**32:
        raise LossyExportError("events", "steps of 1 us to an hour", f"{step_us:g} us", remedy)
    about = {
        "kind": "model edge",
        "mapping": {
            "x": "u % width",
            "y": "u // width",
            "p": "value > 0",
            "t": "round(step * step_us)",
            "width": sensor[0],
            "units": units,
            "steps": steps,
            "step_us": step_us,
            "dt_s": dt_s,
        },
    }
    lost = [] if step_us.is_integer() else ["times rounded to 1 us; the step of each is kept"]
    return Recording((), sensor, about, lost)


def seen(step: np.ndarray, unit: np.ndarray, up: np.ndarray, width: int, step_us: float) -> np.ndarray:
    """Events of an edge as a camera of this width sees them."""
    return events(np.rint(step * step_us).astype(np.int64), unit % width, unit // width, up)


def _chunks(sent: Events, width: int, step_us: float) -> Iterator[np.ndarray]:
    for start in range(0, len(sent), CHUNK):
        part = slice(start, start + CHUNK)
        yield seen(sent.step[part], sent.unit[part], sent.value[part] > 0, width, step_us)


def to_edge(recording: Recording) -> Events:
    """The edge that a recording was made of, with values 1 and -1; raises FormatError where it was made of none."""
    said = recording.about.get("mapping")
    if recording.about.get("kind") != "model edge" or not isinstance(said, dict):
        raise FormatError("events", "a model's edge", "a camera's recording", "keep the sidecar beside the file")
    try:
        width, units, steps = (int(said[name]) for name in ("width", "units", "steps"))
        step_us, dt_s = float(said["step_us"]), said["dt_s"] and float(said["dt_s"])
        sizes = 1 <= width <= 1 << 16 and 0 <= units <= 1 << 32 and 0 <= steps < 1 << 31
        if not sizes or not 1 <= step_us < 2**32:
            raise ValueError(f"width {width}, {units} units, {steps} steps of {step_us} us")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError("sidecar", "a mapping of units", repr(error), "write it anew") from None
    parts = list(recording.chunks)
    all_of = np.concatenate(parts) if parts else events([], [], [], [])
    unit = all_of["x"].astype(np.int64) + width * all_of["y"].astype(np.int64)
    step = np.rint(all_of["t"] / step_us).astype(np.int64)
    value = np.where(all_of["p"], 1, -1).astype(np.int8)
    return Events(np.zeros_like(unit), step, unit, value, 1, steps, units, dt_s)
