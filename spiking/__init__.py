"""Neurons, surrogates, events, the intermediate form and the counts: what models and backends both stand on."""

if __name__ != "rheobase.spiking":
    raise ImportError("import rheobase.spiking, not spiking: from the repository's root the bare name is a second copy")

from rheobase.spiking.events import Events
from rheobase.spiking.graph import EventGraph
from rheobase.spiking.neurons import EGRU, LIF, Cell, EGRUState, LIFState, restart_cell
from rheobase.spiking.surrogates import ATan, FastSigmoid, Sigmoid, StraightThrough, Surrogate, Triangle
from rheobase.spiking.tally import Counts, Tally

__all__ = [
    "ATan",
    "Cell",
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
    "Triangle",
    "restart_cell",
]
