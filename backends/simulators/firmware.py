"""The firmware's C on the host: what the integer simulator gives, from a graph placed on processing elements, and fast.

B streams, T steps, n units.
"""

import numpy as np

from rheobase.backends.exporters.spinnaker2 import partition, plan
from rheobase.backends.exporters.spinnaker2.host import Host
from rheobase.backends.exporters.spinnaker2.image import EGRU, PROGRAM
from rheobase.backends.exporters.spinnaker2.routing import sent_by
from rheobase.backends.exporters.spinnaker2.sections import by_token_alone
from rheobase.backends.simulators._executor import feed
from rheobase.backends.trace import Trace, expand
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.events import Events
from rheobase.spiking.graph import EventGraph
from rheobase.spiking.tally import EVENT_KINDS

OTHER = 'use on="integer"'
CHIPS = 64
"""more than any model here needs: which chip an element lies on changes no integer"""


def run(graph: EventGraph, tokens, state, record) -> Trace:
    """Run tokens [B, T] through a graph quantised for SpiNNaker 2; as `simulators.simulate`, uncounted.

    raises  UnsupportedError: a state to begin with, no token, something to record that no element sends, no C library,
            or a graph that cannot be placed
    """
    source, fed = feed(graph, tokens)
    fed = fed[..., 0]
    if state is not None or not fed.size:
        got = "a state" if state is not None else "none"
        raise UnsupportedError("simulate on firmware", "tokens of new streams", got, OTHER)
    kinds = {f"{n.name}.{port}": kind for n in graph.nodes for port, kind in n.op.outputs.items()}
    recorded = expand(record, graph.signals())
    wanted = {name for name, kind in kinds.items() if kind in EVENT_KINDS and name != f"{source.name}.out"}
    placed = partition.build(graph, chips=CHIPS)
    sends = {stream: name for stream, name in plan.names_of(placed.images[1], placed.probes).items() if stream}
    by_token = wanted & by_token_alone(graph)
    if silent := sorted(wanted - by_token - set(sends.values())):
        raise UnsupportedError("simulate on firmware", "events that elements send", ", ".join(silent), OTHER)
    if silent := sorted(set(recorded) - wanted):
        raise UnsupportedError("simulate on firmware", "events to record", ", ".join(silent), OTHER)
    host = Host(*placed.images, joined=True)
    logits, rows, last = [], [], []
    for number, stream in enumerate(fed):
        host.reset()
        out, sent = host.events_of(stream)
        logits.append(out)
        rows.append(np.concatenate([np.full((len(sent), 1), number), sent], 1))
        last.append(_signals(placed, host))
    number, step, key, value = np.concatenate(rows).T
    first = np.zeros((256, 256), np.int64)
    for element in placed.placed:
        for stream in sent_by(element.image):
            first[stream, element.image.fields["slice"]] = element.image.fields["unit_lo"]
    unit = first[key >> 24, key >> 16 & 255] + (key & 0xFFFF)
    events = {}
    for stream, name in sends.items():
        mine = key >> 24 == stream
        size = *fed.shape, graph.shape_of(name)[0]
        events[name] = Events.from_unsorted(number[mine], step[mine], unit[mine], value[mine], *size, dt_s=graph.dt_s)
    events |= {name: Events.from_dense(partition.values_by_token(graph, name)[fed], graph.dt_s) for name in by_token}
    states = {}
    for name in graph.state_shapes():
        if name in last[0]:
            states[name] = np.stack([signals[name] for signals in last])
        elif name in events:
            states[name] = events[name].to_dense()[:, -1]
        else:
            states[name] = partition.values_by_token(graph, name)[fed[:, -1]]
    (output,) = graph.outputs
    return Trace(
        outputs={output: np.stack(logits).astype(np.int64)},
        events={name: events[name] for name in kinds if name in wanted},
        state=states,
        recorded={name: events[name].to_dense() for name in recorded},
    )


def _signals(placed: partition.Partition, host: Host) -> dict[str, np.ndarray]:
    """What cells and registers hold after the last token, by signal."""
    parts: dict[str, list[np.ndarray]] = {}
    for image in host.images()[: len(placed.placed)]:
        units, layer = image.fields["units"], image.fields["layer"]
        rows = {"c": image.regions["cell"]} if image.kind == EGRU else {}
        if image.kind == PROGRAM:
            rows = dict(enumerate(image.regions["registers"].reshape(-1, units)))
        for port, values in rows.items():
            if name := placed.probes.get(f"{layer}.{port}"):
                parts.setdefault(name, []).append(values.astype(np.int64))
    return {name: np.concatenate(values) for name, values in parts.items()}
