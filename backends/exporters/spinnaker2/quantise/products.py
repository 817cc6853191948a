"""Embeddings and linear layers in integers."""

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.quantise.ops import EVENT, IntegerEmbedding, IntegerLinear, embed
from rheobase.backends.exporters.spinnaker2.quantise.weights import fit_exponents, prove_bound
from rheobase.backends.exporters.spinnaker2.quantise.writer import Writer
from rheobase.spiking.errors import GraphError, UnsupportedError
from rheobase.spiking.graph import EGRUCell, Embedding, EventGraph, Linear, Node, Spike
from rheobase.spiking.quantisation import best_exponents, round_weights

MIN_SHIFT, MAX_SHIFT = -15, 30


def quantise_table(out: Writer) -> int:
    """Write the embedding's rows, one exponent each; returns the format that holds all its vectors."""
    node = embedding_of(out.graph)
    name = node.arrays["table"]
    readers = [out.graph.node(e.target_node) for e in out.graph.edges if e.source == f"{node.name}.out"]
    products = [n for n in out.graph.nodes if isinstance(n.op, Linear) and n.arrays["weight"] == name]
    for product in products:
        if not product.op.transposed:
            wanted = "an embedding shared by a transposed Linear"
            raise UnsupportedError(product.name, wanted, "another use", "untie it")
    rows = np.asarray(out.graph.arrays[name], np.float64).T
    shown = f"{node.name}.out" in out.graph.outputs.values()
    if not (products or shown) and readers and all(isinstance(n.op, Spike) for n in readers):
        out.arrays[name] = np.where(rows.T < 0, -1, 1).astype(np.int8)
        out.arrays[f"{name}.exponent"] = np.zeros(rows.shape[1], np.int8)
        out.note(node, "table", str(out.graph.arrays[name].dtype), "int8: its signs, all that is read", 0.0)
    else:
        _write_weight(out, node, "table", rows, best_exponents(rows, np.ones(len(rows)), clip=False), by_target=True)
    table, exponent = out.arrays[name], out.arrays[f"{name}.exponent"]
    largest = (np.abs(table.astype(np.float64)).max(1) * 2.0 ** -exponent.astype(np.float64)).max()
    if largest == 0:
        raise GraphError("embedding", "a non-zero embedding", "zeros", "train the model")
    return int(min(np.floor(np.log2(32767 / largest)), ints.EVENT_FRAC))


def embedding_of(graph: EventGraph) -> Node:
    """The embedding; raises UnsupportedError where a graph has none, or several."""
    found = [n for n in graph.nodes if isinstance(n.op, Embedding)]
    if len(found) != 1:
        raise UnsupportedError("graph", "one embedding", str(len(found)), "quantise a language model")
    return found[0]


def embedding(out: Writer, node: Node) -> Node:
    """The embedding's node, whose arrays `quantise_table` has written."""
    frac, table = out.formats[f"{node.name}.out"].frac, node.arrays["table"]
    out.note(node, "out", "exact", f"int16 Q{frac}", 2.0 ** -(frac + 1))
    return Node(node.name, IntegerEmbedding(frac), {"table": table, "exponent": f"{table}.exponent"})


def linear(out: Writer, node: Node) -> Node:
    """A linear layer; raises UnsupportedError where its accumulators could overflow for any input.

    Where dense values or graded spikes are so many that they could, its exponents are lowered first. In an EGRU model
    they are not, and every shift is to the right: its image reckons with both.
    """
    source = out.graph.inputs_of(node.name)["x"].source
    took, gives = out.formats[source], out.formats[f"{node.name}.out"]
    name, largest = node.arrays["weight"], _largest(out, source)
    recurrent = any(isinstance(n.op, EGRUCell) for n in out.graph.nodes)
    bias = out.values(node, "bias", np.zeros(out.graph.shape_of(f"{node.name}.out")[0]))
    users = [n.op for n in out.graph.nodes if isinstance(n.op, Linear) and n.arrays["weight"] == name]
    if any(op.transposed != node.op.transposed for op in users):
        raise UnsupportedError(node.name, "a shared weight that is read one way", "both ways", "untie it")
    if name not in out.arrays:
        weight = np.asarray(out.graph.arrays[name], np.float64)
        columns = weight.T if node.op.transposed else weight
        exponent = best_exponents(columns, out.power[source], clip=True)
        exponent = np.minimum(exponent, MAX_SHIFT - took.frac + gives.frac)
        if not recurrent:
            exponent = fit_exponents(columns, exponent, bias, took.frac, largest)
        _write_weight(out, node, "weight", columns, exponent, by_target=node.op.transposed)
    names = {"weight": name, "exponent": f"{name}.exponent", "bias": f"{node.name}.bias.integer"}
    op = IntegerLinear(node.op.transposed, took.frac, gives.frac, gives.bits)
    shift = op.shift(out.arrays[names["exponent"]])
    least = 1 if recurrent else MIN_SHIFT
    if shift.min() < least or shift.max() > MAX_SHIFT:
        unit = int(shift.argmin() if shift.min() < least else shift.argmax())
        wanted = f"a shift from {least} to {MAX_SHIFT}"
        raise UnsupportedError(f"{node.name} unit {unit}", wanted, str(shift[unit]), "rescale its weights")
    frac = out.arrays[names["exponent"]].astype(np.int64) + op.in_frac
    whole = np.floor(bias * 2.0**frac + 0.5)
    weight = out.arrays[name].T if op.transposed else out.arrays[name]
    prove_bound(node.name, weight, whole, shift, largest, op.bits)
    out.arrays[names["bias"]] = whole.astype(np.int32)
    out.note(node, "bias", str(bias.dtype), "int32", 2.0 ** -(frac.min() + 1))
    return Node(node.name, op, names)


def _write_weight(out: Writer, node: Node, role: str, columns, exponent, by_target: bool) -> None:
    name, rounded = node.arrays[role], round_weights(columns, exponent)
    out.arrays[name] = (rounded.T if by_target else rounded).astype(np.int8)
    out.arrays[f"{name}.exponent"] = exponent.astype(np.int8)
    error = np.abs(columns - rounded * 2.0**-exponent).max()
    out.note(node, role, str(out.graph.arrays[name].dtype), "int8 with exponents", error)


def _largest(out: Writer, source: str) -> int:
    """The largest magnitude that can reach a product: of any embedding vector, of an EGRU's event, of a format."""
    node = out.graph.node(source.rpartition(".")[0])
    if isinstance(node.op, Embedding):
        table, name = out.arrays[node.arrays["table"]], f"{node.arrays['table']}.exponent"
        return int(np.abs(embed(table, out.arrays[name], out.formats[source].frac, np.arange(len(table)))).max())
    if isinstance(node.op, EGRUCell):
        return ints.ONE
    return 1 if out.formats[source] == EVENT else 1 << 15
