"""Runs an EventGraph: one schedule for every simulator, which brings only its kernels.

A group of nodes that depend on each other through delayed edges runs step by step, or in one call where the simulator
has one for it; every other node runs once, on all steps at hand. B streams, T steps; values are kept time-major,
[T, B, n].
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from functools import partial

import numpy as np

from rheobase.backends.trace import Trace, expand
from rheobase.spiking import graph as graph_ops
from rheobase.spiking.errors import GraphError, ShapeError, UnsupportedError
from rheobase.spiking.events import Events
from rheobase.spiking.graph import EventGraph, Input, Node, Tokens
from rheobase.spiking.tally import EVENT_KINDS, Tally


class Kernels:
    """What a simulator can do: a method `name(node, inputs)` for each op, named as its class in lower case.

    inputs   port -> array [N, n]; a stateful op's method takes its own state, output -> array [B, n], as well
    returns  output port -> array [N, n]
    """

    def begin(self, graph: EventGraph) -> None:
        """Prepare the arrays of a graph."""
        raise NotImplementedError

    def zeros(self, *shape):
        """An array of zeros of the simulator's type."""
        raise NotImplementedError

    def full(self, shape, value: float):
        """An array of one value, which nothing writes to."""
        return self.zeros(*shape) + value

    def shift(self, whole, first):
        """What arrives a step late, [T, B, n]: `first` [B, n], then all of `whole` but its last."""
        return np.concatenate([first[None], whole[:-1]]) if len(whole) else whole

    def stack(self, arrays: list):
        """Arrays [B, n], one a step, as one [T, B, n]."""
        return np.stack(arrays)

    def from_numpy(self, array):
        """An array of the simulator's type."""
        return array

    def indices(self, array):
        """A NumPy array of integers, as the simulator looks rows up by."""
        return array

    def to_numpy(self, array):
        """The simulator's array as NumPy's."""
        return array

    def events(self, whole) -> Events:
        """What an output [T, B, n] sent."""
        return Events.from_dense(self.to_numpy(whole).swapaxes(0, 1))

    def sequence(self, nodes, edges, values, carried, wanted):
        """A group of nodes over all steps in one call, or None where it must go step by step.

        edges    node -> its input port -> edge;  values, carried: as `execute` holds them
        wanted   outputs that others read, "node.port"
        returns  those of the group, "node.port" -> [T, B, n], and its state after the last step, "node.port" -> [B, n]
        """
        return None

    def flat(self, whole):
        """All steps and streams as one batch, [T, B, n] -> [T B, n], in an order of the simulator's own."""
        return whole.reshape(whole.shape[0] * whole.shape[1], whole.shape[2])

    def deep(self, batch, steps: int, streams: int):
        """What `flat` was given."""
        return batch.reshape(steps, streams, batch.shape[1])

    def table(self, makers: dict) -> Mapping:
        """name -> what its function gives, called now or when it is asked for."""
        return {name: make() for name, make in makers.items()}

    def tally(self, tokens: int) -> Tally | None:
        """What was counted since `begin`, or None."""
        return None


def by(kernels: type[Kernels]):
    """A simulator's `run`, of its kernels."""

    def run(graph: EventGraph, tokens, state, record) -> Trace:
        return execute(graph, tokens, state, kernels(), record)

    return run


def execute(graph: EventGraph, tokens, state, kernels: Kernels, record=()) -> Trace:
    """Run what the graph's input takes, tokens [B, T] or frames [B, T, C, H, W], through it.

    state    "node.port" -> array [B, n], as an earlier run's `Trace.state`; zeros if None
    record   patterns of outputs to keep, such as "layers.*.{c,y}"
    raises   ShapeError: an input of another shape or out of range, or a state of another graph or number of streams
    """
    source, fed = feed(graph, tokens)
    fed = fed.swapaxes(0, 1)
    steps, streams = fed.shape[:2]
    kernels.begin(graph)
    kinds = {f"{n.name}.{port}": kind for n in graph.nodes for port, kind in n.op.outputs.items()}
    recorded = expand(record, graph.signals())
    events = [name for name, kind in kinds.items() if kind in EVENT_KINDS and name != f"{source.name}.out"]
    place = {name: i for i, group in enumerate(graph.order()) for name in group}
    passed_on = [e.source for e in graph.edges if e.delay or place[e.source_node] != place[e.target_node]]
    kept = {*recorded, *events, *graph.outputs.values(), *(e.source for e in graph.edges if e.delay)}
    wanted, readers = {*kept, *passed_on}, Counter(e.source for e in graph.edges)
    carried = start_state(graph, state, streams, kernels)
    values: dict = {}
    after = dict(carried)  # apart, since what reads it one step late may run later

    for group in graph.order():
        nodes = [graph.node(name) for name in group]
        edges = {n.name: graph.inputs_of(n.name) for n in nodes}
        if nodes[0] is source:
            given = kernels.indices(fed) if isinstance(source.op, Tokens) else kernels.from_numpy(fed)
            values[f"{source.name}.out"] = given
        elif any(n.op.state or any(e.source_node in group for e in edges[n.name].values()) for n in nodes):
            whole = kernels.sequence(nodes, edges, values, carried, wanted)
            if whole is None:
                after |= _run_by_step(nodes, edges, values, carried, wanted, (steps, streams), graph, kernels)
            else:
                values |= {name: array for name, array in whole[0].items() if name in wanted}
                after |= whole[1]
        else:
            _run_at_once(nodes[0], edges[nodes[0].name], values, carried, (steps, streams), kernels)
        for name in [e.source for own in edges.values() for e in own.values()]:
            readers[name] -= 1
            if not readers[name]:  # its memory is the next one's
                values.pop((name, 1), None)
                if name not in kept:
                    values.pop(name, None)
    for e in graph.edges:
        if e.delay and steps:
            after[e.source] = values[e.source][-1]

    def sent(whole):
        return dataclasses.replace(kernels.events(whole), dt_s=graph.dt_s)

    def dense(array):
        return kernels.to_numpy(array).swapaxes(0, 1)

    return Trace(
        outputs=kernels.table({name: partial(dense, values[source]) for name, source in graph.outputs.items()}),
        events=kernels.table({name: partial(sent, values[name]) for name in events}),
        state=kernels.table({name: partial(kernels.to_numpy, array) for name, array in after.items()}),
        tally=kernels.tally(steps * streams),
        recorded=kernels.table({name: partial(dense, values[name]) for name in recorded}),
    )


