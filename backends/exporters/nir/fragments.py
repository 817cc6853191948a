"""Which nodes of a graph NIR can state, and how they are wired there.

A fragment is a set of products, pools and LIF units that hang together and hold at least one neuron. NIR has no node
for a sum: edges into one node add up, so an `Add` is there as wiring. NIR has no delay of one step either: a recurrence
is a cycle, and every reader takes the neuron's last spikes where it closes.
"""

import math
from collections import Counter
from dataclasses import dataclass

from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import Add, Conv2d, CubaLIFCell, Edge, EventGraph, LIFCell, Linear, Node, SumPool2d

NEURONS, PRODUCTS, IMAGES = (LIFCell, CubaLIFCell), (Linear, Conv2d), (Conv2d, SumPool2d)


@dataclass(frozen=True)
class Wiring:
    """The fragments of a graph as NIR will wire them.

    nodes    names of products, pools and neurons, in the order in which they run
    edges    (source, target) among nodes, inputs and outputs
    inputs   name of an input -> the edge of the graph that it stands for
    outputs  name of an output -> the node whose values it gives
    sums     the graph's `Add` nodes that became wiring
    gained   neuron -> the products that feed it and nothing else, if nothing else feeds it
    """

    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    inputs: dict[str, Edge]
    outputs: dict[str, str]
    sums: tuple[str, ...]
    gained: dict[str, tuple[str, ...]]


def refuse_resets(graph: EventGraph) -> None:
    """Raise UnsupportedError for LIF units whose reset NIR would turn into another."""
    for node in graph.nodes:
        if type(node.op) not in NEURONS:
            continue
        how = getattr(node.op, "reset", "now")
        if how != "now" or node.op.v_reset is None:
            got = f"a reset {how!r}" if how != "now" else "a reset by subtraction"
            remedy = "train it with a v_reset; NIR has no word for it, and its readers would reset to 0 unasked"
            raise UnsupportedError(node.name, "a reset to a value, in the step of the spike", got, remedy)
        if type(node.op) is LIFCell and math.isinf(node.op.tau) and node.op.decay_input:
            raise UnsupportedError(node.name, "a finite tau", "units that take no input", "mend the graph")


def wire(graph: EventGraph) -> Wiring:
    """The fragments of a graph.

    raises  UnsupportedError: it has none, or a neuron's reset is not NIR's
    """
    refuse_resets(graph)
    leaving = {n.name: [e for e in graph.edges if e.source_node == n.name] for n in graph.nodes}
    kept = {n.name for n in graph.nodes if _may_be_kept(n, leaving[n.name])}
    read = {source.rpartition(".")[0] for source in graph.outputs.values()}
    while True:
        loops = {e for e in graph.edges if e.delay and _closes(graph, e, kept, leaving)}
        inner = {e for e in graph.edges if {e.source_node, e.target_node} <= kept and (not e.delay or e in loops)}
        wrong = {
            n
            for n in kept
            if isinstance(graph.node(n).op, Add) and not _is_wiring(graph, n, kept, inner, leaving, read)
        }
        wrong |= {n for group in _groups(kept, inner) if not _holds_neuron(graph, group) for n in group}
        if not wrong:
            break
        kept -= wrong
    if not kept:
        got = ", ".join(sorted({type(n.op).__name__ for n in graph.nodes}))
        raise UnsupportedError("nir", "LIF units with a reset to a value", got, "export to another format")
    return _wiring(graph, kept, inner, leaving, read)


def _may_be_kept(node: Node, leaving: list[Edge]) -> bool:
    """Products, pools and sums; neurons of which nothing but the spikes is read."""
    if type(node.op) in NEURONS:
        return all(e.source == f"{node.name}.s" for e in leaving)
    return type(node.op) in (*PRODUCTS, SumPool2d, Add)


