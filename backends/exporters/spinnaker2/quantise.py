"""Quantisation: from an EventGraph in floating point to one in the integers of `arithmetic`."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.simulators import simulate
from rheobase.spiking.errors import ConfigError, GraphError, LossyExportError, UnsupportedError
from rheobase.spiking.graph import Edge, EGRUCell, Embedding, EventGraph, Linear, Node, Op, Tokens, require
from rheobase.spiking.quantisation import best_exponents, round_weights
from rheobase.spiking.tally import DENSE, GRADED


@dataclass(frozen=True)
class IntegerEmbedding(Op):
    """out = table[token] 2^(out_frac - exponent[token]), rounded; table int8 [V, E], exponent int8 [V]."""

    inputs, outputs, roles = ("token",), {"out": DENSE}, ("table", "exponent")
    out_frac: int = 0

    def shapes(self, name, inputs, arrays):
        require(name, "exponent", arrays["exponent"].shape, arrays["table"].shape[:1])
        return Embedding().shapes(name, inputs, arrays)


@dataclass(frozen=True)
class IntegerLinear(Op):
    """out = (x weight + bias) 2^-shift, rounded; shift = exponent + in_frac - out_frac, one a target."""

    inputs, outputs = ("x",), {"out": DENSE}
    roles = ("weight", "exponent", "bias")
    transposed: bool = False
    in_frac: int = 0
    out_frac: int = 0

    def shapes(self, name, inputs, arrays):
        out = Linear(self.transposed).shapes(name, inputs, arrays)
        require(name, "exponent", arrays["exponent"].shape, out["out"])
        return out

    def shift(self, exponent: np.ndarray) -> np.ndarray:
        """The right shift of each target."""
        return exponent.astype(np.int64) + self.in_frac - self.out_frac


@dataclass(frozen=True)
class IntegerEGRUCell(Op):
    """`arithmetic.egru_tick`; zoneout in Q14. The trace is not computed: nothing in the graph reads it."""

    inputs, outputs = ("a", "q"), {"y": GRADED, "c": DENSE}
    roles, state = ("thr",), ("c",)
    zoneout: int = 0

    def shapes(self, name, inputs, arrays):
        return {p: s for p, s in EGRUCell().shapes(name, inputs, arrays).items() if p in self.outputs}


@dataclass(frozen=True)
class Deviation:
    """What the integers change: a node's field, what it was, what was written, and a bound of the difference."""

    node: str
    field: str
    wanted: str
    written: str
    bound: float


def prove_bound(name: str, weight_DO, bias_O, shift_O, largest_x: int) -> None:
    """Refuse a product whose accumulator could leave int32 for any input within its format, or its shift."""
    bound = np.abs(weight_DO.astype(np.int64)).sum(0) * largest_x + np.abs(bias_O) + (np.int64(1) << shift_O >> 1)
    unit = int(bound.argmax())
    if not bound[unit] < 1 << 31:
        raise UnsupportedError(
            f"{name} unit {unit}",
            "an accumulator below 2^31",
            str(bound[unit]),
            "shrink its weights or its bias, or train with weight decay",
        )


def refuse_other_ops(graph: EventGraph) -> None:
    """Raise UnsupportedError where a graph has ops without an integer form, naming each kind of them."""
    others = [n for n in graph.nodes if not isinstance(n.op, Tokens | Embedding | Linear | EGRUCell)]
    if others:
        kinds = ", ".join(dict.fromkeys(type(n.op).__name__ for n in others))
        raise UnsupportedError(others[0].name, "Embedding, Linear or EGRUCell", kinds, "export an EGRU language model")


