"""Faults of SpikeGPT's original code, one test each, so that none comes back here.

Elsewhere: a step form that rescales across the thresholds, and a model of one block, in
`test_golden_spikegpt.test_step_form_is_sequence_form_at_any_cut`; the penalty under a scaled loss, in
`test_golden_spikegpt.test_l2wrap_scales_with_the_loss`; sampling with top_p = 1, and the temperature's place before
top-p, in `test_sample.test_what_is_off_leaves_every_bit` and
`test_sample.test_the_order_is_temperature_top_k_top_p_typical`.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.training import loop
from rheobase.models.training.checkpoint import newest_checkpoint
from rheobase.models.training.data import Batches, DataConfig, read_texts
from rheobase.models.training.evaluate import evaluate
from rheobase.models.training.run import Run, RunConfig
from rheobase.models.training.sample import join_states, prefill

ROOT = Path(__file__).parent.parent
PLACEMENTS = ("reference", "spike_fed")
TABLE = {
    "model": {"name": "spikegpt", "embedding": 16, "depth": 1},
    "train": {"steps": 36, "batch": 4, "context": 16, "warmup": 2, "evaluate_every": 2, "checkpoint_every": 12},
    "data": {"order": "crops"},
}


def live_model(placement="reference", **options):
    """A small model in float64 whose neurons fire."""
    torch.manual_seed(0)
    config = SpikeGPTConfig(**{"vocabulary": 13, "embedding": 8, "depth": 2, "placement": placement, **options})
    model = SpikeGPT(config).double().eval()
    model.wake(tokens_for(model, 4, 16))
    return model


def tokens_for(model, batch, steps):
    return torch.randint(0, model.config.vocabulary, (batch, steps), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train a small SpikeGPT on so short a text that it overfits, with other settings of [train] if given."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "text").write_bytes(read_texts(DataConfig())[0][:400].tobytes())

    def training(name, **options):
        data = TABLE["data"] | {"text": str(folder / "text")}
        settings = TABLE["train"] | {"learning_rate": 0.1} | options
        config = RunConfig.from_table(TABLE | {"data": data, "train": settings})
        return loop.start(folder / name, config, quiet=True)

    return training


@pytest.fixture(scope="module")
def run(train):
    return train("run")


@pytest.mark.parametrize("vocabulary", [76, 77, 78, 256])
@torch.no_grad()
def test_the_setting_alone_decides_whether_the_embedding_is_binary(vocabulary):
    """There the step form made spikes of the embedding at a vocabulary of 77 and of no other; training always did."""
    for binary in (True, False):
        model, seen = live_model(vocabulary=vocabulary, binary_embedding=binary), []
        model.blocks[0].ln0.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        tokens = tokens_for(model, 1, 9)
        model(tokens)
        state = None
        for t in range(9):
            _, state = model(tokens[:, t : t + 1], state)
        assert torch.equal(torch.cat(seen[1:], 1), seen[0])
        assert (set(seen[0].unique().tolist()) == {0.0, 1.0}) is binary


@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_every_trial_starts_from_the_whole_state(placement):
    """There each trial began with a copy of WKV's state, but with the membranes that the trial before had left."""
    model = live_model(placement)
    prompt, forced = tokens_for(model, 2, 20)
    _, start = prefill(model, prompt.tolist())
    before = [part.clone() for block in start for part in block]
    wanted = model(torch.cat([prompt, forced])[None])[0][:, 20:]
    trials = []
    for _ in range(2):
        state, steps = join_states([start]), []
        for token in forced:
            logits, state = model(token.view(1, 1), state)
            steps.append(logits)
        trials.append(torch.cat(steps, 1))
    assert torch.equal(trials[0], trials[1]) and (trials[0] - wanted).abs().max() <= 1e-12
    assert all(torch.equal(a, b) for a, b in zip(before, (part for block in start for part in block), strict=True))
    both = join_states([start, start])
    for copied, block in zip(both, start, strict=True):
        for name, part, one in zip(block._fields, copied, block, strict=True):
            assert torch.equal(part, torch.cat([one, one])), name
            assert not name.startswith("v") or one.abs().max() > 0, f"{name}: a membrane at rest proves nothing"


def test_logits_come_without_targets_and_targets_may_lie_anywhere(run):
    """There a forward pass without targets gave None, logits were never returned, and a view of targets failed."""
    batches = Batches(np.arange(100) % 13, batch=2, context=8, order="crops", seed=0)
    assert not batches(0)[1].is_contiguous(), "the run was trained on such targets"
    model = live_model()
    tokens = tokens_for(model, 2, 8)
    assert model(tokens)[0].shape == (2, 8, 13)
    assert run.metrics()["valid"]["tokens"] == len(run.splits().valid) - 1


