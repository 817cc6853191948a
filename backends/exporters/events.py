"""Event files: what every spiking output of a graph sends in a recorded run, each as a file that event tools open.

Files: `NN_NODE.PORT.SUFFIX` of each output with its sidecar beside it (see `backends.events`), and TRACE, the same
events as arrays, with their values.
"""

import re
import tempfile
from pathlib import Path

import numpy as np

from rheobase.backends.artifact import Artifact, Report, write_artifact
from rheobase.backends.events import edge_writer, read_edge, write_edge
from rheobase.backends.events._sidecar import sidecar_path
from rheobase.backends.exporters._graphs import require_calibration
from rheobase.backends.simulators import simulate
from rheobase.backends.trace import TRACE, StoredTrace, artifact_trace, compare, trace_tensors
from rheobase.spiking.errors import FormatError, UnsupportedError
from rheobase.spiking.events import Events
from rheobase.spiking.graph import EventGraph

FORMAT = "rheobase-event-files/1"


def export(
    graph: EventGraph,
    out: str | Path,
    *,
    calibration=None,
    allow_lossy: bool = False,
    version: str = "",
    format: str = "aedat4",
    dt_s: float | None = None,
) -> Artifact:
    """Write the events of a graph; see `rheobase.backends.export`.

    calibration  what the graph is fed, [B, T, ..]: its first stream is run
    allow_lossy  nothing here needs it: that a format keeps the signs of values alone is recorded
    format       the suffix of an event file: "aedat4", "raw", "dat", "es", "bs2" or "h5", of cameras and sensors, or
                 "nirdata", which keeps values
    dt_s         seconds a step: the graph's own unless given, and 1 ms where it has none
    raises       UnsupportedError: no output sends events, or a format that is only read;  ConfigError: no calibration;
                 FormatError, LossyExportError: times or units that the format does not hold
    """
    given = require_calibration("events export", calibration)[:1]
    edge_writer(f"events.{format}")
    sent = simulate(graph, given).events
    if not sent:
        raise UnsupportedError("events export", "an output that sends events", "none", "export a spiking model")
    kinds = {f"{node.name}.{port}": kind for node in graph.nodes for port, kind in node.op.outputs.items()}
    files, edges, deviations = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, events) in enumerate(sent.items()):
            if not np.isfinite(events.value).all():
                raise UnsupportedError(name, "finite values", "NaN or infinity", "export a sound model")
            path = Path(folder) / f"{i:02d}_{re.sub('[^A-Za-z0-9_.-]', '_', name)[:80]}.{format}"
            said = write_edge(path, name, events, kinds[name], dt_s=dt_s)
            files |= {p.name: p.read_bytes() for p in (path, sidecar_path(path))}
            edges[name] = path.name
            deviations += _deviations(name, events, said)
    places = {n.name: [f for name, f in edges.items() if name.rpartition(".")[0] == n.name] for n in graph.nodes}
    tokens = given if given.ndim == 2 else np.arange(given.shape[1])[None]  # of frames, that of the step
    signals = {name: events.to_dense() for name, events in sent.items()}
    trace = StoredTrace(
        tokens.astype(np.int64), signals, {}, {name: kinds[name] for name in sent}, graph.hash(), "event"
    )
    manifest = {
        "format": FORMAT,
        "exporter": "events",
        "version": version,
        "graph": graph.hash(),
        "edges": edges,
        "coverage": {node: ", ".join(names) or "no events" for node, names in places.items()},
        "notes": [f"{sum(map(len, sent.values())):,} events in {given.shape[1]:,} steps, outputs: {len(sent)}"],
        "deviations": deviations,
        "not_claimed": "that the model sends these events: its weights are not here",
    }
    return write_artifact(out, {**files, TRACE: trace_tensors(trace)}, manifest)


def _deviations(name: str, events: Events, said: dict) -> list[dict]:
    """What a file of cameras changes of an output's events: values to their signs, times to microseconds."""
    found, mapping = [], said["mapping"]
    off = np.abs(events.value - np.sign(events.value)).max(initial=0)
    if "p" in mapping and off:
        wanted = f"{events.value.min():g} to {events.value.max():g}"
        found.append({"node": name, "field": "value", "wanted": wanted, "written": "its sign", "bound": float(off)})
    step_us = mapping.get("step_us", 1)
    if step_us != int(step_us):
        found.append({"node": name, "field": "t", "wanted": f"steps of {step_us} us", "written": "1 us", "bound": 5e-7})
    return found


def verify(artifact: Artifact) -> Report:
    """Read every file again and compare every unit and step with TRACE, or with its sign where a file has no more."""
    trace, edges = artifact_trace(artifact), artifact.manifest["edges"]
    got, wanted = {}, dict(trace.signals)
    with tempfile.TemporaryDirectory() as folder:
        for name, file in edges.items():
            path = Path(folder) / Path(file).name
            for p in (path, sidecar_path(path)):  # what was checked is what is read
                p.write_bytes(artifact.read(p.name))
            events = read_edge(path)
            if (events.n_streams, events.n_steps, events.n_units) != wanted[name].shape:
                size = f"{events.n_steps} steps of {events.n_units} units"
                raise FormatError(
                    artifact.path / file, f"those of {TRACE}, {wanted[name].shape}", size, "export it anew"
                )
            got[name] = events.to_dense()
            if path.suffix != ".nirdata":
                wanted[name] = np.sign(wanted[name])
    compared, different, first = compare(wanted, got)
    problem, fields = (str(first), vars(first)) if first else (None, None)
    return Report(first is None, compared, different, problem, tuple(artifact.manifest["notes"]), fields)
