"""ONNX: the dense parts of a graph in int8 with powers of two, a file for each fragment between its cells.

Files: `NN.onnx`; `fragments.json`, what each reads and gives and in which order they run; `trace.safetensors`, the
integers that entered each fragment and those that it gave. Arithmetic: `steps`.
"""

import json
from pathlib import Path

import numpy as np

from rheobase.backends.artifact import Artifact, Report, write_artifact
from rheobase.backends.exporters.onnx.fragments import Fragment, fragments, input_name, is_tokens
from rheobase.backends.exporters.onnx.steps import LARGEST, LOWEST, SIGMOID_READS, Maker, Step, requantise
from rheobase.backends.exporters.onnx.writer import IR, OPSET, load_onnx, onnx_bytes, run_onnx
from rheobase.backends.exporters.spinnaker2.quantise.calibration import recorded
from rheobase.spiking.errors import ConfigError, FormatError, UnsupportedError
from rheobase.spiking.graph import EventGraph, Linear, Sigmoid
from rheobase.spiking.tally import BINARY, TERNARY

FORMAT = "rheobase-onnx/1"
TABLE, TRACE = "fragments.json", "trace.safetensors"
TRACE_STEPS = 32
MOST_FRAC = 20


def export(
    graph: EventGraph, out: str | Path, *, calibration=None, allow_lossy: bool = False, version: str = ""
) -> Artifact:
    """Write the dense fragments of a graph; see `rheobase.backends.export`.

    calibration  tokens [B, T], or frames: the largest magnitude of each signal chooses its power of two, and the first
                 32 steps of the first stream make the trace
    allow_lossy  nothing here needs it: what int8 changes is recorded
    raises       UnsupportedError: no products, numbers that are not finite, or sums that float32 does not hold;
                 ConfigError: no calibration
    """
    load_onnx()
    parts = fragments(graph)
    for name, array in graph.arrays.items():
        if not np.isfinite(array).all():
            raise UnsupportedError(name, "finite numbers", "NaN or infinity", "export a sound model")
    if calibration is None or np.size(calibration) == 0:
        raise ConfigError("onnx export", "calibration tokens [B, T]", "none", "pass calibration=")
    calibration = np.asarray(calibration)
    fracs, power, limits = _measure(graph, calibration, parts)
    maker = Maker(graph, fracs, power)
    made = [[maker.step(name, _sources(graph, name, fracs)) for name in part.nodes] for part in parts]
    seen = next(recorded(graph, calibration[:1, :TRACE_STEPS], sorted(_wanted(graph, parts))))
    files, tensors, table, errors = {}, {}, [], {}
    for i, (part, steps) in enumerate(zip(parts, made, strict=True)):
        name = f"{i:02}.onnx"
        widths = {n: 1 if is_tokens(graph, e) else e.shape[0] for n, e in part.inputs.items()}
        widths |= {source: graph.shape_of(source)[0] for source in part.outputs}
        files[name] = onnx_bytes(part, steps, widths, f"rheobase {version}")
        feeds = {n: _fed(graph, e, seen[e.source][0], fracs) for n, e in part.inputs.items()}
        gives = run_steps(steps, feeds, fracs)
        for source in part.outputs:
            values, frac = gives[source]
            errors[source] = _relative(seen[source][0], values * 2.0 ** -np.asarray(frac, float))
            tensors[f"{name}/out/{source}"] = values.astype(np.int32)
            tensors[f"{name}/frac/{source}"] = np.atleast_1d(np.asarray(frac, np.int16))
        tensors |= {
            f"{name}/in/{n}": x.astype(np.int64 if n in _tokens(graph, part) else np.int8) for n, x in feeds.items()
        }
        table.append(_row(graph, name, part, fracs))
    from safetensors.numpy import save

    files |= {TRACE: save(tensors), TABLE: json.dumps(table, indent=1).encode() + b"\n"}
    inside = {n: f"{i:02}.onnx" for i, part in enumerate(parts) for n in part.nodes}
    manifest = {
        "format": FORMAT,
        "exporter": "onnx",
        "version": version,
        "graph": graph.hash(),
        "opset": OPSET,
        "ir": IR,
        "coverage": {n.name: inside.get(n.name, f"outside: {type(n.op).__name__}") for n in graph.nodes},
        "share": _share(graph, inside),
        "deviations": [*_weights(maker), *limits],
        "relative_error": errors,
        "not_claimed": "equal integers with graph optimisation on, where int8 kernels round otherwise; the whole model: "
        "the cells outside are the host's",
    }
    return write_artifact(out, files, manifest)


