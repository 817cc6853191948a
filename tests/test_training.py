"""Data, the loop, checkpoints, and runs that are killed."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from rheobase.models import EGRULM, EGRULMConfig, load_model
from rheobase.models.training import loop
from rheobase.models.training.checkpoint import alone, load_checkpoint, newest_checkpoint, save_checkpoint
from rheobase.models.training.corpus import load_corpus
from rheobase.models.training.data import Batches, DataConfig, each_once, read_texts
from rheobase.models.training.evaluate import evaluate
from rheobase.models.training.record import Log
from rheobase.models.training.run import Run, RunConfig, TrainConfig, config_names, config_path
from rheobase.spiking.config import read_toml, to_toml
from rheobase.spiking.errors import FormatError, ShapeError

TABLE = {
    "model": {"name": "egru_lm", "embedding": 96, "layers": [96], "dropconnect": 0.2, "dropout_output": 0.1},
    "train": {"steps": 120, "batch": 8, "context": 16, "evaluate_every": 40, "checkpoint_every": 4, "warmup": 5},
    "prune": {"sparsity": 0.5, "start": 0.05, "end": 0.6, "every": 3},
    "quantise": {"weights": 8, "start": 0.3},
}


@pytest.mark.parametrize(("n", "batch", "context"), [(2, 4, 8), (50, 1, 7), (101, 4, 8), (103, 5, 20), (64, 7, 64)])
def test_evaluation_predicts_every_byte_but_the_first_once(n, batch, context):
    data = np.arange(n) % 251
    seen = []
    for x, target in each_once(data, batch, context):
        assert ((target < 0) | (target == x + 1) | ((x == 250) & (target == 0))).all()
        seen += target[target >= 0].tolist()
    assert sorted(seen) == sorted(data[1:].tolist())


def test_streams_are_contiguous_and_crops_are_a_function_of_the_step():
    data = np.arange(200).astype(np.uint8)
    streams = Batches(data, batch=3, context=10, order="streams", seed=0)
    rows = [streams(i) for i in range(7)]
    assert [fresh for _, _, fresh in rows] == [True, False, False, False, False, False, True]
    for (x, target, _), (after, _, fresh) in zip(rows, rows[1:], strict=False):
        assert torch.equal(target[:, :-1], x[:, 1:])
        assert fresh or torch.equal(after[:, 0], target[:, -1])
    crops = Batches(data, batch=3, context=10, order="crops", seed=4)
    assert torch.equal(crops(5)[0], crops(5)[0]) and not torch.equal(crops(5)[0], crops(6)[0])
    assert all(fresh and torch.equal(t, x + 1) for x, t, fresh in map(crops, range(20)))


def test_splits_do_not_overlap_and_a_file_is_memory_mapped(tmp_path):
    (tmp_path / "t.txt").write_bytes(bytes(range(100)) * 10)
    config = DataConfig(text=str(tmp_path / "t.txt"))
    text = read_texts(config)[0]
    parts = load_corpus(config, 16).splits
    assert isinstance(text, np.memmap)
    assert [len(p) for p in (parts.train, parts.valid, parts.test)] == [800, 100, 100]
    assert np.array_equal(np.concatenate([parts.train, parts.valid, parts.test]), text)
    built_in = read_texts(DataConfig())[0]
    assert len(built_in) > 300_000 and built_in[:20].tobytes().isascii()


def test_evaluation_is_the_plain_mean_over_one_stream():
    torch.manual_seed(0)
    model = EGRULM(EGRULMConfig(embedding=16, layers=(16,), thr_mean=0.1)).double()
    data = np.random.default_rng(0).integers(0, 256, 90)
    logits, _ = model(torch.from_numpy(data[None, :-1]))
    bits = torch.nn.functional.cross_entropy(logits[0], torch.from_numpy(data[1:])).item() / math.log(2)
    whole, cut = (evaluate(model, data, batch=1, context=context) for context in (200, 7))
    assert whole.bits_per_byte == pytest.approx(bits, abs=1e-12) and whole.tokens == 89
    assert cut.bits_per_byte == pytest.approx(bits, abs=1e-12) and cut.perplexity == pytest.approx(2**bits)
    restarted = evaluate(model, data, batch=1, context=7, restart=True)
    assert abs(restarted.bits_per_byte - bits) > 1e-6


def test_dead_and_saturated_units_are_counted():
    model = EGRULM(EGRULMConfig(embedding=16, layers=(16,)))
    with torch.no_grad():
        model.layers[0].thr[:5], model.layers[0].thr[5:] = 2.0, -2.0
    look = evaluate(model, np.arange(50), batch=2, context=10)
    assert (look.dead, look.saturated, look.rates) == ((5,), (11,), (pytest.approx(11 / 16),))


def test_rates_are_of_the_tokens_that_are_read_whatever_the_streams_lengths():
    torch.manual_seed(0)
    model = EGRULM(EGRULMConfig(embedding=16, layers=(16,), thr_mean=0.1)).double()
    data = np.random.default_rng(0).integers(0, 256, 14)  # streams of 2 and 3 bytes
    fired = np.zeros(16)
    for low, high in ((0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 13)):
        fired += model.run(torch.from_numpy(data[None, low:high]))[2][0].o.sum((0, 1)).detach().numpy()
    look = evaluate(model, data, batch=6, context=8)
    assert look.rates[0] == pytest.approx(fired.sum() / 16 / 13, abs=1e-12) and look.dead == ((fired == 0).sum(),)


def test_texts_too_short_to_train_on_or_to_evaluate():
    for order in ("crops", "shuffled"):
        with pytest.raises(ShapeError, match="the training text: expected more than the context of 8 bytes, got 8"):
            Batches(np.arange(8), 1, 8, order, 0)
    for n in (0, 1):
        with pytest.raises(ShapeError, match=f"the text: expected at least 2 tokens, .* got {n}"):
            evaluate(EGRULM(EGRULMConfig(embedding=4, layers=(4,))), np.arange(n), batch=1, context=8)


def test_learning_rate_rises_and_falls():
    config = TrainConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [loop.learning_rate(s, config) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.001


def test_a_run_is_a_whole_folder_and_learns(small_run):
    names = {p.name for p in small_run.folder.iterdir()}
    assert {"config.toml", "model", "checkpoints", "log.jsonl", "metrics.json"} <= names
    log = small_run.log()
    losses = [r["bits_per_byte"] for r in log if "bits_per_byte" in r]
    assert losses[-1] < 6, "of 8 for an untrained one; how far it comes in 60 steps hangs on the text, CPython's own"
    assert {"rates", "tokens_per_s", "learning_rate", "gradient_norm"} <= log[0].keys()
    assert {"valid", "dead", "saturated"} <= log[-1].keys()
    assert small_run.config == RunConfig.from_table(read_toml(small_run.config_path))
    thresholds = torch.cat([layer.thr for layer in small_run.model().layers])
    assert thresholds.min() >= 0 and thresholds.max() <= 1
    assert load_model(small_run.folder).n_parameters == small_run.metrics()["parameters"]


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    for step in (5, 30, 200, 1000):
        save_checkpoint(tmp_path, step, {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000200.ckpt", "step-00001000.ckpt"]
    assert load_checkpoint(newest_checkpoint(tmp_path)) == {"step": 1000}
    whole = save_checkpoint(tmp_path, 2000, {"code": print})
    with pytest.raises(FormatError, match="step-00002000.ckpt: expected a torch checkpoint of plain tensors"):
        load_checkpoint(whole)


def test_built_in_configurations_are_valid():
    assert config_names()
    for name in config_names():
        RunConfig.from_table(read_toml(config_path(name)))


def _train(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rheobase", "train", *arguments, "--out", str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def _wait(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the training ended before the moment to kill it"


def test_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path):
    """SIGKILLs by the wall clock: one before the first checkpoint, one inside the writing of one, and any others."""
    config = tmp_path / "config.toml"
    config.write_text(to_toml(TABLE))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _train(whole, str(config)).wait() == 0
    choose = random.Random(5)
    checkpoints = killed / "checkpoints"
    inside = before_first = kills = 0
    while kills < 4 or not inside:
        process = _train(killed, *([str(config)] if kills == 0 else ["--resume"]))
        if kills == 0:
            _wait(lambda: (killed / "config.toml").exists(), process)
        else:
            newest = newest_name(checkpoints)
            _wait(lambda newest=newest: newest_name(checkpoints) != newest, process)
            if kills >= 2 and not inside:
                _wait(lambda: any(checkpoints.glob("*.partial")), process)
            else:
                time.sleep(choose.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kills += 1
        before_first += newest_name(checkpoints) is None
        inside += any(checkpoints.glob("*.partial")) if checkpoints.exists() else 0
        assert kills < 15
    assert before_first == 1 and inside >= 1
    assert _train(killed, "--resume").wait() == 0
    a, b = Run.open(whole), Run.open(killed)
    for x, y in zip(a.model().state_dict().values(), b.model().state_dict().values(), strict=True):
        assert torch.equal(x, y)
    last, other = (load_checkpoint(newest_checkpoint(r.checkpoints)) for r in (a, b))
    for name, tensor in last["model"].items():
        assert torch.equal(tensor, other["model"][name])
    for key, slots in last["optimiser"]["state"].items():
        assert all(torch.equal(t, other["optimiser"]["state"][key][n]) for n, t in slots.items())
    figures = ("step", "bits_per_byte", "valid", "rates", "gradient_norm")
    lines = [[{k: r.get(k) for k in figures} for r in run.log()] for run in (a, b)]
    assert lines[0] == lines[1]


def test_a_first_step_that_compiles_is_left_out_of_the_speed(tmp_path, monkeypatch):
    gradient, steps = loop.gradient, []

    def slow(*given):
        steps.append(time.sleep(0 if steps else 1.0))
        return gradient(*given)

    monkeypatch.setattr(loop, "gradient", slow)
    table = {**TABLE, "train": {**TABLE["train"], "steps": 20, "checkpoint_every": 20}}  # each begins a stretch anew
    first = loop.start(tmp_path / "run", RunConfig.from_table(table), quiet=True).log()[0]
    assert 19 * first["tokens_a_step"] / first["tokens_per_s"] < first["elapsed_s"] - 1
    one = {**TABLE, "train": {**TABLE["train"], "steps": 1, "warmup": 0}}
    first = loop.start(tmp_path / "one", RunConfig.from_table(one), quiet=True).log()[0]
    assert first["tokens_per_s"] > 0


def test_one_process_at_a_time_trains_a_run(tmp_path):
    table = {**TABLE, "train": {**TABLE["train"], "steps": 100_000}}
    (tmp_path / "config.toml").write_text(to_toml(table))
    process = _train(tmp_path / "run", str(tmp_path / "config.toml"))
    try:
        _wait(lambda: newest_name(tmp_path / "run" / "checkpoints"), process)
        with pytest.raises(FormatError, match="run: expected a run that no process trains, got one that is trained"):
            loop.resume(tmp_path / "run", quiet=True)
        before = newest_name(tmp_path / "run" / "checkpoints")
        _wait(lambda: newest_name(tmp_path / "run" / "checkpoints") != before, process)
    finally:
        process.kill()
        process.wait()
    with alone(tmp_path / "run", tmp_path / "run" / "log.jsonl"):
        pass


def test_a_whole_number_for_a_rate_resumes_as_it_was_started(tmp_path):
    table = {**TABLE, "train": {**TABLE["train"], "steps": 2, "evaluate_every": 1, "checkpoint_every": 1}}
    config = RunConfig.from_table(table)
    run = loop.start(tmp_path / "run", replace(config, train=replace(config.train, weight_decay=0)), quiet=True)
    assert loop.resume(run.folder, quiet=True).metrics()["best_step"] in (1, 2)


def test_a_log_that_is_cut_goes_on_at_its_end(tmp_path):
    (tmp_path / "log").write_bytes(b"x" * 100)
    with Log(tmp_path / "log", 40) as log:
        assert log.synced() == 40


def newest_name(folder):
    found = sorted(p.name for p in folder.glob("step-*.ckpt"))
    return found[-1] if found else None
