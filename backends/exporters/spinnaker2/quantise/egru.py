"""EGRU cells in integers."""

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.quantise.ops import IntegerEGRUCell
from rheobase.backends.exporters.spinnaker2.quantise.writer import Writer
from rheobase.spiking.errors import LossyExportError, UnsupportedError
from rheobase.spiking.graph import EventGraph, Linear, Node


def cell(out: Writer, node: Node) -> Node:
    """An EGRU cell; raises UnsupportedError: thresholds outside [0, 1], pre-activations that are no products, or a
    reader of its trace."""
    thr = out.values(node, "thr")
    if thr.min() < 0 or thr.max() > 1:
        got = f"{thr.min()} to {thr.max()}"
        raise UnsupportedError(f"{node.name} thr", "thresholds in [0, 1]", got, "project them")
    for port, edge in out.graph.inputs_of(node.name).items():
        if not isinstance(out.graph.node(edge.source_node).op, Linear):
            raise UnsupportedError(f"{node.name}.{port}", "a product", edge.source, "put a Linear before the cell")
    for edge in out.graph.edges:
        if edge.source == f"{node.name}.trace":
            raise UnsupportedError(edge.target, "no reader of an EGRU's trace", edge.source, "read y instead")
    out.arrays[node.arrays["thr"]] = np.floor(thr * ints.ONE + 0.5).astype(np.int16)
    out.note(node, "thr", "float", "int16 Q14", 2.0**-15)
    out.note(node, "sigmoid", "exact", "table", table_error(ints.sigmoid_table(), "sigmoid"))
    out.note(node, "tanh", "exact", "table", table_error(ints.tanh_table(), "tanh"))
    if node.op.zoneout:
        out.note(node, "zoneout", str(node.op.zoneout), "int16 Q14", 2.0**-15)
    return Node(node.name, IntegerEGRUCell(int(np.floor(node.op.zoneout * ints.ONE + 0.5))), node.arrays)


def table_error(table, name: str) -> float:
    """The largest error of a table over all 65,536 arguments."""
    x = np.arange(-32768, 32768)
    exact = np.tanh(x / 2048) if name == "tanh" else 0.5 * (1 + np.tanh(x / 4096))
    return float(np.abs(ints.look_up(table, x) / ints.ONE - exact).max())


def candidates(graph: EventGraph) -> dict[str, str]:
    """Cell -> the recurrent pre-activation "node.port" whose candidates must stay in range."""
    cells = [n.name for n in graph.nodes if isinstance(n.op, IntegerEGRUCell)]
    return {name: graph.inputs_of(name)["q"].source for name in cells}


def candidates_of(graph: EventGraph, source: str, seen: np.ndarray) -> float:
    """The largest candidate among a recurrent pre-activation's integers [B, T, 3n]."""
    return np.abs(seen[..., 2 * graph.shape_of(source)[0] // 3 :]).max() / (1 << ints.PRE_FRAC)


def check_candidates(out: Writer, cell: Node, largest: float, allow_lossy: bool) -> None:
    """Refuse, or record, recurrent candidates that saturate on the calibration data."""
    if largest < 16:
        return
    if not allow_lossy:
        remedy = "shrink recurrent weights, or allow a lossy export"
        raise LossyExportError(cell.name, "recurrent candidates below 16", f"{largest:.2f}", remedy)
    out.note(cell, "q_g", f"up to {largest:.2f}", "saturated at 16", largest - 16)
