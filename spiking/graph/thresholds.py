"""A graph with its thresholds moved, to simulate and bill again without training."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from rheobase.spiking.errors import GraphError
from rheobase.spiking.graph.cells import CubaLIFCell, EGRUCell, LIFCell
from rheobase.spiking.graph.event_graph import EventGraph


def move_thresholds(graph: EventGraph, by: float, nodes: Iterable[str] | None = None) -> EventGraph:
    """A copy in which the neurons' thresholds lie `by` higher; all else is the same.

        theta' = theta + by                     of LIF units (binary, ternary, graded, with a synapse)
        thr' = min(max(thr + by, 0), 1)         of EGRU units, whose thresholds stay in [0, 1] (`EGRU.project_`)

    nodes: the names of the neurons to move; None: all. An array that neurons which stay share is copied for those that
    move. Raises GraphError: a name is no neuron with a threshold, there is none, or a LIF threshold would not be
    above 0.
    """
    own = {n.name: n for n in graph.nodes if isinstance(n.op, LIFCell | CubaLIFCell | EGRUCell)}
    chosen = set(own if nodes is None else nodes)
    if wrong := sorted(chosen - set(own)):
        raise GraphError(f"node {wrong[0]!r}", "neurons with a threshold", "none", f"name some of {sorted(own)[:8]}")
    if not chosen:
        raise GraphError("move_thresholds", "a graph with LIF or EGRU neurons", "none", "give another graph")
    arrays, changed = dict(graph.arrays), {}
    stay = {array for n in graph.nodes if n.name not in chosen for array in n.arrays.values()}
    for name in sorted(chosen):
        node, egru = own[name], isinstance(own[name].op, EGRUCell)
        role = "thr" if egru else "theta"
        if role in node.arrays:
            source = node.arrays[role]
            old = graph.arrays[source]
            moved = old + old.dtype.type(by)
            target = f"{name}.moved_{role}" if source in stay else source
            arrays[target] = np.clip(moved, 0, 1) if egru else moved
            changed[name] = dataclasses.replace(node, arrays={**node.arrays, role: target})
        else:
            moved = np.array(node.op.theta + by)
            changed[name] = dataclasses.replace(node, op=dataclasses.replace(node.op, theta=float(moved)))
        if not egru and not (moved > 0).all():
            got, remedy = f"{moved.min():g}", "move them less far"
            raise GraphError(f"{name} threshold", "thresholds above 0", got, remedy)
    nodes = tuple(changed.get(n.name, n) for n in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes, arrays=arrays)