def quantise(
    graph: EventGraph, calibration: np.ndarray, *, allow_lossy: bool = False
) -> tuple[EventGraph, list[Deviation]]:
    """The integer graph, and what it changes.

    calibration  tokens [B, T] of real text: the mean square of each source weighs the rounding of its weights
    allow_lossy  accept q_g that leave their range on the calibration data, instead of refusing
    raises       UnsupportedError: an op without an integer form, a threshold outside [0, 1], or an accumulator
                 that could overflow;  LossyExportError: q_g saturates on the calibration data
    """
    refuse_other_ops(graph)
    for name, array in graph.arrays.items():
        if not np.isfinite(array).all():
            raise UnsupportedError(name, "finite numbers", "NaN or infinity", "export a sound model")
    if np.size(calibration) == 0:
        raise ConfigError("calibration", "at least one token", "none", "give tokens of real text")
    sources = sorted(
        {e.source for n in graph.nodes if isinstance(n.op, Linear) for e in graph.inputs_of(n.name).values()}
    )
    values = simulate(graph, calibration, record=sources).recorded
    power = {name: np.mean(np.square(x, dtype=np.float64), (0, 1)) for name, x in values.items()}

    arrays: dict[str, np.ndarray] = {}
    deviations: list[Deviation] = []
    table_name = next(n.arrays["table"] for n in graph.nodes if isinstance(n.op, Embedding))
    shared = [n for n in graph.nodes if isinstance(n.op, Linear) and n.arrays["weight"] == table_name]
    for node in shared:
        if not node.op.transposed:
            raise UnsupportedError(node.name, "an embedding shared by a transposed Linear", "another use", "untie it")
    for node in graph.nodes:
        if isinstance(node.op, Linear | Embedding):
            role = "table" if isinstance(node.op, Embedding) else "weight"
            name = node.arrays[role]
            if name in arrays:
                continue
            by_target = isinstance(node.op, Embedding) or node.op.transposed
            weight = np.asarray(graph.arrays[name], np.float64)
            columns = weight.T if by_target else weight
            source = next(iter(graph.inputs_of(node.name).values())).source
            tied = name == table_name
            exponent = best_exponents(columns, np.ones(len(columns)) if tied else power[source], clip=not tied)
            rounded = round_weights(columns, exponent)
            arrays[name] = (rounded.T if by_target else rounded).astype(np.int8)
            arrays[f"{name}.exponent"] = exponent.astype(np.int8)
            error = np.abs(columns - rounded * 2.0**-exponent).max()
            deviations.append(
                Deviation(node.name, role, str(graph.arrays[name].dtype), "int8 with exponents", float(error))
            )

    x_frac = _embedding_frac(arrays[table_name], arrays[f"{table_name}.exponent"])
    nodes: list[Node] = []
    for node in graph.nodes:
        op, names = node.op, dict(node.arrays)
        if isinstance(op, Embedding):
            names["exponent"] = f"{names['table']}.exponent"
            op = IntegerEmbedding(x_frac)
            deviations.append(Deviation(node.name, "out", "exact", f"int16 Q{x_frac}", 2.0 ** -(x_frac + 1)))
        elif isinstance(op, Linear):
            from_embedding = graph.node(graph.inputs_of(node.name)["x"].source_node).op
            in_frac = x_frac if isinstance(from_embedding, Embedding) else ints.EVENT_FRAC
            out_frac = ints.LOGIT_FRAC if f"{node.name}.out" in graph.outputs.values() else ints.PRE_FRAC
            names["exponent"] = f"{names['weight']}.exponent"
            op = IntegerLinear(op.transposed, in_frac, out_frac)
            names["bias"] = f"{node.name}.bias.integer"
            largest = _largest_input(from_embedding, arrays, x_frac, table_name)
            deviations.append(_quantise_bias(node, op, graph, arrays, names, largest))
        elif isinstance(op, EGRUCell):
            thr = np.asarray(graph.arrays[names["thr"]], np.float64)
            if thr.min() < 0 or thr.max() > 1:
                raise UnsupportedError(
                    f"{node.name} thr", "thresholds in [0, 1]", f"{thr.min()} to {thr.max()}", "project them"
                )
            arrays[names["thr"]] = np.floor(thr * ints.ONE + 0.5).astype(np.int16)
            deviations.append(Deviation(node.name, "thr", "float", "int16 Q14", 2.0**-15))
            deviations.append(
                Deviation(node.name, "sigmoid", "exact", "table", _table_error(ints.sigmoid_table(), "sigmoid"))
            )
            deviations.append(Deviation(node.name, "tanh", "exact", "table", _table_error(ints.tanh_table(), "tanh")))
            if op.zoneout:
                deviations.append(Deviation(node.name, "zoneout", str(op.zoneout), "int16 Q14", 2.0**-15))
            op = IntegerEGRUCell(int(np.floor(op.zoneout * ints.ONE + 0.5)))
        nodes.append(Node(node.name, op, names))
    for edge in graph.edges:
        if edge.source.endswith(".trace"):
            raise UnsupportedError(edge.target, "no reader of an EGRU's trace", edge.source, "read y instead")
    edges = tuple(Edge(e.source, e.target, e.kind, e.shape, e.delay) for e in graph.edges)
    integer = EventGraph(tuple(nodes), edges, arrays, graph.outputs)
    _check_recurrent_range(integer, calibration, allow_lossy, deviations)
    return integer, deviations


