"""Training in parts: on several ranks (gloo, this machine), in micro-batches, and what both leave unchanged."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rheobase.models.training import loop
from rheobase.models.training.checkpoint import load_checkpoint, newest_checkpoint
from rheobase.models.training.data import Batches
from rheobase.models.training.distributed import Ranks, joined
from rheobase.models.training.run import Run, RunConfig
from rheobase.models.training.shards import gather
from rheobase.models.training.step import MicroBatch
from rheobase.spiking.config import to_toml
from rheobase.spiking.errors import ConfigError, RheobaseError

TRAIN = {
    "steps": 20,
    "batch": 6,
    "context": 8,
    "warmup": 3,
    "evaluate_every": 10,
    "checkpoint_every": 10,
    "evaluate_batch": 4,
    "threads": 1,
    "precision": "float64",
}
MODELS = {
    "egru": {"name": "egru_lm", "embedding": 12, "layers": [16, 12], "thr_mean": 0.1, "embedding_range": 0.5},
    "spikegpt": {"name": "spikegpt", "embedding": 16, "depth": 2, "dropout": 0.0},
    "spike_fed": {
        "name": "spikegpt",
        "embedding": 16,
        "depth": 1,
        "placement": "spike_fed",
        "norm": "static",
        "binary_embedding": False,
        "dropout": 0.0,
    },
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small text with something to learn."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, n)).decode() for n in rng.integers(2, 7, 30)]
    path.write_text(" ".join(words[i] for i in rng.integers(0, 30, 900)))
    return str(path)


@pytest.fixture(autouse=True)
def every_step_is_logged(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)


def table(text, kind, train=(), **sections):
    """A configuration; `train` and `sections` add to the common one."""
    data = {"text": text} | sections.pop("data", {})
    changed = MODELS[kind] | sections.pop("model", {})
    return {"model": changed, "train": TRAIN | dict(train), "data": data, **sections}


def alone(folder, table):
    return loop.start(folder, RunConfig.from_table(table), quiet=True)


def torchrun_arguments(ranks, logs):
    """Of Python; torchrun would leave a folder of its own for logs behind."""
    return ["-m", "torch.distributed.run", "--standalone", "--log-dir", str(logs), "--nproc-per-node", str(ranks)]


def torchrun(ranks, folder, jobs):
    """Trainings in one start of torchrun."""
    plan = folder / f"jobs{ranks}.json"
    plan.write_text(json.dumps([[str(where), what] for where, what in jobs]))
    worker = str(Path(__file__).parent / "ranks_worker.py")
    command = [sys.executable, *torchrun_arguments(ranks, folder / "logs"), worker, str(plan)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


FIGURES = ("bits_per_byte", "valid", "gradient_norm", "learning_rate", "rates")


def assert_same(a: Path, b: Path, within=1e-9):
    """Two runs have the same losses at all steps, and end with the same weights."""
    logs = Run.open(a).log(), Run.open(b).log()
    assert len(logs[0]) == len(logs[1]) > 0
    for x, y in zip(*logs, strict=True):
        assert x["step"] == y["step"]
        for name in FIGURES:
            assert (name in x) == (name in y)
            assert x.get(name, 0) == pytest.approx(y.get(name, 0), abs=within, rel=0), (name, x["step"])
    weights = (Run.open(run).model().state_dict() for run in (a, b))
    for x, y in zip(*(w.values() for w in weights), strict=True):
        assert torch.allclose(x, y, atol=within, rtol=0)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory, text):
    """Every training that the tests below compare, on two ranks: name -> (folder, table)."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 1)
        alone(folder / "teacher", table(text, "egru", {"steps": 5}))
    crops, taught = {"order": "crops"}, {"model": str(folder / "teacher"), "share": 0.5}
    budget = {"ops_per_token": 500.0, "rates": [0.05], "ramp": 0.5}
    drops = {"dropconnect": 0.2, "dropout_output": 0.3, "zoneout": 0.1}
    tables = {
        "egru": table(text, "egru"),
        "spikegpt": table(text, "spikegpt"),
        "crops": table(text, "egru", data=crops, model={"rate_weight": 10.0, "rate_target": 0.05}),
        "budget": table(text, "spike_fed", budget=budget),
        "micro": table(text, "spikegpt", {"accumulate": 3}, teacher={}),
        "taught": table(text, "egru", {"accumulate": 3}, teacher=taught),
        "drops": table(text, "egru", model=drops),
        "pruned": table(text, "egru", prune={"sparsity": 0.5, "start": 0.1, "end": 0.6, "every": 3}),
        "fsdp": table(text, "spikegpt", {"sharding": "fsdp"}),
        "fsdp_egru": table(text, "egru", {"sharding": "fsdp", "accumulate": 3}),
        "odd": table(text, "egru", {"batch": 7}),
        "differ": table(f"{folder}/{{rank}}.txt", "egru"),
    }
    for rank, words in enumerate(("one text ", "another ")):
        (folder / f"{rank}.txt").write_text(words * 300)
    runs = {name: (folder / name, what) for name, what in tables.items()}
    torchrun(2, folder, runs.values())
    return runs


