"""The paths of a GPU, on a GPU that is not there (`fake_cuda`): no tensor is on another device than it should be, and
nothing in a training step makes the host wait."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_cuda import fake_cuda

from rheobase.backends import simulate
from rheobase.bench import Setting, parts
from rheobase.models import (
    EGRULM,
    LSTMLM,
    RWKV4,
    EGRULMConfig,
    LSTMLMConfig,
    RWKV4Config,
    SpikeGPT,
    SpikeGPTConfig,
    classifier,
)
from rheobase.models._moving import moved
from rheobase.models.classifier import Classifier, ClassifierConfig
from rheobase.models.gesture import Gesture, GestureConfig
from rheobase.models.training import loop, sentence_task
from rheobase.models.training.distributed import Ranks
from rheobase.models.training.evaluate import evaluate
from rheobase.models.training.run import RunConfig
from rheobase.models.training.sample import SampleConfig, sample
from rheobase.models.training.sentence_sets import SentencesConfig
from rheobase.models.training.sentence_task import SentenceTask
from rheobase.models.training.step import MicroBatch, gradient
from rheobase.spiking.graph import Add, Edge, EventGraph, Frames, LIFCell, Linear, Node
from rheobase.spiking.tally import BINARY, DENSE

WIDTHS = {"vocabulary": 64, "embedding": 16}
FED = {"placement": "spike_fed", "ternary": True, "graded": True, "learn": ("tau", "theta")}
DROPS = {"dropconnect": 0.1, "dropout_words": 0.1, "dropout_forward": 0.1}
MODELS = {
    "spikegpt": lambda: SpikeGPT(SpikeGPTConfig(**WIDTHS, depth=2, ffn_pre=True)),
    "spikegpt spike-fed": lambda: SpikeGPT(SpikeGPTConfig(**WIDTHS, depth=1, placement="spike_fed")),
    "spikegpt without norms": lambda: SpikeGPT(SpikeGPTConfig(**WIDTHS, depth=1, **FED, norm="static", head="spiking")),
    "rwkv4": lambda: RWKV4(RWKV4Config(**WIDTHS, depth=2)),
    "egru": lambda: EGRULM(EGRULMConfig(**WIDTHS, **DROPS, layers=(24, 16), zoneout=0.1, rate_weight=1.0)),
    "lstm": lambda: LSTMLM(LSTMLMConfig(**WIDTHS, **DROPS, layers=(24, 16))),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_does_not_wait_for_the_gpu(name, autocast):
    model, state = MODELS[name](), None
    with fake_cuda() as gpu:
        model = model.to("cuda").train()
        model.advance(0.0)
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        tokens = torch.randint(0, 64, (4, 20), device="cuda")
        for _ in range(2):  # the first may read numbers that are then known
            gpu.waits.clear()
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                logits, state, runs = model.run(tokens[:, :-1], state)
                loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()) + model.penalty(runs)
            loss.backward()
            assert all(p.grad is not None and p.grad.is_cuda for p in model.parameters())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            model.project_()
            model.advance(0.5)
            state = tuple(type(s)(*(part.detach().float() for part in s)) for s in state)
            assert all(rate.is_cuda for rate in model.rates(runs))
    assert not gpu.waits


@pytest.mark.parametrize("name", MODELS)
def test_the_simulator_asks_little_more_of_a_gpu_than_the_model(name):
    """Of kernels and bytes; it hands over the tokens, fetches the sums of the tally, and waits for the rest."""
    model, steps = MODELS[name]().eval(), 32 if name == "lstm" else 256
    x = np.random.default_rng(0).integers(0, 64, (16, steps))
    model.advance(1.0)
    graph = model.lower()
    with fake_cuda() as gpu, torch.no_grad():
        simulate(graph, x, on="torch", device="cuda")  # which takes the weights there
        gpu.forget()
        trace = simulate(graph, x, on="torch", device="cuda")
        simulated, moved, waits = _launches(gpu), gpu.bytes, gpu.waits
        assert waits[0] == f"({steps}, 16, 1) from cpu to cuda"
        assert waits[-1] == "synchronize"
        assert name == "lstm" or (len(waits) == 3 and waits[1].endswith("from cuda to cpu"))
        gpu.forget()
        assert trace.outputs["logits"].shape == (16, steps, 64) and len(gpu.waits) == 1
        model, tokens = model.to("cuda"), torch.randint(0, 64, x.shape, device="cuda")
        model.run(tokens)
        gpu.forget()
        model.run(tokens)
        assert simulated < 1.3 * _launches(gpu)
        assert moved < (1.6 if name == "egru" else 1.3) * gpu.bytes  # a step's product is inside the op


TASKS = {
    "a budget, norms that go": {
        "model": {"name": "spikegpt", "embedding": 16, "depth": 1, "placement": "spike_fed", "norm": "static"},
        "budget": {"ops_per_token": 100.0, "rates": [0.1]},
    },
    "pruned and rounded": {
        "model": {"name": "egru_lm", "embedding": 16, "layers": [16], "zoneout": 0.1, "rate_weight": 1.0},
        "prune": {"sparsity": 0.5, "start": 0.0, "every": 100},
        "quantise": {"weights": 8, "start": 0.0},
    },
    "in turns": {"model": {"name": "lstm_lm", "embedding": 16, "layers": [16]}, "train": {"accumulate": 2}},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_step_of_the_loop_waits_for_nothing(name, monkeypatch):
    train = {"steps": 40, "batch": 4, "context": 16, "device": "cuda", "precision": "bf16"}
    table = {**TASKS[name], "train": {**train, **TASKS[name].get("train", {})}}
    config = RunConfig.from_table(table)
    corpus = config.corpus()
    config = config.fitted(corpus.tokenizer)
    built, t = config.build(), config.train
    monkeypatch.setattr(loop, "_build", lambda _: built)
    with fake_cuda() as gpu:
        ranks = Ranks(device="cuda", accumulate=t.accumulate)
        task, model = loop.prepare(config, corpus, ranks)
        whole = ranks.wrap(MicroBatch(task, model, False), model, t.sharding)
        optimiser, compression = loop.make_optimiser(model, t), loop.make_compression(model, config)
        model.advance(0.0)
        for step in range(2):
            gpu.forget()
            compression.begin(step)
            optimiser.zero_grad()
            with compression.applied(step):
                gradient(whole, model, ranks, step, t, True)
            torch.nn.utils.clip_grad_norm_(model.parameters(), t.clip)
            optimiser.step()
            model.project_()
            compression.project_()
            model.advance((step + 1) / t.steps)
        assert not gpu.waits
        assert evaluate(model, corpus.splits.valid[:200], batch=4, context=32)
        assert task.carried()["state"][0][0].is_cuda


@pytest.mark.parametrize("neurons", ["relu", "lif"])
def test_recordings_are_classified_without_waits(neurons):
    sizes = {"size": (16, 16), "convolutions": ((4, 3, 1, 1), (6, 3, 1, 1)), "pooled": 1, "features": 12, "units": 10}
    model = Gesture(GestureConfig(**sizes, neurons=neurons, rate_weight=1.0))
    graph, x = model.lower(), np.ones((2, 5, 1, 16, 16), np.float32)
    with fake_cuda() as gpu:
        model = model.to("cuda").train()
        gpu.forget()
        frames, labels = moved(torch.from_numpy(x), "cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            logits, _, runs = model.run(frames)
            loss = F.cross_entropy(logits.mean(1), labels) + model.penalty(runs)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters()) and model.rates(runs)[0].is_cuda
        assert not gpu.waits
        simulate(graph, x, on="torch", device="cuda")
        gpu.forget()
        simulate(graph, x, on="torch", device="cuda")
        assert len(gpu.waits) == 3


def test_sentences_are_classified_without_waits(monkeypatch):
    """What is asked of their lengths is asked on the CPU, and not here, where no number is known."""
    trunk = {**WIDTHS, "layers": (16,), "zoneout": 0.1, "rate_weight": 1.0}
    model, task = Classifier(ClassifierConfig(trunk="egru_lm", settings=trunk)), SentenceTask.__new__(SentenceTask)
    config = RunConfig.from_table({"model": {"name": "egru_lm"}, "train": {"device": "cuda"}})
    task.config = replace(config, sentences=SentencesConfig(language=0.5))
    batch = torch.zeros(4, 9, dtype=torch.int64), torch.full((4,), 6), torch.zeros(4, dtype=torch.int64)
    task.batches = lambda step: batch

    def mask(tokens, lengths):
        assert tokens.is_cuda and not lengths.is_cuda
        return torch.ones(tokens.shape, dtype=torch.bool)

    for module in (classifier, sentence_task):
        monkeypatch.setattr(module, "real_tokens", mask)
        monkeypatch.setattr(module, "places", lambda mask: torch.arange(mask.numel()))
    with fake_cuda() as gpu:
        model = model.to("cuda").train()
        gpu.forget()
        with torch.autocast("cuda", torch.bfloat16):
            loss = task.loss(model, 0)
        loss.whole.backward()
        assert all(p.grad is not None for p in model.parameters()) and model.rates(loss.runs)[0].is_cuda
    assert not gpu.waits


def test_a_token_that_is_drawn_comes_to_the_host_once():
    model = EGRULM(EGRULMConfig(**WIDTHS, layers=(16,)))
    config = SampleConfig(top_k=4, top_p=0.9, typical=0.9, repetition_penalty=1.1)
    with fake_cuda() as gpu:
        model = model.to("cuda")
        gpu.forget()
        sample(model, [[1, 2, 3]], 4, config)
    assert gpu.waits == ["(1, 3) from cpu to cuda", *["(1, 64) from cuda to cpu", "(1, 1) from cpu to cuda"] * 4][:-1]


@pytest.mark.parametrize("part", ["lif", "wkv", "egru"])
def test_what_is_timed_runs_on_the_gpu(part):
    parts("cpu")[part](Setting(small=True))  # libraries are imported here, where their constants are real
    with fake_cuda() as gpu:
        runs = [run for case in parts("cuda")[part](Setting(device="cuda", small=True)) for run in case.runs.items()]
        for name, run in runs:
            # cuDNN, graphs and fla have no fake form, and SpikingJelly asks the driver for the device's name
            if not name.startswith(("loop", "nn.", "SpikingJelly", "fla")) and "graph" not in name:
                gpu.forget()
                run()
                assert gpu.launches, name
    if "snntorch" in sys.modules:  # which keeps each neuron for ever, and would reset these on a GPU
        sys.modules["snntorch"].SpikingNeuron.instances.clear()


def test_no_step_at_all_of_a_graph_of_spikes():
    """What was not seen is 0 in the tally, and no number of the CPU's among those of the GPU."""
    arrays = {name: np.ones((3, 3)) for name in ("in", "back", "out")}
    nodes = Node("x", Frames((3, 1, 1), BINARY)), Node("lif", LIFCell()), Node("sum", Add())
    products = (Node(name, Linear(), {"weight": name}) for name in arrays)
    edges = (
        Edge("x.out", "in.x", BINARY, (3,)),
        Edge("lif.s", "back.x", BINARY, (3,), delay=1),
        Edge("in.out", "sum.a", DENSE, (3,)),
        Edge("back.out", "sum.b", DENSE, (3,)),
        Edge("sum.out", "lif.x", DENSE, (3,)),
        Edge("lif.s", "out.x", BINARY, (3,)),
    )
    graph, frames = EventGraph((*nodes, *products), edges, arrays, {"y": "out.out"}), np.ones((2, 0, 3, 1, 1))
    wanted = simulate(graph, frames)
    with fake_cuda():
        got = simulate(graph, frames, on="torch", device="cuda")
    assert got.tally.operators.keys() == wanted.tally.operators.keys()


def _launches(gpu) -> int:
    """Two kernels a step are in one call of the EGRU's op."""
    return gpu.launches + 2 * 256 * gpu.kernels["egru_triton"]


def test_the_gpu_that_is_not_there_tells_what_waits():
    with fake_cuda() as gpu:
        x = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="two.* devices"):
            x + torch.ones(3)
        assert not gpu.waits
        for wait in (
            lambda: x.sum().item(),
            lambda: bool(x.any()),
            lambda: x.tolist(),
            lambda: torch.tensor(1.0).to(x),
        ):
            wait()
        assert len(gpu.waits) == 4
