"""The dense simulator's ways for a GPU, on a CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_simulate import MODELS, egru, tokens

from rheobase.backends import simulate
from rheobase.backends.simulators._executor import execute
from rheobase.backends.simulators._gpu import GPUKernels, exact
from rheobase.models import LSTMLM, LSTMLMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.graph import (
    Add,
    Edge,
    EventGraph,
    Linear,
    Node,
)
from rheobase.spiking.tally import DENSE


@pytest.mark.parametrize("name", [*MODELS, "spikegpt", "spikegpt graded", "spikegpt spike-fed"])
def test_a_gpus_ways_give_the_same_events_and_tally(name):
    """They run on the CPU here: how it counts, mixes and hands over."""
    torch.manual_seed(1)
    sizes = {"embedding": 24, "depth": 2, "placement": "reference" if name == "spikegpt" else "spike_fed"}
    model = MODELS[name]() if name in MODELS else SpikeGPT(SpikeGPTConfig(**sizes, graded="graded" in name)).double()
    model.wake(torch.from_numpy(tokens(100, 4)))
    graph, x = model.eval().lower(), tokens(60, 3)
    state = simulate(graph, x).state
    wanted = simulate(graph, x, state, on="torch", record=["*"])
    with torch.no_grad():
        got = execute(graph, x, state, GPUKernels("cpu"), ["*"])
        nothing, plain = (execute(graph, part, state, GPUKernels("cpu")) for part in (x[:, :0], x))
    assert got.tally == plain.tally == wanted.tally
    assert np.abs(plain.outputs["logits"] - wanted.outputs["logits"]).max() < 1e-12
    assert all(np.abs(plain.state[name] - array).max() < 1e-12 for name, array in wanted.state.items())
    assert nothing.tally == simulate(graph, x[:, :0]).tally
    for name, events in wanted.events.items():
        assert np.array_equal(got.events[name].to_dense() != 0, events.to_dense() != 0)
    for part in ("outputs", "recorded", "state"):
        assert list(getattr(got, part)) == list(getattr(wanted, part))
        for name, array in getattr(wanted, part).items():
            assert np.abs(getattr(got, part)[name] - array).max() < 1e-12


@torch.no_grad()
def test_a_gpus_lstm_may_follow_a_product_in_a_loop_of_its_own():
    graph, product = (
        LSTMLM(LSTMLMConfig(vocabulary=9, embedding=4, layers=(4,))).double().lower(),
        "layers.0.weight_ih_l0",
    )
    (fed,) = (e for e in graph.edges if e.target == f"{product}.x")
    loop = (
        replace(fed, target="sum.a"),
        Edge("back.out", "sum.b", DENSE, (4,)),
        Edge("sum.out", fed.target, DENSE, (4,)),
        Edge(f"{product}.out", "back.x", DENSE, (16,), delay=1),
    )
    nodes = (*graph.nodes, Node("back", Linear(transposed=False), {"weight": "back"}), Node("sum", Add()))
    arrays = {**graph.arrays, "back": np.random.default_rng(0).normal(size=(16, 4)) / 10}
    graph = EventGraph(nodes, (*(e for e in graph.edges if e is not fed), *loop), arrays, graph.outputs)
    x = np.random.default_rng(1).integers(0, 9, (3, 4))
    wanted, got = simulate(graph, x), execute(graph, x, None, GPUKernels("cpu"))
    assert np.abs(got.outputs["logits"] - wanted.outputs["logits"]).max() < 1e-12


@pytest.mark.parametrize("gpus, device", [(0, "cuda"), (1, "cuda:1")])
def test_a_device_that_is_not_there_is_refused(gpus, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=f"expected a device of this machine, got '{device}'"):
        simulate(egru().lower(), tokens(5), on="torch", device=device)


def test_counts_are_exact_beyond_what_float32_holds(monkeypatch):
    """On a GPU rows are counted in float32, each of which may hold 2^24 events, and there are many rows."""
    assert GPUKernels("cpu").count_nonzero(torch.ones(2, 5001).half()).tolist() == [5001] * 2
    most = 2**24 - 1
    monkeypatch.setattr(GPUKernels, "count_nonzero", lambda self, array: torch.full(array.shape[:-1], float(most)))
    graph, x = egru().lower(), tokens(5, 2)
    tally = execute(graph, x, None, GPUKernels("cpu")).tally
    assert tally.operators["layers.1.recurrent_kernel"].rows == 10 * most


@pytest.mark.parametrize("place", [torch.backends.cudnn.conv, torch.backends], ids=["one op", "all"])
def test_cudnn_computes_exactly_whatever_a_user_has_set(place):
    """torch reads one setting by two names, which it does not keep in step."""
    ops, before = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn), place.fp32_precision
    assert [op.fp32_precision for op in ops] == ["tf32"] * 2
    try:
        place.fp32_precision = "tf32" if place is torch.backends else "ieee"
        wanted = [op.fp32_precision for op in ops]
        with exact():
            assert [op.fp32_precision for op in ops] == ["ieee"] * 2
        assert [op.fp32_precision for op in ops] == wanted
    finally:
        place.fp32_precision = before
        for op in ops:
            op.fp32_precision = "tf32"
