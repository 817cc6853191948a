"""The commands that say what a path holds, and where two differ."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from rheobase.answer import Answer
from rheobase.backends.artifact import MANIFEST, Artifact, open_artifact
from rheobase.backends.exporters import spinnaker2
from rheobase.backends.exporters.spinnaker2 import overview as image_overview
from rheobase.backends.exporters.spinnaker2 import picture
from rheobase.backends.exporters.spinnaker2.estimate import LEVELS, read_levels
from rheobase.backends.exporters.spinnaker2.firmware import missing_to_compile
from rheobase.backends.exporters.spinnaker2.firmware.memory import footprint
from rheobase.backends.trace import TOKENS, TRACE, StoredTrace, artifact_trace, compare, load_trace
from rheobase.models import SpikeGPT
from rheobase.models.training.run import Run
from rheobase.models.training.token_folder import is_prepared
from rheobase.preparing import inspect_tokens
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.graph.stored import is_graph, load_graph


def inspect(args) -> Answer:
    path = Path(args.path)
    if (path / MANIFEST).is_file():
        return _inspect_artefact(open_artifact(path), args.out, args.target)
    if args.out or args.target:
        raise ConfigError("inspect --out, --target", "an exported directory", str(path), "leave it out")
    if is_prepared(path):
        return inspect_tokens(path)
    if path.suffix in (".pt", ".pth"):
        lines = []
        model = SpikeGPT.from_reference(path, binary_embedding=True, say=lines.append)
        lines.append("a SpikeGPT of the original; whether its embedding is binary the file does not say")
        return Answer({"kind": "spikegpt", "config": dataclasses.asdict(model.config)}, "\n".join(lines))
    if path.suffix in (".h5", ".hdf5"):
        trace = load_trace(path)
        lines = [f"trace of {trace.tokens.shape[1]} tokens on {trace.simulator}, graph {trace.graph[:12]}"]
        lines += [f"  {name:<28}{a.dtype!s:<10}{a.shape}" for name, a in trace.signals.items()]
        shapes = {name: a.shape for name, a in trace.signals.items()}
        return Answer({"kind": "trace", "tokens": trace.tokens.shape, "signals": shapes}, "\n".join(lines))
    if is_graph(path):
        graph = load_graph(path)
        lines = [f"graph {graph.hash()[:12]}", *(f"  {n.name:<28}{n.op}" for n in graph.nodes)]
        return Answer({"kind": "graph", "graph": graph.hash()}, "\n".join(lines))
    run = Run.open(path)
    m = run.metrics()
    return Answer(
        {"kind": "run", "config": run.config.to_table(), "metrics": m},
        f"{run.config_path.read_text()}\n{json.dumps(m, indent=2)}",
    )


def _inspect_artefact(artifact: Artifact, out: str | None, target: str | None) -> Answer:
    """Files and coverage; of a SpiNNaker 2 image its overview, the firmware's memory and a picture too."""
    m = artifact.manifest
    image = m["exporter"] == "spinnaker2"
    if (out or target) and not image:
        raise ConfigError("inspect --out, --target", "a SpiNNaker 2 image", m["format"], "leave it out")
    view = spinnaker2.describe(artifact, read_levels(target) if target else LEVELS) if image else None
    lines = [f"{m['format']} by rheobase {m['version']}, graph {m['graph'][:12]}", *m.get("notes", ())]
    lines += [f"  {n:<22}{entry['bytes']:>10,} bytes" for n, entry in m["files"].items() if not n.startswith("pe/")]
    lines += [f"  {node:<28}{where}" for node, where in m["coverage"].items()]
    table = {"kind": "artefact", "manifest": m}
    if view:
        lines.append(image_overview.text(view))
        table |= image_overview.table(view)
    if view and (lacking := missing_to_compile()):
        lines.append(f"firmware: not measured, since {lacking} is not installed")
    elif view:
        table["firmware"] = dataclasses.asdict(memory := footprint())
        lines.append(str(memory))
    if out:
        picture.draw(view, out)
        lines.append(f"drawn in {out}")
    return Answer(table, "\n".join([*lines, f"not claimed: {m['not_claimed']}"]))


def diff(args) -> Answer:
    a, b = (_side(Path(p)) for p in (args.a, args.b))
    if a.log and a.log == b.log and a.steps[a.log] != b.steps[a.log]:
        had, got = (side.steps[a.log] for side in (a, b))
        row = next((i for i, (s, t) in enumerate(zip(had, got, strict=False)) if s != t), min(len(had), len(got)))
        said = [f"step {side[row]}" if row < len(side) else "its end" for side in (had, got)]
        raise FormatError(f"diff: {a.log}, record {row + 1}", *said, "train both by the same [train]")
    compared, different, first = compare(a.signals, b.signals, a.order or b.order, a.steps)
    lines = [f"{compared:,} numbers compared, {different:,} differ"] + ([f"first: {first}"] if first else [])
    graphs = None
    if a.graph is not None and b.graph is not None:
        graphs = {"expected": a.graph, "got": b.graph, "same": a.graph == b.graph}
        lines += [] if graphs["same"] else [f"of two graphs: expected {a.graph[:12]}, got {b.graph[:12]}"]
    table = {"compared": compared, "different": different, "first": vars(first) if first else None, "graph": graphs}
    return Answer(table, "\n".join(lines), ok=different == 0)


@dataclasses.dataclass(frozen=True)
class _Side:
    """One of two things to compare.

    signals  name -> [B, T, n], with what a trace was fed as TOKENS
    order    the names in the order of evaluation, or () where it is not known
    graph    of a trace, its id
    steps    of a run, the step of each row by name;  log: the name of its losses
    """

    signals: dict[str, np.ndarray]
    order: tuple[str, ...] = ()
    graph: str | None = None
    steps: dict[str, list[int]] | None = None
    log: str | None = None


def _side(path: Path) -> _Side:
    """Of a trace, of an artefact's trace, or of a run: its log by step, and its weights at their step."""
    if path.suffix in (".h5", ".hdf5"):
        return _of_trace(load_trace(path))
    if (path / MANIFEST).is_file():
        artifact = open_artifact(path)
        if TRACE not in artifact.manifest["files"]:
            remedy = "diff what `rheobase simulate --record` gives of each"
            raise ConfigError("diff", "a recorded trace", f"{path}, {artifact.manifest['format']} without one", remedy)
        order = artifact.manifest.get("order")
        return _of_trace(artifact_trace(artifact), map(str, order) if isinstance(order, list) else ())
    run = Run.open(path)
    log, rows = f"log.{run.measure}", [r for r in run.log() if run.measure in r]
    losses = np.array([r[run.measure] for r in rows])
    weights = {f"model.{k}": v.double().numpy().reshape(1, 1, -1) for k, v in run.model().state_dict().items()}
    logged = [r["step"] for r in rows]
    steps = {log: logged} | dict.fromkeys(weights, [run.metrics().get("best_step", max(logged, default=0))])
    return _Side({log: losses.reshape(1, -1, 1), **weights}, steps=steps, log=log)


def _of_trace(trace: StoredTrace, order=()) -> _Side:
    """order  the order of evaluation where the trace itself does not say it"""
    tokens = np.reshape(trace.tokens, (*trace.tokens.shape[:2], -1))
    order = (TOKENS, *(trace.signals if trace.ordered else order))
    return _Side({TOKENS: tokens, **trace.signals}, order if len(order) > 1 else (), trace.graph)
