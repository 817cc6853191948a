"""EventGraph: the one intermediate form between models and every simulator, counter and exporter.

Nodes are operations; edges carry one vector a token and declare what kind of values it holds. Weight products are
nodes of their own; cells hold no matrices. A delay-1 edge delivers the value of the token before, and its first
value is state. Names are module paths, and arrays live in one table under their parameter names, so that a tied
weight is there once. The semantics are those of evaluation: no dropout.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from rheobase.spiking.errors import GraphError
from rheobase.spiking.tally import BINARY, DENSE, GRADED, KINDS, TERNARY

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """What a node computes. A new op is a frozen dataclass that says its ports and its output shapes.

    inputs   names of the input ports; each takes exactly one edge
    outputs  output port -> kind of what it sends
    roles    names of the arrays it needs; those that end in "?" may be absent
    state    names of the outputs that the node keeps for itself from step to step
    initial  value of a state before the first step, where it is not 0
    """

    inputs: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[Mapping[str, str]] = {}
    roles: ClassVar[tuple[str, ...]] = ()
    state: ClassVar[tuple[str, ...]] = ()
    initial: ClassVar[Mapping[str, float]] = {}

    def shapes(self, name: str, inputs: Mapping[str, Shape], arrays: Mapping[str, np.ndarray]) -> Mapping[str, Shape]:
        """Output port -> shape, from those of inputs and arrays; raises GraphError where they do not fit."""
        raise NotImplementedError(f"{type(self).__name__} gives no shapes")


def require(where: str, what: str, got: Shape, wanted: Shape) -> None:
    """Raise GraphError unless two shapes are equal."""
    if tuple(got) != tuple(wanted):
        raise GraphError(f"{where}: {what}", f"shape {tuple(wanted)}", f"{tuple(got)}", "mend the graph")


@dataclass(frozen=True)
class Tokens(Op):
    """The input: one token id a step, seen as a binary event on one of `vocabulary` lines."""

    outputs = {"out": BINARY}
    vocabulary: int

    def shapes(self, name, inputs, arrays):
        return {"out": (self.vocabulary,)}


@dataclass(frozen=True)
class Embedding(Op):
    """out = table[token]; table [V, D]."""

    inputs, outputs, roles = ("token",), {"out": DENSE}, ("table",)

    def shapes(self, name, inputs, arrays):
        require(name, "token lines", inputs["token"], arrays["table"].shape[:1])
        return {"out": arrays["table"].shape[1:]}


@dataclass(frozen=True)
class Linear(Op):
    """out = x weight + bias, with weight [in, out]; `transposed`: the array is stored [out, in]."""

    inputs, outputs, roles = ("x",), {"out": DENSE}, ("weight", "bias?")
    transposed: bool = False

    def shapes(self, name, inputs, arrays):
        n_in, n_out = arrays["weight"].shape[:: -1 if self.transposed else 1]
        require(name, "x", inputs["x"], (n_in,))
        if "bias" in arrays:
            require(name, "bias", arrays["bias"].shape, (n_out,))
        return {"out": (n_out,)}


@dataclass(frozen=True)
class Relu(Op):
    """out = max(x, 0): a graded event where x is positive."""

    inputs, outputs = ("x",), {"out": GRADED}

    def shapes(self, name, inputs, arrays):
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class EGRUCell(Op):
    """EGRU from its two pre-activations a (input) and q (recurrent), each [3H]; equations: `ops.egru`, evaluation."""

    inputs, outputs = ("a", "q"), {"y": GRADED, "c": DENSE, "trace": DENSE}
    roles, state = ("thr",), ("c", "trace")
    zoneout: float = 0.0

    def shapes(self, name, inputs, arrays):
        (units,) = arrays["thr"].shape
        for port in self.inputs:
            require(name, port, inputs[port], (3 * units,))
        return {"y": (units,), "c": (units,), "trace": (units,)}


@dataclass(frozen=True)
class LSTMCell(Op):
    """LSTM from its two pre-activations a and q, each [4H], gates in the order i, f, g, o.

    i, f, o = sigmoid, g = tanh of a + q;   c = f c + i g;   h = o tanh(c).
    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; torch.nn.LSTM.
    """

    inputs, outputs, state = ("a", "q"), {"h": DENSE, "c": DENSE}, ("c",)

    def shapes(self, name, inputs, arrays):
        require(name, "q", inputs["q"], inputs["a"])
        units = inputs["a"][0] // 4
        require(name, "a", inputs["a"], (4 * units,))
        return {"h": (units,), "c": (units,)}


@dataclass(frozen=True)
class GRUCell(Op):
    """GRU from its two pre-activations a and q, each [3H], gates in the order r, z, n; reset after the product.

    r, z = sigmoid of a + q;   n = tanh(a_n + r q_n);   h = n + z (h - n).
    Source: Cho et al., EMNLP 2014; torch.nn.GRU.
    """

    inputs, outputs, state = ("a", "q"), {"h": DENSE}, ("h",)

    def shapes(self, name, inputs, arrays):
        require(name, "q", inputs["q"], inputs["a"])
        units = inputs["a"][0] // 3
        require(name, "a", inputs["a"], (3 * units,))
        return {"h": (units,)}


@dataclass(frozen=True)
class Spike(Op):
    """out = 1 where x >= 0, else 0."""

    inputs, outputs = ("x",), {"out": BINARY}

    def shapes(self, name, inputs, arrays):
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class LIFCell(Op):
    """Leaky integrate-and-fire units; equations: `ops.lif`. v_reset None: reset by subtraction.

    The arrays tau and theta, one value a unit, take the place of the numbers where they are given.
    """

    inputs, outputs, state = ("x",), {"s": BINARY, "v": DENSE}, ("v",)
    roles = ("tau?", "theta?")
    tau: float = 2.0
    theta: float = 1.0
    v_reset: float | None = 0.0
    decay_input: bool = True
    fire: str = ">="

    @property
    def initial(self):
        return {"v": self.v_reset or 0.0}

    def shapes(self, name, inputs, arrays):
        for role, array in arrays.items():
            require(name, role, array.shape, inputs["x"])
        return {"s": inputs["x"], "v": inputs["x"]}


RESETS = ("now", "next", "never")


@dataclass(frozen=True)
class CubaLIFCell(Op):
    """Current-based leaky integrate-and-fire units: a synapse that decays, then a membrane that decays.

        i' = alpha i + x        h = beta v + gain i'        s = [h > theta]
        v' = h - s (h - v_reset)                reset "now";   v_reset None: h - s theta
        v' = h, and the next step's h is        reset "next":  r = [v > theta] is the spike of the step before
             h - r (h - v_reset)                               v_reset None: h - r theta
        v' = h                                  reset "never"

    With alpha = 0 there is no synapse: i is the input itself. At rest i = v = 0.
    Peers: Norse's LIF and snnTorch's Synaptic (see `rheobase.spiking.adapters`).
    """

    inputs, outputs, state = ("x",), {"s": BINARY, "v": DENSE, "i": DENSE}, ("v", "i")
    alpha: float = 0.0
    beta: float = 0.5
    gain: float = 1.0
    theta: float = 1.0
    v_reset: float | None = 0.0
    reset: str = "now"

    def __post_init__(self):
        if self.reset not in RESETS:
            raise GraphError("CubaLIFCell reset", f"one of {RESETS}", repr(self.reset), "name when it resets")

    def shapes(self, name, inputs, arrays):
        return dict.fromkeys(self.outputs, inputs["x"])


@dataclass(frozen=True)
class TernaryLIFCell(LIFCell):
    """LIF units that fire at -theta too, with a spike of -1: `ops.lif` with ternary=True."""

    outputs = {"s": TERNARY, "v": DENSE}


@dataclass(frozen=True)
class GradedLIFCell(LIFCell):
    """LIF units whose spike carries the membrane before the reset: the output is h where they fire, else 0."""

    outputs = {"s": GRADED, "v": DENSE}
    ternary: bool = False


@dataclass(frozen=True)
class WKVCell(Op):
    """The recurrent attention of RWKV-4; equations: `ops.wkv`."""

    inputs, outputs = ("k", "v"), {"y": DENSE, "p": DENSE, "q": DENSE, "o": DENSE}
    roles, state, initial = ("time_decay", "time_first"), ("p", "q", "o"), {"o": -1e38}

    def shapes(self, name, inputs, arrays):
        for role in self.roles:
            require(name, role, arrays[role].shape, inputs["k"])
        require(name, "v", inputs["v"], inputs["k"])
        return dict.fromkeys(self.outputs, inputs["k"])


@dataclass(frozen=True)
class LayerNorm(Op):
    """out = (x - mean) / sqrt(variance + eps) weight + bias, over the units (Ba, Kiros, Hinton, arXiv 1607.06450)."""

    inputs, outputs, roles = ("x",), {"out": DENSE}, ("weight", "bias")
    eps: float = 1e-5

    def shapes(self, name, inputs, arrays):
        for role in self.roles:
            require(name, role, arrays[role].shape, inputs["x"])
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class Affine(Op):
    """out = x scale + offset, unit by unit."""

    inputs, outputs, roles = ("x",), {"out": DENSE}, ("scale", "offset")

    def shapes(self, name, inputs, arrays):
        for role in self.roles:
            require(name, role, arrays[role].shape, inputs["x"])
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class Mix(Op):
    """out = x share + before rest + bias: `before` is x at the token before, over a delayed edge.

    Without the arrays, rest = 1 - share and bias = 0.
    """

    inputs, outputs, roles = ("x", "before"), {"out": DENSE}, ("share", "rest?", "bias?")

    def shapes(self, name, inputs, arrays):
        require(name, "before", inputs["before"], inputs["x"])
        for role, array in arrays.items():
            require(name, role, array.reshape(-1).shape, inputs["x"])
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class Sigmoid(Op):
    """out = 1 / (1 + e^-x)."""

    inputs, outputs = ("x",), {"out": DENSE}

    def shapes(self, name, inputs, arrays):
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class SquaredRelu(Op):
    """out = max(x, 0)^2: a graded event where x is positive."""

    inputs, outputs = ("x",), {"out": GRADED}

    def shapes(self, name, inputs, arrays):
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class Multiply(Op):
    """out = a b, unit by unit."""

    inputs, outputs = ("a", "b"), {"out": DENSE}

    def shapes(self, name, inputs, arrays):
        require(name, "b", inputs["b"], inputs["a"])
        return {"out": inputs["a"]}


@dataclass(frozen=True)
class Add(Multiply):
    """out = a + b, unit by unit."""


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

    raises  GraphError: two nodes of one name, an unknown port or array, a port with no edge or two, a kind that
            the source does not declare, shapes that do not fit, or a cycle without a delay
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    arrays: Mapping[str, np.ndarray]
    outputs: Mapping[str, str]

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
        for node in self.nodes:
            if node.name == name:
                return node
        raise GraphError("graph", "a node's name", repr(name), "see graph.nodes")

    def arrays_of(self, node: Node) -> dict[str, np.ndarray]:
        """Role -> array of a node."""
        return {role: self.arrays[name] for role, name in node.arrays.items()}

    def inputs_of(self, name: str) -> dict[str, Edge]:
        """Input port -> edge of a node."""
        return {e.target.rpartition(".")[2]: e for e in self.edges if e.target_node == name}

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
            if edge.delay not in (0, 1):
                raise GraphError(f"edge {edge.source} -> {edge.target}", "delay 0 or 1", str(edge.delay), "mend it")
        for node in self.nodes:
            ports = sorted(e.target.rpartition(".")[2] for e in self.edges if e.target_node == node.name)
            if ports != sorted(node.op.inputs):
                raise GraphError(node.name, f"one edge into each of {node.op.inputs}", f"{ports}", "mend the edges")
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
    """Strongly connected groups in topological order, each ordered within a step by its undelayed edges."""
    after = {name: [e.target_node for e in edges if e.source_node == name] for name in nodes}
    index, low, stack, groups = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for nxt in after[name]:
            if nxt not in index:
                visit(nxt)
            if nxt in stack:
                low[name] = min(low[name], low[nxt])
        if low[name] == index[name]:
            cut = stack.index(name)
            groups.append(stack[cut:])
            del stack[cut:]

    for name in nodes:
        if name not in index:
            visit(name)
    return [_within_a_step(group, edges) for group in reversed(groups)]


def _within_a_step(group: list[str], edges: tuple[Edge, ...]) -> list[str]:
    waiting, done = list(group), []
    while waiting:
        ready = [
            n
            for n in waiting
            if not any(e.target_node == n and e.source_node in waiting and not e.delay for e in edges)
        ]
        if not ready:
            raise GraphError("graph", "a delay in every cycle", f"none among {', '.join(waiting)}", "delay one edge")
        done += ready
        waiting = [n for n in waiting if n not in ready]
    return done
