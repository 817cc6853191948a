"""The network in NIR's words, and back as `s2_nir` reads them. Weights are whole already, so none are scaled.

Source: nir 1.0.8; s2_nir's conversion of LIF and IF with the integrator FORWARD:
alpha = 1 - dt/tau,  threshold = v_threshold / (r dt/tau),  i_offset = bias + v_leak / r.
"""

import importlib.util
import io
from dataclasses import dataclass, field

import numpy as np

from rheobase.spiking.errors import UnsupportedError

CONFIG = {
    "dt": 0.001,
    "output_record": ["spikes", "v"],
    "conn_delay": 0,
    "scale_weights": False,
    "integrator": "FORWARD",
}
"""The fields of a ConversionConfig, but for its reset"""


@dataclass
class Input:
    """Spikes of [n] lines."""

    shape: tuple[int, ...]


@dataclass
class Output(Input):
    """What a population sends."""


@dataclass
class Linear:
    """weight [out, in]"""

    weight: np.ndarray


@dataclass
class Affine(Linear):
    """The same, and bias [out]."""

    bias: np.ndarray


@dataclass
class IF:
    """Units that do not leak; fields [n]."""

    r: np.ndarray
    v_threshold: np.ndarray
    v_reset: np.ndarray


@dataclass
class LIF(IF):
    """Units that leak; tau in seconds."""

    tau: np.ndarray = field(default_factory=lambda: np.ones(0))
    v_leak: np.ndarray = field(default_factory=lambda: np.zeros(0))


def words(sources: dict[str, int], populations, projections) -> tuple[dict[str, object], list[tuple[str, str]]]:
    """(name -> node, edges) of a network.

    sources  name -> number of lines
    """
    nodes, edges = {name: Input((size,)) for name, size in sources.items()}, []
    for p in populations:
        zeros, ones = np.zeros(p.size), np.ones(p.size)
        threshold, alpha = p.threshold.astype(float), p.alpha_decay.astype(float)
        if (alpha == 1).all():
            nodes[p.name] = IF(ones, threshold, zeros)
        else:
            tau = CONFIG["dt"] / (1 - alpha)
            nodes[p.name] = LIF(tau / CONFIG["dt"], threshold, zeros, tau, zeros)
        nodes[f"{p.name}.out"] = Output((p.size,))
        edges.append((p.name, f"{p.name}.out"))
    waiting = {p.name: p.i_offset.astype(float) for p in populations if p.i_offset.any()}
    for q in projections:
        name, weight = f"{q.node} into {q.post}", q.weight.T.astype(float)
        bias = waiting.pop(q.post, None)
        nodes[name] = Linear(weight) if bias is None else Affine(weight, bias)
        edges += [(q.pre, name), (name, q.post)]
    return nodes, edges


def has_nir() -> bool:
    """Whether the nir package is installed."""
    return importlib.util.find_spec("nir") is not None


def nir_bytes(nodes: dict[str, object], edges: list[tuple[str, str]]) -> bytes:
    """`net.nir`, by the nir package."""
    import nir

    made = {}
    for name, node in nodes.items():
        fields = dict(vars(node))
        if isinstance(node, Input):
            port = "output" if isinstance(node, Output) else "input"
            fields = {f"{port}_type": {port: np.array(fields["shape"])}}
        made[name] = getattr(nir, type(node).__name__)(**fields)
    buffer = io.BytesIO()
    nir.write(buffer, nir.NIRGraph(nodes=made, edges=edges))
    return buffer.getvalue()


def converted(node, bias, config: dict) -> dict[str, np.ndarray]:
    """threshold, alpha_decay and i_offset of a LIF or an IF, by the formulas above; raises UnsupportedError: others."""
    kind = type(node).__name__
    if kind not in ("LIF", "IF") or config["integrator"] != "FORWARD" or config["scale_weights"]:
        raise UnsupportedError("net.nir", "LIF or IF, FORWARD, whole weights", kind, "convert it by s2_nir")
    rate = config["dt"] / node.tau if kind == "LIF" else 1.0
    alpha, leak = (1 - rate, node.v_leak / node.r) if kind == "LIF" else (1.0, 0.0)
    threshold = node.v_threshold / (rate * node.r)
    values = {"threshold": threshold, "alpha_decay": alpha, "i_offset": bias + leak}
    return {name: np.broadcast_to(value, threshold.shape).astype(np.float32) for name, value in values.items()}
