"""NIR: every spiking fragment of a graph as one flat `net.nir`, the rest beside it.

Files: `net.nir`; `graph.json` and `rest.safetensors`, from which `rejoin` makes the very same graph again; and
`events.nirdata`, what entered each fragment and what its neurons sent in a run of this graph.

Readers, what they want and where they err: docs/exchange.md. Equations and file: Pedersen et al., Nature
Communications 15, 8122 (2024); nir 1.0.8.
"""

import json
import math
from pathlib import Path

import numpy as np

from rheobase.backends.artifact import Artifact, Report, require_format, write_artifact
from rheobase.backends.exporters._graphs import arriving, require_finite
from rheobase.backends.exporters.nir.events import dense, nirdata_bytes, observed
from rheobase.backends.exporters.nir.fragments import Wiring, wire
from rheobase.backends.exporters.nir.interpreter import run_nir
from rheobase.backends.exporters.nir.writer import GAINS, Written, build, nir_bytes, restored
from rheobase.backends.nir_file import load_nir, read_nir, read_nirdata
from rheobase.backends.simulators import simulate
from rheobase.spiking.errors import ConfigError, FormatError, LossyExportError
from rheobase.spiking.graph import EventGraph, Input, Tokens
from rheobase.spiking.graph.images import LEVELS
from rheobase.spiking.graph.stored import arrays_bytes, arrays_of_bytes, graph_of, graph_table, parse_table

FORMAT = "rheobase-nir/1"
NET, TABLE, REST, EVENTS = "net.nir", "graph.json", "rest.safetensors", "events.nirdata"
PROBE_STEPS = 64


def export(
    graph: EventGraph,
    out: str | Path,
    *,
    calibration=None,
    allow_lossy: bool = False,
    version: str,
    dt_s: float | None = None,
    gain: str = "weights",
    relay: bool = False,
    legacy: bool = False,
) -> Artifact:
    """Write the fragments of a graph as NIR; see `rheobase.backends.export`.

    calibration  what the recorded run is fed, [B, T] or [B, T, C, H, W]; noise of a fixed seed where there is none
    dt_s         duration of a step: the graph's own unless given, 1e-4 where it has none; snnTorch takes 1e-4
                 whatever it is told
    gain         "weights": r = 1 and any gain in the products, for Norse too;  "r": r = tau / dt, weights as they are
                 where the membrane does not divide its input by tau (snn-mlir, older tools)
    relay        recurrences through a Flatten that does nothing: snnTorch 1.0 misreads a cycle of two nodes
    legacy       without v_reset, for nir before 1.0.6; it must be 0
    raises       UnsupportedError: no LIF units, a reset by subtraction, which NIR cannot say, or numbers not finite;
                 LossyExportError: the file's spikes are not the graph's, and not `allow_lossy`
    """
    load_nir()
    dt_s = (graph.dt_s or 1e-4) if dt_s is None else dt_s
    if gain not in GAINS or not 0 < dt_s < math.inf:
        raise ConfigError("export nir", f"gain one of {GAINS}, dt_s above 0", f"{gain!r}, {dt_s}", "mend it")
    require_finite(graph)
    wiring = wire(graph)
    said = {"dt": dt_s, "format": FORMAT, "integrator": "forward_euler", "reset": "to v_reset, in the spike's step"}
    kinds = {name: edge.kind for name, edge in wiring.inputs.items()}
    said |= {"fire": "v > v_threshold", "inputs": kinds}
    made = build(graph, wiring, dt_s=dt_s, gain=gain, relay=relay, metadata=said)
    events, compared, mismatches = _record(graph, wiring, made, dt_s, calibration)
    if mismatches and not allow_lossy:
        got = f"{mismatches} of {compared} differ: sums in another order at a threshold"
        raise LossyExportError("nir", "the graph's spikes from the file", got, "try gain='r', or --allow-lossy")
    numbers = sum(a.size for a in graph.arrays.values())
    inside = sum(graph.arrays[name].size for name in made.arrays)
    rest = {name: array for name, array in graph.arrays.items() if name not in made.arrays}
    files = {
        NET: nir_bytes(made.nir, legacy=legacy),
        TABLE: json.dumps({"graph": graph_table(graph), "in_nir": made.arrays}, indent=1).encode(),
        REST: arrays_bytes(rest),
        EVENTS: events,
    }
    within = {*wiring.nodes, *wiring.sums}
    manifest = {
        "format": FORMAT,
        "exporter": "nir",
        "version": version,
        "graph": graph.hash(),
        "dt_s": dt_s,
        "gain": {"asked": gain, **made.gains},
        "relay": relay,
        "legacy": legacy,
        "coverage": {n.name: NET if n.name in within else "outside, in graph.json" for n in graph.nodes},
        "notes": [f"{100 * inside / max(numbers, 1):.0f} % of weights in NIR ({inside:,} of {numbers:,})"],
        "deviations": made.deviations,
        "replay": {"compared": compared, "mismatches": mismatches},
        "not_claimed": "spikes in readers that step otherwise: docs/exchange.md says which do",
    }
    return write_artifact(out, files, manifest)