def _embedding_frac(table, exponent) -> int:
    """The largest x such that every embedding vector fits int16 in Qx."""
    largest = (np.abs(table.astype(np.float64)).max(1) * 2.0 ** -exponent.astype(np.float64)).max()
    if largest == 0:
        raise GraphError("embedding", "a non-zero embedding", "zeros", "train the model")
    return int(min(np.floor(np.log2(32767 / largest)), ints.EVENT_FRAC))


def embed(table, exponent, x_frac, token):
    """Embedding vectors in Q x_frac: a left shift, or a rounding right shift, of the int8 rows."""
    up = x_frac - exponent[token].astype(np.int64)[..., None]
    rows = table[token].astype(np.int64)
    return ints.shift_right(rows << np.maximum(up, 0), np.maximum(-up, 0))


def _largest_input(source: Op, arrays: Mapping[str, np.ndarray], x_frac: int, table_name: str) -> int:
    """The largest magnitude that can reach a product: of any embedding vector, or of an event."""
    if not isinstance(source, Embedding):
        return ints.ONE
    table = arrays[table_name]
    return int(np.abs(embed(table, arrays[f"{table_name}.exponent"], x_frac, np.arange(len(table)))).max())


def _quantise_bias(node, op, graph, arrays: dict, names: Mapping[str, str], largest: int) -> Deviation:
    """Round the bias to the accumulator's format, after proving that nothing overflows; returns what it changes."""
    exponent, weight = arrays[names["exponent"]], arrays[names["weight"]]
    weight = weight.T if op.transposed else weight
    bias = np.asarray(graph.arrays_of(node).get("bias", np.zeros(len(exponent))), np.float64)
    frac = exponent.astype(np.int64) + op.in_frac
    whole = np.floor(bias * 2.0**frac + 0.5)
    shift = op.shift(exponent)
    if shift.min() < 1 or shift.max() > 30:
        unit = int(shift.argmin() if shift.min() < 1 else shift.argmax())
        raise UnsupportedError(
            f"{node.name} unit {unit}", "a shift from 1 to 30", str(shift[unit]), "rescale its weights"
        )
    prove_bound(node.name, weight, whole, shift, largest)
    arrays[names["bias"]] = whole.astype(np.int32)
    return Deviation(node.name, "bias", str(bias.dtype), "int32", float(2.0 ** -(frac.min() + 1)))


def _table_error(table, name: str) -> float:
    """The largest error of a table over all 65,536 arguments."""
    x = np.arange(-32768, 32768)
    exact = np.tanh(x / 2048) if name == "tanh" else 0.5 * (1 + np.tanh(x / 4096))
    return float(np.abs(ints.look_up(table, x) / ints.ONE - exact).max())


def _check_recurrent_range(graph, calibration, allow_lossy, deviations) -> None:
    cells = [n.name for n in graph.nodes if isinstance(n.op, IntegerEGRUCell)]
    sources = {name: graph.inputs_of(name)["q"].source for name in cells}
    seen = simulate(graph, calibration, on="integer", record=list(sources.values())).recorded
    for name, source in sources.items():
        q_g = seen[source][..., 2 * graph.shape_of(source)[0] // 3 :]
        largest = np.abs(q_g).max() / (1 << ints.PRE_FRAC)
        if largest >= 16:
            if not allow_lossy:
                raise LossyExportError(
                    name,
                    "recurrent candidates below 16",
                    f"{largest:.2f}",
                    "shrink recurrent weights, or allow a lossy export",
                )
            deviations.append(Deviation(name, "q_g", f"up to {largest:.2f}", "saturated at 16", float(largest - 16)))
