"""A graph with its thresholds moved is the model with its thresholds moved."""

import numpy as np
import pytest
import torch

from rheobase.backends import simulate
from rheobase.models import EGRULM, EGRULMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.spiking.errors import GraphError
from rheobase.spiking.graph import Add, Edge, EventGraph, Frames, LIFCell, Node, move_thresholds
from rheobase.spiking.tally import BINARY, DENSE

TOKENS = np.arange(48)[None] % 13


def spikegpt(**settings) -> SpikeGPT:
    torch.manual_seed(0)
    model = SpikeGPT(SpikeGPTConfig(vocabulary=13, embedding=16, depth=2, placement="spike_fed", **settings)).double()
    model.wake(torch.from_numpy(TOKENS))
    return model.eval()


@pytest.mark.parametrize("by", [-0.2, 0.15])
def test_egru_as_the_model_itself(by):
    torch.manual_seed(0)
    model = EGRULM(EGRULMConfig(vocabulary=13, embedding=16, layers=(24, 16))).double().eval()
    moved = move_thresholds(model.lower(), by)
    with torch.no_grad():
        for layer in model.layers:
            layer.thr += by
            layer.project_()
    assert moved.hash() == model.lower().hash()


def test_learnt_thresholds_as_the_model_itself():
    model = spikegpt(learn=("theta",))
    moved = move_thresholds(model.lower(), 0.25)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("theta"):
                parameter += 0.25
    assert moved.hash() == model.lower().hash()


def test_numbers_of_some_neurons_alone():
    graph = spikegpt().lower()
    node = "blocks.1.ffn.lif_h"
    moved = move_thresholds(graph, 0.5, [node])
    thetas = {n.name: n.op.theta for n in graph.nodes if hasattr(n.op, "theta")}
    assert len(thetas) > 1
    assert {n.name: n.op.theta for n in moved.nodes if hasattr(n.op, "theta")} == thetas | {node: thetas[node] + 0.5}
    assert move_thresholds(graph, 0.0).hash() == graph.hash()


def test_by_hand():
    x = np.full((1, 4, 1, 1, 1), 0.75, np.float32)  # without memory: fires where 0.75 >= theta
    nodes = (Node("x", Frames((1, 1, 1), DENSE)), Node("n", LIFCell(tau=1.0, theta=0.5)))
    graph = EventGraph(nodes, (Edge("x.out", "n.x", DENSE, (1,)),), {}, {"s": "n.s"})
    for by, spikes in ((0.0, 4), (0.25, 4), (0.26, 0)):
        for on in ("event", "torch"):
            assert simulate(move_thresholds(graph, by), x, on=on).outputs["s"].sum() == spikes


def shared() -> EventGraph:
    """Two neurons with one array of thresholds."""
    nodes = (
        Node("x", Frames((3, 1, 1), DENSE)),
        Node("a", LIFCell(), {"theta": "theta"}),
        Node("b", LIFCell(), {"theta": "theta"}),
        Node("sum", Add()),
    )
    edges = (
        *(Edge("x.out", f"{n}.x", DENSE, (3,)) for n in "ab"),
        *(Edge(f"{n}.s", f"sum.{n}", BINARY, (3,)) for n in "ab"),
    )
    return EventGraph(nodes, edges, {"theta": np.array([0.2, 0.4, 0.6], np.float32)}, {"sum": "sum.out"})


def test_an_array_that_neurons_share():
    graph = shared()
    both = move_thresholds(graph, 0.1)
    np.testing.assert_array_equal(both.arrays["theta"], graph.arrays["theta"] + np.float32(0.1))
    one = move_thresholds(graph, 0.1, ["b"])
    np.testing.assert_array_equal(one.arrays_of(one.node("a"))["theta"], graph.arrays["theta"])
    np.testing.assert_array_equal(one.arrays_of(one.node("b"))["theta"], both.arrays["theta"])


@pytest.mark.parametrize(
    ("by", "nodes", "where"),
    [(0.1, ["sum"], "'sum'"), (0.1, ["none"], "'none'"), (-0.2, None, "a threshold"), (0.1, [], "move_thresholds")],
)
def test_refuses(by, nodes, where):
    with pytest.raises(GraphError, match=where):
        move_thresholds(shared(), by, nodes)
