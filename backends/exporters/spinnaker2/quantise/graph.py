"""The pass from a float graph to its integers."""

from dataclasses import replace

import numpy as np

from rheobase.backends.exporters.spinnaker2.quantise import egru, products, rwkv
from rheobase.backends.exporters.spinnaker2.quantise.calibration import choose_formats, measure, signals_to_choose
from rheobase.backends.exporters.spinnaker2.quantise.writer import Deviation, Writer
from rheobase.backends.simulators import simulate
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import (
    Add,
    Affine,
    EGRUCell,
    Embedding,
    EventGraph,
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

PLACED = {Tokens, Embedding, Linear, EGRUCell}
"""Ops that the image has a place for"""


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


def refuse_other_ops(graph: EventGraph, ops=PLACED, names="Embedding, Linear or EGRUCell") -> None:
    """Raise UnsupportedError where a graph has ops that are not among `ops`, naming each kind of them."""
    others = [n for n in graph.nodes if type(n.op) not in ops]
    if others:
        kinds = ", ".join(dict.fromkeys(type(n.op).__name__ for n in others))
        raise UnsupportedError(others[0].name, names, kinds, "export an EGRU language model")


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
    refuse_other_ops(graph, INTEGER, "an EGRU language model or a SpikeGPT")
    for name, array in graph.arrays.items():
        if not np.isfinite(array).all():
            raise UnsupportedError(name, "finite numbers", "NaN or infinity", "export a sound model")
    if np.size(calibration) == 0:
        raise ConfigError("calibration", "at least one token", "none", "give tokens of real text")
    power, largest = measure(graph, calibration)
    out = Writer(graph, {}, power)
    out.formats = choose_formats(graph, largest, products.quantise_table(out))
    nodes = tuple(INTEGER[type(node.op)](out, node) for node in graph.nodes)
    integer = EventGraph(nodes, tuple(replace(e) for e in graph.edges), out.arrays, graph.outputs)
    held = signals_to_choose(graph) + [f"{n.name}.v" for n in graph.nodes if isinstance(n.op, LIFCell)]
    watched = [*held, *egru.candidates(integer).values()]
    seen = simulate(integer, calibration, on="integer", record=watched).recorded
    egru.check_candidates(out, integer, seen, allow_lossy)
    for name in held:
        node, _, port = name.rpartition(".")
        record_limits(out, integer.node(node), port, seen[name])
    return integer, out.deviations


def record_limits(out: Writer, node: Node, port: str, values: np.ndarray) -> None:
    """Record how many values of an int16 signal lie at its limits, where `narrow` may have held them."""
    frac = out.formats[f"{node.name}.{port}"].frac
    count = int(((values == 32767) | (values == -32768)).sum())
    written = f"int16 Q{frac}, {count} of {values.size} values on the calibration data at its limits"
    out.note(node, port, "unbounded", written, 2.0 ** -(frac + 1))
