"""A graph on disk: a folder with `graph.json` (nodes, edges, outputs, types of arrays) and `arrays.safetensors`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rheobase.spiking import graph as ops
from rheobase.spiking.config import from_table
from rheobase.spiking.errors import ConfigError, FormatError, UnsupportedError
from rheobase.spiking.files import new_folder, read_bytes
from rheobase.spiking.graph.event_graph import Edge, EventGraph, Node
from rheobase.spiking.graph.op import Op

FORMAT = "rheobase-graph/1"
TABLE, ARRAYS = "graph.json", "arrays.safetensors"
MOST_BYTES = 1 << 30
_OPS = {k: v for k, v in vars(ops).items() if isinstance(v, type) and issubclass(v, Op)}


def graph_table(graph: EventGraph) -> dict:
    """Everything of a graph but the numbers in its arrays, as a table for JSON.

    raises  UnsupportedError: an op that is none of `spiking.graph`, such as those of a quantised graph
    """
    for node in graph.nodes:
        if _OPS.get(type(node.op).__name__) is not type(node.op):
            what = f"{type(node.op).__name__}, an op of a backend"
            raise UnsupportedError(node.name, "an op of spiking.graph", what, "store the graph before it is quantised")
    return {
        "format": FORMAT,
        "hash": graph.hash(),
        "nodes": [
            {"name": n.name, "op": type(n.op).__name__, "fields": dataclasses.asdict(n.op), "arrays": dict(n.arrays)}
            for n in graph.nodes
        ],
        "edges": [dataclasses.astuple(e) for e in graph.edges],
        "outputs": dict(graph.outputs),
        **({} if graph.dt_s is None else {"dt_s": graph.dt_s}),
    }


def graph_of(table: object, arrays: Mapping[str, np.ndarray], where: object) -> EventGraph:
    """The graph of a table and its arrays; raises FormatError where they are none, or not those that were stored."""
    try:
        if table["format"] != FORMAT:
            raise FormatError(where, FORMAT, repr(table["format"]), "store it with this version")
        nodes = tuple(Node(n["name"], _op(n["op"], n["fields"]), dict(n["arrays"])) for n in table["nodes"])
        edges = tuple(Edge(s, t, kind, tuple(shape), delay) for s, t, kind, shape, delay in table["edges"])
        dt_s = table.get("dt_s")
        if dt_s is not None and not (isinstance(dt_s, float) and 0 < dt_s < float("inf")):
            raise FormatError(where, "a step of some seconds", f"dt_s {dt_s!r}", "store it anew")
        graph = EventGraph(nodes, edges, arrays, dict(table["outputs"]), dt_s)
        stored, found = table["hash"], graph.hash()
    except FormatError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        got = f"{type(error).__name__}: {error}"
        raise FormatError(where, "the table of a graph", got, "store it anew") from None
    if stored != found:
        raise FormatError(where, f"a graph of hash {str(stored)[:12]}…", f"{found[:12]}…", "store it anew")
    return graph


def _op(name: str, fields: Mapping) -> Op:
    if name not in _OPS:
        raise ConfigError("op", f"one of {', '.join(sorted(_OPS))}", repr(name), "store it with this version")
    from_table(_OPS[name], fields, name)  # checks; the numbers stay as they are, since the hash tells 2 from 2.0
    return _OPS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def save_graph(path: str | Path, graph: EventGraph) -> None:
    """Write a graph as a folder that does not exist yet, whole or not at all."""
    table = graph_table(graph)
    with new_folder(path) as folder:
        (folder / TABLE).write_text(json.dumps(table, indent=1))
        (folder / ARRAYS).write_bytes(arrays_bytes(graph.arrays))


def load_graph(path: str | Path) -> EventGraph:
    """Read what `save_graph` wrote; raises FormatError where it is damaged or something else."""
    folder = Path(path)
    return graph_of(parse_table(read_file(folder / TABLE), folder / TABLE), read_arrays(folder / ARRAYS), folder)


def is_graph(path: str | Path) -> bool:
    """Whether a folder looks like one of `save_graph`."""
    return (Path(path) / TABLE).is_file() and (Path(path) / ARRAYS).is_file()


def parse_table(data: bytes, where: object) -> object:
    """JSON as a table; raises FormatError."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(where, "JSON", f"{type(error).__name__}: {error}", "store it anew") from None


def arrays_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as safetensors."""
    return save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def arrays_of_bytes(data: bytes, where: object) -> dict[str, np.ndarray]:
    """What `arrays_bytes` wrote; raises FormatError where it is no safetensors."""
    try:
        return load_tensors(data)
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise FormatError(where, "arrays as safetensors", str(error), "store it anew") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; raises FormatError."""
    return arrays_of_bytes(read_file(path), path)


def read_file(path: Path) -> bytes:
    """A file of at most a gibibyte; raises FormatError."""
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise FormatError(path, f"at most {MOST_BYTES} bytes", str(path.stat().st_size), "do not use it")
    return read_bytes(path, "a stored graph")
