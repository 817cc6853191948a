"""Pruning and rounding in training: what becomes 0 and when, and that what is trained is what is exported."""

import numpy as np
import pytest
import torch

from rheobase.backends import simulate
from rheobase.backends.exporters.spinnaker2.arithmetic import PRE_FRAC
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.models import EGRULM, LSTMLM, Classifier, EGRULMConfig, LSTMLMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.models.training import loop
from rheobase.models.training.checkpoint import load_checkpoint, newest_checkpoint
from rheobase.models.training.compression import Compression, PruneConfig, QuantiseConfig, sparsity_after
from rheobase.models.training.run import RunConfig
from rheobase.spiking.quantisation import best_exponents, rounded

TABLE = {
    "model": {"name": "egru_lm", "embedding": 24, "layers": [32, 24], "thr_mean": 0.1, "dropconnect": 0.1},
    "train": {"steps": 40, "batch": 4, "context": 8, "warmup": 5, "evaluate_every": 10, "checkpoint_every": 5},
    "prune": {"sparsity": 0.8, "start": 0.1, "end": 0.6, "every": 3},
    "quantise": {"weights": 8},
}
PRODUCTS = [f"layers.{i}.{name}" for i in range(2) for name in ("kernel", "recurrent_kernel")]


def small_model(seed=0):
    torch.manual_seed(seed)
    return EGRULM(EGRULMConfig(embedding=6, layers=(8, 6), thr_mean=0.1))


