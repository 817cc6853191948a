"""The network that SANA-FE reads: groups of units, edges between them, and a core of Loihi for each unit."""

from collections.abc import Mapping

import numpy as np

from rheobase.backends.exporters.sanafe.cells import Cell, weights_of
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import EventGraph

MOST_SYNAPSES = 1 << 22
"""SANA-FE 2.2.9 took 1.7 GB for its Loihi, and 1 kB more a synapse"""
CORES, CORES_A_TILE, UNITS_A_CORE = 128, 4, 1024
LIF_UNIT = {"soma": "loihi_lif", "dendrite": "loihi_dendrites", "synapse": "loihi_dense_synapse"}


class Network:
    """A network that grows by `add`, `train` and `connect`; `table` is what is written, and JSON is YAML.

    Numbers go through YAML since the Python interface of 2.2.9 rounds them to 32 bits.
    """

    def __init__(self):
        self.groups, self.edges, self.mappings, self.synapses = [], [], [], 0
        self.cores = iter(range(CORES))

    def add(self, units: list[dict], unit: dict | None = None, **attributes) -> str:
        """A group of units with these soma attributes, LIF units or, with no `unit`, inputs; returns its name."""
        name = f"g{len(self.groups)}"
        numbered = [{str(i): {"soma": soma}} for i, soma in enumerate(units)]
        self.groups.append({"name": name, "attributes": attributes, "neurons": numbered})
        for i in range(len(units)):
            if i % UNITS_A_CORE == 0 and (core := next(self.cores, None)) is None:
                raise UnsupportedError("sanafe export", f"at most {CORES} cores", "more", "export a smaller model")
            at = {"core": f"{core // CORES_A_TILE}.{core % CORES_A_TILE}"}
            self.mappings.append({f"{name}.{i}": at | (unit or {"soma": f"loihi_inputs[{i % UNITS_A_CORE}]"})})
        return name

    def train(self, spikes: np.ndarray, late: int) -> str:
        """A group of inputs that spike as [T, n] says, so many steps late."""
        whole = np.concatenate([np.zeros((late, spikes.shape[1])), spikes]).astype(int)
        return self.add([{"spikes": unit.tolist()} for unit in whole.T])

    def connect(self, source: str, target: str, weight: np.ndarray) -> None:
        """Every unit of a group to every unit of another; weight [sources, targets]."""
        self.synapses += weight.size
        if self.synapses > MOST_SYNAPSES:
            got = f"{self.synapses:,} or more"
            raise UnsupportedError(
                "sanafe export", f"at most {MOST_SYNAPSES:,} synapses", got, "export a smaller model"
            )
        self.edges.append({f"{source} -> {target}": {"type": "dense", "weight": weight.ravel().tolist()}})

    def table(self) -> dict:
        network = {"name": "rheobase", "groups": self.groups, "edges": self.edges}
        return {"network": network, "mappings": self.mappings}


def build(
    graph: EventGraph,
    cells: list[Cell],
    levels: Mapping[str, int],
    scales: Mapping[str, float],
    recorded: Mapping[str, np.ndarray],
) -> tuple[dict, dict[str, list]]:
    """The network of some cells, and of each group that is one of them its signal and its level.

    What is no cell of theirs spikes as recorded, "node.port" -> [T, n]. A bias is the weight of a unit that spikes in
    every step from the one on in which the cell starts.
    """
    made, own = Network(), {}
    for c in cells:
        s = scales[c.name]
        shared = {"reset_mode": "soft"} if c.reset is None else {"reset_mode": "hard", "reset": c.reset * s}
        theta = c.theta * s if c.strict else np.nextafter(c.theta * s, 0)
        rows = zip(theta.tolist(), c.leak.tolist(), c.input_decay.tolist(), strict=True)
        units = [{"threshold": t, "leak_decay": b, "input_decay": a, **shared} for t, b, a in rows]
        own[f"{c.name}.s"] = made.add(units, LIF_UNIT, log_spikes=True)
    for c in cells:
        level, target, s = levels[c.name], own[f"{c.name}.s"], scales[c.name]
        for product, edge in c.terms:
            weight, bias = weights_of(graph, c, product)
            source = own.get(edge.source) or made.train(recorded[edge.source], level - 1 + edge.delay)
            made.connect(source, target, weight * s)
            if bias is not None:
                ones = np.ones((len(recorded[f"{c.name}.s"]), 1))
                made.connect(made.train(ones, level - 1), target, bias[None] * s)
    return made.table(), {group: [signal, levels[signal.rpartition(".")[0]]] for signal, group in own.items()}
