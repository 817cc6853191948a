"""`rheobase diff`: of two traces, artefacts or runs, the first cause of a difference, where and when."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from rheobase.backends import export, simulate
from rheobase.backends.artifact import open_artifact, reseal
from rheobase.backends.trace import (
    TRACE,
    StoredTrace,
    artifact_trace,
    load_trace,
    read_trace_tensors,
    save_trace,
    trace_tensors,
)
from rheobase.cli import run
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.spiking.errors import FormatError

TOKENS = np.arange(60)[None] * 7 % 256


@pytest.fixture
def ask(capsys):
    def asking(a, b, status=0, *more):
        assert run(["diff", str(a), str(b), *more]) == status
        return capsys.readouterr().out

    return asking


def models():
    """A model, and the same with another kernel in its first layer."""
    torch.manual_seed(1)
    model = EGRULM(EGRULMConfig(embedding=12, layers=(10, 12), thr_mean=0.1)).eval()
    yield model
    with torch.no_grad():
        model.layers[0].kernel += 0.05
    yield model


def made(signals, tokens=None, graph="g", **more):
    steps = next(iter(signals.values())).shape[1]
    return StoredTrace(np.zeros((1, steps), int) if tokens is None else tokens, signals, {}, {}, graph, "event", **more)


def without_order(path):
    """The file as it was written before signals had a rank."""
    with h5py.File(path, "r+") as file:
        for signal in file["signals"].values():
            del signal.attrs["rank"]


@pytest.mark.parametrize("on", ["event", "torch"])
def test_the_cause_is_named_and_not_what_is_first_in_the_alphabet(tmp_path, ask, on):
    for name, model in zip("ab", models(), strict=False):
        graph = model.lower()
        found = simulate(graph, TOKENS, on=on, record=["*"]).recorded
        save_trace(tmp_path / f"{name}.h5", StoredTrace(TOKENS, found, {}, {}, graph.hash(), on))
        save_trace(tmp_path / f"old_{name}.h5", StoredTrace(TOKENS, found, {}, {}, graph.hash(), on))
        without_order(tmp_path / f"old_{name}.h5")
        assert list(load_trace(tmp_path / f"{name}.h5").signals) == [s for s in graph.signals() if s in found]
    for a, b in (("a", "b"), ("a", "old_b"), ("old_a", "b")):
        said = ask(tmp_path / f"{a}.h5", tmp_path / f"{b}.h5", 1)
        assert "first: step 0, node layers.0.kernel.out, unit 0:" in said and "of two graphs: expected " in said
    assert not load_trace(tmp_path / "old_a.h5").ordered
    assert "first: step 0, node layers.0.c," in ask(tmp_path / "old_a.h5", tmp_path / "old_b.h5", 1)


def test_the_cause_is_named_in_artefacts_too(tmp_path, ask):
    for name, model in zip("ab", models(), strict=False):
        artifact = export(model, "spinnaker2", tmp_path / name, calibration=TOKENS)
        trace = artifact_trace(artifact)
        assert trace.ordered and list(trace.signals) == artifact.manifest["order"]
        save_trace(tmp_path / f"{name}.h5", dataclasses.replace(trace, ordered=False))
    for a, b in (("a", "b"), ("a", "b.h5"), ("a.h5", "b")):
        assert "first: step 0, node layers.0.kernel.out, unit 0:" in ask(tmp_path / a, tmp_path / b, 1)
    assert "0 differ" in ask(tmp_path / "a", tmp_path / "a.h5")


def test_an_order_in_safetensors_is_kept_and_one_of_others_refused(tmp_path):
    trace = made({"b.y": np.ones((1, 3, 2)), "a.y": np.zeros((1, 3, 2))})
    assert list(read_trace_tensors(trace_tensors(trace), TRACE).signals) == ["b.y", "a.y"]
    old = read_trace_tensors(trace_tensors(dataclasses.replace(trace, ordered=False)), TRACE)
    assert not old.ordered and set(old.signals) == set(trace.signals)
    data = trace_tensors(trace)
    for order in (b'["b.y","b.y"]', b'["b.y"]      ', b"5            "):
        wrong = data.replace(rb"[\"b.y\", \"a.y\"]", order.replace(b'"', rb"\"").ljust(18))
        assert len(wrong) == len(data) and wrong != data
        with pytest.raises(FormatError, match="each signal once in the order of evaluation"):
            read_trace_tensors(wrong, TRACE)


def test_a_nan_is_the_same_as_a_nan(tmp_path, ask):
    values = np.zeros((1, 3, 2))
    values[0, 1, 1] = np.nan
    save_trace(tmp_path / "a.h5", made({"x.y": values}))
    save_trace(tmp_path / "b.h5", made({"x.y": np.zeros((1, 3, 2))}))
    assert ask(tmp_path / "a.h5", tmp_path / "a.h5") == "9 numbers compared, 0 differ\n"
    said = ask(tmp_path / "a.h5", tmp_path / "b.h5", 1)
    assert said == "9 numbers compared, 1 differ\nfirst: step 1, node x.y, unit 1: expected nan, got 0.0\n"


def test_other_tokens_are_the_first_difference(tmp_path, ask):
    signal, tokens = np.ones((2, 3, 2)), np.array([[1, 2, 3], [4, 5, 6]])
    save_trace(tmp_path / "a.h5", made({"a.y": signal}, tokens))
    save_trace(tmp_path / "b.h5", made({"a.y": signal + [[[0], [1], [1]]]}, tokens + [[0, 0, 0], [0, 9, 9]]))
    a, b = tmp_path / "a.h5", tmp_path / "b.h5"
    assert ask(a, b, 1).splitlines()[1] == "first: tokens: step 1, stream 1: expected 5, got 14"
    first = json.loads(ask(a, b, 1, "--json"))["first"]
    assert first == {"step": 1, "node": "tokens", "unit": 0, "expected": 5, "got": 14, "stream": 1}
    save_trace(b, made({"a.y": signal}, (tokens + [[0, 0, 7], [0, 0, 0]]).astype(np.uint8)))
    assert ask(a, b, 1).splitlines()[1] == "first: tokens: step 2: expected 3, got 10"
    save_trace(b, made({"a.y": signal}, tokens.astype(np.uint8)))
    assert "0 differ" in ask(a, b)


def test_another_graph_with_the_same_signals_is_a_note(tmp_path, ask):
    for name in "ab":
        save_trace(tmp_path / f"{name}.h5", made({"a.y": np.ones((1, 3, 2))}, graph=f"graph {name}"))
    assert "0 differ\nof two graphs: expected graph a, got graph b\n" in ask(tmp_path / "a.h5", tmp_path / "b.h5")
    table = json.loads(ask(tmp_path / "a.h5", tmp_path / "b.h5", 0, "--json"))
    assert table["ok"] and table["graph"] == {"expected": "graph a", "got": "graph b", "same": False}
    table = json.loads(ask(tmp_path / "a.h5", tmp_path / "a.h5", 0, "--json"))
    assert table["graph"]["same"] and table["first"] is None


def test_the_step_of_a_run_is_the_one_that_its_log_says(small_run, tmp_path, ask, capsys):
    other = shutil.copytree(small_run.folder, tmp_path / "other")
    log = other / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [i for i, record in enumerate(records) if small_run.measure in record]
    at = rows[1]
    assert records[at]["step"] > 1

    def rewritten(**change):
        log.write_text("".join(json.dumps(r | (change if i == at else {})) + "\n" for i, r in enumerate(records)))

    rewritten(**{small_run.measure: 9.5})
    said = ask(small_run.folder, other, 1)
    assert f"first: step {records[at]['step']}, node log.{small_run.measure}, unit 0: " in said
    rewritten(step=records[at]["step"] + 1)
    assert run(["diff", str(small_run.folder), str(other)]) == 1
    step = records[at]["step"]
    line = f"diff: log.{small_run.measure}, record 2: expected step {step}, got step {step + 1};"
    assert line in capsys.readouterr().err
    log.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert "0 differ" in ask(small_run.folder, other)


def test_a_weight_differs_at_the_step_of_the_model(small_run, tmp_path, ask, monkeypatch):
    from rheobase.models.training.run import Run

    model, calls = small_run.model(), []

    def changed(self):
        calls.append(self)
        if len(calls) == 2:
            with torch.no_grad():
                model.layers[0].kernel[0, 0] += 1
        return model

    monkeypatch.setattr(Run, "model", changed)
    first = json.loads(ask(small_run.folder, small_run.folder, 1, "--json"))["first"]
    assert (first["step"], first["node"]) == (small_run.metrics()["best_step"], "model.layers.0.kernel")


def test_an_artefact_whose_trace_says_no_order_has_its_manifests(small_image, tmp_path, ask):
    for name in "ab":
        folder = shutil.copytree(small_image, tmp_path / name)
        artifact = open_artifact(folder)
        trace = dataclasses.replace(artifact_trace(artifact), ordered=False)
        for signal in ("decoder.out", "layers.0.kernel.out") if name == "b" else ():
            trace.signals[signal][0, 3, 0] += 1
        (folder / TRACE).write_bytes(trace_tensors(trace))
        reseal(folder)
    assert "first: step 3, node layers.0.kernel.out, unit 0: " in ask(tmp_path / "a", tmp_path / "b", 1)
