"""What text says of a float graph: how large its signals become, and the formats that follow."""

from collections.abc import Iterator

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.quantise.ops import EVENT, Format, Formats
from rheobase.backends.simulators import simulate
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import (
    Add,
    Affine,
    EGRUCell,
    Embedding,
    EventGraph,
    GradedLIFCell,
    LayerNorm,
    LIFCell,
    Linear,
    Mix,
    Multiply,
    Sigmoid,
    SquaredRelu,
    Tokens,
    WKVCell,
)

HEADROOM_BITS = 1
STEPS = 32
MIN_FRAC, MAX_FRAC = 2, 16


def measure(graph: EventGraph, tokens: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(Mean square of each unit of what products read, largest magnitude of each signal whose format is chosen).

    raises  UnsupportedError: a signal that becomes NaN or infinite
    """
    read = {graph.inputs_of(n.name)["x"].source for n in graph.nodes if isinstance(n.op, Linear)}
    chosen = set(signals_to_choose(graph))
    membranes = {f"{n.name}.v" for n in graph.nodes if isinstance(n.op, LIFCell)}
    membranes |= {f"{n.name}.s" for n in graph.nodes if isinstance(n.op, GradedLIFCell)}
    power = dict.fromkeys(sorted(read), 0.0)
    largest = dict.fromkeys(sorted(chosen | membranes), 0.0)
    for seen in recorded(graph, tokens, sorted({*power, *largest})):
        for name in power:
            power[name] = power[name] + np.square(seen[name], dtype=np.float64).sum((0, 1)) / tokens.size
        for name in largest:
            most = float(np.abs(seen[name]).max())
            if not np.isfinite(most):
                raise UnsupportedError(name, "finite values on the calibration data", f"{most}", "export a sound model")
            largest[name] = max(largest[name], most)
    return power, largest


def recorded(graph: EventGraph, tokens: np.ndarray, names: list[str], **options) -> Iterator[dict[str, np.ndarray]]:
    """What `simulate` records of tokens [B, T], [B, t, n] a name, a few steps at a time: of a large model, all signals
    of all steps would not fit memory."""
    state = None
    for at in range(0, tokens.shape[1], STEPS):
        trace = simulate(graph, tokens[:, at : at + STEPS], state, record=names, **options)
        state = trace.state
        yield trace.recorded


def signals_to_choose(graph: EventGraph) -> list[str]:
    """The int16 signals whose format is neither fixed nor that of an input: "node.out"."""
    kinds = Linear | Add | Affine | LayerNorm | Mix | Multiply | SquaredRelu
    fixed = set(graph.outputs.values()) | _pre_activations(graph)
    return [f"{n.name}.out" for n in graph.nodes if isinstance(n.op, kinds) and f"{n.name}.out" not in fixed]


def _pre_activations(graph: EventGraph) -> set[str]:
    cells = [n.name for n in graph.nodes if isinstance(n.op, EGRUCell)]
    return {e.source for name in cells for e in graph.inputs_of(name).values()}


def choose_formats(graph: EventGraph, largest: dict[str, float], embedding_frac: int) -> dict[str, Format]:
    """The format of every signal of a float graph in integers.

    The dense int16 signals get the finest power of two that leaves one bit above the largest magnitude seen, and
    above the thresholds and membranes of the neurons that they feed.

    raises  UnsupportedError: a signal of 4,096 or more, an embedding of 8,192 or more, or a neuron whose threshold or
            membrane its input's format, one that is not chosen, does not hold
    """
    if embedding_frac < MIN_FRAC:
        raise UnsupportedError("embedding", "values below 8,192", f"Q{embedding_frac}", "train it longer")
    pre_activations, chosen = _pre_activations(graph), signals_to_choose(graph)
    reach, neurons = dict(largest), {}
    for node in (n for n in graph.nodes if isinstance(n.op, LIFCell)):
        source = graph.inputs_of(node.name)["x"].source
        theta = float(np.max(graph.arrays_of(node).get("theta", node.op.theta)))
        neuron = max(theta, abs(node.op.v_reset or 0.0), largest[f"{node.name}.v"])
        reach[source] = max(reach.get(source, 0.0), neuron)
        before = neuron + theta * (node.op.v_reset is None)
        neurons[node.name] = max(before, largest.get(f"{node.name}.s", 0.0))
    found = Formats()
    for node in (graph.node(name) for group in graph.order() for name in group):
        edges, out = graph.inputs_of(node.name), f"{node.name}.out"
        if isinstance(node.op, Tokens):
            found[out] = Format(32, 0)
        elif isinstance(node.op, Embedding):
            found[out] = Format(16, embedding_frac)
        elif isinstance(node.op, EGRUCell):
            found |= {f"{node.name}.{port}": Format(16, ints.EVENT_FRAC) for port in ("y", "c")}
        elif isinstance(node.op, Sigmoid):
            found[out] = Format(16, ints.EVENT_FRAC)
        elif isinstance(node.op, WKVCell):
            found[f"{node.name}.y"] = found[edges["v"].source]
        elif isinstance(node.op, LIFCell):
            fed = found[f"{node.name}.v"] = found[edges["x"].source]
            if neurons[node.name] * 2.0**fed.frac > 32767 and fed.bits == 16:
                wanted, got = (
                    f"a threshold and a membrane below {2.0 ** (15 - fed.frac):g}",
                    f"{neurons[node.name]:.4g}",
                )
                raise UnsupportedError(node.name, wanted, got, "feed it by a product, whose format is chosen for it")
            found[f"{node.name}.s"] = fed if isinstance(node.op, GradedLIFCell) else EVENT
        elif out in pre_activations:
            found[out] = Format(32, ints.PRE_FRAC)
        elif out in chosen:
            found[out] = Format(16, _frac(out, reach[out]))
        else:
            found[out] = Format(32, ints.LOGIT_FRAC) if isinstance(node.op, Linear) else EVENT
    return found


def _frac(name: str, largest: float) -> int:
    frac = MAX_FRAC if largest == 0 else min(int(np.floor(np.log2(32767 / largest))) - HEADROOM_BITS, MAX_FRAC)
    if frac < MIN_FRAC:
        raise UnsupportedError(name, "values below 4,096 on the calibration data", f"{largest:.4g}", "train it longer")
    return frac
