"""Nodes, edges, and the graph that checks that they fit."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rheobase.spiking.errors import GraphError
from rheobase.spiking.graph.op import Op, Shape, require
from rheobase.spiking.tally import KINDS


@dataclass(frozen=True)
class Node:
    """A named operation and the names of its arrays by role."""

    name: str
    op: Op
    arrays: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    """One vector a token from an output port to an input port.

    source, target   "node.port"
    kind             BINARY, TERNARY, GRADED or DENSE, as the source declares it
    delay            0, or 1: the value of the token before, whose first value is state
    """

    source: str
    target: str
    kind: str
    shape: Shape
    delay: int = 0

    @property
    def source_node(self) -> str:
        return self.source.rpartition(".")[0]

    @property
    def target_node(self) -> str:
        return self.target.rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class EventGraph:
    """A whole model: nodes, edges, one table of arrays, and the outputs by name ("node.port").

    dt_s    duration of a step in seconds, None where time has no unit; it changes no number, and is not in `hash`
    raises  GraphError: two nodes of one name, a name that is empty or holds a /, an unknown port or array, a port with
            no edge or two, a kind that the source does not declare, token ids that no embedding reads, shapes that do
            not fit, or a cycle without a delay
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    arrays: Mapping[str, np.ndarray]
    outputs: Mapping[str, str]
    dt_s: float | None = None

    def __post_init__(self):
        frozen = {}
        for name, array in self.arrays.items():
            view = np.asarray(array).view()
            view.flags.writeable = False
            frozen[name] = view
        object.__setattr__(self, "arrays", frozen)
        self._validate()

    def node(self, name: str) -> Node:
        """The node of that name; raises GraphError if there is none."""
        if name not in self._nodes:
            raise GraphError("graph", "a node's name", repr(name), "see graph.nodes")
        return self._nodes[name]

    def arrays_of(self, node: Node) -> dict[str, np.ndarray]:
        """Role -> array of a node."""
        return {role: self.arrays[name] for role, name in node.arrays.items()}

    def inputs_of(self, name: str) -> dict[str, Edge]:
        """Input port -> edge of a node."""
        return dict(self._inputs[name])

    def shape_of(self, source: str) -> Shape:
        """The shape of an output "node.port"."""
        return self._shapes[source]

    def state_shapes(self) -> dict[str, Shape]:
        """What must be carried from token to token: "node.port" -> shape, for cells' own state and delayed edges."""
        own = {f"{n.name}.{s}": self._shapes[f"{n.name}.{s}"] for n in self.nodes for s in n.op.state}
        return own | {e.source: e.shape for e in self.edges if e.delay}

    def state_fill(self) -> dict[str, float]:
        """What each state holds before the first step."""
        fill = {f"{n.name}.{s}": value for n in self.nodes for s, value in n.op.initial.items()}
        return {name: fill.get(name, 0.0) for name in self.state_shapes()}

    def order(self) -> list[list[str]]:
        """Groups of node names in the order in which they can run: a group is a set of nodes that depend on each
        other through delayed edges, in the order within one step (Tarjan 1972 gives the groups)."""
        return self._order

    def signals(self) -> list[str]:
        """Every output "node.port", in the order of evaluation."""
        return [f"{name}.{port}" for group in self._order for name in group for port in self._nodes[name].op.outputs]

    def hash(self) -> str:
        """SHA-256 over nodes, edges, outputs and the bytes of all arrays."""
        text = json.dumps(
            {
                "nodes": [[n.name, type(n.op).__name__, dataclasses.asdict(n.op), dict(n.arrays)] for n in self.nodes],
                "edges": [dataclasses.astuple(e) for e in self.edges],
                "outputs": dict(self.outputs),
            },
            sort_keys=True,
        )
        digest = hashlib.sha256(text.encode())
        for name in sorted(self.arrays):
            array = self.arrays[name]
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _validate(self) -> None:
        by_name = {n.name: n for n in self.nodes}
        if len(by_name) != len(self.nodes):
            raise GraphError("graph", "one node a name", "two of one name", "rename one")
        for node in self.nodes:
            if not node.name or "/" in node.name:
                raise GraphError("graph", "node names without /, none empty", repr(node.name), "rename it")
            needed = {r.rstrip("?") for r in node.op.roles}
            if not {r for r in node.op.roles if not r.endswith("?")} <= set(node.arrays) <= needed:
                raise GraphError(node.name, f"arrays {node.op.roles}", f"{tuple(node.arrays)}", "name its arrays")
            for array in node.arrays.values():
                if array not in self.arrays:
                    raise GraphError(node.name, f"an array {array!r} in the table", "none", "add it")
        for edge in self.edges:
            source, _, port = edge.source.rpartition(".")
            declared = by_name[source].op.outputs.get(port) if source in by_name else None
            target, _, into = edge.target.rpartition(".")
            if declared is None or target not in by_name or into not in by_name[target].op.inputs:
                raise GraphError(f"edge {edge.source} -> {edge.target}", "ports that exist", "others", "mend the edge")
            if edge.kind != declared or edge.kind not in KINDS:
                raise GraphError(f"edge {edge.source} -> {edge.target}", declared, edge.kind, "declare the same kind")
            taken = by_name[target].op.accepts.get(into, edge.kind)
            if edge.kind != taken:
                raise GraphError(
                    f"edge {edge.source} -> {edge.target}", f"a source of kind {taken}", edge.kind, "mend it"
                )
            if edge.delay not in (0, 1):
                raise GraphError(f"edge {edge.source} -> {edge.target}", "delay 0 or 1", str(edge.delay), "mend it")
            sends, reads = port in by_name[source].op.ids, into in by_name[target].op.ids
            if sends != reads or (sends and edge.delay):
                got, remedy = "another edge of one of them", "read the tokens through an embedding, and delay that"
                raise GraphError(f"edge {edge.source} -> {edge.target}", "token ids into an embedding", got, remedy)
        ports: dict[str, list[str]] = {name: [] for name in by_name}
        inputs_of: dict[str, dict[str, Edge]] = {name: {} for name in by_name}
        for edge in self.edges:
            target, _, into = edge.target.rpartition(".")
            ports[target].append(into)
            inputs_of[target][into] = edge
        for node in self.nodes:
            if sorted(ports[node.name]) != sorted(node.op.inputs):
                got = f"{sorted(ports[node.name])}"
                raise GraphError(node.name, f"one edge into each of {node.op.inputs}", got, "mend the edges")
        object.__setattr__(self, "_nodes", by_name)
        object.__setattr__(self, "_inputs", inputs_of)
        order = _groups(by_name, self.edges)
        shapes: dict[str, Shape] = {}
        for node in (by_name[name] for group in order for name in group):
            inputs = {port: e.shape for port, e in self.inputs_of(node.name).items()}
            outputs = node.op.shapes(node.name, inputs, self.arrays_of(node))
            shapes |= {f"{node.name}.{port}": tuple(shape) for port, shape in outputs.items()}
        for edge in self.edges:
            require(f"edge {edge.source} -> {edge.target}", "shape", edge.shape, shapes[edge.source])
        for name, source in self.outputs.items():
            if source not in shapes:
                raise GraphError(f"output {name!r}", "a node's output", repr(source), "mend the graph")
        object.__setattr__(self, "_shapes", shapes)
        object.__setattr__(self, "_order", order)


