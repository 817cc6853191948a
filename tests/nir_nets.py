"""Small LIF networks as graphs, and what they are fed, for the tests of NIR."""

import numpy as np

from rheobase.spiking.graph import Add, CubaLIFCell, Edge, EventGraph, Frames, LIFCell, Linear, Node
from rheobase.spiking.tally import BINARY, DENSE

INPUTS, HIDDEN, OUTPUTS, STEPS = 12, 16, 8, 1000
LIF = LIFCell(4.0, 1.0, 0.0, decay_input=False, fire=">")
CUBA = CubaLIFCell(0.5, 0.75, 1.0, 2.0)
ODD = LIFCell(3.3, 0.3, 0.0, decay_input=True, fire=">")
X = (np.random.default_rng(7).random((1, STEPS, INPUTS)) < 0.3).astype(np.float32)
FRAMES = X[..., None, None]


def net(op=LIF, *, recurrent=False, bias=True, step=None, seed=0) -> EventGraph:
    """Linear, neuron, linear, neuron; `recurrent`: the first neuron reads its own last spikes; `step`: weights are
    whole multiples of it."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (INPUTS, HIDDEN), "w2": (OUTPUTS, HIDDEN)} | ({"wr": (HIDDEN, HIDDEN)} if recurrent else {})
    arrays = {name: rng.normal(0.1, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    if bias:
        arrays["b1"] = rng.normal(0, 0.1, HIDDEN).astype(np.float32)
    if step:
        arrays = {name: np.round(a / step).astype(np.float32) * np.float32(step) for name, a in arrays.items()}
    nodes = [
        Node("x", Frames((INPUTS, 1, 1), BINARY)),
        Node("l1", Linear(), {"weight": "w1"} | ({"bias": "b1"} if bias else {})),
        Node("n1", op),
        Node("l2", Linear(transposed=True), {"weight": "w2"}),
        Node("n2", op),
    ]
    edges = [
        Edge("x.out", "l1.x", BINARY, (INPUTS,)),
        Edge("n1.s", "l2.x", BINARY, (HIDDEN,)),
        Edge("l2.out", "n2.x", DENSE, (OUTPUTS,)),
    ]
    if recurrent:
        nodes += [Node("wr", Linear(), {"weight": "wr"}), Node("sum", Add())]
        edges += [
            Edge("n1.s", "wr.x", BINARY, (HIDDEN,), 1),
            Edge("l1.out", "sum.a", DENSE, (HIDDEN,)),
            Edge("wr.out", "sum.b", DENSE, (HIDDEN,)),
            Edge("sum.out", "n1.x", DENSE, (HIDDEN,)),
        ]
    else:
        edges.append(Edge("l1.out", "n1.x", DENSE, (HIDDEN,)))
    return EventGraph(tuple(nodes), tuple(edges), arrays, {"out": "n2.s"})
