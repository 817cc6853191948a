"""Simulators of an EventGraph. Each lives in a file of its own with `run`, found by the file's name."""

import inspect

from torch import autocast, no_grad  # the name torch is a simulator's here

from rheobase.backends.trace import Trace
from rheobase.spiking import registry
from rheobase.spiking.errors import ConfigError, GraphError
from rheobase.spiking.graph import EventGraph


def simulate(graph: EventGraph, tokens, state=None, *, on: str = "event", record=(), **options) -> Trace:
    """Run tokens, or frames, through a graph: the model's own events and outputs.

    graph    what `model.lower()` gives
    tokens   integers [B, T];  frames [B, T, C, H, W] where the graph's input is `Frames`
    state    `Trace.state` of the run before, zeros if None
    on       "event" (work proportional to events), "torch" (dense, `device=`), both counted; "integer" (a graph
             quantised for SpiNNaker 2) and "firmware" (such a graph placed, by the firmware's C: the same integers,
             fast; of new streams, and no more is recorded than what elements send)
    record   patterns of outputs to keep whole, such as ["layers.*.{c,y}"]
    returns  Trace(outputs, events, state, tally, recorded)
    raises   ShapeError: an input or a state that does not fit;  ConfigError: no such simulator, option or output;
             GraphError: no graph
    """
    if not isinstance(graph, EventGraph):
        raise GraphError("simulate", "an EventGraph", type(graph).__name__, "give what the model's lower() returns")
    run = registry.get("rheobase.backends.simulators", on).run
    known = list(inspect.signature(run).parameters)[4:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        remedy = registry.nearest(unknown[0], known) if known else "leave it out"
        raise ConfigError("simulate", f"on={on!r} with {', '.join(known) or 'no options'}", ", ".join(unknown), remedy)
    with no_grad(), autocast("cuda", enabled=False), autocast("cpu", enabled=False):
        return run(graph, tokens, state, record, **options)


__all__ = ["simulate"]
