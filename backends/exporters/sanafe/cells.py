"""Which LIF cells of a graph SANA-FE can run, and as what.

A step of its `leaky_integrate_fire` (models.cpp of 2.2.9), where I is what was sent in the step before:

    v <- trunc(64 leak_decay v) / 64      u <- input_decay u + I      v <- v + u
    spike where v > threshold; then v <- reset ("hard"), or v - threshold ("soft")

So v is counted from rest, a gain goes into the weights, and >= theta is > the number before theta. Everything is
multiplied by S, a power of two: the cut to 1/64 then loses less than 1 / (64 S) a step, and v fits the 32 bits that it
is cut in.
"""

import math
from dataclasses import dataclass

import numpy as np

from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import Add, CubaLIFCell, Edge, EventGraph, LIFCell, Linear, Node, Tokens
from rheobase.spiking.tally import BINARY

WHOLE = 2.0**25
"""what 32 bits hold of which 6 lie behind the point"""


@dataclass(frozen=True, eq=False)
class Cell:
    """A cell as SANA-FE has it, in float64, [n] each; v is counted from `rest`.

    terms   (product, its input edge) of each addend of the input
    sums    the nodes that add them
    drive   "node.port" of what is added to v, but for the gain
    reset   where v goes after a spike; None: theta is subtracted
    strict  whether it fires at > theta, not at >=
    """

    name: str
    terms: list[tuple[str, Edge]]
    sums: list[str]
    drive: str
    gain: np.ndarray
    leak: np.ndarray
    input_decay: np.ndarray
    theta: np.ndarray
    reset: float | None
    rest: float
    strict: bool


def cells_of(graph: EventGraph) -> tuple[list[Cell], dict[str, str]]:
    """The cells that SANA-FE can run, in the order of the graph; and of each other LIF cell why not."""
    cells, reasons = [], {}
    for node in (graph.node(name) for group in graph.order() for name in group):
        if isinstance(node.op, LIFCell | CubaLIFCell):
            sums: list[str] = []
            terms = _terms(graph, graph.inputs_of(node.name)["x"], sums)
            made = (
                _cell(graph, node, terms, sums) if terms else "reads other values than sums of weights of binary events"
            )
            if isinstance(made, Cell):
                cells.append(made)
            else:
                reasons[node.name] = made
    return cells, reasons


def _terms(graph: EventGraph, edge: Edge, sums: list[str]) -> list[tuple[str, Edge]] | None:
    """The products whose sum an edge brings, or None where it brings anything else; Add nodes are put into `sums`."""
    node = graph.node(edge.source_node)
    inputs = graph.inputs_of(node.name)
    if edge.delay:
        return None
    if isinstance(node.op, Add):
        sums.append(node.name)
        terms = [_terms(graph, inputs[port], sums) for port in "ab"]
        return None if None in terms else sum(terms, [])
    if not isinstance(node.op, Linear) or inputs["x"].kind != BINARY:
        return None
    return None if isinstance(graph.node(inputs["x"].source_node).op, Tokens) else [(node.name, inputs["x"])]


def _cell(graph: EventGraph, node: Node, terms, sums) -> Cell | str:
    """A cell in SANA-FE's terms, or why it has none."""
    op, drive = node.op, graph.inputs_of(node.name)["x"].source
    if type(op) is LIFCell:
        given = {role: array.astype(np.float64) for role, array in graph.arrays_of(node).items()}
        tau, rest = given.get("tau", op.tau), op.v_reset or 0.0
        gain, leak, decay = 1 / tau if op.decay_input else 1.0, 1 - 1 / tau, 0.0
        theta, reset, strict = given.get("theta", op.theta) - rest, None if op.v_reset is None else 0.0, op.fire == ">"
    elif type(op) is CubaLIFCell and op.reset == "now":
        gain, leak, decay, theta, reset, rest = op.gain, op.beta, op.alpha, op.theta, op.v_reset, 0.0
        drive, strict = f"{node.name}.i", True
    else:
        return "is a cell with other spikes than 1, or that resets later or never"
    units = graph.shape_of(f"{node.name}.s")
    gain, leak, decay, theta = (np.broadcast_to(np.float64(a), units) for a in (gain, leak, decay, theta))
    if theta.min() <= 0 or min(leak.min(), decay.min()) < 0 or max(leak.max(), decay.max()) > 1:
        return "has a threshold that is not above rest, or a decay outside of 0 to 1"
    return Cell(node.name, terms, sums, drive, gain, leak, decay, theta, reset, rest, strict)


def levels_of(cells: list[Cell]) -> dict[str, int]:
    """How many steps late each cell fires in SANA-FE, where every product takes a step.

    raises  UnsupportedError: a cell that is reached over paths of different lengths
    """
    names, levels = {f"{cell.name}.s": cell.name for cell in cells}, {}
    fed = {c.name: [(names[e.source], 1 - e.delay) for _, e in c.terms if e.source in names] for c in cells}
    for cell in cells:
        levels[cell.name] = max([1, *(levels[name] + late for name, late in fed[cell.name] if name in levels)])
    for cell in cells:
        for name, late in fed[cell.name]:
            if levels[name] + late != levels[cell.name]:
                wanted, got = "paths of one length to a cell, a step a product", f"a shorter one through {name}"
                raise UnsupportedError(cell.name, wanted, got, "export a chain of layers")
    return levels


def weights_of(graph: EventGraph, cell: Cell, product: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights [sources, n] and bias [n] of an addend, gain included."""
    node, arrays = graph.node(product), graph.arrays_of(graph.node(product))
    weight = arrays["weight"].T if node.op.transposed else arrays["weight"]
    return weight * cell.gain, arrays["bias"] * cell.gain if "bias" in arrays else None


def precision_of(cell: Cell, v: np.ndarray, drive: np.ndarray) -> tuple[float, float, float]:
    """How exactly SANA-FE holds a membrane that ran like this: v after each step, and its drive, [T, n] each.

    returns  S; a bound of what SANA-FE's cuts add up to; and how near the membrane came to its threshold
    """
    v = v - cell.rest
    h = cell.leak * np.concatenate([np.zeros_like(v[:1]), v[:-1]]) + cell.gain * drive
    peak = max(cell.theta.max(), np.abs(v).max(initial=0), np.abs(h).max(initial=0))
    scale = 2.0 ** math.floor(math.log2(WHOLE / peak) - 1)
    cuts = max(min(len(v), 1 / (1 - b) if b < 1 else math.inf) for b in cell.leak.tolist())
    return scale, cuts / (64 * scale), float(np.abs(h - cell.theta).min(initial=math.inf))