def _groups(nodes: Mapping[str, Node], edges: tuple[Edge, ...]) -> list[list[str]]:
    """Strongly connected groups in topological order, each ordered within a step by its undelayed edges. Without
    recursion, since a graph may be deeper than Python's stack."""
    after, now = {name: [] for name in nodes}, {name: set() for name in nodes}
    for edge in edges:
        after[edge.source_node].append(edge.target_node)
        if not edge.delay:
            now[edge.target_node].add(edge.source_node)
    index, low, stack, groups = {}, {}, {}, []  # the stack is a dict, in which a name is found at once
    for root in nodes:
        path = [(root, iter(after[root]))] if root not in index else []
        while path:
            name, rest = path[-1]
            if name not in index:
                index[name] = low[name] = len(index)
                stack[name] = None
            for nxt in rest:
                if nxt not in index:
                    path.append((nxt, iter(after[nxt])))
                    break
                if nxt in stack:
                    low[name] = min(low[name], index[nxt])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[name])
                if low[name] == index[name]:
                    groups.append([stack.popitem()[0]])
                    while groups[-1][-1] != name:
                        groups[-1].append(stack.popitem()[0])
    return [_within_a_step(group[::-1], now) for group in reversed(groups)]


def _within_a_step(group: list[str], now: Mapping[str, set[str]]) -> list[str]:
    """now: the sources of each node's undelayed edges."""
    waiting, done = dict.fromkeys(group), []
    while waiting:
        ready = [name for name in waiting if now[name].isdisjoint(waiting)]
        if not ready:
            raise GraphError("graph", "a delay in every cycle", f"none among {', '.join(waiting)}", "delay one edge")
        done += ready
        for name in ready:
            del waiting[name]
    return done
