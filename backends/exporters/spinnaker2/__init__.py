"""SpiNNaker 2: an s2lm/1 image in integers, with a recorded trace, and its replay from the image's bytes alone.

It is data, partition and reference for a chip whose loader needs a gated kit: it has not run on silicon.
"""

import json
from pathlib import Path

import numpy as np

from rheobase.backends.artifact import Artifact, Report, write_artifact
from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.image import unpack
from rheobase.backends.exporters.spinnaker2.machine import Machine
from rheobase.backends.exporters.spinnaker2.partition import PE_BYTES, PES, build
from rheobase.backends.exporters.spinnaker2.quantise import quantise, refuse_other_ops
from rheobase.backends.simulators import simulate
from rheobase.backends.trace import StoredTrace, compare, load_trace, trace_bytes
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.graph import EventGraph, Tokens

FORMAT = "s2lm/1"
TRACE_STEPS = 256


def export(
    graph: EventGraph, out: str | Path, *, calibration=None, allow_lossy: bool = False, version: str = ""
) -> Artifact:
    """Write the artefact directory `out`: manifest, its hash, partition.json, pe/NNN.bin, dram.bin, trace.h5.

    calibration  tokens [B, T] of real text; the first 256 of its first stream make the reference trace
    raises       as `quantise` and `partition.build`; ConfigError: no calibration
    """
    refuse_other_ops(graph)
    if calibration is None:
        raise ConfigError("spinnaker2 export", "calibration tokens [B, T]", "none", "pass calibration=")
    calibration = np.atleast_2d(np.asarray(calibration)).astype(np.int64)
    integer, deviations = quantise(graph, calibration, allow_lossy=allow_lossy)
    pes, dram = build(integer)
    tokens = calibration[:1, :TRACE_STEPS]
    computed = [n for n in integer.nodes if not isinstance(n.op, Tokens)]
    names = [f"{n.name}.{port}" for n in computed for port in n.op.outputs]
    run = simulate(integer, tokens, on="integer", record=names)
    signals = {name: _narrow(array) for name, array in run.recorded.items()}
    trace = StoredTrace(tokens, signals, {}, {}, integer.hash(), "integer")

    files = {"dram.bin": dram.pack(), "trace.h5": trace_bytes(trace)}
    placed = []
    for number, (layer, piece, image) in enumerate(pes):
        name = f"pe/{number:03d}.bin"
        files[name] = image.pack()
        lo, units = image.fields["unit_lo"], image.fields["units"]
        entry = {"pe": number, "file": name, "layer": layer.name, "slice": piece, "units": [lo, lo + units]}
        placed.append(entry | {"bytes": len(files[name]), "regions": image.sizes()})
    files["partition.json"] = json.dumps({"pe_bytes": PE_BYTES, "pes": placed}, indent=1).encode() + b"\n"
    layers = list(dict.fromkeys(layer for layer, _, _ in pes))
    manifest = {
        "format": FORMAT,
        "exporter": "spinnaker2",
        "version": version,
        "graph": graph.hash(),
        "integer_graph": integer.hash(),
        "layers": [{"cell": x.name, "a": x.kernel, "q": x.recurrent, "units": x.units} for x in layers],
        "embedding": next(n.name for n in integer.nodes if "table" in n.arrays),
        "head": next(iter(integer.outputs.values())).rpartition(".")[0],
        "order": names,
        "arithmetic": {
            "rounding": "add half, shift right arithmetically",
            "event_frac": ints.EVENT_FRAC,
            "pre_activation_frac": ints.PRE_FRAC,
            "logit_frac": ints.LOGIT_FRAC,
            "embedding_frac": dram.fields["x_frac"],
        },
        "limits": {
            "pe_bytes": PE_BYTES,
            "pe_bytes_source": "96 kB of data memory a PE less its stack; arXiv 2607.24396",
            "pes": PES,
            "pes_source": "usable PEs in py-spinnaker2 0.8.0",
        },
        "coverage": {n.name: "host" if isinstance(n.op, Tokens) else _place(n.name, layers) for n in integer.nodes},
        "deviations": [vars(d) for d in deviations],
        "not_claimed": "It has not run on silicon: verification shows that its integers agree with the recorded trace.",
    }
    return write_artifact(out, files, manifest)


def load_machine(artifact: Artifact) -> Machine:
    """The packed PEs and the dram of an artefact, ready to run; reads only the directory."""
    files = sorted(name for name in artifact.manifest["files"] if name.startswith("pe/"))
    pes = [(name, unpack(artifact.read(name), name)) for name in files]
    return Machine(unpack(artifact.read("dram.bin"), "dram.bin"), pes)


def run_machine(artifact: Artifact, tokens, progress=iter) -> dict[str, np.ndarray]:
    """Run one stream of tokens through the packed PEs: "node.port" -> integers [1, T, n].

    progress  wraps the iteration over the tokens, such as tqdm
    """
    m = artifact.manifest
    names = {"embedding": f"{m['embedding']}.out"}
    for i, layer in enumerate(m["layers"]):
        names |= {f"{i}.a": f"{layer['a']}.out", f"{i}.q": f"{layer['q']}.out"}
        names |= {f"{i}.{port}": f"{layer['cell']}.{port}" for port in ("y", "c")}
    machine = load_machine(artifact)
    rows: dict[str, list] = {name: [] for name in [*names.values(), f"{m['head']}.out"]}
    for token in progress(np.asarray(tokens).reshape(-1)):
        logits, seen = machine.step(int(token))
        for probe, name in names.items():
            rows[name].append(seen[probe])
        rows[f"{m['head']}.out"].append(logits)
    return {name: np.stack(column)[None] if column else np.zeros((1, 0, 0)) for name, column in rows.items()}


def verify(artifact: Artifact) -> Report:
    """Replay the recorded tokens on the packed PEs and compare every integer of every step."""
    trace = load_trace(artifact.path / "trace.h5")
    if trace.graph != artifact.manifest["integer_graph"]:
        raise FormatError(artifact.path / "trace.h5", "the trace of this graph", "another", "export it anew")
    got = run_machine(artifact, trace.tokens)
    compared, different, first = compare(trace.signals, got, artifact.manifest["order"])
    return Report(different == 0, compared, different, str(first) if first else None)


def _narrow(array: np.ndarray) -> np.ndarray:
    small = array.size and -32768 <= array.min() and array.max() <= 32767
    return array.astype(np.int16 if small else np.int32)


def _place(node: str, layers) -> str:
    for layer in layers:
        if node in (layer.name, layer.kernel, layer.recurrent):
            return f"PEs of {layer.name}"
    return "dram"
