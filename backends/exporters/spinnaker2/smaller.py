"""An integer graph pruned, or narrowed, as its user could have it: for finding what would fit."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rheobase.backends.exporters.spinnaker2.quantise import IntegerEGRUCell, IntegerEmbedding, IntegerLinear
from rheobase.spiking.graph import EventGraph, Node, Tokens

PERCENTS = np.arange(1, 100)


def matrix_of(node: Node) -> str | None:
    """The name of a node's array of weights, if it has one."""
    if isinstance(node.op, IntegerEmbedding):
        return node.arrays["table"]
    return node.arrays["weight"] if isinstance(node.op, IntegerLinear) else None


def matrices_of(graph: EventGraph) -> list[str]:
    """The names of all matrices of a graph, each once."""
    return [name for name in dict.fromkeys(map(matrix_of, graph.nodes)) if name]


def pruner(graph: EventGraph) -> Callable[[int], EventGraph]:
    """Percent, 1 to 99 -> the graph whose every matrix keeps that share of all its weights: the largest, as they were.

    Before its rounding a weight q lay within 1/2 of it, so that q of one size are ordered by chance. Weights that are
    0 already go first.
    """
    rng, magnitudes, least = np.random.default_rng(0), {}, {}
    for node in graph.nodes:
        name = matrix_of(node)
        if name is None or name in magnitudes:
            continue
        weight, exponent = graph.arrays[name], graph.arrays_of(node)["exponent"]
        by_row = isinstance(node.op, IntegerEmbedding) or node.op.transposed
        size = np.abs(weight, dtype=np.float32) - rng.random(weight.shape, np.float32) + 0.5
        size *= np.exp2(-exponent.astype(np.float32))[:, None] if by_row else np.exp2(-exponent.astype(np.float32))
        size[weight == 0] = -1
        kept = np.maximum((PERCENTS * size.size + 50) // 100, 1)
        magnitudes[name], least[name] = size, np.sort(size, None)[-kept]

    def pruned(percent: int) -> EventGraph:
        arrays = {n: graph.arrays[n] * (size >= least[n][percent - 1]) for n, size in magnitudes.items()}
        return replace(graph, arrays={**graph.arrays, **arrays})

    return pruned


def widths_of(graph: EventGraph) -> list[int]:
    """The widths that a user can choose: of the embedding, where others follow from it, and of each EGRU layer.

    An embedding whose table the head does not share stays: it may be of frames.
    """
    embedding, cells, tied = _parts(graph)
    own = [graph.shape_of(f"{embedding.name}.out")[0]] if tied or not cells else []
    return own + [graph.shape_of(f"{n.name}.y")[0] for n in cells]


def vocabularies_of(graph: EventGraph) -> tuple[int, int]:
    """How many tokens are read, which may be frames, and how many are told apart by the output."""
    return len(graph.arrays_of(_parts(graph)[0])["table"]), graph.shape_of(next(iter(graph.outputs.values())))[0]


def narrowed(graph: EventGraph, width: int = 0, vocabulary: int = 0) -> EventGraph:
    """The graph with `width` for the largest of `widths_of`, and the others in proportion, and with a vocabulary; with
    0, as it is. Of every array, entries as far apart as can be are taken."""
    embedding, cells, tied = _parts(graph)
    most, gated = max(widths_of(graph)), {e.source for n in cells for e in graph.inputs_of(n.name).values()}
    words = {*graph.outputs.values(), *(f"{n.name}.out" for n in graph.nodes if isinstance(n.op, Tokens))}
    stays = {f"{embedding.name}.out"} if cells and not tied else set()

    def size(source: str) -> int:
        (old,) = graph.shape_of(source)
        if source in words:
            return vocabulary or old
        if source in stays or not width:
            return old
        gates = 3 if source in gated else 1
        return gates * max(1, old // gates * width // most)

    nodes, arrays = [], {}
    for node in graph.nodes:
        op = replace(node.op, vocabulary=size(f"{node.name}.out")) if isinstance(node.op, Tokens) else node.op
        nodes.append(Node(node.name, op, node.arrays))
        ports = [e.source for e in graph.inputs_of(node.name).values()] + [f"{node.name}.{p}" for p in op.outputs]
        # a matrix joins what is read and what is made; other arrays have an entry for each unit, or one for all
        sizes = [(graph.shape_of(p)[0], size(p)) for p in (ports[0], ports[-1])] if ports else []
        for name in node.arrays.values():
            array = graph.arrays[name]
            if array.ndim == 2 and name == matrix_of(node):
                pairs = sizes[::-1] if getattr(op, "transposed", False) else sizes
            else:
                pairs = [sizes[0] if isinstance(op, IntegerEmbedding) else sizes[-1]] * array.ndim
            for axis, (old, new) in enumerate(pairs):
                if array.shape[axis] == old != new:
                    array = array.take(np.arange(new) * old // new, axis)
            arrays[name] = array
    edges = tuple(replace(e, shape=(size(e.source),)) for e in graph.edges)
    return replace(graph, nodes=tuple(nodes), edges=edges, arrays=arrays)


def _parts(graph: EventGraph) -> tuple[Node, list[Node], bool]:
    """The embedding, the EGRU cells in order, and whether a product shares the embedding's table."""
    order = [graph.node(name) for group in graph.order() for name in group]
    embedding = next(n for n in order if isinstance(n.op, IntegerEmbedding))
    cells = [n for n in order if isinstance(n.op, IntegerEGRUCell)]
    return embedding, cells, [matrix_of(n) for n in order].count(embedding.arrays["table"]) > 1
