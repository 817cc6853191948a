"""What a quantised graph is written into: integer arrays, and a record of all that they change."""

from dataclasses import dataclass, field

import numpy as np

from rheobase.backends.exporters.spinnaker2.quantise.ops import Format
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import EventGraph, Node


@dataclass(frozen=True)
class Deviation:
    """What the integers change: a node's field, what it was, what was written, and a bound of the difference."""

    node: str
    field: str
    wanted: str
    written: str
    bound: float


@dataclass
class Writer:
    """The float graph, the format of each of its signals, and the integers so far.

    formats  "node.port" -> Format
    power    "node.port" -> mean square of each unit over the calibration data, of what products read
    """

    graph: EventGraph
    formats: dict[str, Format]
    power: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    deviations: list[Deviation] = field(default_factory=list)

    def source(self, node: Node, port: str, bits: tuple[int, ...] = (16,)) -> Format:
        """The format of what an edge brings to a node's port; raises UnsupportedError: other bits than it can read."""
        source = self.graph.inputs_of(node.name)[port].source
        if self.formats[source].bits not in bits:
            wanted, got = f"a signal of {' or '.join(map(str, bits))} bits", f"{self.formats[source].bits} of {source}"
            raise UnsupportedError(f"{node.name}.{port}", wanted, got, "quantise a graph that a model lowers to")
        return self.formats[source]

    def values(self, node: Node, role: str, otherwise=None) -> np.ndarray:
        """A node's float array, flat, in float64; `otherwise` where it has none."""
        array = self.graph.arrays_of(node).get(role, otherwise)
        return np.asarray(array, np.float64).reshape(-1)

    def store(self, node: Node, role: str, values: np.ndarray, frac: int, bits: int = 16) -> str:
        """Write an array of values x 2^frac, rounded, and what that changes; returns its name in the table."""
        name = f"{node.name}.{role}"
        whole, limit = np.floor(values * 2.0**frac + 0.5), 2.0 ** (bits - 1)
        if whole.min() < -limit or whole.max() > limit - 1:
            raise UnsupportedError(name, f"values within int{bits} Q{frac}", f"{np.abs(values).max():.3g}", "shrink it")
        self.arrays[name] = whole.astype(f"int{bits}")
        self.note(node, role, "float", f"int{bits} Q{frac}", 2.0 ** -(frac + 1))
        return name

    def note(self, node: Node, field: str, wanted: str, written: str, bound: float) -> None:
        """Record what the integers change."""
        self.deviations.append(Deviation(node.name, field, wanted, written, float(bound)))
