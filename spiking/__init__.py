"""Neurons, surrogates, events, the intermediate form and the counts: what models and backends both stand on."""

if __name__ != "rheobase.spiking":
    raise ImportError("import rheobase.spiking, not spiking: from the repository's root the bare name is a second copy")

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rheobase.spiking.events import Events
    from rheobase.spiking.graph import EventGraph
    from rheobase.spiking.neurons import EGRU, LIF, Cell, EGRUState, LIFState, restart_cell
    from rheobase.spiking.surrogates import ATan, FastSigmoid, Sigmoid, StraightThrough, Surrogate, Triangle
    from rheobase.spiking.tally import Counts, Tally

_HOMES = {
    "events": "Events",
    "graph": "EventGraph",
    "neurons": "EGRU, LIF, Cell, EGRUState, LIFState, restart_cell",
    "surrogates": "ATan, FastSigmoid, Sigmoid, StraightThrough, Surrogate, Triangle",
    "tally": "Counts, Tally",
}


def __getattr__(name: str):
    """Import a name when it is first asked for: what reads event files needs no torch, which takes over 600 MB."""
    if name in _HOMES:
        return importlib.import_module(f"{__name__}.{name}")
    home = next((module for module, names in _HOMES.items() if name in names.split(", ")), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


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