def verify(artifact: Artifact) -> Report:
    """Run every file in onnxruntime, graph optimisation off, on the recorded integers, and compare every output."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors, table = load(artifact.read(TRACE)), json.loads(artifact.read(TABLE))
    except (SafetensorError, ValueError) as error:
        raise FormatError(artifact.path / TRACE, "a trace and a table", str(error), "export it anew") from None
    compared, different, first = 0, 0, None
    for row in table:
        name = row["file"]
        feeds = {n: tensors[f"{name}/in/{n}"] for n in row["inputs"]}
        try:
            got = run_onnx(artifact.read(name), feeds)
        except Exception as error:  # onnxruntime raises classes of its own, which are not public
            if type(error).__module__.partition(".")[0] != "onnxruntime":
                raise
            raise FormatError(artifact.path / name, "a file that runs", str(error), "export it anew") from None
        for source in row["outputs"]:
            frac = tensors[f"{name}/frac/{source}"].astype(float)
            wrong = np.float64(got[source]) != tensors[f"{name}/out/{source}"] * 2.0**-frac
            compared, different = compared + wrong.size, different + int(wrong.sum())
            if wrong.any() and first is None:
                item, unit = (int(i[0]) for i in np.nonzero(wrong))
                first = f"{artifact.path / name}: {source} differs first in item {item}, unit {unit}"
    notes = f"{len(table)} files in onnxruntime, graph optimisation off", artifact.manifest["share"]
    return Report(first is None, compared, different, first, notes)


def run_steps(steps: list[Step], feeds: dict[str, np.ndarray], fracs: dict[str, int]) -> dict[str, tuple]:
    """A fragment in integers: what each node gives, "node.port" -> (int64 [N, m], frac)."""
    gives: dict[str, tuple] = {}
    for step in steps:
        read = [requantise(*gives[n], frac) if n in gives else feeds[n] for n, frac in step.sources]
        gives[step.out] = step.run(*read), step.frac
    return gives


def _sources(graph: EventGraph, name: str, fracs: dict[str, int]) -> tuple[tuple[str, int], ...]:
    edges = graph.inputs_of(name)
    return tuple((input_name(edges[port]), fracs[edges[port].source]) for port in graph.node(name).op.inputs)


def _wanted(graph: EventGraph, parts: list[Fragment]) -> set[str]:
    """Every signal that a dense node reads, or that leaves a fragment."""
    read = {e.source for part in parts for n in part.nodes for e in graph.inputs_of(n).values()}
    return read.union(*(part.outputs for part in parts))


def _measure(graph: EventGraph, calibration: np.ndarray, parts: list[Fragment]) -> tuple[dict, dict, list[dict]]:
    """(frac of every signal that is read, mean square of what products read, how signals are held within int8)."""
    read = sorted({e.source for part in parts for n in part.nodes for e in graph.inputs_of(n).values()})
    edges = {e.source: e for e in graph.edges if e.source in read}
    power = {
        graph.inputs_of(n)["x"].source: 0.0 for p in parts for n in p.nodes if isinstance(graph.node(n).op, Linear)
    }
    largest, steps = dict.fromkeys(read, 0.0), calibration.shape[0] * calibration.shape[1]
    for seen in recorded(graph, calibration, read):
        for name in read:
            largest[name] = max(largest[name], float(np.abs(seen[name]).max()))
        for name in power:
            power[name] = power[name] + np.square(seen[name], dtype=np.float64).sum((0, 1)) / steps
    gates = {graph.inputs_of(n)["x"].source for p in parts for n in p.nodes if isinstance(graph.node(n).op, Sigmoid)}
    fracs, limits = {}, []
    for name in read:
        if is_tokens(graph, edges[name]) or edges[name].kind in (BINARY, TERNARY):
            fracs[name] = 0
            continue
        fracs[name] = min(_frac(largest[name]), SIGMOID_READS if name in gates else MOST_FRAC)
        node, _, port = name.rpartition(".")
        written = f"int8 Q{fracs[name]}, held within {LOWEST * 2.0 ** -fracs[name]:g}"
        limits.append(_deviation(node, port, written, 2.0 ** -(fracs[name] + 1)))
    return fracs, power, limits


def _frac(largest: float) -> int:
    return int(np.frexp(LARGEST / largest)[1]) - 1 if largest else MOST_FRAC


def _fed(graph: EventGraph, edge, values: np.ndarray, fracs: dict[str, int]) -> np.ndarray:
    """What an edge brought at each step of a run, in integers: int64 [T, n]."""
    if edge.delay:
        first = np.full_like(values[:1], graph.state_fill().get(edge.source, 0.0))
        values = np.concatenate([first, values[:-1]])
    if is_tokens(graph, edge):
        return values.astype(np.int64)
    return np.clip(np.rint(values * 2.0 ** fracs[edge.source]), -LOWEST, LOWEST - 1).astype(np.int64)


def _tokens(graph: EventGraph, part: Fragment) -> set[str]:
    return {name for name, edge in part.inputs.items() if is_tokens(graph, edge)}


def _row(graph: EventGraph, name: str, part: Fragment, fracs: dict[str, int]) -> dict:
    def said(edge):
        kind = "token ids, int64" if is_tokens(graph, edge) else f"{edge.kind}, int8 Q{fracs[edge.source]}"
        return {"source": edge.source, "delay": edge.delay, "values": kind}

    return {
        "file": name,
        "level": part.level,
        "nodes": list(part.nodes),
        "inputs": {n: said(e) for n, e in part.inputs.items()},
        "outputs": list(part.outputs),
    }


def _share(graph: EventGraph, inside: dict[str, str]) -> str:
    """How many of the graph's numbers are in the files."""
    held = {array for node in graph.nodes if node.name in inside for array in node.arrays.values()}
    numbers, whole = sum(graph.arrays[name].size for name in held), _numbers(graph)
    return f"{100 * numbers / max(whole, 1):.1f} % of weights in ONNX ({numbers:,} of {whole:,})"


def _numbers(graph: EventGraph) -> int:
    return sum(graph.arrays[name].size for name in {a for node in graph.nodes for a in node.arrays.values()})


def _weights(maker: Maker) -> list[dict]:
    return [_deviation(node, role, "int8 with powers of two", bound) for node, role, bound in maker.notes]


def _deviation(node: str, field: str, written: str, bound: float) -> dict:
    return {"node": node, "field": field, "wanted": "float", "written": written, "bound": float(bound)}


def _relative(wanted: np.ndarray, got: np.ndarray) -> float:
    """Root mean square of the difference over that of what was wanted."""
    size = float(np.square(wanted, dtype=np.float64).mean())
    error = float(np.square(got - wanted, dtype=np.float64).mean())
    return float(np.sqrt(error / size)) if size else float(error > 0)
