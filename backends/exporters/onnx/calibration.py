"""What data say of a float graph: the power of two of every signal that a dense node reads."""

import numpy as np

from rheobase.backends.exporters._graphs import arriving
from rheobase.backends.exporters.onnx.fragments import Fragment, is_tokens
from rheobase.backends.exporters.onnx.steps import LARGEST, LOWEST, SIGMOID_READS
from rheobase.backends.exporters.spinnaker2.quantise.calibration import recorded
from rheobase.spiking.graph import Edge, EventGraph, Linear, Sigmoid
from rheobase.spiking.tally import BINARY, TERNARY

MOST_FRAC = 20


def measure(
    graph: EventGraph, calibration: np.ndarray, parts: list[Fragment]
) -> tuple[dict[str, int], dict[str, np.ndarray], list[dict]]:
    """(Frac of every signal that is read, mean square of each unit of what products read, deviations of the signals).

    A signal gets the finest power of two in which its largest magnitude fits int8; spikes are what they are.
    """
    inside = [name for part in parts for name in part.nodes]
    edges = {e.source: e for name in inside for e in graph.inputs_of(name).values()}
    gates, power = _read_by(graph, inside, Sigmoid), dict.fromkeys(sorted(_read_by(graph, inside, Linear)), 0.0)
    largest, steps = dict.fromkeys(sorted(edges), 0.0), calibration.shape[0] * calibration.shape[1]
    for seen in recorded(graph, calibration, list(largest)):
        for name in largest:
            largest[name] = max(largest[name], float(np.abs(seen[name]).max()))
        for name in power:
            power[name] = power[name] + np.square(seen[name], dtype=np.float64).sum((0, 1)) / steps
    fracs, changed = {}, []
    for name, most in largest.items():
        if is_tokens(graph, edges[name]) or edges[name].kind in (BINARY, TERNARY):
            fracs[name] = 0
            continue
        frac = int(np.frexp(LARGEST / most)[1]) - 1 if most else MOST_FRAC
        fracs[name] = min(frac, SIGMOID_READS if name in gates else MOST_FRAC)
        node, _, port = name.rpartition(".")
        written = f"int8 Q{fracs[name]}, held within {LOWEST * 2.0 ** -fracs[name]:g}"
        changed.append(deviation(node, port, written, 2.0 ** -(fracs[name] + 1)))
    return fracs, power, changed


def fed(graph: EventGraph, edge: Edge, values: np.ndarray, fracs: dict[str, int]) -> np.ndarray:
    """What an edge brought at each step of a run [T, n]: token ids in int64, all else in int8."""
    values = arriving(graph, edge, values)
    if is_tokens(graph, edge):
        return values.astype(np.int64)
    return np.clip(np.rint(values * 2.0 ** fracs[edge.source]), -LOWEST, LOWEST - 1).astype(np.int8)


def deviation(node: str, field: str, written: str, bound: float) -> dict:
    """A row of a manifest's deviations."""
    return {"node": node, "field": field, "wanted": "float", "written": written, "bound": float(bound)}


def _read_by(graph: EventGraph, names: list[str], op: type) -> set[str]:
    """What the nodes of an op read at x."""
    return {graph.inputs_of(name)["x"].source for name in names if isinstance(graph.node(name).op, op)}
