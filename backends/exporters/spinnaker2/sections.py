"""A SpikeGPT's integer graph cut into sections: what processing elements can do unit by unit between two exchanges.

What a product or a norm reads comes over the network, and so does the residual stream; everything else is local to a
unit. A section is a set of nodes that local edges join; it runs once a token, when what it hears has come.
"""

from dataclasses import dataclass, field

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import arithmetic_rwkv as rwkv
from rheobase.backends.exporters.spinnaker2 import products
from rheobase.backends.exporters.spinnaker2.image import LOG, PROGRAM, Image, key
from rheobase.backends.exporters.spinnaker2.program import (
    GRADED,
    MOST_PRODUCTS,
    MOST_VECTORS,
    OPS,
    RESETS,
    TERNARY,
    Instruction,
    instruction,
)
from rheobase.backends.exporters.spinnaker2.quantise import ops
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import Edge, EventGraph, Node, Spike, Tokens

Slices = list[tuple[int, int]]
SENT_WHOLE = (ops.IntegerLinear, ops.IntegerLayerNorm)


@dataclass
class Section:
    """Some nodes of one width: what they hear, "node.port" in the order of the ports, and what they send."""

    name: str
    nodes: list[Node]
    units: int
    products: list[tuple[Node, str]] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    sends: list[str] = field(default_factory=list)
    registers: list[str] = field(default_factory=list)
    factors: list[np.ndarray] = field(default_factory=list)
    initial: dict[str, int] = field(default_factory=dict)
    program: list[Instruction] = field(default_factory=list)

    def register(self, name: str) -> int:
        """The number of a register, made at its first use."""
        if name not in self.registers:
            self.registers.append(name)
        return self.registers.index(name)

    def factor(self, *arrays: np.ndarray) -> int:
        """The number of the first of some arrays [units]."""
        self.factors += [np.broadcast_to(np.asarray(a, np.int64).reshape(-1), self.units) for a in arrays]
        return len(self.factors) - len(arrays)


@dataclass(frozen=True)
class Plan:
    """A graph in sections, first to last, and each stream's number: 0 is `embedded`, which a token alone gives."""

    sections: list[Section]
    streams: dict[str, int]
    embedded: str
    head: Node
    head_source: str


def plan_of(graph: EventGraph) -> Plan:
    """Cut a graph; raises UnsupportedError where it is no stack that the sections can run."""
    by_token = by_token_alone(graph)
    head = next((n for n in graph.nodes if f"{n.name}.out" in graph.outputs.values()), None)
    if head is None or not isinstance(head.op, ops.IntegerLinear):
        raise UnsupportedError("graph", "a linear head", "none", "export a language model")
    rest = [graph.node(name) for group in graph.order() for name in group if f"{name}.out" not in by_token]
    rest = [n for n in rest if n is not head and not isinstance(n.op, Tokens)]
    if not rest:
        raise UnsupportedError("graph", "layers between the tokens and the head", "none", "export a language model")
    whole = {e.source for n in rest if isinstance(n.op, ops.IntegerLayerNorm) for e in graph.inputs_of(n.name).values()}

    def travels(edge: Edge, node: Node) -> bool:
        added = type(graph.node(edge.source_node).op) is ops.IntegerAdd
        return isinstance(node.op, SENT_WHOLE) or added or edge.source in whole or edge.source in by_token

    for edge in (e for n in (*rest, head) if isinstance(n.op, SENT_WHOLE) for e in graph.inputs_of(n.name).values()):
        if edge.delay:
            wanted, got = "products and norms of this token's values", f"{edge.source} of the token before"
            raise UnsupportedError(edge.target, wanted, got, "export a SpikeGPT")
    group = {n.name: n.name for n in rest}

    def root(name):
        while group[name] != name:
            name = group[name]
        return name

    for node in rest:
        for edge in graph.inputs_of(node.name).values():
            if not travels(edge, node):
                group[root(node.name)] = root(edge.source_node)
    sections: dict[str, Section] = {}
    for node in rest:
        (units,) = {graph.shape_of(f"{node.name}.{port}")[0] for port in node.op.outputs}
        section = sections.setdefault(root(node.name), Section(node.name, [], units))
        if section.units != units:
            raise UnsupportedError(node.name, f"{section.units} units", str(units), "export a SpikeGPT")
        section.nodes.append(node)
    heard = {s.name: _heard(graph, s, travels) for s in sections.values()}
    (head_edge,) = graph.inputs_of(head.name).values()
    wanted = {source for sources in heard.values() for source in sources} | {head_edge.source}
    embedded = {s for s in wanted if s in by_token}
    if len(embedded) != 1:
        raise UnsupportedError("graph", "one signal of the token alone", f"{sorted(embedded)}", "export a SpikeGPT")
    ordered = _in_order(list(sections.values()), heard, embedded)
    streams = {embedded.pop(): 0}
    for section in ordered:
        made = [f"{n.name}.{port}" for n in section.nodes for port in n.op.outputs]
        section.sends = [name for name in made if name in wanted]
        streams |= {name: len(streams) + i for i, name in enumerate(section.sends)}
    if len(streams) >= LOG:
        raise UnsupportedError("graph", f"fewer than {LOG} streams", str(len(streams)), "export fewer blocks")
    for section in ordered:
        _compile(graph, section, travels, streams)
    return Plan(ordered, streams, next(iter(streams)), head, head_edge.source)