def verify(artifact: Artifact) -> Report:
    """Rejoin the graph and replay the recorded run by NIR's equations in NumPy; `compared`: spikes and silences."""
    net = read_nir(artifact.read(NET))
    graph = _joined(artifact, net)
    seen = {name: node["spikes"] for name, node in read_nirdata(artifact.read(EVENTS)).items()}
    compared, mismatches = _replay(net, seen, artifact.manifest["dt_s"])
    wrong = mismatches != artifact.manifest["replay"]["mismatches"]
    problem = f"{artifact.path / NET}: {mismatches} of {compared} spikes are not those recorded" if wrong else None
    notes = *artifact.manifest["notes"], f"joined again to graph {graph.hash()[:12]}"
    return Report(not wrong, compared, mismatches, problem, notes)


def rejoin(artifact: Artifact) -> EventGraph:
    """The very graph that was exported, of `net.nir` and what lies beside; raises FormatError where it is another."""
    require_format(artifact, FORMAT)
    return _joined(artifact, read_nir(artifact.read(NET)))


def _joined(artifact: Artifact, net) -> EventGraph:
    where = artifact.path / TABLE
    table = parse_table(artifact.read(TABLE), where)
    arrays = arrays_of_bytes(artifact.read(REST), artifact.path / REST)
    try:
        for name, place in table["in_nir"].items():
            arrays[name] = restored(getattr(net.nodes[place["node"]], place["field"]), place)
        graph = graph_of(table["graph"], arrays, where)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            where, "where arrays lie in net.nir", f"{type(error).__name__}: {error}", "export anew"
        ) from None
    if graph.hash() != artifact.manifest["graph"]:
        raise FormatError(where, f"graph {artifact.manifest['graph'][:12]}…", f"{graph.hash()[:12]}…", "export it anew")
    return graph


def _record(graph: EventGraph, wiring: Wiring, made: Written, dt_s: float, calibration) -> tuple[bytes, int, int]:
    """`events.nirdata` of a run of the whole graph, and how many spikes of the written file are the same."""
    neurons = [n for n in wiring.nodes if "s" in graph.node(n).op.outputs]
    fed = probe(graph) if calibration is None else np.asarray(calibration)[:1, :PROBE_STEPS]
    if not fed.size:
        raise ConfigError("calibration", "at least one step", f"{fed.shape}", "give some, or none to have noise")
    kept = sorted({f"{n}.s" for n in neurons} | {e.source for e in wiring.inputs.values()})
    values = {name: array.swapaxes(0, 1) for name, array in simulate(graph, fed, record=kept).recorded.items()}
    nodes = {name: observed(arriving(graph, e, values[e.source]), e.kind, dt_s) for name, e in wiring.inputs.items()}
    nodes |= {n: observed(values[f"{n}.s"], graph.node(n).op.outputs["s"], dt_s) for n in neurons}
    return nirdata_bytes(nodes), *_replay(made.nir, nodes, dt_s)


def probe(graph: EventGraph, steps: int = PROBE_STEPS) -> np.ndarray:
    """Something to feed a graph of which nothing is known: tokens, or frames of its kind, always the same."""
    op = next(n.op for n in graph.nodes if isinstance(n.op, Input))
    rng = np.random.default_rng(0)
    if isinstance(op, Tokens):
        return rng.integers(0, op.vocabulary, (1, steps))
    shape = (1, steps, *op.size)
    if op.kind in LEVELS:
        return rng.choice(LEVELS[op.kind], shape).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)


def _replay(net, seen, dt_s: float) -> tuple[int, int]:
    """Spikes and silences compared, and how many differ."""
    dtype = np.result_type(*(n.v_threshold for n in net.nodes.values() if hasattr(n, "v_threshold")))
    values = {name: dense(data, dt_s, dtype) for name, data in seen.items()}
    inputs = {
        name: values[name].reshape(*values[name].shape[:2], *map(int, node.input_type["input"]))
        for name, node in net.nodes.items()
        if name in values and type(node).__name__ == "Input"
    }
    got = run_nir(net, inputs, dt_s=dt_s)
    compared = mismatches = 0
    for name in values.keys() - inputs.keys():
        spikes = got[name].reshape(values[name].shape)
        compared += spikes.size
        mismatches += int((spikes != values[name]).sum())
    return compared, mismatches
