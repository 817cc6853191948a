"""Graphs that come from other tools: importing them, and what the commands do with a stored graph in place of a run."""

from pathlib import Path

import numpy as np

from rheobase.answer import Answer
from rheobase.backends import simulate
from rheobase.backends.artifact import MANIFEST, open_artifact
from rheobase.backends.exporters import nir as nir_exporter
from rheobase.backends.importers.nir import import_file
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.files import array_of_npy, read_bytes
from rheobase.spiking.graph import EventGraph
from rheobase.spiking.graph.stored import load_graph, save_graph
from rheobase.spiking.tally import Tally


def import_(args) -> Answer:
    """Read a .nir file, an exported directory of NIR, or a network `file.py:name`, and store its graph."""
    graph = _read(args)
    save_graph(args.out, graph)
    kinds = [type(n.op).__name__ for n in graph.nodes]
    numbers = sum(a.size for a in graph.arrays.values())
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    text = f"{args.out}: graph {graph.hash()[:12]}, {numbers:,} numbers: {counted}"
    nodes = {n.name: repr(n.op) for n in graph.nodes}
    return Answer({"path": args.out, "graph": graph.hash(), "numbers": numbers, "nodes": nodes}, text)


def _read(args) -> EventGraph:
    path = Path(args.source)
    of_file = {"dt_s": args.dt, "written_by": args.written_by}
    of_module = {"shape": tuple(args.shape) if args.shape else None}
    if (path / MANIFEST).is_file():
        _refuse(args.source, of_file | of_module | {"input_kind": args.input_kind})
        artifact = open_artifact(path)
        if artifact.manifest.get("exporter") != "nir":
            got = repr(artifact.manifest.get("exporter"))
            raise FormatError(path, "a directory exported to nir", got, "import its run's own export to nir")
        return nir_exporter.rejoin(artifact)
    if ".py:" in args.source:
        from rheobase.backends.importers.torch import import_named

        _refuse(args.source, of_file)
        return import_named(args.source, input_kind=args.input_kind, **of_module)
    if path.suffix == ".py":
        raise ConfigError("import", "FILE.py:NAME", args.source, "name the network in it, or what makes it")
    _refuse(args.source, of_module)
    return import_file(path, input_kind=args.input_kind, **of_file)


def _refuse(source: str, options: dict) -> None:
    given = [f"--{name.removesuffix('_s').replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise ConfigError("import", f"options with an effect on {source}", ", ".join(given), "leave them out")


def feed(graph: EventGraph, path: str | None, steps: int) -> tuple[np.ndarray, str]:
    """What a stored graph is fed, and in words: a .npy file [B, T, ...], or noise of a fixed seed."""
    if path is None:
        return nir_exporter.probe(graph, steps), f"{steps:,} steps of noise (seed 0; --input feeds yours)"
    values = array_of_npy(read_bytes(path, "an array"), path, "an array [B, T, ...] in .npy")
    if values.ndim < 2 or values.dtype.kind not in "iufb":
        raise FormatError(path, "numbers [B, T, ...] in .npy", f"{values.dtype} {values.shape}", "save them so")
    steps = values.shape[1]
    size = next((n.op.size for n in graph.nodes if hasattr(n.op, "size") and len(n.op.size) == 3), None)
    if values.ndim == 3 and size is not None and size[1:] == (1, 1):
        values = values[..., None, None]
    return values, f"{steps:,} steps of {path}"


def tally_of(path: str, given: str | None, steps: int) -> Tally:
    """What the event simulator counts of a stored graph."""
    graph = load_graph(path)
    return simulate(graph, feed(graph, given, steps)[0]).tally


def refuse_input(args, stored: bool) -> None:
    if args.input and not stored:
        raise ConfigError("--input", "a graph stored by import", f"the run {args.run}", "leave it out")
