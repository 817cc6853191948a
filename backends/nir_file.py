"""NIR files of strangers, read in a process of its own (`spiking.hdf5`), and their nodes in order."""

from pathlib import Path

from rheobase.spiking.errors import FormatError, UnsupportedError
from rheobase.spiking.hdf5 import MOST_BYTES, open_hdf5


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
    """Nested tables of a file's arrays, "d", and attributes, "a"; one number, or text, is itself."""
    tree: dict = {"a": {}, "d": {}}
    with open_hdf5(source, where) as file:
        size = sum(item.nbytes for item in file.items.values() if item.shape is not None)
        if size > min(MOST_BYTES, file.most):
            raise FormatError(where, "no more numbers than bytes", f"{size} bytes", "do not use it, or write it anew")
        for path, item in file.items.items():
            names = path.split("/") if path else []
            if item.attributes:
                _inner(tree["a"], names).update(item.attributes)
            if item.shape is not None:
                value = file.read(path)[()]
                text = value.decode(errors="replace") if isinstance(value, bytes) else value
                _inner(tree["d"], names[:-1])[names[-1]] = text
    return tree


def _inner(table: dict, names: list[str]) -> dict:
    for name in names:
        table = table.setdefault(name, {})
    return table


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
