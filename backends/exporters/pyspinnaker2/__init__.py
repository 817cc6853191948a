"""py-spinnaker2: the LIF fragments of a graph as populations and projections of its neuron model `lif_no_delay`.

Files: `conversion.json`, every field of the conversion and every constant of the units; `weights.npz`;
`spike_list.json`, what enters in a recorded run; `expected_spikes.npz`, what `emulate` makes of it; `run_s2.py`, which
runs the bundle where py-spinnaker2 is; and `net.nir` for its `s2_nir`, where the nir package was at hand.
"""

import json
from pathlib import Path

import numpy as np

from rheobase.backends.artifact import Artifact, Report, foreign, write_artifact
from rheobase.backends.exporters._graphs import require_calibration, require_finite
from rheobase.backends.exporters.pyspinnaker2 import emulate
from rheobase.backends.exporters.pyspinnaker2.bundle import (
    CONVERSION,
    EXPECTED,
    NET,
    SPIKES,
    WEIGHTS,
    conversion,
    events,
    late,
    lists,
    nir_problems,
    npz,
    read,
)
from rheobase.backends.exporters.pyspinnaker2.lint import lint
from rheobase.backends.exporters.pyspinnaker2.network import network
from rheobase.backends.exporters.pyspinnaker2.said import coverage, deviations, share
from rheobase.backends.exporters.pyspinnaker2.words import has_nir, nir_bytes, words
from rheobase.backends.simulators import simulate
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import EventGraph

FORMAT = "rheobase-pyspinnaker2/1"
SCRIPT = "run_s2.py"
STEPS = 64


def export(
    graph: EventGraph, out: str | Path, *, calibration=None, allow_lossy: bool = False, version: str = ""
) -> Artifact:
    """Write the LIF fragments of a graph; see `rheobase.backends.export`.

    calibration  tokens [B, T], or frames: the first 64 steps of the first stream make the recorded run
    allow_lossy  nothing here needs it: what int8 changes is recorded, with how many spikes differ
    raises       UnsupportedError: no such fragment, or one that the machine would step otherwise;
                 ConfigError: no calibration
    """
    require_finite(graph)
    net = network(graph)
    steps = require_calibration("pyspinnaker2 export", calibration)[:1, :STEPS]
    kept = {s.edge.source for s in net.sources} | {f"{p.name}.s" for p in net.populations}
    seen = {name: array[0] for name, array in simulate(graph, steps, record=sorted(kept)).recorded.items()}
    ticks = steps.shape[1] + max(p.depth for p in net.populations)
    spikes = {s.name: late(seen[s.edge.source], s.depth, ticks) for s in net.sources}
    sent = {p: fired for p, (fired, _) in emulate.run(net.populations, net.projections, spikes, ticks).items()}
    said = conversion(net, ticks)
    nodes, edges = words(said["sources"], net.populations, net.projections)
    if problems := lint(nodes, edges, said["config"]):
        raise UnsupportedError("pyspinnaker2", "a network that s2_nir takes", problems[0], "mend the model")
    files = {
        CONVERSION: json.dumps(said, indent=1).encode() + b"\n",
        WEIGHTS: npz({str(i): q.weight for i, q in enumerate(net.projections)}),
        SPIKES: json.dumps({name: lists(array) for name, array in spikes.items()}).encode() + b"\n",
        EXPECTED: npz({f"{name}/{key}": v for name, fired in sent.items() for key, v in events(fired).items()}),
        SCRIPT: (Path(__file__).parent / SCRIPT).read_bytes(),
    } | ({NET: nir_bytes(nodes, edges)} if has_nir() else {})
    spiking = {}
    for p in net.populations:
        wanted, got = seen[f"{p.name}.s"] != 0, sent[p.name][p.depth :][: steps.shape[1]]
        counts = int(wanted.sum()), int(got.sum()), int((wanted != got).sum())
        spiking[p.name] = dict(zip(("graph", "emulator", "differ"), counts, strict=True))
    manifest = {
        "format": FORMAT,
        "exporter": "pyspinnaker2",
        "version": version,
        "graph": graph.hash(),
        "coverage": coverage(graph, net),
        "notes": [share(graph, net)],
        "deviations": deviations(graph, net),
        "spikes": spiking,
        "not_claimed": "that it ran by py-spinnaker2 or on a chip; that an element's memory holds its synapses",
    }
    return write_artifact(out, files, manifest)


def verify(artifact: Artifact) -> Report:
    """Run the bundle by the emulator and compare every unit and tick; lint it; read `net.nir` as s2_nir would."""
    bundle = read(artifact)
    net, said = bundle.populations, bundle.said
    sent = emulate.run(net, bundle.projections, bundle.spikes, said["ticks"])
    short = emulate.run(net, bundle.projections, bundle.spikes, said["ticks"], np.float32)
    compared = different = singles = 0
    for name, (fired, _) in sent.items():
        compared, different = compared + fired.size, different + int((fired != bundle.expected[name]).sum())
        singles += int((fired != short[name][0]).sum())
    problems = lint(*words(said["sources"], net, bundle.projections), said["config"])
    notes = [*artifact.manifest["notes"], f"with membranes in float32: {singles} of {compared} differ"]
    if NET in artifact.manifest["files"]:
        if has_nir():
            problems += nir_problems(artifact, bundle)
            notes.append("net.nir, read as s2_nir does: the same network")
        else:
            notes.append("net.nir: not read, for want of the nir package")
    notes += foreign(artifact, {SCRIPT: (Path(__file__).parent / SCRIPT).read_bytes()}, [SCRIPT])
    if different:
        problems.insert(0, f"{artifact.path / EXPECTED}: {different} of {compared} units and ticks differ")
    return Report(not problems, compared, different, problems[0] if problems else None, tuple(notes))
