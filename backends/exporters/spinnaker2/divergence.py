"""Where a run recorded elsewhere, such as on a board, parts from the packed processing elements."""

from collections.abc import Mapping

import numpy as np

from rheobase.backends.exporters.spinnaker2.machine import EmbeddingElement, LayerElement, Machine
from rheobase.backends.trace import Mismatch, StoredTrace
from rheobase.spiking.errors import FormatError
from rheobase.spiking.registry import nearest


def check_run(where: object, trace: StoredTrace, manifest: Mapping) -> None:
    """Raise FormatError unless a trace is of this image: integer tokens [B, T], and some signals [B, T, n]."""
    if trace.graph != manifest["integer_graph"]:
        raise FormatError(where, f"a run of graph {manifest['integer_graph'][:12]}", trace.graph[:12], "record it anew")
    tokens = np.asarray(trace.tokens)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
        raise FormatError(where, "integer tokens [B, T]", f"{tokens.dtype} {tokens.shape}", "record it anew")
    known = [*manifest["probes"].values(), manifest["logits"]]
    if not trace.signals:
        raise FormatError(where, f"some of the signals {', '.join(known)}", "none", "record one at least")
    for name, array in trace.signals.items():
        if name not in known:
            raise FormatError(where, "a signal of the image", repr(name), nearest(name, known))
        if array.ndim != 3 or array.shape[:2] != tokens.shape or array.dtype.kind not in "iu":
            got = f"{array.dtype} {array.shape}"
            raise FormatError(f"{where}: {name}", f"integers [{tokens.shape[0]}, {tokens.shape[1]}, n]", got, "mend it")


def fields(machine: Machine, manifest: Mapping, tokens: np.ndarray, first: Mismatch) -> dict:
    """A mismatch with its place: `where`, the element's file, and its `slice`; `gate` of an EGRU's pre-activation, or
    None; `unit_of_layer` and `unit_of_element`."""
    probe = next((probe for probe, name in manifest["probes"].items() if name == first.node), "")
    stage, _, port = probe.partition(".")
    gate, unit = None, first.unit
    if probe == "embedding":
        pes = machine.elements[0] if machine.vectors is None else []
    elif probe:
        pes = machine.elements[int(stage) + (machine.vectors is None)]
        if isinstance(pes[0], LayerElement) and port in ("a", "q"):
            number, unit = divmod(first.unit, sum(pe.units for pe in pes))
            gate = "zrg"[number]
    else:
        pes = machine.elements[-1]
    # an element of the embedding owns tokens, and sends all of a vector
    owned = int(tokens[first.stream, first.step]) if probe == "embedding" else unit
    pe = next((pe for pe in pes if pe.lo <= owned < pe.lo + pe.units), None)
    where, slice_, own = "dram.bin", None, unit
    if pe is not None and pe.where != "dram.bin":
        where, slice_ = pe.where, pe.slice
        own = unit if isinstance(pe, EmbeddingElement) else unit - pe.lo
    place = {"where": where, "slice": slice_, "gate": gate, "unit_of_layer": unit, "unit_of_element": own}
    return {**vars(first), **place}


def describe(found: Mapping) -> str:
    """What `fields` gives, in a line."""
    place = found["where"] + ("" if found["slice"] is None else f" (slice {found['slice']})")
    what = f"gate {found['gate']} of " if found["gate"] else ""
    return (
        f"{place}, stream {found['stream']}, token {found['step']}: {found['node']}, {what}unit "
        f"{found['unit_of_layer']} of the layer, {found['unit_of_element']} of the element: "
        f"expected {found['expected']}, got {found['got']}"
    )
