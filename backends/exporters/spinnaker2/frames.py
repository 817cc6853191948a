"""Frames for an image, whose host sends the rows of a table: the frames of some recordings become such rows.

B recordings, T frames of each.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rheobase.spiking.graph import Edge, Embedding, EventGraph, Frames, Node, Tokens
from rheobase.spiking.tally import BINARY, DENSE


def as_tokens(graph: EventGraph, *frames: np.ndarray) -> tuple[EventGraph, Sequence[np.ndarray]]:
    """A graph that reads frames as one that reads their numbers, and each array of frames as such numbers.

    The input becomes a token and an embedding of its name, whose row i is frame i. What the host sends for a token is
    then what it would send for the frame: an event for each pixel that is not 0.

    frames   [B, T, C, H, W] each
    returns  (a graph with Tokens in place of Frames, [B, T] int64 for each array); a graph that reads none as it was
    """
    (source,) = [n for n in graph.nodes if isinstance(n.op, Frames)] or [None]
    if source is None:
        return graph, frames
    rows = [source.op.accept(source.name, np.asarray(f)) for f in frames]
    table = np.concatenate([r.reshape(-1, r.shape[-1]) for r in rows]).astype(np.float32)
    starts = np.cumsum([0, *(r.shape[0] * r.shape[1] for r in rows)])
    numbers = [
        start + np.arange(r.shape[0] * r.shape[1]).reshape(r.shape[:2]) for start, r in zip(starts, rows, strict=False)
    ]
    token, name = f"{source.name}.number", f"{source.name}.table"
    nodes = [Node(token, Tokens(len(table))), Node(source.name, Embedding(), {"table": name})]
    edges = [Edge(f"{token}.out", f"{source.name}.token", BINARY, (len(table),))]
    edges += [replace(e, kind=DENSE) if e.source == f"{source.name}.out" else e for e in graph.edges]
    nodes += [n for n in graph.nodes if n is not source]
    return replace(graph, nodes=tuple(nodes), edges=tuple(edges), arrays={**graph.arrays, name: table}), numbers
