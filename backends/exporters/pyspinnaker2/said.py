"""What the manifest says of a network: which node is where, and what was changed."""

import numpy as np

from rheobase.backends.exporters._graphs import share as share_of
from rheobase.backends.exporters.pyspinnaker2.network import Network, refusal
from rheobase.spiking.graph import CubaLIFCell, EventGraph, LIFCell


def coverage(graph: EventGraph, net: Network) -> dict[str, str]:
    """Node -> where it is, or why it is outside."""
    inside = {p.name: "population" for p in net.populations} | {q.node: "projection" for q in net.projections}
    inside |= dict.fromkeys(net.sums, "projections into one population")
    fed = {s.edge.source_node for s in net.sources}

    def place(node) -> str:
        if node.name in inside:
            return inside[node.name]
        spiking = isinstance(node.op, LIFCell | CubaLIFCell)
        why = f"{type(node.op).__name__}, {refusal(graph, node.name)}" if spiking else type(node.op).__name__
        return f"outside: {why}" + (", its spikes are in the spike list" if node.name in fed else "")

    return {node.name: place(node) for node in graph.nodes}


def share(graph: EventGraph, net: Network) -> str:
    """How many of the graph's numbers are in the bundle, and all neurons that are not."""
    names = {q.node for q in net.projections} | {p.name for p in net.populations}
    cells = [n.name for n in graph.nodes if isinstance(n.op, LIFCell | CubaLIFCell)]
    text = share_of(graph, names, "populations")
    return f"{text}, {len(net.populations)} of {len(cells)} layers of LIF units"


def deviations(graph: EventGraph, net: Network) -> list[dict]:
    """What is not as in the graph, in the graph's units."""
    found = []

    def note(node: str, field: str, wanted: str, written: str, bound: float) -> None:
        found.append({"node": node, "field": field, "wanted": wanted, "written": written, "bound": float(bound)})

    scales = {p.name: p.w_scale for p in net.populations}
    for q in net.projections:
        note(q.node, "weight", "float", f"int8 over {scales[q.post]:.6g}", 0.5 / scales[q.post])
    for p in net.populations:
        alpha = p.alpha_decay.astype(float)
        note(p.name, "decay, threshold, bias", "float", "float32, a share of each", 2.0**-24)
        if graph.node(p.name).op.__dict__.get("fire", ">") == ">=":
            note(p.name, "fire", ">= theta", "> the float32 below, a share of theta", 2.0**-23)
        if p.i_offset.any():
            early = np.abs(p.i_offset) * sum(alpha**j for j in range(p.depth))
            written = f"acts in {p.depth} ticks before the first step: a share of the threshold"
            note(p.name, "bias", "from the first step on", written, (early / np.abs(p.threshold)).max())
    return found