def _run_at_once(node, edges, values, carried, size, kernels) -> None:
    """A node that depends on no earlier step of its own: all steps and streams as one batch."""
    inputs = {}
    for port, e in edges.items():
        inputs[port] = kernels.flat(arriving(e, values, carried, kernels))
    for port, out in _method(kernels, node)(node, inputs).items():
        values[f"{node.name}.{port}"] = kernels.deep(out, *size)


def arriving(edge, values, carried, kernels):
    """What an edge delivers at every step, from a node that has run [T, B, n]."""
    if not edge.delay:
        return values[edge.source]
    if (edge.source, 1) not in values:  # several nodes read it, such as RWKV's mixes
        values[edge.source, 1] = kernels.shift(values[edge.source], carried[edge.source])
    return values[edge.source, 1]


def _run_by_step(nodes, edges, values, carried, wanted, size, graph, kernels) -> dict:
    """Nodes that depend on each other's last step, or on their own state; returns their state after the last."""
    steps, streams = size
    methods = {n.name: _method(kernels, n) for n in nodes}
    inside = {f"{n.name}.{port}" for n in nodes for port in n.op.outputs}
    keep = {name: [] for name in inside & wanted}
    previous = {name: carried[name] for name in inside & carried.keys()}
    for t in range(steps):
        now = {}
        for node in nodes:
            inputs = {}
            for port, e in edges[node.name].items():
                if e.source in inside:
                    inputs[port] = previous[e.source] if e.delay else now[e.source]
                elif e.delay:
                    inputs[port] = values[e.source][t - 1] if t else carried[e.source]
                else:
                    inputs[port] = values[e.source][t]
            own = ({s: previous[f"{node.name}.{s}"] for s in node.op.state},) if node.op.state else ()
            for port, out in methods[node.name](node, inputs, *own).items():
                now[f"{node.name}.{port}"] = out
        previous = {name: now[name] for name in previous}
        for name, kept in keep.items():
            kept.append(now[name])
    for name, kept in keep.items():
        values[name] = kernels.stack(kept) if kept else kernels.zeros(0, streams, *graph.shape_of(name))
    return previous


def number_type(graph: EventGraph) -> np.dtype:
    """The widest floating type of a graph's arrays, float32 at least: membranes are no shorter, and whole numbers are
    weights like any."""
    return np.result_type(np.float32, *(a.dtype for a in graph.arrays.values() if a.dtype.kind == "f"))


def feed(graph: EventGraph, values) -> tuple[Node, np.ndarray]:
    """The input of a graph, and what it is fed, checked: a vector a step, [B, T, n]."""
    sources = [n for n in graph.nodes if isinstance(n.op, Input)]
    if len(sources) != 1:
        got = ", ".join(n.name for n in sources) or "none"
        raise GraphError("simulate", "a graph of one input", got, "join the inputs into one")
    (source,) = sources
    return source, source.op.accept(source.name, np.asarray(values))


def start_state(graph, state, streams, kernels) -> dict:
    shapes = {name: (streams, *shape) for name, shape in graph.state_shapes().items()}
    if state is None:
        fill = graph.state_fill()
        return {name: kernels.full(shape, fill[name]) for name, shape in shapes.items()}
    given = state.items() if isinstance(state, Mapping) else [(type(state).__name__, ())]
    got = {name: tuple(np.shape(array)) for name, array in given}
    if got != shapes:
        raise ShapeError("simulate state", f"{shapes}", f"{got}", "use a Trace.state of this graph and as many streams")
    return {name: kernels.from_numpy(array) for name, array in state.items()}


def _method(kernels, node):
    """What runs a node: not of another op of the same name, nor what is no op's."""
    kind = type(node.op)
    name = kind.__name__.lower()
    known = getattr(graph_ops, kind.__name__, kind) is kind and not hasattr(Kernels, name)
    if not known or not hasattr(kernels, name):
        got = name if known else f"{kind.__module__}.{kind.__name__}, a name that is taken"
        raise UnsupportedError(node.name, f"an op of {type(kernels).__name__}", got, "choose another simulator")
    return getattr(kernels, name)
