"""SpiNNaker 2: an s2lm/1 image in integers, with a recorded trace, and its replay from the image's bytes alone.

It is data, partition and reference for a chip whose loader needs a gated kit: it has not run on silicon.
"""

import json
from pathlib import Path

import numpy as np

from rheobase.backends.artifact import MANIFEST, Artifact, Report, foreign, require_format, write_artifact
from rheobase.backends.exporters.spinnaker2 import divergence, emulate, host, routing
from rheobase.backends.exporters.spinnaker2.estimate import LEVELS, Level
from rheobase.backends.exporters.spinnaker2.firmware import selftest
from rheobase.backends.exporters.spinnaker2.formats import ROUNDING, check_formats, check_order
from rheobase.backends.exporters.spinnaker2.frames import as_tokens
from rheobase.backends.exporters.spinnaker2.image import Image, unpack
from rheobase.backends.exporters.spinnaker2.machine import Machine
from rheobase.backends.exporters.spinnaker2.overview import Overview, open_overview
from rheobase.backends.exporters.spinnaker2.partition import PE_BYTES, PES, build
from rheobase.backends.exporters.spinnaker2.plan import fired_of, tick_plan
from rheobase.backends.exporters.spinnaker2.quantise import formats, quantise, refuse_other_ops
from rheobase.backends.simulators import simulate
from rheobase.backends.trace import TRACE, StoredTrace, artifact_trace, compare, load_trace, trace_tensors
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.graph import EventGraph, Tokens

FORMAT = "s2lm/1"
TRACE_STEPS = 256


def export(
    graph: EventGraph,
    out: str | Path,
    *,
    calibration=None,
    allow_lossy: bool = False,
    version: str = "",
    dram: bool = True,
    chips: int = 1,
) -> Artifact:
    """Write the artefact directory `out`: manifest, its hash, partition.json, placements.json, routing_tables.json,
    machine.json, pe/NNN.bin, dram.bin, TRACE, csrc/ with the firmware's C for a board's owner, which verify never runs.

    dram         embedding and head lie in DRAM; False: on PEs, and there is no dram.bin
    chips        how many chips there are
    calibration  tokens [B, T] of real text; the first 256 of its first stream make the reference trace. Where the graph
                 reads frames, those of recordings [B, T, C, H, W]; the host's table holds them, and the first 256, one
                 recording after the other, make the trace
    raises       as `quantise` and `partition.build`; ConfigError: no calibration, or no chip
    """
    refuse_other_ops(graph)
    if calibration is None:
        raise ConfigError("spinnaker2 export", "calibration tokens [B, T]", "none", "pass calibration=, or --input")
    if chips < 1:
        raise ConfigError("spinnaker2 export chips", "at least 1", str(chips), "give one")
    made, (calibration,) = as_tokens(graph, calibration)
    integer, deviations = quantise(made, calibration, allow_lossy=allow_lossy)
    partition = build(integer, dram=dram, chips=chips)
    stream = calibration[:1] if made is graph else calibration.reshape(1, -1)
    tokens, logits = stream[:, :TRACE_STEPS].astype(np.int64), next(iter(integer.outputs.values()))
    names = [*dict.fromkeys(partition.probes.values()), logits]
    run = simulate(integer, tokens, on="integer", record=names)
    signals = {name: _narrow(run.recorded[name]) for name in names}
    trace = StoredTrace(tokens, signals, {}, {}, integer.hash(), "integer")

    files = {TRACE: trace_tensors(trace)}
    if partition.dram:
        files["dram.bin"] = partition.dram.pack()
    table = []
    for number, (pe, (name, _)) in enumerate(zip(partition.placed, partition.images[1], strict=True)):
        fields = pe.image.fields
        files[name] = pe.image.pack()
        units = [fields["unit_lo"], fields["unit_lo"] + fields["units"]]
        entry = {"pe": number, "file": name, "layer": pe.name, "slice": pe.number, "units": units}
        table.append(entry | {"bytes": len(files[name]), "regions": pe.image.sizes()})
    pes = [(entry["file"], pe.image) for entry, pe in zip(table, partition.placed, strict=True)]
    files |= routing.files(partition.dram, pes)
    files |= {f"csrc/{name}": data for name, data in selftest.sources().items()}
    files["partition.json"] = json.dumps({"pe_bytes": PE_BYTES, "pes": table}, indent=1).encode() + b"\n"
    manifest = {
        "format": FORMAT,
        "exporter": "spinnaker2",
        "version": version,
        "graph": graph.hash(),
        "integer_graph": integer.hash(),
        "probes": partition.probes,
        "logits": logits,
        "order": names,
        "arithmetic": {
            "rounding": ROUNDING,
            "logit_frac": formats(integer)[logits].frac,
            "formats": {name: list(form) for name, form in formats(integer).items() if name in names},
        },
        "limits": {
            "pe_bytes": PE_BYTES,
            "pe_bytes_source": "96 KiB of data memory a PE less stack and firmware data; arXiv 2607.24396",
            "pes": PES,
            "pes_source": "usable PEs in py-spinnaker2 0.8.0",
        },
        "coverage": {n.name: _place(n, partition.where) for n in integer.nodes},
        "tick_plan": tick_plan(pes, fired_of(pes, signals, partition.probes, tokens)),
        "deviations": [vars(d) for d in deviations],
        "not_claimed": "It has not run on silicon: verification shows that its integers agree with the recorded trace.",
    }
    return write_artifact(out, files, manifest)


