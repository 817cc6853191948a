"""`simulate(..., on="firmware")`: the firmware's C gives the integer simulator's events, logits and states."""

import dataclasses
import re

import numpy as np
import pytest
from spikegpts import FORMS, TEXT, model_of
from test_firmware import needs_c

from rheobase import cli
from rheobase.backends import simulate
from rheobase.backends.exporters.spinnaker2 import host, partition
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.spiking.errors import UnsupportedError

EGRU = {"egru": {}, "egru zoneout": {"zoneout": 0.1}}


@pytest.fixture(scope="module", params=[*EGRU, *FORMS])
def integer(request):
    if request.param in FORMS:
        model = model_of(**FORMS[request.param])
    else:
        settings = {"vocabulary": 256, "embedding": 24, "layers": (40, 24), "thr_mean": 0.02}
        model = EGRULM(EGRULMConfig(**settings, **EGRU[request.param])).eval()
    return quantise(dataclasses.replace(model.lower(), dt_s=0.002), TEXT)[0]


@needs_c
@pytest.mark.parametrize("bytes_", [partition.PE_BYTES, 6000])
def test_the_firmware_s_integers_are_the_specification_s(integer, bytes_, monkeypatch):
    """On one PE a layer or section, and on several."""
    monkeypatch.setattr(partition, "PE_BYTES", bytes_)
    events = list(simulate(integer, TEXT[:, :1], on="integer").events)
    if "blocks.0.lif1.s" in events:
        with pytest.raises(UnsupportedError, match="events that elements send, got blocks.0.lif1.s, .*; use on"):
            simulate(integer, TEXT, on="firmware")
        return
    want = simulate(integer, TEXT, on="integer", record=events)
    monkeypatch.setattr(host, "ROOM", 2000)  # some chunks of tokens
    got = simulate(integer, TEXT, on="firmware", record=events)
    assert got.outputs.keys() == want.outputs.keys() and np.array_equal(got.outputs["logits"], want.outputs["logits"])
    assert list(got.events) == list(want.events) and sum(map(len, want.events.values())) > 1000
    for name, events in want.events.items():
        assert np.array_equal(got.events[name].to_dense(), events.to_dense()), name
        assert got.events[name].dt_s == events.dt_s == 0.002, "the graph's own"
    assert got.state.keys() == want.state.keys()
    assert all(np.array_equal(got.state[name], state) for name, state in want.state.items())
    assert got.recorded.keys() == want.recorded.keys()
    assert all(np.array_equal(got.recorded[name], array) for name, array in want.recorded.items())


@needs_c
def test_what_the_firmware_cannot_do_is_refused(integer):
    state = simulate(integer, TEXT[:, :3], on="integer").state
    name = membrane = next(name for name in state if name.endswith((".c", ".v")))
    if "blocks.0.lif1.v" in state:
        membrane = "blocks.0.lif1.s, .*"  # before it comes to what is to be recorded
    for options, got in (({"state": state}, "a state"), ({"record": [name]}, membrane)):
        with pytest.raises(UnsupportedError, match=f"simulate on firmware: .*got {got}; use on"):
            simulate(integer, TEXT, on="firmware", **options)
    with pytest.raises(UnsupportedError, match="tokens of new streams, got none"):
        simulate(integer, TEXT[:, :0], on="firmware")


@needs_c
def test_the_command_says_whose_integers_they_are(small_run, capsys, monkeypatch):
    argv = ["simulate", str(small_run.folder), "--on", "integer", "--tokens", "40"]
    assert cli.run(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch("40 tokens on integer in .* a second, by the firmware's C", said[0])
    monkeypatch.setattr(host, "library", lambda: None)
    assert cli.run(argv) == 0
    slow = capsys.readouterr().out.splitlines()
    assert slow[0].endswith("in NumPy (host: expected the firmware compiled for the host, got none)")
    assert slow[1:] == said[1:] and len(said) > 1
