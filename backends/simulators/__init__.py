"""Simulators of an EventGraph. Each lives in a file of its own with `KERNELS`, found by the file's name."""

import torch

from rheobase.backends.simulators._executor import execute
from rheobase.backends.trace import Trace
from rheobase.spiking import registry
from rheobase.spiking.graph import EventGraph


@torch.no_grad()
def simulate(graph: EventGraph, tokens, state=None, *, on: str = "event", record=(), **options) -> Trace:
    """Run tokens, or frames, through a graph: the model's own events and outputs.

    graph    what `model.lower()` gives
    tokens   integers [B, T];  frames [B, T, C, H, W] where the graph's input is `Frames`
    state    `Trace.state` of the run before, zeros if None
    on       "event" (work proportional to events), "torch" (dense, `device=`), both counted; "integer" (a graph
             quantised for SpiNNaker 2)
    record   patterns of outputs to keep whole, such as ["layers.*.{c,y}"]
    returns  Trace(outputs, events, state, tally, recorded)
    raises   ShapeError: an input or a state that does not fit;  ConfigError: no such simulator or output
    """
    kernels = registry.get("rheobase.backends.simulators", on).KERNELS(**options)
    return execute(graph, tokens, state, kernels, record)


__all__ = ["simulate"]
