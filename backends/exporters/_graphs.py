"""What several exporters ask of a graph and of its calibration, and say of them."""

import numpy as np

from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import Edge, EventGraph


def require_finite(graph: EventGraph) -> None:
    """Raise UnsupportedError for an array that holds NaN or infinity; a time constant may be infinite: no leak."""
    for node in graph.nodes:
        for role, name in node.arrays.items():
            array = graph.arrays[name]
            if not (np.isfinite(array) | (np.isposinf(array) & (role == "tau"))).all():
                raise UnsupportedError(name, "finite numbers", "NaN or infinity", "export a sound model")


def require_calibration(where: str, calibration) -> np.ndarray:
    """The calibration as an array; raises ConfigError where there is none."""
    if calibration is None or np.size(calibration) == 0:
        raise ConfigError(where, "calibration tokens [B, T], or frames", "none", "pass calibration=, or --input")
    return np.asarray(calibration)


def arriving(graph: EventGraph, edge: Edge, values: np.ndarray) -> np.ndarray:
    """What an edge delivers at each step [T, ..] of a run from rest, of what its source gave."""
    if not edge.delay:
        return values
    return np.concatenate([np.full_like(values[:1], graph.state_fill().get(edge.source, 0.0)), values[:-1]])


def share(graph: EventGraph, nodes, where: str) -> str:
    """How many of the graph's numbers are those of `nodes`, which lie where it says."""
    arrays = {node.name: set(node.arrays.values()) for node in graph.nodes}
    held, every = set().union(*(arrays[name] for name in nodes)), set().union(*arrays.values())
    numbers, whole = (sum(graph.arrays[array].size for array in some) for some in (held, every))
    return f"{100 * numbers / max(whole, 1):.1f} % of weights in {where} ({numbers:,} of {whole:,})"


def relative_error(wanted: np.ndarray, got: np.ndarray) -> float:
    """Root mean square of the difference over that of what was wanted; of wanted zeros 1 where anything differs."""
    size, error = (float(np.square(x, dtype=np.float64).mean()) for x in (wanted, got - wanted))
    return float(np.sqrt(error / size)) if size else float(error > 0)
