"""The benchmark of counters, without any peer: ours against its count by hand, and how it shows a failure."""

import importlib
from pathlib import Path

import pytest
import torch


@pytest.fixture
def counters(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module("counters")


def test_ours_is_the_hand_count_to_the_last_integer(counters):
    cases = counters.inputs()
    by_hand = {name: counters.by_hand(*case) for name, case in cases.items()}
    assert {name: counters.ours(*case) for name, case in cases.items()} == by_hand
    assert len(by_hand) == 6 and all(
        (figures["spikes"] > 100) != (name == "all zero") for name, figures in by_hand.items()
    )


def test_the_hand_count_by_hand(counters):
    """Two sequences of one step; weight 2 fires unit 0 alone, on the two events of the first sequence."""
    layers = [(torch.tensor([[2.0, 2.0], [0.5, 0.5]]), None)]
    x = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]])
    figures = counters.by_hand(layers, x, counters.BINARY)
    assert (figures["spikes"], figures["ACs"], figures["MACs"]) == (1, 2 * 2, 0)
    assert (figures["membrane updates"], figures["neuron additions"]) == (4, 16)
    assert counters.by_hand(layers, x, counters.DENSE)["MACs"] == 2 * 2 * 2


def test_ours_gives_no_silent_zero(counters):
    for name, (module, x, _) in counters.operators().items():
        assert counters.ours_operator(module, x) != "0", name


def test_a_peer_that_crashes_or_errs_is_shown(counters):
    def crash(*_):
        raise ValueError("no such\nlayer")

    def err(*case):
        return {"spikes": counters.by_hand(*case)["spikes"] + 1, "ACs": 0}

    table = counters.table_of_inputs({"crashing": crash, "erring": err})
    assert table.count("| crashing | error: ValueError: no such layer |") == 6
    assert "| all zero | erring | 1 (+1) | 0 | - |" in table
    assert counters.table_of_operators({"crashing": crash}).count("| error: ValueError: no such layer |") == 15


def test_without_peers_they_are_named(counters, monkeypatch, capsys):
    monkeypatch.setattr(counters, "version", lambda name: None)
    monkeypatch.setattr("sys.argv", ["counters.py"])
    counters.main()
    out = capsys.readouterr().out
    assert "NeuroBench not installed, SpikingJelly not installed, snnTorch not installed" in out
    assert "error" not in out