def by_token_alone(graph: EventGraph) -> set[str]:
    """Signals that depend on the token alone, up to the first that anything else reads."""
    found: set[str] = set()
    order = [graph.node(name) for group in graph.order() for name in group]
    outputs = {n.name: {f"{n.name}.{port}" for port in n.op.outputs} for n in order}
    for node in order:
        edges = graph.inputs_of(node.name).values()
        known = all(e.source in found and not e.delay for e in edges)
        if isinstance(node.op, Tokens) or (known and not node.op.state):
            found |= outputs[node.name]
    read = {e.source for e in graph.edges if not outputs[e.target_node] <= found}
    kept: set[str] = set()
    for node in order:
        if outputs[node.name] <= found:
            kept |= outputs[node.name]
            if outputs[node.name] & read:
                return kept
    return kept


def _heard(graph: EventGraph, section: Section, travels) -> list[str]:
    edges = [(e, n) for n in section.nodes for e in graph.inputs_of(n.name).values()]
    return list(dict.fromkeys(e.source for e, n in edges if travels(e, n)))


def _in_order(sections: list[Section], heard: dict[str, list[str]], known: set[str]) -> list[Section]:
    ordered, known = [], set(known)
    while sections:
        ready = next((s for s in sections if all(source in known for source in heard[s.name])), None)
        if ready is None:
            names = ", ".join(s.name for s in sections)
            raise UnsupportedError(names, "sections that run one after the other", "a loop", "export a SpikeGPT")
        sections.remove(ready)
        ordered.append(ready)
        known |= {f"{n.name}.{port}" for n in ready.nodes for port in n.op.outputs}
    return ordered


def _compile(graph: EventGraph, section: Section, travels, streams: dict[str, int]) -> None:
    edges = {n.name: graph.inputs_of(n.name) for n in section.nodes}
    every = [(e, n) for n in section.nodes for e in edges[n.name].values()]
    section.products = [(n, e.source) for e, n in every if isinstance(n.op, ops.IntegerLinear)]
    section.vectors = list(
        dict.fromkeys(e.source for e, n in every if travels(e, n) and not isinstance(n.op, ops.IntegerLinear))
    )
    for name, got, most in (("products", section.products, MOST_PRODUCTS), ("vectors", section.vectors, MOST_VECTORS)):
        if len(got) > most:
            raise UnsupportedError(section.name, f"at most {most} {name}", str(len(got)), "export a SpikeGPT")
    twice = [*(source for _, source in section.products), *section.vectors]
    if len(set(twice)) < len(twice):
        raise UnsupportedError(
            section.name, "signals that feed one port each", "one that feeds two", "export a SpikeGPT"
        )
    local = [e.source for e, n in every if travels(e, n) and not isinstance(n.op, SENT_WHOLE)]
    for source in dict.fromkeys(local):
        port = len(section.products) + section.vectors.index(source)
        section.program.append(instruction("slice", out=section.register(source), port=port))
    for node in section.nodes:
        _emit(graph, section, node, edges[node.name])
    for source in dict.fromkeys(e.source for e, n in every if e.delay):
        before = section.register(f"{source} before")
        section.initial[f"{source} before"] = int(graph.state_fill()[source])
        section.program.append(instruction("move", out=before, a=section.register(source)))
    for source in section.sends:
        section.program.append(instruction("send", a=section.register(source), s0=streams[source]))