def as_one(what):
    """The same training in one part, on one process."""
    return what | {"train": what["train"] | {"accumulate": 1, "sharding": "none"}}


@pytest.mark.parametrize(
    "name", ["egru", "spikegpt", "crops", "budget", "micro", "taught", "pruned", "fsdp", "fsdp_egru"]
)
def test_two_ranks_train_as_one_does(name, on_two, tmp_path):
    folder, what = on_two[name]
    alone(tmp_path / "one", as_one(what))
    assert_same(folder, tmp_path / "one")
    last = Run.open(folder).log()[-2]
    assert last["ranks"] == 2 and last["memory"] > 0 and last["utilisation"] > 0 and last["cpu_share"] > 0


def test_dropout_is_a_function_of_the_part(on_two, tmp_path):
    """Two ranks drop what two micro-batches of one process do; not what the batch in one part does."""
    folder, what = on_two["drops"]
    alone(tmp_path / "two", what | {"train": what["train"] | {"accumulate": 2}})
    assert_same(folder, tmp_path / "two")


def test_a_batch_that_cannot_be_cut_is_refused_in_one_line(on_two, text, tmp_path):
    said = Path(f"{on_two['odd'][0]}.error").read_text()
    assert "train.batch" in said and "a multiple of 2" in said and "\n" not in said
    assert not on_two["odd"][0].exists()
    with pytest.raises(ConfigError, match=r"train.batch.*a multiple of 4, 1 ranks x 4 micro-batches.*6"):
        alone(tmp_path / "run", table(text, "egru", {"accumulate": 4}))


def test_ranks_with_other_texts_are_refused(on_two):
    folder = on_two["differ"][0]
    said = Path(f"{folder}.error").read_text()
    assert said == "rank 1: expected the settings and texts of rank 0, got another; give every rank the same files"
    assert not folder.exists()


def test_the_end_of_another_rank_is_a_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(RheobaseError, match="expected every rank to go on, got .*reset by peer; see what another"):
        with joined("cpu", 1):
            raise RuntimeError("[/third_party/gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer.")


@pytest.fixture(scope="module")
def cut_short(on_two, tmp_path_factory):
    """Runs on two ranks, stopped after the checkpoint of step 10, and gone on with on three."""
    folder = tmp_path_factory.mktemp("three")
    cut = {name: stopped(on_two[name][0], folder / name) for name in ("egru", "spikegpt", "fsdp", "pruned")}
    torchrun(3, folder, [(run, None) for run in cut.values()])
    return cut


def stopped(run, folder):
    shutil.copytree(run, folder)
    newest_checkpoint(folder / "checkpoints").unlink()
    assert newest_checkpoint(folder / "checkpoints").name == "step-00000010.ckpt"
    shutil.rmtree(folder / "model")
    return folder


@pytest.mark.parametrize("name", ["egru", "spikegpt", "fsdp", "pruned"])
def test_a_run_on_two_ranks_goes_on_on_one_and_on_three(name, on_two, cut_short, tmp_path):
    assert_same(on_two[name][0], cut_short[name])
    one = stopped(on_two[name][0], tmp_path / "one")
    loop.resume(one, quiet=True)
    assert_same(on_two[name][0], one)


