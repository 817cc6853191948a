"""From NIR's wiring to ours: sub-graphs and relays go, edges that meet become sums, a cycle gets its delay."""

from dataclasses import dataclass

import numpy as np

from rheobase.spiking.errors import FormatError, UnsupportedError
from rheobase.spiking.graph import Add, Edge, Node, Shape
from rheobase.spiking.tally import DENSE


@dataclass(frozen=True)
class Flat:
    """Nodes by name, and edges, without sub-graphs and without nodes that only pass values on."""

    nodes: dict
    edges: tuple[tuple[str, str], ...]


def flatten(where, net) -> Flat:
    """A NIR graph without sub-graphs; Flatten goes too, since an image travels as one vector here."""
    nodes, edges = _inline(where, net, "")
    for name in [n for n, node in nodes.items() if _passes_on(n, node)]:
        ins, outs = [a for a, b in edges if b == name], [b for a, b in edges if a == name]
        at = next((i for i, e in enumerate(edges) if name in e), 0)
        rest = [e for e in edges[at:] if name not in e]
        edges = [e for e in edges[:at] if name not in e] + [(a, b) for a in ins for b in outs] + rest
        del nodes[name]
    unknown = {n for e in edges for n in e} - nodes.keys()
    if unknown or len(set(edges)) != len(edges):
        got = f"{sorted(unknown)}" if unknown else "an edge that is there twice"
        raise FormatError(where, "edges among the nodes, each once", got, "mend the file")
    return Flat(nodes, tuple(edges))


class _Relay:
    """A port of a sub-graph."""


def _inline(where, net, prefix) -> tuple[dict, list]:
    nodes, edges, inside = {}, [], {}
    for name, node in net.nodes.items():
        full = f"{prefix}{name}"
        kind = type(node).__name__
        if kind == "NIRGraph":
            inner, own = _inline(where, node, f"{full}.")
            nodes |= inner
            edges += own
            inside[full] = [
                [f"{full}.{n}" for n, part in node.nodes.items() if type(part).__name__ == port]
                for port in ("Input", "Output")
            ]
            if [len(ports) for ports in inside[full]] != [1, 1]:
                raise UnsupportedError(full, "a sub-graph of one input and one output", "more", "write it flat")
        else:
            nodes[full] = _Relay() if prefix and kind in ("Input", "Output") else node
    for a, b in net.edges:
        a, b = f"{prefix}{a}", f"{prefix}{b}"
        edges.append((inside[a][1][0] if a in inside else a, inside[b][0][0] if b in inside else b))
    return nodes, edges


def _passes_on(name, node) -> bool:
    if type(node).__name__ != "Flatten":
        return isinstance(node, _Relay)
    shape = node.input_type["input"] if node.input_type else None
    start, end = int(node.start_dim), int(node.end_dim)
    axes = None if shape is None else np.asarray(shape).size
    if axes is not None and axes > 1 and (start > 1 or end not in (-1, axes - 1)):
        raise UnsupportedError(name, "a Flatten of a whole image", f"axes {start} to {end} of {axes}", "flatten all")
    return True


def early(nodes, edges, late) -> set[tuple[str, str]]:
    """The edges that close a cycle, but a product reads late in place of being read late: what it gives depends on
    what it reads alone, so that a bias acts from the first step on, and it reads events."""
    moved = set()
    for product, reader in late:
        sources = [e for e in edges if e[1] == product]
        readers = [e for e in edges if e[0] == product]
        if (
            type(nodes[product]).__name__ in ("Linear", "Affine")
            and len(sources) == len(readers) == 1
            and sources[0] not in late
        ):
            moved.add(sources[0])
        else:
            moved.add((product, reader))
    return moved


class Wires:
    """Nodes of ours, and what each reads; edges are made once all nodes are known."""

    def __init__(self):
        self.nodes: list[Node] = []
        self._ports: dict[str, tuple[str, str, Shape]] = {}
        self._edges: list[Edge] = []

    def add(self, node: Node, port: str, kind: str, shape: Shape) -> None:
        """A node, and the port that others read."""
        self.nodes.append(node)
        self._ports[node.name] = f"{node.name}.{port}", kind, tuple(shape)

    def sum(self, name: str, terms: list[tuple[str, int]]) -> tuple[str, int]:
        """The node, and the delay, that gives the sum of (node, delay): new Add nodes where there is more than one."""
        source, *rest = terms
        for i, term in enumerate(rest):
            node = Node(f"{name}.sum{i or ''}", Add())
            self._connect(source, f"{node.name}.a")
            self._connect(term, f"{node.name}.b")
            self.add(node, "out", DENSE, self._ports[source[0]][2])
            source = node.name, 0
        return source

    def kind(self, terms: list[tuple[str, int]]) -> str:
        """What the sum of (node, delay) is."""
        return self._ports[terms[0][0]][1] if len(terms) == 1 else DENSE

    def feed(self, name: str, terms: list[tuple[str, int]]) -> None:
        """Connect what adds up in a node to its one input port."""
        (port,) = next(n.op for n in self.nodes if n.name == name).inputs
        self._connect(self.sum(name, terms), f"{name}.{port}")

    def output(self, name: str) -> str:
        """The "node.port" that others read of a node."""
        return self._ports[name][0]

    def edges(self) -> tuple[Edge, ...]:
        return tuple(self._edges)

    def _connect(self, term: tuple[str, int], target: str) -> None:
        source, kind, shape = self._ports[term[0]]
        self._edges.append(Edge(source, target, kind, shape, term[1]))