def _emit(graph: EventGraph, section: Section, node: Node, edges: dict[str, Edge]) -> None:
    op, arrays = node.op, graph.arrays_of(node)
    outs = [section.register(f"{node.name}.{port}") for port in op.outputs]
    section.initial |= {f"{node.name}.{port}": int(value) for port, value in op.initial.items()}

    def reg(port):
        edge = edges[port]
        return section.register(f"{edge.source} before" if edge.delay else edge.source)

    def add(name, **columns):
        section.program.append(instruction(name, out=outs[0], **columns))

    def factors(*roles):
        return section.factor(*(arrays[role] for role in roles))

    if isinstance(op, ops.IntegerLinear):
        add("product", port=[n for n, _ in section.products].index(node), s0=int(op.bits == 16))
    elif isinstance(op, ops.IntegerLayerNorm):
        port = len(section.products) + section.vectors.index(edges["x"].source)
        low = op.eps & 0xFFFFFFFF
        halves = {"s1": low - (1 << 32) * (low >> 31), "s2": op.eps >> 32}
        add("norm", factor=factors("weight", "bias"), port=port, s0=op.shift, **halves)
    elif isinstance(op, ops.IntegerAffine):
        factor = section.factor(arrays["scale"], 0, arrays["offset"])
        add("mix", a=reg("x"), b=reg("x"), factor=factor, s0=op.shift)
    elif isinstance(op, ops.IntegerMix):
        add("mix", a=reg("x"), b=reg("before"), factor=factors("share", "rest", "bias"), s0=op.shift)
    elif isinstance(op, ops.IntegerSigmoid):
        add("sigmoid", a=reg("x"), s0=op.in_frac - ints.PRE_FRAC)
    elif isinstance(op, ops.IntegerSquaredRelu):
        add("squared_relu", a=reg("x"), s0=op.shift)
    elif isinstance(op, ops.IntegerMultiply):
        add("multiply", a=reg("a"), b=reg("b"), s0=op.shift)
    elif isinstance(op, ops.IntegerAdd):
        add("add", a=reg("a"), b=reg("b"), s0=op.a_frac, s1=op.b_frac, s2=op.out_frac)
    elif isinstance(op, ops.IntegerLIFCell):
        flags = RESETS * (op.v_reset is not None) + TERNARY * op.ternary
        flags += GRADED * isinstance(op, ops.IntegerGradedLIFCell)
        factor = factors("leak", "gain", "offset", "threshold", "step")
        add("lif", a=reg("x"), b=outs[1], factor=factor, s0=op.v_reset or 0, s1=flags)
    elif isinstance(op, ops.IntegerWKVCell):
        _, p, q, o = outs
        add("wkv", a=reg("k"), b=reg("v"), c=p, d=q, factor=factors("decay", "first"), s0=op.k_frac, s1=o)
    elif isinstance(op, Spike):
        add("spike", a=reg("x"))
    else:
        raise UnsupportedError(node.name, "an op that a section has", type(op).__name__, "export a SpikeGPT")


def weight_of(graph: EventGraph, node: Node) -> np.ndarray:
    """The weight of a product, [sources, units], however it is stored."""
    weight = graph.arrays_of(node)["weight"]
    return weight.T if node.op.transposed else weight


def images_of(graph: EventGraph, plan: Plan, stage: int, sent: dict[str, Slices], slices: Slices) -> list[Image]:
    """The images of a section's slices.

    sent  how the units of every signal are cut where it is sent
    """
    section = plan.sections[stage]
    weights = [weight_of(graph, node) for node, _ in section.products]
    keys = []
    for port, source in enumerate([*(source for _, source in section.products), *section.vectors]):
        number = plan.streams[source]
        keys += [[key(number, s), lo, hi - lo, port] for s, (lo, hi) in enumerate(sent[source])]
    used = {OPS[i.op] for i in section.program}
    initial = [section.initial.get(name, 0) for name in section.registers]
    lengths = [graph.shape_of(source)[0] for source in section.vectors]
    starts = np.cumsum([0, *lengths])
    images = []
    for number, (lo, hi) in enumerate(slices):
        n, table = hi - lo, []
        packed: dict[str, list[np.ndarray]] = {"rows": [], "gaps": [], "weight": []}
        bias, shift = np.zeros((len(weights), n), np.int64), np.zeros((len(weights), n), np.int64)
        for port, ((node, _), weight) in enumerate(zip(section.products, weights, strict=True)):
            part, arrays = products.pack(weight[:, lo:hi]), graph.arrays_of(node)
            kept = len(part["gaps"]) if len(part["rows"]) else products.DENSE
            table.append([len(weight), *(sum(map(len, packed[name])) for name in packed), kept])
            for name, parts in packed.items():
                parts.append(part[name])
            bias[port], shift[port] = arrays["bias"][lo:hi], node.op.shift(arrays["exponent"])[lo:hi]
        regions = {name: np.concatenate([np.zeros(0, np.int64), *parts]) for name, parts in packed.items()}
        regions |= {
            "products": np.array(table),
            "vectors": np.array([[length, at] for length, at in zip(lengths, starts, strict=False)]),
            "gathered": np.zeros(starts[-1]),
            "bias": bias,
            "shift": shift,
            "accumulators": np.zeros_like(bias),
            "factors": np.array([f[lo:hi] for f in section.factors]),
            "registers": np.zeros((len(initial), n)),
            "initial": np.array(initial),
            "program": np.array(section.program),
            "sigmoid": ints.sigmoid_table() if "sigmoid" in used else [],
            "power": rwkv.power_table() if "wkv" in used else [],
            "keys": np.array(sorted(keys)),
        }
        fields = {"layer": stage, "slice": number, "unit_lo": lo, "units": n, "products": len(weights)}
        fields |= {"vectors": len(lengths), "registers": len(initial), "factors": len(section.factors)}
        fields |= {"instructions": len(section.program), "listens": len(keys)}
        images.append(Image.of(PROGRAM, fields, regions))
    return images
