"""`rheobase bench` at tiny sizes: what it times, what it leaves out, and that the ways compute one thing."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rheobase.backends import simulate
from rheobase.bench import COPY, Case, Setting, decode, measure, ops, parts, show, time_parts, training, tried
from rheobase.cli import run
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.training import loop
from rheobase.models.training.run import RunConfig
from rheobase.spiking import LIF
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.ops.native import library

TINY = Setting(rounds=2, small=True)
PEERS = {"SpikingJelly": ops._spikingjelly, "snnTorch": ops._snntorch, "Norse": ops._norse}
needs_c = pytest.mark.skipif(library() is None, reason="no C library: no compiler at install")


def refusal(capsys, *argv) -> str:
    assert run(["bench", *map(str, argv)]) == 1
    return capsys.readouterr().err


@needs_c
def test_every_part_through_the_command(tmp_path, capsys):
    out = tmp_path / "bench"
    assert run(["bench", "--small", "--rounds", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    record = json.loads((out / "bench.json").read_text())
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG") and record["device"] == "cpu"
    cases = {case["case"].partition(",")[0].partition(" at")[0]: case for case in record["cases"]}
    assert {name for name in cases if not name.startswith("LIF ")} == {
        *("LIF", "WKV", "EGRU", "training step", "simulate", "decode")
    }
    assert len(record["cases"]) == 14
    for case in record["cases"]:
        ours = next(iter(case["rows"]))
        assert (
            ours in ("ours", "reference form", "simulator", "events, float32")
            and f"\n{case['case']}: {case['size']}" in text
        )
        for name, row in case["rows"].items():
            assert 0 < row["from"] <= row["ms"] <= row["to"] and row["first_s"] > 0 and f"  {name}  " in text
            assert row["ratio"] == row["ms"] / case["rows"][ours]["ms"]
            if case["case"].startswith(("LIF", "WKV")):
                assert row["times_the_limit"] == row["ms"] / case["limit_ms"] and COPY not in case["rows"]
            if case["case"].startswith(("training", "simulate", "decode")):
                assert row["tokens_per_s"] > 0
    assert {name.partition(",")[0] for name in (*cases["LIF"]["rows"], *cases["LIF"]["absent"])} > PEERS.keys()
    assert cases["LIF"]["limit_ms"] == pytest.approx(20 * 2 * 32 * 16 / cases["LIF"]["gb_per_s"] / 1e6)
    assert f"{out}: expected a folder that does not exist yet" in refusal(capsys, "lif", "--out", out)


def test_what_cannot_be_timed_is_refused(tmp_path, capsys, monkeypatch):
    assert "expected parts of lif, wkv, egru, training, simulate, decode, got lfi" in refusal(capsys, "lif", "lfi")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "bench --device: expected a device of this machine, got cuda" in refusal(capsys, "lif", "--device", "cuda")
    with pytest.raises(ConfigError, match="got tpu"):
        time_parts(["lif"], Setting(device="tpu"))
    with pytest.raises(ConfigError, match="bench --run: expected the part decode, got lif"):
        time_parts(["lif"], TINY, trained=(None, None))
    table = {
        "model": {"name": "lstm_lm", "embedding": 8, "layers": [8]},
        "train": {"steps": 1, "batch": 2, "context": 8, "warmup": 1, "evaluate_batch": 256},
    }
    loop.start(tmp_path / "lstm", RunConfig.from_table(table), quiet=True)
    assert "expected an EGRU language model's run, got lstm_lm" in refusal(capsys, "--run", tmp_path / "lstm")


def test_generation_is_not_timed_on_a_gpu(monkeypatch):
    assert parts("cuda").keys() == parts("cpu").keys() - {"decode"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError, match="expected parts of lif, wkv, egru, training, simulate, got decode"):
        time_parts(["decode"], Setting(device="cuda"))


@needs_c
def test_the_documented_code_runs(capsys):
    """CUDA graphs first, which without a GPU are but imported, then a stream."""
    page = (Path(__file__).parent.parent / "docs" / "performance.md").read_text()
    graphs, stream = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(graphs, {})
    exec(stream, {})
    assert "layers.0.recurrent_kernel" in capsys.readouterr().out


@needs_c
def test_a_trained_run_is_timed_at_its_own_activity(small_run, capsys):
    assert run(["bench", "decode", "--rounds", "1", "--run", str(small_run.folder), "--json"]) == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["size"].startswith("48-64-48, vocabulary 256") and 0 < case["active"] < 1


def test_a_way_that_raises_is_absent_and_ours_must_not():
    def refuses():
        raise ValueError("two\nlines")

    ran = []
    record = measure(Case("c", "s", {"ours": lambda: ran.append(1), "a peer": refuses}, {"other": "gone"}), TINY)
    assert record["absent"] == {"other": "gone", "a peer": "ValueError: two lines"} and list(record["rows"]) == ["ours"]
    assert len(ran) == 1 + 2 * TINY.rounds
    where = {"machine": "m", "threads": 1, "torch": "t", "failed": {}}
    assert "  a peer  not here: ValueError: two lines" in show(where | {"cases": [record]})
    with pytest.raises(ValueError, match="two"):
        measure(Case("c", "s", {"ours": refuses, "a peer": int}), TINY)
    assert tried({"a": int, "b": refuses}) == ({"a": 0}, {"b": "ValueError: two lines"})


def test_a_part_that_fails_is_named_and_the_others_are_timed(monkeypatch, tmp_path, capsys):
    def fails(setting):
        yield Case("first", "1", {"ours": lambda: None})
        raise RuntimeError("no such thing")

    monkeypatch.setattr(ops, "wkv", fails)
    assert run(["bench", "wkv", "lif", "--small", "--rounds", "1"]) == 1
    said = capsys.readouterr().out
    assert "\nfirst: 1, median of 1\n" in said and "\nLIF" in said
    assert said.endswith("\n\nwkv: failed: RuntimeError: no such thing\n")
    monkeypatch.setattr(ops, "wkv", lambda setting: 1 / 0)
    assert run(["bench", "wkv", "--small", "--out", str(tmp_path / "out"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == {"wkv": "ZeroDivisionError: division by zero"}
    assert (tmp_path / "out" / "bench.png").is_file()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # it is scan that looks
def test_the_ways_of_lif_fire_the_same_spikes():
    x, g = torch.randn(2, 2, 70, 16, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    s, _ = LIF()(x)
    (gradient,) = torch.autograd.grad(s, x, g)
    peers, absent = tried(PEERS)
    assert s.sum() > 20 and all("none installed" in why or "No module" in why for why in absent.values())
    for name, way in {"scan": ops._scan, "pieces": lambda x: ops._in_pieces(ops._piece, x), **peers}.items():
        spikes = way(x)
        assert torch.equal(spikes, s), name
        if name != "Norse":  # whose surrogate is another
            assert torch.allclose(torch.autograd.grad(spikes, x, g)[0], gradient, atol=1e-6), name


@pytest.mark.slow
def test_what_torch_compiles_is_timed():
    command = [sys.executable, "-m", "rheobase", *"bench lif --small --rounds 1 --compile --json".split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    case, *_ = json.loads(done.stdout)["cases"]
    assert {"torch.compile, scan", "torch.compile, 64 steps unrolled"} < case["rows"].keys()


@pytest.mark.parametrize("share", decode.ACTIVITIES)
def test_at_activity_gives_the_share_that_is_asked_for(share):
    from rheobase.models import EGRULM, EGRULMConfig

    torch.manual_seed(1)
    graph = EGRULM(EGRULMConfig(**decode.SMALL)).eval().lower()
    tokens = np.random.default_rng(1).integers(0, decode.SMALL["vocabulary"], (1, 120))
    events = simulate(decode.at_activity(graph, tokens, share), tokens).events
    assert sum(map(len, events.values())) / tokens.size / sum(decode.SMALL["layers"]) == pytest.approx(share, abs=0.03)


def test_on_a_gpu_lif_and_wkv_are_timed_in_bfloat16_too(monkeypatch):
    monkeypatch.setitem(ops.TYPES, "cpu", ops.TYPES["cuda"])
    for part, least in ((ops.lif, 5), (ops.wkv, 10)):
        wide, narrow, *_ = part(TINY)
        assert wide.size.endswith("float32") and narrow.size.endswith("bfloat16")
        assert wide.bytes == 2 * narrow.bytes == 4 * least * 2 * 32 * 16
        assert narrow.runs["ours"]()[-1].dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ops.PRECISIONS)
def test_egru_is_timed_at_the_precision_it_names(precision):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    case = ops._egru("cpu", precision, 2, 3, 4)
    assert list(case.runs) == ["ours", "loop over its steps", "nn.GRU", "nn.LSTM"] and case.size.endswith(precision)
    for name, way in case.runs.items():
        narrow = precision.startswith("bfloat16") and name.startswith("nn.")
        assert {g.dtype for g in way()} == {torch.bfloat16 if narrow else torch.float32}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_the_share_of_a_known_peak_is_shown():
    record = measure(Case("c", "s", {"ours": lambda: sum(range(9999))}, peak_ms=1e-4), TINY)
    row = record["rows"]["ours"]
    assert row["utilisation"] == 1e-4 / row["ms"]
    where = {"machine": "m", "threads": 1, "torch": "t", "failed": {}}
    assert f"  {100 * row['utilisation']:.1f} % of the peak" in show(where | {"cases": [record]})


def test_the_compiled_step_takes_the_same_step(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = SpikeGPT(SpikeGPTConfig(embedding=16, depth=2, vocabulary=16, dropout=0.0))
        step = training.training_step(model, torch.randint(16, (2, 9)), compiled)
        step()
        step()
        losses.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*losses, strict=True))