def _closes(graph, edge: Edge, kept, leaving) -> bool:
    """Whether a delayed edge leads a neuron's last spikes, by a product without a bias, into the same neuron alone.

    A bias is refused since readers differ in the first step: some take the product of no spikes, some take 0.
    """
    product = graph.node(edge.target_node)
    if type(product.op) is not Linear or "bias" in product.arrays or not {edge.source_node, product.name} <= kept:
        return False
    return type(graph.node(edge.source_node).op) in NEURONS and _sole_target(product.name, leaving, graph, kept) == (
        edge.source_node
    )


def _sole_target(name: str, leaving, graph, kept) -> str | None:
    """The one node that reads an output, through sums that are wiring; None if there are more, or none."""
    while len(leaving[name]) == 1 and not leaving[name][0].delay:
        name = leaving[name][0].target_node
        if name not in kept or not isinstance(graph.node(name).op, Add):
            return name
    return None


def _is_wiring(graph, name, kept, inner, leaving, read) -> bool:
    """Whether a sum is read by kept nodes alone, and its terms differ: a NIR edge is there once."""
    terms = _terms(graph, name, {n for n in kept if isinstance(graph.node(n).op, Add)})
    alone = bool(leaving[name]) and all(e in inner for e in leaving[name]) and name not in read
    return alone and len({(e.source, e.delay) for e in terms}) == len(terms)


def _groups(kept: set[str], inner: set[Edge]) -> list[set[str]]:
    """The sets of nodes that hang together."""
    groups = {name: {name} for name in kept}
    for edge in inner:
        a, b = groups[edge.source_node], groups[edge.target_node]
        if a is not b:
            a |= b
            groups |= dict.fromkeys(b, a)
    return list({id(group): group for group in groups.values()}.values())


def _holds_neuron(graph, group) -> bool:
    return any(type(graph.node(name).op) in NEURONS for name in group)


def _wiring(graph, kept, inner, leaving, read) -> Wiring:
    sums = {n for n in kept if isinstance(graph.node(n).op, Add)}
    nodes = [name for group in graph.order() for name in group if name in kept - sums]
    inputs, edges, gained = {}, [], {}
    for name in nodes:
        terms = _terms(graph, name, sums)
        for edge in terms:
            if edge in inner:
                edges.append((edge.source_node, name))
            else:
                key = (edge.source, edge.delay, isinstance(graph.node(name).op, IMAGES))
                inputs.setdefault(key, edge)
                edges.append((key, name))
        feeding = [e.source_node for e in terms if e in inner]
        if len(feeding) == len(terms) and not any(
            p in read or not _feeds_only(graph, p, name, leaving, sums) for p in feeding
        ):
            gained[name] = tuple(feeding)
    named = {key: _free("input" if len(inputs) == 1 else _input_name(key, inputs), nodes) for key in inputs}
    ends = [n for n in nodes if n in read or not leaving[n] or any(e not in inner for e in leaving[n])]
    outputs = {_free("output" if len(ends) == 1 else f"output.{n}", nodes): n for n in ends}
    return Wiring(
        tuple(nodes),
        tuple((named.get(a, a), b) for a, b in edges) + tuple((n, out) for out, n in outputs.items()),
        {named[key]: edge for key, edge in inputs.items()},
        outputs,
        tuple(sorted(sums)),
        gained,
    )


def _free(name: str, taken: list[str]) -> str:
    """A name that no node of the graph has."""
    while name in taken:
        name += "_"
    return name


def _terms(graph, name, sums) -> list[Edge]:
    """The edges that add up to what enters a node, those of sums before it in their place."""
    found = []
    for edge in graph.inputs_of(name).values():
        found += _terms(graph, edge.source_node, sums) if edge.source_node in sums else [edge]
    return found


def _feeds_only(graph, product, neuron, leaving, sums) -> bool:
    return type(graph.node(product).op) in PRODUCTS and _sole_target(product, leaving, graph, sums) == neuron


def _input_name(key, inputs) -> str:
    source, delay, image = key
    alike = Counter(k[0] for k in inputs)[source] > 1
    return f"input.{source}" + (".before" if delay else "") + (".image" if alike and image else "")
