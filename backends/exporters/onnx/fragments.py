"""Which nodes of a graph go into which file.

A fragment is a set of dense nodes that hang together within a step and of which no path leads out and in again: what a
cell outside makes of a fragment's outputs is an input of a later fragment, never of the same.
"""

from dataclasses import dataclass

from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import (
    Add,
    Affine,
    Conv2d,
    Edge,
    Embedding,
    EventGraph,
    Linear,
    MaxPool2d,
    Mix,
    Multiply,
    Relu,
    Sigmoid,
    Spike,
    SquaredRelu,
    Tokens,
)

DENSE_OPS = (Add, Affine, Conv2d, Embedding, Linear, MaxPool2d, Mix, Multiply, Relu, Sigmoid, Spike, SquaredRelu)


@dataclass(frozen=True)
class Fragment:
    """Nodes of one file.

    nodes    names in the order in which they run
    inputs   name of an input -> the edge whose values it takes
    outputs  "node.port" of what is read outside
    level    how often a path from the graph's input comes in from outside, before it is here
    """

    nodes: tuple[str, ...]
    inputs: dict[str, Edge]
    outputs: tuple[str, ...]
    level: int


def input_name(edge: Edge) -> str:
    """What a file calls the values of an edge: "node.port", or "node.port.before" of the token before."""
    return edge.source + ".before" * edge.delay


def fragments(graph: EventGraph) -> list[Fragment]:
    """The dense fragments of a graph in the order in which they can run, those of which something is read.

    raises  UnsupportedError: there are no products, or nothing of any fragment is read
    """
    order = [name for group in graph.order() for name in group]
    dense = [name for name in order if type(graph.node(name).op) in DENSE_OPS]
    if not any(isinstance(graph.node(name).op, Linear | Conv2d | Embedding) for name in dense):
        kinds = ", ".join(sorted({type(n.op).__name__ for n in graph.nodes}))
        raise UnsupportedError("onnx", "products or an embedding", kinds, "export it to another format")
    level = _levels(graph, order, set(dense))
    group = {name: {name} for name in dense}
    for edge in graph.edges:
        a, b = edge.source_node, edge.target_node
        if not edge.delay and a in group and b in group and level[a] == level[b] and group[a] is not group[b]:
            group[a] |= group[b]
            group |= dict.fromkeys(group[b], group[a])
    found = [(level[name], order.index(name), group[name]) for name in dense]
    first = {id(nodes): (at, place, nodes) for at, place, nodes in reversed(found)}
    every = [_fragment(graph, order, nodes, at) for at, _, nodes in sorted(first.values(), key=lambda item: item[:2])]
    parts = [part for part in every if part.outputs]
    if not parts:
        raise UnsupportedError("onnx", "dense nodes that something reads", "none", "name what is wanted as an output")
    return parts


def _levels(graph: EventGraph, order: list[str], dense: set[str]) -> dict[str, int]:
    """How often the longest path of this step to each node comes from outside into a dense node."""
    level: dict[str, int] = {}
    for name in order:
        edges = [e for e in graph.inputs_of(name).values() if not e.delay]
        came_in = name in dense
        level[name] = max((level[e.source_node] + (came_in and e.source_node not in dense) for e in edges), default=0)
    return level


def _fragment(graph: EventGraph, order: list[str], nodes: set[str], level: int) -> Fragment:
    inside = [name for name in order if name in nodes]
    within = {e for e in graph.edges if not e.delay and {e.source_node, e.target_node} <= nodes}
    inputs = {input_name(e): e for name in inside for e in graph.inputs_of(name).values() if e not in within}
    read = {e.source for e in graph.edges if e not in within} | set(graph.outputs.values())
    outputs = [f"{name}.{port}" for name in inside for port in graph.node(name).op.outputs]
    return Fragment(tuple(inside), inputs, tuple(source for source in outputs if source in read), level)


def is_tokens(graph: EventGraph, edge: Edge) -> bool:
    """Whether an edge brings token ids, which stay what they are."""
    return isinstance(graph.node(edge.source_node).op, Tokens)