def elements(graph: EventGraph, calibration, chips: int = 1) -> int:
    """How many processing elements an export would take, without one: nothing is refused for what rounding changes.

    calibration  as of `export`; its ranges set exponents, which take no room
    raises       as `export`, but for LossyExportError
    """
    refuse_other_ops(graph)
    made, (calibration,) = as_tokens(graph, np.atleast_2d(np.asarray(calibration)))
    integer, _ = quantise(made, calibration, allow_lossy=True)
    return len(build(integer, chips=chips).placed)


def load_images(artifact: Artifact) -> tuple[Image | None, list[tuple[str, Image]]]:
    """The dram image, if there is one, and the PEs of an artefact by file; reads only the directory."""
    names = sorted(artifact.manifest["files"], key=lambda name: (len(name), name))  # pe/1000.bin comes after pe/999.bin
    dram = unpack(artifact.read("dram.bin"), "dram.bin") if "dram.bin" in names else None
    return dram, [(name, unpack(artifact.read(name), name)) for name in names if name.startswith("pe/")]


def describe(artifact: Artifact, levels: tuple[Level, ...] = LEVELS) -> Overview:
    """What an artefact holds, for `overview.text`, `overview.table` and `picture.draw`; raises FormatError.

    levels  of the chip: as published, or those of `estimate.read_levels`
    """
    require_format(artifact, FORMAT)
    try:
        return open_overview(artifact, *load_images(artifact), levels)
    except FormatError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise FormatError(artifact.path, "a well-formed image", found, "see rheobase verify") from None


def run_machine(artifact: Artifact, tokens, progress=iter) -> dict[str, np.ndarray]:
    """Run one stream of tokens through the packed PEs: "node.port" -> integers [1, T, n]; raises FormatError.

    progress  wraps the iteration over the tokens, such as tqdm
    """
    require_format(artifact, FORMAT)
    return _replay(Machine(*load_images(artifact)), artifact.manifest, tokens, progress)[0]


def _replay(machine: Machine, manifest, tokens, progress=iter) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What `run_machine` gives, and every PE's hash at every token [T, PEs]."""
    probes, head = manifest["probes"], manifest["logits"]
    rows: dict[str, list] = {name: [] for name in [*probes.values(), head]}
    hashes = []
    for token in progress(np.asarray(tokens).reshape(-1)):
        logits, seen = machine.step(int(token))
        for probe, name in probes.items():
            rows[name].append(seen[probe])
        rows[head].append(logits)
        hashes.append(machine.hashes())
    signals = {name: np.stack(column)[None] if column else np.zeros((1, 0, 0)) for name, column in rows.items()}
    return signals, np.array(hashes, np.uint32)


