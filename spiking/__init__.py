"""Neurons, surrogates, events, the intermediate form and the counts: what models and backends both stand on."""

if __name__ != "rheobase.spiking":
    raise ImportError("import rheobase.spiking, not spiking: from the repository's root the bare name is a second copy")

from typing import TYPE_CHECKING

from rheobase.spiking._lazy import lazy_names

if TYPE_CHECKING:
    from rheobase.spiking.cuda_graphs import cuda_graphed
    from rheobase.spiking.events import Events
    from rheobase.spiking.graph import EventGraph
    from rheobase.spiking.neurons import EGRU, LIF, Cell, EGRUState, LIFState, restart_cell
    from rheobase.spiking.rwkv import ChannelMix, TimeMix, token_shift
    from rheobase.spiking.surrogates import ATan, FastSigmoid, Sigmoid, StraightThrough, Surrogate, Triangle
    from rheobase.spiking.tally import Counts, Tally

_HOMES = {
    "cuda_graphs": "cuda_graphed",
    "events": "Events",
    "graph": "EventGraph",
    "neurons": "EGRU, LIF, Cell, EGRUState, LIFState, restart_cell",
    "rwkv": "ChannelMix, TimeMix, token_shift",
    "surrogates": "ATan, FastSigmoid, Sigmoid, StraightThrough, Surrogate, Triangle",
    "tally": "Counts, Tally",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)

__all__ = [
    "ATan",
    "Cell",
    "ChannelMix",
    "Counts",
    "EGRU",
    "EGRUState",
    "EventGraph",
    "Events",
    "FastSigmoid",
    "LIF",
    "LIFState",
    "Sigmoid",
    "StraightThrough",
    "Surrogate",
    "Tally",
    "TimeMix",
    "Triangle",
    "cuda_graphed",
    "restart_cell",
    "token_shift",
]
