"""What a simulation gives back, and the HDF5 format in which every simulator and notebook keeps it.

B streams, T steps, n units. File: attributes `format`, `graph`, `simulator`; dataset `tokens` [B, T]; group
`signals` with one dataset [B, T, n] for each "node.port" and the attributes `kind` and `rank`, its place in the order
of evaluation, which older files lack; group `state`, what to carry on.

An artefact holds the same as safetensors, `trace_tensors`: it is read before anything is trusted, and reading damaged
HDF5 was seen to stall.
"""

import contextlib
import fnmatch
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.events import Events
from rheobase.spiking.files import write_atomic
from rheobase.spiking.hdf5 import open_hdf5
from rheobase.spiking.registry import nearest
from rheobase.spiking.tally import Tally

FORMAT = "rheobase-trace/1"
TRACE, TOKENS = "trace.safetensors", "tokens"


class Later(Mapping):
    """A table whose entries are made when they are first asked for; makers: name -> function."""

    def __init__(self, makers: Mapping[str, Callable[[], object]]):
        self._entries: dict = dict(makers)

    def __getitem__(self, name: str):
        entry = self._entries[name]
        if callable(entry):  # no array and no events are; it stays where it raises
            entry = self._entries[name] = entry()
        return entry

    def __iter__(self):
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self):
        return dict, (dict(self),)


@dataclass(frozen=True, eq=False)
class Trace:
    """The result of a simulation; what a GPU found comes to the host when it is first asked for.

    outputs   graph output name -> array [B, T, n], such as "logits"
    events    "node.port" -> Events, for every output that sends events
    state     "node.port" -> array [B, n], to carry on with
    tally     what it took, or None where the simulator does not count
    recorded  "node.port" -> array [B, T, n] of what `record` asked for, in the order of evaluation
    """

    outputs: Mapping[str, np.ndarray]
    events: Mapping[str, Events]
    state: Mapping[str, np.ndarray]
    tally: Tally | None = None
    recorded: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StoredTrace:
    """A trace as it lies in a file: tokens [B, T], or frames [B, T, C, H, W], signals "node.port" -> array, final
    state, kinds and origin.

    ordered  whether the signals are in the order of evaluation; False of a file that does not say it
    """

    tokens: np.ndarray
    signals: Mapping[str, np.ndarray]
    state: Mapping[str, np.ndarray]
    kinds: Mapping[str, str]
    graph: str
    simulator: str
    ordered: bool = True


def expand(patterns: Iterable[str], available: Iterable[str]) -> list[str]:
    """Those of some names, in their order, that are a pattern as it stands, or else match it, a shell pattern with
    {a,b} alternatives; raises ConfigError where one matches nothing."""
    available, found = list(available), set()
    for pattern in patterns:
        if pattern in available:
            found.add(pattern)
            continue
        pieces = re.split(r"\{([^}]*)\}", pattern)
        choices = [p.split(",") if i % 2 else [p] for i, p in enumerate(pieces)]
        names = [n for c in itertools.product(*choices) for n in fnmatch.filter(available, "".join(c))]
        if not names:
            raise ConfigError("record", "a node's output", repr(pattern), nearest(pattern, available))
        found.update(names)
    return [name for name in available if name in found]


def trace_bytes(trace: StoredTrace) -> bytes:
    """The HDF5 file of a trace, the same bytes for the same trace."""
    import h5py

    buffer, ranks = io.BytesIO(), {name: rank for rank, name in enumerate(trace.signals)}
    with h5py.File(buffer, "w", track_order=False) as file:
        file.attrs["format"], file.attrs["graph"], file.attrs["simulator"] = (
            FORMAT,
            trace.graph,
            trace.simulator,
        )
        file.create_dataset("tokens", data=trace.tokens, track_times=False)
        for group, table in (("signals", trace.signals), ("state", trace.state)):
            made = file.create_group(group)
            for name in sorted(table):
                stored = made.create_dataset(name, data=table[name], track_times=False)
                if name in trace.kinds:
                    stored.attrs["kind"] = trace.kinds[name]
                if group == "signals" and trace.ordered:
                    stored.attrs["rank"] = ranks[name]
    return buffer.getvalue()


def save_trace(path: str | Path, trace: StoredTrace) -> None:
    """Write a trace, whole or not at all."""
    write_atomic(path, trace_bytes(trace))


@contextlib.contextmanager
def open_trace(path: str | Path):
    """Yield a trace's open `Hdf5` file; raises FormatError where it is no trace, now or at what is read of it."""
    with open_hdf5(path, path, "a trace in HDF5") as file:
        said = file.items[""].attributes
        if said.get("format") != FORMAT or not all(isinstance(said.get(n), str) for n in ("graph", "simulator")):
            raise FormatError(path, FORMAT, repr(said)[:200], "record it with this version")
        yield file


def load_trace(path: str | Path) -> StoredTrace:
    """Read a trace; raises FormatError where the file is not one."""
    with open_trace(path) as file:
        tensors = {p: file.read(p) for p in file.items if p.startswith(("signals/", "state/"))}
        said = file.items[""].attributes
        attributes = {p.removeprefix("signals/"): i.attributes for p, i in file.items.items() if p in tensors}
        kinds = {name: a["kind"] for name, a in attributes.items() if "kind" in a}
        tokens = file.read("tokens")
        frames = tokens.ndim == 5 and tokens.dtype.kind in "iuf"
        ranks = {name: a.get("rank") for name, a in attributes.items() if f"signals/{name}" in tensors}
        whole = all(type(rank) is int for rank in ranks.values())
        order = sorted(ranks, key=ranks.__getitem__) if whole else None
        return _stored(path, tokens, tensors, kinds, said["graph"], said["simulator"], order, frames=frames)


