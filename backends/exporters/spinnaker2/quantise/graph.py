"""The pass from a float graph to its integers."""

from dataclasses import replace

import numpy as np

from rheobase.backends.exporters._graphs import require_finite
from rheobase.backends.exporters.spinnaker2.quantise import egru, products, rwkv
from rheobase.backends.exporters.spinnaker2.quantise.calibration import (
    choose_formats,
    measure,
    recorded,
    signals_to_choose,
)
from rheobase.backends.exporters.spinnaker2.quantise.writer import Deviation, Writer
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import (
    Add,
    Affine,
    EGRUCell,
    Embedding,
    EventGraph,
    Frames,
    GradedLIFCell,
    LayerNorm,
    LIFCell,
    Linear,
    Mix,
    Multiply,
    Node,
    Sigmoid,
    Spike,
    SquaredRelu,
    TernaryLIFCell,
    Tokens,
    WKVCell,
)


def as_is(out: Writer, node: Node) -> Node:
    """A node that computes the same on integers."""
    return node


INTEGER = {
    Tokens: as_is,
    Spike: as_is,
    Embedding: products.embedding,
    Linear: products.linear,
    EGRUCell: egru.cell,
    Mix: rwkv.mix,
    Affine: rwkv.affine,
    LayerNorm: rwkv.layer_norm,
    Sigmoid: rwkv.sigmoid,
    SquaredRelu: rwkv.squared_relu,
    Multiply: rwkv.multiply,
    Add: rwkv.add,
    LIFCell: rwkv.lif,
    TernaryLIFCell: rwkv.lif,
    GradedLIFCell: rwkv.lif,
    WKVCell: rwkv.wkv,
}
"""Op -> what writes a node of it"""


def refuse_other_ops(graph: EventGraph) -> None:
    """Raise UnsupportedError where a graph has ops without an integer form, naming each kind of them.

    Frames pass before EGRU layers alone: `frames.as_tokens` replaces them.
    """
    others = [n for n in graph.nodes if type(n.op) not in INTEGER]
    if any(not isinstance(n.op, Frames) for n in others):
        kinds = ", ".join(dict.fromkeys(type(n.op).__name__ for n in others))
        wanted = "an EGRU language model without a projection, or a SpikeGPT"
        raise UnsupportedError(others[0].name, wanted, kinds, "export one of these")


def quantise(
    graph: EventGraph, calibration: np.ndarray, *, allow_lossy: bool = False
) -> tuple[EventGraph, list[Deviation]]:
    """The integer graph, and what it changes.

    calibration  tokens [B, T] of real text: the mean square of each source weighs the rounding of its weights, and
                 the largest magnitudes choose the formats of dense signals
    allow_lossy  accept an EGRU's q_g that leave their range on the calibration data, instead of refusing
    raises       UnsupportedError: an op without an integer form, a number outside the range of its format, or an
                 accumulator that could overflow;  LossyExportError: q_g saturates on the calibration data
    """
    refuse_other_ops(graph)
    require_finite(graph)
    calibration = np.asarray(calibration)
    if calibration.size == 0:
        raise ConfigError("calibration", "at least one token", "none", "give tokens of real text")
    power, largest = measure(graph, calibration)
    out = Writer(graph, {}, power)
    out.formats = choose_formats(graph, largest, products.quantise_table(out))
    nodes = tuple(INTEGER[type(node.op)](out, node) for node in graph.nodes)
    integer = replace(graph, nodes=nodes, arrays=out.arrays)
    _check_ranges(out, integer, calibration, allow_lossy)
    return integer, out.deviations


def _check_ranges(out: Writer, integer: EventGraph, calibration: np.ndarray, allow_lossy: bool) -> None:
    """Run the integers, and record how many values of each int16 signal lie at its limits, where `narrow` may have
    held them; refuse, or record, an EGRU's candidates out of range."""
    candidates = egru.candidates(integer)
    membranes = [f"{n.name}.v" for n in out.graph.nodes if isinstance(n.op, LIFCell)]
    held = dict.fromkeys([*signals_to_choose(out.graph), *membranes], 0)
    largest, size = dict.fromkeys(candidates, 0.0), dict.fromkeys(held, 0)
    for seen in recorded(integer, calibration, [*held, *candidates.values()], on="integer"):
        for cell, source in candidates.items():
            largest[cell] = max(largest[cell], egru.candidates_of(integer, source, seen[source]))
        for name in held:
            held[name] += int(((seen[name] == 32767) | (seen[name] == -32768)).sum())
            size[name] += seen[name].size
    for cell in candidates:
        egru.check_candidates(out, integer.node(cell), largest[cell], allow_lossy)
    for name, count in held.items():
        node, _, port = name.rpartition(".")
        frac = out.formats[name].frac
        written = f"int16 Q{frac}, {count} of {size[name]} values on the calibration data at its limits"
        out.note(integer.node(node), port, "unbounded", written, 2.0 ** -(frac + 1))
