"""ONNX: the dense parts of a graph in int8 with powers of two, a file for each fragment between its cells.

Files: `NN.onnx`; `fragments.json`, what each reads and gives, in the order in which they run; `fragments.safetensors`,
the integers that entered each fragment and those that it gave. Arithmetic: `steps`.
"""

import json
from pathlib import Path

import numpy as np

from rheobase.backends.artifact import Artifact, Report, write_artifact
from rheobase.backends.exporters._graphs import relative_error, require_calibration, require_finite, share
from rheobase.backends.exporters.onnx.calibration import deviation, fed, measure
from rheobase.backends.exporters.onnx.fragments import Fragment, fragments, input_name, is_tokens
from rheobase.backends.exporters.onnx.steps import Maker, Step, requantise
from rheobase.backends.exporters.onnx.writer import IR, OPSET, load_onnx, onnx_bytes, run_onnx
from rheobase.backends.simulators import simulate
from rheobase.spiking.errors import FormatError
from rheobase.spiking.graph import EventGraph

FORMAT = "rheobase-onnx/1"
TABLE, VALUES = "fragments.json", "fragments.safetensors"
REPLAYED = 32
"""steps that `verify` replays, at most"""


def export(
    graph: EventGraph, out: str | Path, *, calibration=None, allow_lossy: bool = False, version: str = ""
) -> Artifact:
    """Write the dense fragments of a graph; see `rheobase.backends.export`.

    calibration  tokens [B, T], or frames: the largest magnitude of each signal chooses its power of two, and the first
                 32 steps of the first stream are what `verify` replays
    allow_lossy  nothing here needs it: what int8 changes is recorded
    raises       UnsupportedError: no products, numbers that are not finite, or sums that float32 does not hold;
                 ConfigError: no calibration
    """
    load_onnx()
    parts = fragments(graph)
    require_finite(graph)
    calibration = require_calibration("onnx export", calibration)
    fracs, power, changed = measure(graph, calibration, parts)
    maker = Maker(graph, fracs, power)
    kept = {e.source for part in parts for e in part.inputs.values()}.union(*(part.outputs for part in parts))
    seen = simulate(graph, calibration[:1, :REPLAYED], record=sorted(kept)).recorded
    files, tensors, errors = {}, {}, {}
    table = [_row(graph, f"{i:02}.onnx", part, fracs) for i, part in enumerate(parts)]
    for part, row in zip(parts, table, strict=True):
        name, steps = row["file"], [maker.step(n, _sources(graph, n, fracs)) for n in part.nodes]
        feeds = {n: fed(graph, e, seen[e.source][0], fracs) for n, e in part.inputs.items()}
        widths = {n: x.shape[1] for n, x in feeds.items()} | {s: graph.shape_of(s)[0] for s in part.outputs}
        files[name] = onnx_bytes(part, steps, widths, f"rheobase {version}")
        gives = run_steps(steps, feeds)
        for source in part.outputs:
            values, frac = gives[source]
            errors[source] = relative_error(seen[source][0], values * 2.0 ** -np.asarray(frac, float))
            tensors[f"{name}/out/{source}"] = values.astype(np.int32)
            tensors[f"{name}/frac/{source}"] = np.atleast_1d(np.asarray(frac, np.int16))
        tensors |= {f"{name}/in/{n}": x for n, x in feeds.items()}
    from safetensors.numpy import save

    files |= {VALUES: save(tensors), TABLE: json.dumps(table, indent=1).encode() + b"\n"}
    inside = {name: row["file"] for row in table for name in row["nodes"]}
    weights = [deviation(node, role, "int8 with powers of two", bound) for node, role, bound in maker.notes]
    manifest = {
        "format": FORMAT,
        "exporter": "onnx",
        "version": version,
        "graph": graph.hash(),
        "opset": OPSET,
        "ir": IR,
        "coverage": {n.name: inside.get(n.name, f"outside: {type(n.op).__name__}") for n in graph.nodes},
        "notes": [share(graph, inside, "ONNX")],
        "deviations": [*weights, *changed],
        "relative_error": errors,
        "not_claimed": "equal integers with graph optimisation on: fused int8 kernels may round otherwise",
    }
    return write_artifact(out, files, manifest)


def verify(artifact: Artifact) -> Report:
    """Run every file in onnxruntime, graph optimisation off, on the recorded integers, and compare every output."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors, table = load(artifact.read(VALUES)), json.loads(artifact.read(TABLE))
    except (SafetensorError, ValueError) as error:
        raise FormatError(artifact.path / VALUES, "values and a table", str(error), "export it anew") from None
    compared, different, first, problem = 0, 0, None, None
    for row in table:
        name, where = row["file"], artifact.path / row["file"]
        got = run_onnx(artifact.read(name), {n: tensors[f"{name}/in/{n}"] for n in row["inputs"]}, where)
        for source in row["outputs"]:
            frac = tensors[f"{name}/frac/{source}"].astype(float)
            wanted = tensors[f"{name}/out/{source}"] * 2.0**-frac
            wrong = np.float64(got[source]) != wanted
            compared, different = compared + wrong.size, different + int(wrong.sum())
            if wrong.any() and first is None:
                step, unit = (int(i[0]) for i in np.nonzero(wrong))
                values = {"expected": wanted[step, unit].item(), "got": float(got[source][step, unit])}
                first = {"step": step, "node": source, "unit": unit, **values, "where": name}
                problem = f"{where}: {source} differs first in step {step}, unit {unit}"
    notes = f"{len(table)} files in onnxruntime, graph optimisation off", *artifact.manifest["notes"]
    return Report(first is None, compared, different, problem, notes, first)


def run_steps(steps: list[Step], feeds: dict[str, np.ndarray]) -> dict[str, tuple]:
    """A fragment in integers: what each node gives, "node.port" -> (int64 [N, m], frac)."""
    gives: dict[str, tuple] = {}
    for step in steps:
        read = [requantise(*gives[n], frac) if n in gives else feeds[n].astype(np.int64) for n, frac in step.sources]
        gives[step.out] = step.run(*read), step.frac
    return gives


def _sources(graph: EventGraph, name: str, fracs: dict[str, int]) -> tuple[tuple[str, int], ...]:
    edges = graph.inputs_of(name)
    return tuple((input_name(edges[port]), fracs[edges[port].source]) for port in graph.node(name).op.inputs)


def _row(graph: EventGraph, file: str, part: Fragment, fracs: dict[str, int]) -> dict:
    def said(edge):
        kind = "token ids, int64" if is_tokens(graph, edge) else f"{edge.kind}, int8 Q{fracs[edge.source]}"
        return {"source": edge.source, "delay": edge.delay, "values": kind}

    inputs = {name: said(edge) for name, edge in part.inputs.items()}
    return {"file": file, "level": part.level, "nodes": part.nodes, "inputs": inputs, "outputs": part.outputs}