def test_initial_weights_are_what_the_setting_says():
    """There a scale of 0 for some layers was asked for and ignored, and the whole initialisation did not run.

    init = "original" is what that left: a linear layer uniform in +-1/sqrt(fan in), the embedding normal.
    """
    torch.manual_seed(0)
    model = SpikeGPT(SpikeGPTConfig(embedding=64, depth=2, init="original"))
    linear = {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert len(linear) == 15
    for name, weight in linear.items():
        bound = weight.shape[1] ** -0.5
        assert 0.99 * bound < weight.abs().max() <= bound, name
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
    assert model.emb.weight.std().item() == pytest.approx(1, rel=0.02)
    before = model.to_reference()
    tokens = tokens_for(model, 4, 32)
    model.wake(tokens)
    assert all(torch.equal(a, before[name]) for name, a in model.to_reference().items())
    assert max(rate.mean() for rate in model.rates(model.run(tokens)[2])) < 0.02


def test_crops_differ_between_seeds_steps_and_rows():
    """There every process seeded alike and ignored the index, so that all of them trained on the same batches."""
    data = np.arange(100_000)
    starts = {
        int(row[0])
        for seed in range(8)
        for step in range(8)
        for row in Batches(data, batch=4, context=8, order="crops", seed=seed)(step)[0]
    }
    assert len(starts) > 250


ABSENT = ("cupy", "deepspeed", "spikingjelly", "accelerate", "lib2to3", "distutils", "imp")
BARE = f"""
import importlib, os, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Absent())
for folder in ("spiking", "models", "backends"):
    package = importlib.import_module("rheobase." + folder)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if importlib.util.find_spec(module.name).origin.endswith(".py"):
            importlib.import_module(module.name)
import rheobase.commands
assert os.listdir() == [], os.listdir()
import torch
from rheobase.models import SpikeGPT, SpikeGPTConfig
assert not torch.cuda.is_available() and not torch.cuda.is_initialized()
model = SpikeGPT(SpikeGPTConfig(embedding=8, depth=1))
logits, _, runs = model.run(torch.arange(12).view(2, 6))
(logits.logsumexp(-1).mean() + model.penalty(runs)).backward()
print(sum(p.grad.isfinite().all().item() for p in model.parameters()), len(list(model.parameters())))
"""


def test_it_imports_and_trains_without_a_gpu_or_libraries_that_are_not_declared(tmp_path):
    """There an import compiled CUDA code and opened a log file; cupy, deepspeed and lib2to3 had to be there."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BARE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got, wanted = done.stdout.split()
    assert got == wanted and not list(tmp_path.iterdir())


def test_every_name_of_numpy_exists():
    """There a reader of token files asked for np.float, which NumPy no longer has."""
    files = [f for folder in ("spiking", "models", "backends", "rheobase") for f in (ROOT / folder).rglob("*.py")]
    names = {
        node.attr
        for f in files
        for node in ast.walk(ast.parse(f.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("np", "numpy")
    }
    assert len(names) > 20 and [name for name in sorted(names) if not hasattr(np, name)] == []


@pytest.mark.parametrize("batch", [1, 5])
def test_the_schedule_ends_when_the_run_does(train, monkeypatch, batch):
    """There a process held its own tokens against the budget of all, and the cosine ended at a fraction of its way."""
    made, make = [], loop.make_optimiser
    monkeypatch.setattr(loop, "make_optimiser", lambda *a: made.append(make(*a)) or made[-1])
    train(f"batch{batch}", batch=batch, steps=21, evaluate_every=21)
    assert all(group["lr"] < 0.1 * 0.007 for group in made[-1].param_groups)


def test_validation_runs_and_the_best_model_is_kept(run):
    """There neither validation nor test ever ran, no bits were reported, and keeping the best was commented out."""
    looks = {record["step"]: record["valid"] for record in run.log() if "valid" in record}
    assert list(looks) == list(range(2, 37, 2))
    best = min(looks, key=looks.get)
    assert 2 < best < 36, "the first or the last model is the best, so the test proves nothing"
    metrics = run.metrics()
    assert metrics["best_step"] == best and metrics["valid"]["bits_per_byte"] == pytest.approx(looks[best], abs=1e-9)
    again = evaluate(run.model(), run.splits().valid, batch=32, context=16)
    assert again.bits_per_byte == pytest.approx(looks[best], abs=1e-9)


def test_a_run_goes_on_where_it_was(run, tmp_path):
    """There a run could not be resumed."""
    shutil.copytree(run.folder, tmp_path / "run")
    cut = Run.open(tmp_path / "run")
    newest_checkpoint(cut.checkpoints).unlink()
    shutil.rmtree(cut.model_path)
    loop.resume(cut.folder, quiet=True)
    for name, tensor in run.model().state_dict().items():
        assert torch.equal(cut.model().state_dict()[name], tensor), name
    looks = [[record.get("valid") for record in r.log()] for r in (run, cut)]
    assert looks[0] == looks[1]


def test_only_the_first_part_of_the_text_is_trained_on(tmp_path):
    """There the whole text, test part and all, was trained on unless one edited the script."""
    (tmp_path / "text").write_bytes(b"a" * 800 + b"b" * 100 + b"c" * 100)
    table = TABLE | {"data": {"text": str(tmp_path / "text"), "order": "crops"}}
    config = RunConfig.from_table(table)
    corpus = config.corpus()
    batches, splits = loop.prepare(config, corpus)[0].batches, corpus.splits
    assert {token for step in range(50) for part in batches(step)[:2] for token in part.unique().tolist()} == {ord("a")}
    assert set(splits.valid) == {ord("b")} and set(splits.test) == {ord("c")}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradients_add_up_over_parts_of_a_batch_with_the_penalty(placement):
    """There the penalty's gradient ignored what came in, so that it was wrong under scaling or accumulation."""
    model = live_model(placement)
    tokens, targets = tokens_for(model, 8, 12).view(2, 4, 12)

    def gradients(parts, scale):
        model.zero_grad()
        for x, y in zip(tokens.chunk(parts), targets.chunk(parts), strict=True):
            logits, _, runs = model.run(x)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten()) + model.penalty(runs)
            (scale * loss / parts).backward()
        return [p.grad / scale for p in model.parameters()]

    whole, accumulated = gradients(1, 1.0), gradients(4, 1024.0)
    for (name, _), a, b in zip(model.named_parameters(), whole, accumulated, strict=True):
        assert torch.allclose(a, b, atol=1e-14, rtol=1e-10), name
    model.zero_grad()
    model.penalty(model.run(tokens)[2]).backward()
    assert model.head.weight.grad.abs().max() > 1e-6, "a penalty of nothing proves nothing"