EMULATIONS = {"qemu": emulate.alone, "qemu-together": emulate.together}


def verify(artifact: Artifact, emulation: str | None = None, against: str | Path | None = None) -> Report:
    """Replay the recorded tokens on the packed PEs and compare every integer of every step.

    The firmware's C on the host, where it was compiled, must give the same hashes and logits, and so must the firmware
    in QEMU if asked for: "qemu", an element after the other, or "qemu-together", a process an element.

    against  a trace in HDF5 of a run elsewhere, such as on a board: its tokens and signals are compared, and not the
             artefact's own; `problem` names the first element, token and unit that differs
    """
    if against is not None:
        if emulation:
            raise ConfigError("verify", "one of emulation and against", "both", "verify twice")
        return _verify_run(artifact, Path(against))
    if emulation not in (None, *EMULATIONS):
        raise ConfigError("verify --emulate", " or ".join(EMULATIONS), repr(emulation), "choose one of them")
    trace = artifact_trace(artifact)
    if trace.graph != artifact.manifest["integer_graph"]:
        raise FormatError(artifact.path / TRACE, "the trace of this graph", "another", "export it anew")
    dram, pes = load_images(artifact)
    machine, manifest = Machine(dram, pes), artifact.manifest
    order = check_order(artifact.path / MANIFEST, manifest)
    stated = check_formats(artifact.path / MANIFEST, manifest, pes)
    routed = routing.lint(artifact, dram, pes)
    got, hashes = _replay(machine, manifest, trace.tokens)
    compared, different, first = compare(trace.signals, got, order)
    problem, notes = str(first) if first else None, []
    fields = divergence.fields(machine, manifest, trace.tokens, first) if first else None
    if host.library():
        logits, ours = host.Host(dram, pes).run(trace.tokens)
        wrong = int((ours != hashes).sum() + (logits != got[manifest["logits"]][0]).sum())
        notes.append(f"firmware on the host: {ours.size:,} ticks of {ours.shape[1]} elements, {wrong} differ")
        problem = problem or (notes[-1] if wrong else None)
    else:
        notes.append("firmware on the host: not run, since the package was installed without a C compiler")
    if emulation:
        found = EMULATIONS[emulation](Machine(dram, pes, record=True), trace.tokens)
        most = max(int(counts.max()) for counts in found.instructions.values())
        notes.append(
            f"firmware in QEMU, Cortex-M4F: {found.ticks:,} ticks of {len(found.instructions)} elements, "
            f"{found.different} differ; at most {most:,} instructions a tick (emulated)"
        )
        problem, fields = problem or found.first, fields or (None if problem else found.place)
    sources = {f"csrc/{name}": data for name, data in selftest.sources().items()}
    notes += [routed, stated, *foreign(artifact, sources, (n for n in manifest["files"] if n.startswith("csrc/")))]
    return Report(problem is None, compared, different, problem, tuple(notes), fields)


def _verify_run(artifact: Artifact, path: Path) -> Report:
    trace, manifest = load_trace(path), artifact.manifest
    divergence.check_run(path, trace, manifest)
    images = load_images(artifact)
    streams = [_replay(Machine(*images), manifest, row)[0] for row in trace.tokens]
    got = {name: np.concatenate([signals[name] for signals in streams]) for name in trace.signals}
    order = check_order(artifact.path / MANIFEST, manifest)
    compared, different, first = compare(got, trace.signals, order)
    if first is None:
        return Report(True, compared, different)
    found = divergence.fields(Machine(*images), manifest, trace.tokens, first)
    return Report(False, compared, different, divergence.describe(found), first=found)


def _narrow(array: np.ndarray) -> np.ndarray:
    small = array.size and -32768 <= array.min() and array.max() <= 32767
    return array.astype(np.int16 if small else np.int32)


def _place(node, where: dict[str, str]) -> str:
    if isinstance(node.op, Tokens):
        return "host"
    return f"PEs of {where[node.name]}" if node.name in where else "dram"
