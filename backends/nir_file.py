"""NIR files of strangers, read in a process of its own (`_hdf5.py`) with a limit of time, and their nodes in order."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from rheobase.backends import _hdf5
from rheobase.spiking.errors import FormatError, UnsupportedError
from rheobase.spiking.files import read_bytes

SECONDS, BYTES_A_SECOND, PATIENCE = 10, 1e7, 600.0
"""of the processor for one file, of which a small one takes a fraction of one; and of the clock for any"""


def load_nir():
    """The library; raises UnsupportedError with the pip command where it is not there."""
    try:
        import nir
    except ModuleNotFoundError:
        raise UnsupportedError("nir", "the library", "none installed", 'pip install "nir>=1.0.8"') from None
    return nir


def read_nir(source: str | Path | bytes):
    """The nir.NIRGraph of a file, or of its bytes.

    raises  FormatError: no NIR, a link out of the file, more numbers than the file can hold, or it takes too long
    """
    nir, where = load_nir(), source if isinstance(source, str | Path) else "net.nir"
    tree = _tree(where, source).get("d", {})
    try:
        graph = nir.dict2NIRNode({**tree["node"], "type_check": False})
    except Exception as error:  # asserts, attribute and type errors of the library on what is not NIR
        got = f"{type(error).__name__}: {error}"[:200]
        raise FormatError(where, "a graph as NIR writes it", got, "write it anew") from None
    if not isinstance(graph, nir.NIRGraph):
        raise FormatError(where, "a NIRGraph", type(graph).__name__, "wrap the node in a graph")
    return graph


def read_nirdata(source: str | Path | bytes) -> dict[str, dict]:
    """Observations of a `.nirdata` file, or of its bytes: node -> observable -> what NIR keeps of it.

    raises  FormatError, as `read_nir`;  UnsupportedError: a sub-graph
    """
    nir, where = load_nir(), source if isinstance(source, str | Path) else "events.nirdata"
    tree = _tree(where, source)
    try:
        data, attributes, found = tree["d"]["nodes"], tree["a"]["nodes"], {}
        for name, node in data.items():
            if attributes[name]["__type__"] != "NIRNodeData":
                raise UnsupportedError(where, "nodes", f"a sub-graph {name}", "write it flat")
            said = attributes[name]["observables"]
            found[name] = {k: _observable(nir, arrays, said[k]) for k, arrays in node["observables"].items()}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise FormatError(where, "events as NIR writes them", got, "write them anew") from None
    return found


def _observable(nir, arrays, said):
    kinds = {kind.__name__: kind for kind in (nir.TimeGriddedData, nir.EventData, nir.ValuedEventData)}
    numbers = {k: float(v) if k in ("dt", "t_max") else int(v) for k, v in said.items() if k != "__type__"}
    return kinds[said["__type__"]](**arrays, **numbers)


def _tree(where, source) -> dict:
    """Nested tables of a file's arrays; one number, or text, is itself."""
    data = source if isinstance(source, bytes) else read_bytes(source, "a NIR file")
    if len(data) > _hdf5.MOST_BYTES:
        raise FormatError(where, f"at most {_hdf5.MOST_BYTES} bytes", str(len(data)), "do not use it")
    limit = SECONDS + int(len(data) / BYTES_A_SECOND)
    program = [sys.executable, "-P", _hdf5.__file__, str(limit)]
    try:
        done = subprocess.run(program, input=data, capture_output=True, timeout=PATIENCE)
        ended = f"status {done.returncode}" if done.returncode or not done.stdout else None
    except subprocess.TimeoutExpired:
        ended = f"nothing in {PATIENCE:g} s"
    if ended:
        raise FormatError(where, f"HDF5 that is read in {limit} s", f"{ended} of the reader", "do not use it")
    if done.stdout[:1] == b"[":
        raise FormatError(where, *json.loads(done.stdout), "do not use it, or write it anew")
    tree: dict = {}
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
        for path in arrays.files:
            *parents, name = path.split("/")
            inner = tree
            for parent in parents:
                inner = inner.setdefault(parent, {})
            value = arrays[path][()]
            inner[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return tree


def step_order(nodes, edges) -> tuple[list[str], set[tuple[str, str]]]:
    """Nodes in the order of a step, and the edges that close a cycle: depth first from the inputs on."""
    order, late, state = [], set(), {}
    after = {name: [b for a, b in edges if a == name] for name in nodes}
    for start in sorted(nodes, key=lambda n: type(nodes[n]).__name__ != "Input"):
        stack = [(start, iter(after[start]))] if start not in state else []
        state.setdefault(start, "open")
        while stack:
            name, rest = stack[-1]
            for nxt in rest:
                if state.get(nxt) == "open":
                    late.add((name, nxt))
                elif nxt not in state:
                    state[nxt] = "open"
                    stack.append((nxt, iter(after[nxt])))
                    break
            else:
                state[name] = "done"
                order.append(name)
                stack.pop()
    return order[::-1], late
