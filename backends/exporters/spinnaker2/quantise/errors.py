"""How far an integer graph is from its float graph, signal by signal, and what the rounding of each matrix costs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rheobase.backends.exporters._graphs import relative_error
from rheobase.backends.exporters.spinnaker2.quantise.ops import formats
from rheobase.backends.simulators import simulate
from rheobase.spiking.graph import EventGraph, Linear, Spike
from rheobase.spiking.quantisation import best_exponents, rounded


def errors(graph: EventGraph, integer: EventGraph, tokens: np.ndarray) -> dict[str, float]:
    """The relative error of every signal whose value is read, or is an output, in the order of computation: root mean
    square of (integer - float) over that of float, over all tokens and units; of zeros, whether the integers are not.

    tokens  [B, T]
    """
    read = {e.source for e in graph.edges if not isinstance(graph.node(e.target_node).op, Spike)}
    read |= set(graph.outputs.values())
    order = [name for group in graph.order() for name in group]
    names = [f"{n}.{port}" for n in order for port in graph.node(n).op.outputs if f"{n}.{port}" in read]
    names = [name for name in names if graph.node(name.rpartition(".")[0]).op.inputs]
    floats = simulate(graph, tokens, record=names).recorded
    integers, fracs = simulate(integer, tokens, on="integer", record=names).recorded, formats(integer)
    return {name: relative_error(floats[name], integers[name] * 2.0 ** -fracs[name].frac) for name in names}


def sensitivity(graph: EventGraph, tokens: np.ndarray, cost: Callable[[np.ndarray], float]) -> dict[str, float]:
    """What int8 weights of one matrix alone add to a cost of the float graph's output, matrix by matrix.

    tokens  [B, T]
    cost    of the output [B, T, V], such as bits a token
    """

    def of(changed: EventGraph) -> float:
        return cost(next(iter(simulate(changed, tokens, on="torch").outputs.values())))

    found, whole = {}, of(graph)
    for node in graph.nodes:
        if not isinstance(node.op, Linear) or node.arrays["weight"] in found:
            continue
        weight = graph.arrays[node.arrays["weight"]]
        columns = np.asarray(weight.T if node.op.transposed else weight, np.float64)
        short = rounded(columns, best_exponents(columns, np.ones(len(columns)), clip=True))
        short = (short.T if node.op.transposed else short).astype(weight.dtype)
        arrays = {**graph.arrays, node.arrays["weight"]: short}
        found[node.arrays["weight"]] = of(replace(graph, arrays=arrays)) - whole
    return found