def trace_tensors(trace: StoredTrace) -> bytes:
    """A trace as safetensors: `tokens`, `signals/NAME`, `state/NAME`, and the rest as JSON, always the same bytes."""
    from safetensors.numpy import save

    rest = {"format": FORMAT, "graph": trace.graph, "simulator": trace.simulator, "kinds": dict(trace.kinds)}
    rest |= {"order": list(trace.signals)} if trace.ordered else {}
    tables = {"signals": trace.signals, "state": trace.state}
    tensors = {f"{group}/{name}": array for group, table in tables.items() for name, array in table.items()}
    tensors = {name: np.ascontiguousarray(array) for name, array in {"tokens": trace.tokens, **tensors}.items()}
    return save(tensors, {"trace": json.dumps(rest)})


def read_trace_tensors(data: bytes, where: object) -> StoredTrace:
    """Read `trace_tensors`; raises FormatError where it is not one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
        rest = json.loads(header["__metadata__"]["trace"])
        known, kinds, graph, simulator = (rest[name] for name in ("format", "kinds", "graph", "simulator"))
        tokens = tensors.pop("tokens")
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise _refusal(where, "a trace in safetensors", f"{type(error).__name__}: {error}") from None
    if known != FORMAT or type(graph) is not str or type(simulator) is not str or type(kinds) is not dict:
        raise _refusal(where, FORMAT, rest)
    order = rest.get("order")
    named = sorted(name.removeprefix("signals/") for name in tensors if name.startswith("signals/"))
    if order is not None and (type(order) is not list or sorted(map(str, order)) != named):
        raise _refusal(where, "each signal once in the order of evaluation", str(order)[:200])
    return _stored(where, tokens, tensors, kinds, graph, simulator, order)


def _stored(where, tokens, tensors, kinds, graph, simulator, order, *, frames: bool = False) -> StoredTrace:
    """A trace of tensors "signals/NAME" and "state/NAME", once their shapes are checked.

    order  the signals as they are evaluated, or None
    """
    if not frames and (tokens.ndim != 2 or tokens.dtype.kind not in "iu"):
        raise _refusal(where, "integer tokens [B, T]", f"{tokens.dtype} {tokens.shape}")
    tables: dict[str, dict[str, np.ndarray]] = {"signals": {}, "state": {}}
    for name, array in tensors.items():
        group, _, own = name.partition("/")
        if group not in tables or (group == "signals" and (array.ndim != 3 or array.shape[:2] != tokens.shape[:2])):
            raise _refusal(where, "signals [B, T, n] of these tokens, and a state", f"{name} {array.shape}")
        tables[group][own] = array
    if order is not None:
        tables["signals"] = {name: tables["signals"][name] for name in order}
    return StoredTrace(tokens, **tables, kinds=kinds, graph=graph, simulator=simulator, ordered=order is not None)


def _refusal(where: object, expected: str, got: object) -> FormatError:
    return FormatError(where, expected, str(got), "record it anew")


def artifact_trace(artifact) -> StoredTrace:
    """The recorded trace of an exported directory, its file `TRACE`."""
    return read_trace_tensors(artifact.read(TRACE), artifact.path / TRACE)


@dataclass(frozen=True)
class Mismatch:
    """The first place where two signals differ; the node is TOKENS where it is what they were fed."""

    step: int
    node: str
    unit: int
    expected: float
    got: float
    stream: int = 0

    def __str__(self):
        if self.node == TOKENS:
            place = "".join(f", {name} {n}" for name, n in (("stream", self.stream), ("unit", self.unit)) if n)
            return f"{TOKENS}: step {self.step}{place}: expected {self.expected}, got {self.got}"
        return f"step {self.step}, node {self.node}, unit {self.unit}: expected {self.expected}, got {self.got}"


def compare(
    expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], order=None, steps=None
) -> tuple[int, int, Mismatch | None]:
    """Compare signals [B, T, n] exactly, by name; a NaN is the same as a NaN.

    order    the names from the first to be computed to the last, so that of one step the cause is named first
    steps    name -> the rising step of each of its T rows, where these are not 0, 1, 2 and so on
    returns  (numbers compared, numbers that differ, the first difference in time)
    raises   FormatError: other names or other shapes
    """
    if set(expected) != set(got):
        raise FormatError("traces", f"the signals {sorted(expected)}", f"{sorted(got)}", "record the same ones")
    ahead = dict.fromkeys(name for name in order or () if name in expected)
    names = [*ahead, *(name for name in expected if name not in ahead)]
    compared = different = 0
    first: tuple | None = None
    for rank, name in enumerate(names):
        a, b = expected[name], got[name]
        if a.shape != b.shape:
            raise FormatError(f"traces: {name}", f"shape {a.shape}", f"{b.shape}", "record the same tokens")
        compared += a.size
        unequal = (a != b) & ~((a != a) & (b != b))
        different += int(unequal.sum())
        if unequal.any():
            row = int(np.flatnonzero(unequal.any((0, 2)))[0])
            stream, unit = np.argwhere(unequal[:, row])[0]
            step = int(steps[name][row]) if steps and name in steps else row
            if first is None or (step, rank) < first[0]:
                values = a[stream, row, unit].item(), b[stream, row, unit].item()
                first = (step, rank), Mismatch(step, name, int(unit), *values, int(stream))
    return compared, different, first[1] if first else None
