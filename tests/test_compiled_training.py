"""`[train] compile = true`: the same training, in graphs that torch compiles."""

import re
from functools import partial

import pytest
import torch
from test_distributed import alone, assert_same, stopped, table, torchrun
from test_distributed import every_step_is_logged as every_step_is_logged
from test_distributed import text as text
from torch.nn.parallel import DistributedDataParallel

from rheobase.models.training import loop
from rheobase.models.training.run import RunConfig
from rheobase.models.training.step import MicroBatch
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.ops.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C library: loops would be compiled")
COMPILED = {"compile": True}


@pytest.fixture
def traced(monkeypatch):
    """Graphs as torch traces them, which are quick to make; they come one after the other in the list given."""
    torch._dynamo.reset()
    graphs, compiler = [], torch.compile

    def keep(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(compiler, backend=keep))
    yield graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("model", ["egru", "spikegpt"])
def test_the_gradients_are_the_same(model, recompute, text, traced):
    config = RunConfig.from_table(table(text, model))
    corpus, found = config.corpus(), []
    for compiled in (False, True):
        task, net = loop.prepare(config, corpus)
        task.begin(net)
        whole, parts = MicroBatch(task, net, recompute, compiled), []
        for step in range(2):  # with the state that the first leaves
            loss = whole(step, 0).whole
            loss.backward()
            parts.append(loss.detach())
        found.append([*parts, *(p.grad for p in net.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*found, strict=True))
    # EGRU: two layers of two sizes, without a state and with one; SpikeGPT: the first block and the other; the loss
    assert len(traced) == (5 if model == "egru" else 3)


def test_ddp_leaves_a_stage_one_graph(text, traced):
    """Also one whose parameters are more than the 1 MB of DDP's first bucket."""
    config = RunConfig.from_table(table(text, "spikegpt", model={"embedding": 128, "depth": 1}))
    task, net = loop.prepare(config, config.corpus())
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        DistributedDataParallel(MicroBatch(task, net, False, True))(0, 0).whole.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(traced) == 2, "the block and the loss"


@pytest.mark.parametrize("model", ["egru", "spikegpt"])
def test_a_run_is_the_same_and_resumes(model, text, traced, tmp_path):
    alone(tmp_path / "plain", table(text, model))
    run = alone(tmp_path / "compiled", table(text, model, COMPILED))
    assert_same(tmp_path / "plain", tmp_path / "compiled")
    again = loop.resume(stopped(tmp_path / "compiled", tmp_path / "again"), quiet=True)
    first, second = run.model().state_dict(), again.model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_torch_cannot_compile_is_refused_in_a_line(text, tmp_path):
    torch._dynamo.reset()
    without = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    with torch._inductor.config.patch(without), pytest.raises(ConfigError) as refused:
        alone(tmp_path / "run", table(text, "spikegpt", COMPILED))
    assert re.search("train.compile: expected stages .* got .*[cC]ompiler.*; leave it out", str(refused.value))
    assert len(str(refused.value).splitlines()) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["lstm_lm", "gru_lm"])
def test_torchs_own_layers_are_refused_before_a_run_begins(name, text, tmp_path):
    model = {"name": name, "embedding": 8, "layers": [8]}
    with pytest.raises(ConfigError, match=f"train.compile: expected layers that .* got torch's own of {name}; leave"):
        alone(tmp_path / "run", table(text, "egru", COMPILED) | {"model": model})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["egru", "spikegpt"])
def test_what_inductor_makes_trains_the_same(model, text, tmp_path):
    torch._dynamo.reset()
    alone(tmp_path / "plain", table(text, model))
    alone(tmp_path / "compiled", table(text, model, COMPILED))
    assert_same(tmp_path / "plain", tmp_path / "compiled")


@pytest.mark.slow
def test_two_ranks_compile_and_train_as_one_does(text, tmp_path):
    alone(tmp_path / "one", table(text, "spikegpt"))
    torchrun(2, tmp_path, [(tmp_path / "two", table(text, "spikegpt", COMPILED | {"accumulate": 3}))])
    assert_same(tmp_path / "one", tmp_path / "two")