def test_a_checkpoint_holds_the_state_of_the_whole_batch_in_order(on_two, tmp_path):
    folder, what = on_two["spikegpt"]
    alone(tmp_path / "one", what)
    states = [
        load_checkpoint(newest_checkpoint(run / "checkpoints"))["task"]["state"] for run in (folder, tmp_path / "one")
    ]
    for a, b in zip(*(sum(state, ()) for state in states), strict=True):
        assert len(a) == 6 and torch.allclose(a, b, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["egru", "spikegpt"])
def test_two_hundred_steps_on_two_ranks_are_those_of_one(model, text, tmp_path):
    """SpikeGPT at a rate of 1e-3: at 1e-2 the training itself is chaotic, and one process whose first weight is moved
    by 1e-16 parts from itself by step 150 as two ranks part from one."""
    rate = {"egru": 1e-2, "spikegpt": 1e-3}[model]
    often = {"steps": 200, "evaluate_every": 100, "checkpoint_every": 100}
    what = table(text, model, often | {"learning_rate": rate})
    torchrun(2, tmp_path, [(tmp_path / "two", what)])
    alone(tmp_path / "one", what)
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("order", ["streams", "crops"])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 2), (1, 4), (12, 1)])
def test_the_ranks_rows_are_the_batch_once(order, world, accumulate, monkeypatch):
    read = []

    def watched(data, starts, width):
        read.extend(starts)
        return gather(data, starts, width)

    monkeypatch.setattr("rheobase.models.training.data.gather", watched)
    batches = Batches(np.arange(1000), batch=12, context=10, order=order, seed=3)
    for step in (0, 1, 17):
        tokens, targets, fresh = batches(step)
        read.clear()
        cut = [
            batches(step, rows)
            for rank in range(world)
            for rows in Ranks(rank=rank, world=world, accumulate=accumulate).rows(12)
        ]
        assert len(read) == 12  # no rank reads another's
        assert torch.equal(torch.cat([t for t, _, _ in cut]), tokens)
        assert torch.equal(torch.cat([t for _, t, _ in cut]), targets)
        assert {f for _, _, f in cut} == {fresh}
        if order == "streams":
            assert len(tokens.unique()) == tokens.numel()  # and so no two ranks see the same rows


@pytest.mark.parametrize("model", ["egru", "spikegpt"])
def test_micro_batches_train_as_the_whole_batch(model, text, tmp_path):
    for k in (1, 3):
        alone(tmp_path / str(k), table(text, model, {"accumulate": k}))
    assert_same(tmp_path / "1", tmp_path / "3")
    again = stopped(tmp_path / "3", tmp_path / "again")
    config = again / "config.toml"
    config.write_text(config.read_text().replace("accumulate = 3", "accumulate = 2"))
    loop.resume(again, quiet=True)
    assert_same(tmp_path / "1", again)


