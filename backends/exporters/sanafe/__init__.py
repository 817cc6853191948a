"""Spiking layers for SANA-FE (GPL-3, PyPI `sanafe`), on the Loihi that its wheel ships: a check from outside.

Exported is every LIF cell whose input is a sum of products of binary events. What spikes into them from the rest of
the model is a train of spikes, as the event simulator gives it in float64; what the cells fire there is recorded, and
`verify` has SANA-FE fire it.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from rheobase.backends.artifact import MANIFEST, Artifact, Report, write_artifact
from rheobase.backends.counting import price
from rheobase.backends.exporters._graphs import require_calibration, require_finite
from rheobase.backends.exporters.sanafe.cells import cells_of, levels_of, precision_of
from rheobase.backends.exporters.sanafe.network import build
from rheobase.backends.simulators import simulate
from rheobase.backends.trace import TRACE, StoredTrace, artifact_trace, compare, trace_tensors
from rheobase.spiking.errors import FormatError, LossyExportError, UnsupportedError
from rheobase.spiking.graph import EventGraph
from rheobase.spiking.tally import Tally

FORMAT, NETWORK, TARGET = "sanafe/1", "network.yaml", "loihi1"
STEPS = 1024


def export(
    graph: EventGraph, out: str | Path, *, calibration=None, allow_lossy: bool = False, version: str = ""
) -> Artifact:
    """Write the artefact directory `out`: manifest, its hash, NETWORK with the trains of spikes, and TRACE.

    calibration  what the graph is fed, [B, T, ..]: up to STEPS steps of its first stream are run and recorded
    allow_lossy  even where a membrane came so near its threshold that SANA-FE's cut of it may decide
    returns      the Artifact; its manifest says of each node whether it is exported, or why not
    raises       UnsupportedError: no cell that SANA-FE can run, one that is reached over paths of different lengths,
                 numbers that are not finite, or too many units or synapses;  LossyExportError: such a membrane;
                 ConfigError: no calibration
    """
    require_finite(graph)
    given = require_calibration("sanafe export", calibration)[:1, :STEPS]
    cells, reasons = cells_of(graph)
    if not cells:
        last = {why: name for name, why in reasons.items()}
        got = "; ".join(f"{name}, which {why}" for why, name in last.items()) or "no LIF cell"
        raise UnsupportedError("sanafe export", "a LIF cell that reads weights of binary events", got, "export another")
    levels, steps = levels_of(cells), given.shape[1]
    wide = dataclasses.replace(graph, arrays={name: np.asarray(a, np.float64) for name, a in graph.arrays.items()})
    wanted = {f"{c.name}.{port}" for c in cells for port in "sv"} | {c.drive for c in cells}
    run = simulate(wide, given, record=wanted | {edge.source for c in cells for _, edge in c.terms})
    recorded = {name: array[0] for name, array in run.recorded.items()}
    scales, deviations = {}, []
    for cell in cells:
        scales[cell.name], bound, margin = precision_of(cell, recorded[f"{cell.name}.v"], recorded[cell.drive])
        if margin <= bound and not allow_lossy:
            expected = f"a membrane that stays further than {bound:.2g} from its threshold"
            raise LossyExportError(cell.name, expected, f"{margin:.2g}", "verify what differs, with --allow-lossy")
        written = f"a multiple of 1/{64 * scales[cell.name]:.0f}"
        deviations.append({"node": cell.name, "field": "v", "wanted": "float", "written": written, "bound": bound})
    network, groups = build(wide, cells, levels, scales, recorded)
    nodes = {name for c in cells for name in (c.name, *c.sums, *(product for product, _ in c.terms))}
    arrays = {array for name in nodes for array in graph.node(name).arrays.values()}
    own, total = (sum(graph.arrays[a].size for a in names) for names in (arrays, graph.arrays))
    bill = price(Tally(steps, {name: run.tally.operators[name] for name in nodes}), TARGET)
    left = {n.name: f"outside: {reasons.get(n.name, 'in no such layer')}" for n in graph.nodes if n.name not in nodes}
    manifest = {
        "format": FORMAT,
        "exporter": "sanafe",
        "version": version,
        "graph": graph.hash(),
        "groups": groups,
        "coverage": {n.name: left.get(n.name, "SANA-FE") for n in graph.nodes},
        "notes": [f"{len(cells)} LIF layers and what they read: {own:,} of {total:,} parameters"],
        "joules": {line.term: line.joules.central for line in bill.lines if line.joules},
        "unpriced": list(bill.unpriced),
        "deviations": deviations,
        "not_claimed": "It has not run on a chip; what is not exported is not checked.",
    }
    signals = {f"{c.name}.s": run.recorded[f"{c.name}.s"].astype(np.uint8) for c in cells}
    tokens = given if given.ndim == 2 else np.arange(steps)[None]
    trace = StoredTrace(tokens.astype(np.int64), signals, {}, {}, graph.hash(), "event")
    return write_artifact(out, {NETWORK: json.dumps(network).encode() + b"\n", TRACE: trace_tensors(trace)}, manifest)


def verify(artifact: Artifact) -> Report:
    """Run the network in SANA-FE and compare every spike of every step.

    raises  UnsupportedError: SANA-FE is not installed;  FormatError: it does not run the network
    """
    trace, groups = artifact_trace(artifact), artifact.manifest["groups"]
    if not all(1 <= level <= len(groups) for _, level in groups.values()):
        wanted = f"levels of {len(groups)} groups, from 1 on"
        raise FormatError(artifact.path / MANIFEST, wanted, "others", "export it anew")
    if importlib.util.find_spec("sanafe") is None:
        raise UnsupportedError("sanafe", "the library", "none installed", 'pip install "sanafe>=2.2.9"')
    steps = trace.tokens.shape[1]
    run = run_network(artifact.path / NETWORK, steps + max(level for _, level in groups.values()))
    got = {name: np.zeros_like(trace.signals[name]) for name, _ in groups.values()}
    for step, fired in enumerate(run["spikes"]):
        for group, unit in fired:
            name, level = groups[group]
            if 0 <= step - level < steps:
                got[name][0, step - level, unit] = 1
    compared, different, first = compare(trace.signals, got)
    energy, ours = run["energy"], artifact.manifest["joules"]
    spikes = sum(int(signal.sum()) for signal in trace.signals.values())
    theirs = ", ".join(f"{part} {energy[part]:.3g}" for part in ("synapse", "dendrite", "soma", "network"))
    terms = ", ".join(f"{term} {joules:.3g}" for term, joules in ours.items())
    notes = (
        f"{spikes:,} spikes in {steps:,} steps",
        f"SANA-FE's Loihi, inputs included: {energy['total']:.3g} J ({theirs}) in {run['sim_time']:.3g} s",
        f"our {TARGET}: {sum(ours.values()):.3g} J ({terms}); unknown: {', '.join(artifact.manifest['unpriced'])}",
    )
    problem, fields = (str(first), vars(first)) if first else (None, None)
    return Report(first is None, compared, different, problem, notes, fields)


def run_network(network: Path, steps: int) -> dict:
    """What `run.py` finds: energy, sim_time and spikes; raises FormatError where SANA-FE does not run the file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        command = [sys.executable, "-P", str(Path(__file__).with_name("run.py")), str(network), str(steps), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            raise FormatError(network, "a network that SANA-FE runs", said, "export it anew")
        return json.loads(out.read_text())
