"""Neurons. Each lives in a file of its own, and exists because that file does (`registry.names`)."""

from rheobase.spiking.neurons._cell import Cell
from rheobase.spiking.neurons.egru import EGRU, EGRUState, restart_cell
from rheobase.spiking.neurons.lif import LIF, LIFState

__all__ = ["EGRU", "Cell", "EGRUState", "LIF", "LIFState", "restart_cell"]
