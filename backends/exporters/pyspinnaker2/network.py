"""The LIF fragments of a graph as populations and projections, in NIR's words, and in the integers of the machine.

A population is a set of LIF units; a projection the product between spikes and a population. Each takes one tick: what
is sent in tick t acts in tick t + 1. So a population of depth k does step t of the graph in tick t + k, and every path
between two populations must be as long in ticks as the graph says; where one is not, there is no such network.
"""

from dataclasses import dataclass

import numpy as np

from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import Add, CubaLIFCell, Edge, EventGraph, LIFCell, Linear, Node
from rheobase.spiking.tally import BINARY

LARGEST_WEIGHT = 127
"""of `lif_no_delay`"""


@dataclass(frozen=True)
class Source:
    """Spikes from outside: of one output of the graph, as a population of a given depth reads them."""

    name: str
    edge: Edge
    depth: int
    size: int


@dataclass(frozen=True)
class Population:
    """`lif_no_delay` units; arrays [n], in units of the scaled weights.

    depth       step t of the graph is done in tick t + depth
    w_scale     scaled weight over the graph's
    threshold   float32: a unit spikes where v > threshold
    alpha_decay, i_offset  float32
    """

    name: str
    depth: int
    w_scale: float
    threshold: np.ndarray
    alpha_decay: np.ndarray
    i_offset: np.ndarray
    subtract: bool

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.threshold)


@dataclass(frozen=True)
class Projection:
    """A product: weight int8 [pre, post]; `node` is the graph's Linear."""

    pre: str
    post: str
    node: str
    weight: np.ndarray


@dataclass(frozen=True)
class Network:
    """Sources, populations and projections; `sums` are the graph's Add nodes between products and units."""

    sources: tuple[Source, ...]
    populations: tuple[Population, ...]
    projections: tuple[Projection, ...]
    sums: tuple[str, ...]


def refusal(graph: EventGraph, name: str) -> str | None:
    """Why a LIF node cannot be such a population, or None if it can."""
    op = graph.node(name).op
    if type(op) is CubaLIFCell and (op.alpha or op.reset != "now" or op.gain <= 0):
        return "a synapse of its own, or a reset that is not at once"
    if type(op) not in (LIFCell, CubaLIFCell):
        return f"no neuron model of py-spinnaker2 is a {type(op).__name__}"
    if op.v_reset:
        return f"v_reset {op.v_reset}: s2_nir ignores it"
    products = _terms(graph, name)
    if len({e.source for e in products}) < len(products):
        return "fed twice by one product"
    if not all(isinstance(graph.node(e.source_node).op, Linear) and not e.delay for e in products):
        return "fed by other than products"
    if not all(graph.inputs_of(e.source_node)["x"].kind == BINARY for e in products):
        return "fed by products of other than binary spikes"
    return None


def network(graph: EventGraph) -> Network:
    """The LIF fragments of a graph.

    raises  UnsupportedError: there are none; paths that the machine would make longer or shorter; two kinds of reset;
            a decay of 1 and another in one population
    """
    order = [name for group in graph.order() for name in group]
    cells = [name for name in order if isinstance(graph.node(name).op, LIFCell | CubaLIFCell)]
    kept = [name for name in cells if refusal(graph, name) is None]
    if not kept:
        got = "; ".join(f"{name}: {refusal(graph, name)}" for name in cells[:3]) or "no LIF units"
        raise UnsupportedError("pyspinnaker2", "LIF units fed by products of binary spikes", got, "export otherwise")
    subtract = {graph.node(name).op.v_reset is None for name in kept}
    if len(subtract) > 1:
        raise UnsupportedError("pyspinnaker2", "one reset", "to 0 and by subtraction", "s2_nir has one for a network")
    depth = _depths(graph, kept)
    sources, projections, populations = {}, [], []
    for name in kept:
        products = [graph.node(e.source_node) for e in _terms(graph, name)]
        weights = [_weight(graph, product) for product in products]
        scale = LARGEST_WEIGHT / (max(np.abs(w).max() for w in weights) or 1.0)
        bias = sum(np.asarray(graph.arrays_of(p).get("bias", 0.0), np.float64) for p in products)
        populations.append(_population(graph, name, depth[name], float(scale), bias))
        for product, weight in zip(products, weights, strict=True):
            edge = graph.inputs_of(product.name)["x"]
            pre = edge.source_node
            if pre not in kept:
                pre = f"{edge.source}@{depth[name] - 1 + edge.delay}"
                sources[pre] = Source(pre, edge, depth[name] - 1 + edge.delay, weight.shape[0])
            whole = np.floor(weight * scale + 0.5).astype(np.int8)
            projections.append(Projection(pre, name, product.name, whole))
    sums = {e for name in kept for e in _sums(graph, name)}
    return Network(tuple(sources.values()), tuple(populations), tuple(projections), tuple(sorted(sums)))