@pytest.mark.parametrize("model", ["egru", "spikegpt"])
def test_recomputed_activations_give_the_same_gradients(model, text):
    """Bit for bit, dropout included."""
    drops = {"egru": {"dropconnect": 0.2, "zoneout": 0.1, "dropout_forward": 0.1}, "spikegpt": {"dropout": 0.2}}
    config = RunConfig.from_table(table(text, model, model=drops[model]))
    corpus, found = config.corpus(), []
    for recompute in (False, True):
        task, net = loop.prepare(config, corpus)
        task.begin(net)
        torch.manual_seed(1)
        loss = MicroBatch(task, net, recompute)(0, 0)
        loss.whole.backward()
        found.append([loss.whole.detach(), *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("model", ["egru", "spikegpt"])
def test_bf16_trains_as_float32_does_and_keeps_its_state_wide(model, text, tmp_path):
    losses = []
    for precision in ("float32", "bf16"):
        run = alone(tmp_path / precision, table(text, model, {"precision": precision, "steps": 60}))
        losses.append([r["bits_per_byte"] for r in run.log() if "bits_per_byte" in r])
        saved = load_checkpoint(newest_checkpoint(run.checkpoints))
        assert {part.dtype for layer in saved["task"]["state"] for part in layer} == {torch.float32}
        assert {p.dtype for p in saved["model"].values()} == {torch.float32}
    plain, narrow = map(np.array, losses)
    assert plain[-10:].mean() < plain[0] - 1 and not np.array_equal(plain, narrow)
    assert abs(plain[-10:].mean() - narrow[-10:].mean()) < 0.1


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("egru", {"model": {"rate_weight": 1.0}, "train": {"accumulate": 2}}, "train.accumulate.*rate_weight"),
        ("spike_fed", {"train": {"accumulate": 2}}, "train.accumulate.*static norms"),
        ("spikegpt", {"budget": {"rates": [0.1]}, "train": {"accumulate": 2}}, r"train.accumulate.*\[budget\]"),
        ("spike_fed", {"train": {"recompute": True}}, 'train.recompute.*model.norm = "layer"'),
        ("spike_fed", {"train": {"compile": True}}, 'train.compile.*model.norm = "layer"'),
        ("egru", {"train": {"compile": True, "sharding": "fsdp"}}, "train.compile.*'fsdp'"),
        ("egru", {"prune": {"sparsity": 0.5}, "train": {"sharding": "fsdp"}}, r"train.sharding.*\[prune\]"),
        ("egru", {"train": {"precision": "half"}}, "train.precision.*'bf16'.*'half'"),
        ("egru", {"train": {"accumulate": 0}}, "train.accumulate.*at least 1"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(model, changes, said, text, tmp_path):
    changes = copy.deepcopy(changes)
    train = changes.pop("train")
    with pytest.raises(ConfigError, match=said):
        alone(tmp_path / "run", table(text, model, train, **changes))
    assert not (tmp_path / "run").exists()


def launch(out, *arguments, ranks=2):
    start = [*torchrun_arguments(ranks, out.parent / "logs"), "-m", "rheobase", "train"]
    command = [sys.executable, *start, *arguments, "--out", str(out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)


@pytest.mark.slow
def test_ranks_of_a_sharded_model_end_well(text, tmp_path):
    """A thread of their group's aborted one of three ranks in about every second such run, once it was done."""
    (tmp_path / "config.toml").write_text(to_toml(table(text, "spikegpt", {"sharding": "fsdp"})))
    assert launch(tmp_path / "run", str(tmp_path / "config.toml"), ranks=3).wait(300) == 0
    assert Run.open(tmp_path / "run").log()[-1]["step"] == TRAIN["steps"]


def workers(process):
    """The processes of a torchrun by their rank."""
    found = {}
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = dict(e.split("=", 1) for e in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in e)
        if "RANK" in environment:
            found[int(environment["RANK"])] = int(pid)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
def test_a_run_killed_at_any_moment_resumes_to_the_same_loss(text, tmp_path, monkeypatch):
    """SIGKILL of both ranks before the first checkpoint, of rank 1, of rank 0, and of both with torchrun itself."""
    monkeypatch.setattr(loop, "LOG_EVERY", 20)
    drops = {"dropconnect": 0.2, "dropout_output": 0.3}
    often = {"steps": 400, "evaluate_every": 100, "checkpoint_every": 2}
    what = table(text, "egru", often, model=drops)
    config, killed, choose = tmp_path / "config.toml", tmp_path / "killed", random.Random(7)
    config.write_text(to_toml(what))
    checkpoints, reached = killed / "checkpoints", []
    for whom, after in (((0, 1), 0), ((1,), choose.randrange(2, 80)), ((0,), choose.randrange(90, 180)), (None, 200)):
        process = launch(killed, *(["--resume"] if (killed / "config.toml").exists() else [str(config)]))
        end = time.monotonic() + 400
        while not (killed / "log.jsonl").exists() or newest_step(checkpoints) < after:
            assert process.poll() is None and time.monotonic() < end, "the training ended before the moment to kill it"
        time.sleep(choose.uniform(0, 0.05))
        ranks = workers(process)
        victims = [process.pid, *ranks.values()] if whom is None else [ranks[rank] for rank in whom]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert process.wait() != 0
        reached.append(newest_step(checkpoints))
        assert not (killed / "model").exists()
    assert reached == sorted(reached) and reached[-1] >= 200
    assert launch(killed, "--resume").wait() == 0
    alone(tmp_path / "whole", what | {"train": what["train"] | {"accumulate": 2}})
    assert_same(tmp_path / "whole", killed)


def newest_step(folder):
    names = (p.stem for p in folder.glob("step-*.ckpt"))
    return max((int(name.removeprefix("step-")) for name in names), default=0)