def compression(model, steps=100, weights=0, start=0.0, **prune):
    return Compression(PruneConfig(**prune), QuantiseConfig(weights=weights, start=start), model, steps)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was pruned, rounded, and interrupted by nothing."""
    return loop.start(tmp_path_factory.mktemp("runs") / "whole", RunConfig.from_table(TABLE), quiet=True)


def test_the_schedule_by_hand():
    """0.8 (1 - (1/2)^3) = 0.7 half the way."""
    config = PruneConfig(sparsity=0.8, start=0.2, end=0.6)
    got = [sparsity_after(step, config, 100) for step in (0, 20, 30, 40, 60, 99)]
    assert got == pytest.approx([0, 0, 0.8 * (1 - 0.75**3), 0.7, 0.8, 0.8])
    at_once = PruneConfig(sparsity=0.5, start=0.0, end=0.0)
    assert sparsity_after(0, at_once, 100) == 0.5


def test_which_weights_are_those_of_products():
    recurrent = EGRULM(EGRULMConfig(embedding=6, layers=(8, 5), projection=True))
    names = {**dict.fromkeys(PRODUCTS, False), "embedding.weight": True, "projection.weight": True}
    assert recurrent.products() == names
    lstm = LSTMLM(LSTMLMConfig(embedding=6, layers=(6,)))
    assert lstm.products() == {n: True for n in ("embedding.weight", "layers.0.weight_ih_l0", "layers.0.weight_hh_l0")}
    for placement in ("reference", "spike_fed"):
        model = SpikeGPT(SpikeGPTConfig(embedding=6, depth=1, placement=placement))
        att, ffn = ("key", "value", "receptance", "output"), ("key", "receptance", "value")
        mixes = [f"blocks.0.{mix}.{n}.weight" for mix, names in (("att", att), ("ffn", ffn)) for n in names]
        assert model.products() == dict.fromkeys([*mixes, "head.weight"], True)
    classifier = Classifier.on(recurrent, classes=3)
    assert classifier.products() == {f"trunk.{n}": kept for n, kept in names.items()} | {"output.weight": True}
    assert classifier.heads == ("output.weight", "trunk.embedding.weight")
    for model in (recurrent, lstm, classifier):
        shapes = {n: p.dim() for n, p in model.named_parameters()}
        assert {shapes[n] for n in model.products()} == {2}


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("head", [False, True])
def test_the_smallest_weights_are_taken_away_and_none_comes_back(scope, head):
    model = small_model()
    with torch.no_grad():
        model.layers[0].kernel *= 3
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    c = compression(model, sparsity=0.65, start=0.1, end=0.5, every=7, scope=scope, head=head)
    prunable = [*PRODUCTS, "embedding.weight"] if head else PRODUCTS
    assert sorted(c.pruned) == sorted(prunable)
    gone = {name: mask.clone() for name, mask in c.pruned.items()}
    for step in range(100):
        c.begin(step)
        assert step >= 10 or not any(mask.any() for mask in c.pruned.values())
        for name, mask in c.pruned.items():
            assert (mask | ~gone[name]).all() and (model.get_parameter(name)[mask] == 0).all()
            assert step <= 50 or torch.equal(mask, gone[name])
            gone[name] = mask.clone()
    sizes = {name: before[name].numel() for name in prunable}
    zeros = {name: int((model.get_parameter(name) == 0).sum()) for name in prunable}
    if scope == "layer":
        assert zeros == {name: int(0.65 * n + 0.5) for name, n in sizes.items()}
    else:
        assert sum(zeros.values()) == int(0.65 * sum(sizes.values()) + 0.5)
        share = {name: zeros[name] / sizes[name] for name in prunable}
        assert 2 * share["layers.0.kernel"] < share["layers.1.kernel"]
        kept = min(before[n][~gone[n]].abs().min() for n in prunable)
        assert kept >= max(before[n][gone[n]].abs().max() for n in prunable)
    for name, p in model.named_parameters():
        assert name in prunable or torch.equal(p, before[name])
    found = c.sparsity()
    assert (found.zeros, found.weights) == (sum(zeros.values()), sum(sizes.values()))


def test_what_is_gone_stays_so_when_more_steps_are_asked_for():
    model = small_model()
    c = compression(model, sparsity=0.8, start=0.0, end=0.5)
    for step in range(60):
        c.begin(step)
    longer = compression(model, steps=1000, sparsity=0.8, start=0.0, end=0.5)
    longer.carry(c.carried())
    before = c.sparsity().zeros
    longer.begin(60)
    assert sparsity_after(60, longer.prune, 1000) < 0.4 and longer.sparsity().zeros == before


def test_the_gradient_goes_straight_through_the_rounding():
    """Of sum(r^2) at the rounded weights r it is 2 r, at the weights themselves; 0 where they are clipped or gone."""
    model = small_model()
    c = compression(model, weights=8, sparsity=0.5, end=0.5)
    weight = model.layers[0].kernel
    with torch.no_grad():
        weight[:, 0] = torch.tensor([0.4985] + 5 * [0.0039])
    exact = {name: p.detach().clone() for name, p in model.named_parameters()}
    c.pruned["layers.0.kernel"][1:3, 1] = True
    exponent = best_exponents(weight.detach(), torch.ones(6), clip=True)
    clipped = weight.detach().abs() * 2.0**exponent > 127.5
    assert clipped[0, 0] and not clipped[:, 1:3].all()
    with c.applied(0):
        inside = weight.detach().clone()
        assert torch.equal(inside, rounded(exact["layers.0.kernel"], exponent))
        assert torch.equal(model.layers[0].thr, exact["layers.0.thr"])
        weight.square().sum().backward()
    wanted = 2 * inside
    wanted[clipped] = 0
    wanted[1:3, 1] = 0
    assert torch.equal(weight.grad, wanted) and wanted.count_nonzero() > 100
    assert all(torch.equal(p, exact[name]) for name, p in model.named_parameters())


def test_rounding_begins_when_it_should_and_an_error_leaves_the_weights_alone():
    model = small_model()
    c = compression(model, weights=8, start=0.5)
    exact = {name: p.detach().clone() for name, p in model.named_parameters()}
    with c.applied(49):
        assert all(torch.equal(p, exact[name]) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="some"), c.applied(50):
        assert not torch.equal(model.embedding.weight, exact["embedding.weight"])
        raise ValueError("some")
    assert all(torch.equal(p, exact[name]) for name, p in model.named_parameters())
    assert [c.complete(step) for step in (50, 51)] == [False, True]
    assert [compression(model, sparsity=0.1, end=0.3).complete(step) for step in (30, 31)] == [False, True]


def test_a_trained_model_holds_the_weights_that_an_exporter_writes(run):
    """Pruned and rounded: the exact zeros, and integers over powers of two that a second rounding leaves alone."""
    model = run.model()
    found, log = run.metrics()["sparsity"], [r["sparsity"] for r in run.log() if "sparsity" in r]
    zeros = {name: (model.get_parameter(name) == 0).float().mean().item() for name in PRODUCTS}
    assert found["layers"] == pytest.approx(zeros) and log[-1].keys() == zeros.keys()
    assert found["zeros"] >= int(0.8 * found["weights"] + 0.5)
    assert run.metrics()["best_step"] > 24 and sum(log[0].values()) < sum(log[1].values()) < sum(log[2].values())
    graph = model.lower()
    integer, _ = quantise(graph, run.splits().valid[:512].astype(np.int64).reshape(2, 256))
    for name, stored_by_row in model.products().items():
        exponent = integer.arrays[f"{name}.exponent"].astype(np.float64)
        exponent = exponent[:, None] if stored_by_row else exponent
        assert integer.arrays[name].dtype == np.int8
        assert np.array_equal(integer.arrays[name] * 2.0**-exponent, graph.arrays[name])
    last = load_checkpoint(newest_checkpoint(run.checkpoints))["model"]
    assert not torch.equal(last["layers.0.kernel"], model.layers[0].kernel)


def test_a_gate_that_lost_all_its_weights_keeps_its_bias():
    model = small_model()
    with torch.no_grad():
        model.layers[0].kernel[:, 3] = 0
        model.layers[0].bias[3] = 0.7
    text = np.arange(60).reshape(2, 30)
    record = ["layers.0.kernel.out"]
    integer, _ = quantise(model.lower(), text)
    got = simulate(integer, text, on="integer", record=record).recorded[record[0]] / 2.0**PRE_FRAC
    assert np.abs(got - simulate(model.lower(), text, record=record).recorded[record[0]]).max() < 2e-3
    assert got[..., 3] == pytest.approx(0.7, abs=2**-12)


def test_pruning_alone_is_exact_and_moves_nothing_else(tmp_path):
    table = {**TABLE, "quantise": {}, "prune": {**TABLE["prune"], "scope": "layer"}}
    model = loop.start(tmp_path / "run", RunConfig.from_table(table), quiet=True).model()
    for name in PRODUCTS:
        weight = model.get_parameter(name)
        assert int((weight == 0).sum()) == int(0.8 * weight.numel() + 0.5)
    assert (model.embedding.weight == 0).sum() == 0


@pytest.mark.parametrize("at", [5, 10, 25, 35])
def test_a_resumed_run_is_the_same_run(run, tmp_path, at, monkeypatch):
    """Stopped before, amid and after pruning, and while weights are rounded."""
    monkeypatch.setattr(loop, "save_checkpoint", stop_at(at))
    with pytest.raises(KeyboardInterrupt):
        loop.start(tmp_path / "run", RunConfig.from_table(TABLE), quiet=True)
    monkeypatch.undo()
    again = loop.resume(tmp_path / "run", quiet=True)
    for name, tensor in run.model().state_dict().items():
        assert torch.equal(tensor, again.model().state_dict()[name]), name
    last, other = (load_checkpoint(newest_checkpoint(r.checkpoints)) for r in (run, again))
    for part in ("model", "compression"):
        assert last[part].keys() == other[part].keys() and last[part]
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in last[part].items())
    assert run.metrics()["sparsity"] == again.metrics()["sparsity"]


def stop_at(at):
    from rheobase.models.training.checkpoint import save_checkpoint

    def save(folder, step, state):
        save_checkpoint(folder, step, state)
        if step == at:
            raise KeyboardInterrupt

    return save


def test_a_spikegpt_is_pruned_and_rounded_too(tmp_path):
    model = {"name": "spikegpt", "embedding": 16, "depth": 1, "placement": "spike_fed", "binary_embedding": False}
    table = {**TABLE, "model": model}
    run = loop.start(tmp_path / "run", RunConfig.from_table(table), quiet=True)
    assert run.metrics()["sparsity"]["zeros"] >= int(0.8 * 13 * 16 * 16 + 0.5)
    model = run.model()
    for name in model.products():
        columns = model.get_parameter(name).detach().T
        assert torch.equal(rounded(columns, best_exponents(columns, columns.new_ones(len(columns)), False)), columns)
    assert model.get_parameter("emb.weight").unique().numel() > 1000


def test_eval_and_train_say_how_many_weights_are_zero(run, capsys):
    from rheobase.cli import run as command

    found = run.metrics()["sparsity"]
    assert command(["eval", str(run.folder)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{100 * found['zeros'] / found['weights']:.1f} % of 9,408 weights are 0: ")
    assert command(["train", "--out", str(run.folder), "--resume"]) == 0
    assert line in capsys.readouterr().out