def _is_sum(graph: EventGraph, edge: Edge) -> bool:
    return type(graph.node(edge.source_node).op) is Add and not edge.delay


def _terms(graph: EventGraph, name: str) -> list[Edge]:
    """The edges that add up to what enters a node."""
    found = []
    for edge in graph.inputs_of(name).values():
        found += _terms(graph, edge.source_node) if _is_sum(graph, edge) else [edge]
    return found


def _sums(graph: EventGraph, name: str) -> set[str]:
    inner = {e.source_node for e in graph.inputs_of(name).values() if _is_sum(graph, e)}
    return inner.union(*(_sums(graph, add) for add in inner))


def _depths(graph: EventGraph, kept: list[str]) -> dict[str, int]:
    """Population -> depth: one more than that of what feeds it within a step, the same as of what fed it a step before;
    1 for the least of those that hang together, which spikes from outside can feed.

    raises  UnsupportedError: two paths that do not agree
    """
    links = [(graph.inputs_of(e.source_node)["x"], name) for name in kept for e in _terms(graph, name)]
    links = [(e.source_node, name, 1 - e.delay) for e, name in links if e.source_node in kept]
    depth: dict[str, int] = {}
    for first in kept:
        if first in depth:
            continue
        found, waiting = {first: 0}, [first]
        while waiting:
            at = waiting.pop()
            near = [(b, more) for a, b, more in links if a == at] + [(a, -more) for a, b, more in links if b == at]
            for other, more in near:
                if other not in found:
                    found[other] = found[at] + more
                    waiting.append(other)
                elif found[other] != found[at] + more:
                    wanted = "paths of one length, and cycles with a delay for each projection"
                    raise UnsupportedError(f"{at}, {other}", wanted, "a tick more or less", "level the layers")
        depth |= {name: 1 + value - min(found.values()) for name, value in found.items()}
    return depth


def _weight(graph: EventGraph, product: Node) -> np.ndarray:
    weight = np.asarray(graph.arrays_of(product)["weight"], np.float64)
    return weight.T if product.op.transposed else weight


def _population(graph: EventGraph, name: str, depth: int, scale: float, bias: np.ndarray) -> Population:
    """The graph's unit in the machine's units: v there is v here x w_scale over the gain of the input.

    v = (1 - 1/tau) v + x/tau + ... becomes v = alpha v + x; the gain goes into the threshold.
    """
    op, units = graph.node(name).op, graph.shape_of(f"{name}.s")
    arrays = graph.arrays_of(graph.node(name))
    theta = np.asarray(arrays.get("theta", op.theta), np.float64)
    if isinstance(op, CubaLIFCell):
        alpha, gain, strict = op.beta, op.gain, True
    else:
        tau = np.asarray(arrays.get("tau", op.tau), np.float64)
        alpha, gain, strict = 1 - 1 / tau, 1 / tau if op.decay_input else 1.0, op.fire == ">"
    threshold = np.broadcast_to(theta / gain * scale, units).astype(np.float32)
    if not strict:
        threshold = np.nextafter(threshold, np.float32(-np.inf))
    if not np.isfinite(threshold).all():
        raise UnsupportedError(name, "units that take their input", "a gain of 0", "mend the graph")
    alpha = np.broadcast_to(alpha, units).astype(np.float32)
    if 0 < (alpha == 1).sum() < len(alpha):
        raise UnsupportedError(name, "units that all leak, or none", "some of each", "NIR's LIF cannot say it")
    offset = np.broadcast_to(bias * scale, units).astype(np.float32)
    return Population(name, depth, scale, threshold, alpha, offset, op.v_reset is None)
