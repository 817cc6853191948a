"""`rheobase count`: its tables, prefill and decode, the schema of its JSON, joules beside a bill."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch

from rheobase import backends, counting
from rheobase.backends import count
from rheobase.backends.counting import Measured, count_phases, measure, show
from rheobase.cli import run
from rheobase.models import EGRULM, EGRULMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.spiking import Counts, Tally
from rheobase.spiking.errors import ConfigError

SCHEMA = json.loads((Path(backends.__file__).parent / "counting" / "tally.schema.json").read_text())


@pytest.fixture
def ask(capsys):
    def asking(*argv, status=0):
        assert run([str(a) for a in argv]) == status
        shown = capsys.readouterr()
        return shown.out if status == 0 else shown.err

    return asking


def validate(table):
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(table)


def test_the_table_by_hand():
    a = Counts(dense_macs=3_000_000, macs=2_469_134, acs=2, products=4, adds=6, comparisons=8, events=10)
    b = Counts(transcendentals={"tanh": 12, "exp": 2}, weight_bytes=14, state_bytes=16, activation_bytes=18)
    c = Counts(state_updates=20, event_updates=5)
    text = show(Tally(2, {"a": a, "b": b, "c": c}, ("aten.odd", "aten.odder")))
    rows = [line.split() for line in text.splitlines()]
    assert rows[1] == "a 1,500,000 1,234,567 1 2 3 4 0 5".split() and rows[2] == "b 0 0 0 0 0 0 7 0".split()
    assert rows[3] == "total 1,500,000 1,234,567 1 2 3 4 7 5".split()
    assert ["b", "7", "8", "9", "24"] in rows and ["total", "7", "8", "9", "24"] in rows
    assert "state values a token: 10 written, 2.5 in steps that an input reached" in text and "tanh 6, exp 1" in text
    assert text.endswith("not counted: aten.odd, aten.odder")


def test_the_table_fits_a_terminal_whatever_the_names_and_numbers():
    for number, word, shown in (
        (10**13, "billions", "3,333"),
        (10**11, "millions", "33,333"),
        (10**8, "thousands", "33,333"),
    ):
        big = Counts(**{f.name: number for f in dataclasses.fields(Counts) if f.name != "transcendentals"})
        lines = show(Tally(3, {f"a.{'module.' * 9}{i}": big for i in range(3)}, ("aten.a-b",) * 40)).splitlines()
        assert max(map(len, lines)) <= 120 and lines[1].startswith("a.module") and "…" in lines[1]
        assert lines[0].startswith(f"operations a token, {word}") and lines[1].split()[1] == shown


@pytest.mark.parametrize(
    "model",
    [
        EGRULM(EGRULMConfig(embedding=8, layers=(12, 8), thr_mean=0.1)),
        SpikeGPT(SpikeGPTConfig(embedding=8, depth=2)),
        SpikeGPT(SpikeGPTConfig(embedding=8, depth=2, placement="spike_fed")),
    ],
    ids=["egru", "spikegpt", "spike_fed"],
)
def test_prefill_and_decode_together_are_the_whole(model):
    tokens = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    first, rest = count_phases(model, tokens, 4, strict=True)
    assert (first.tokens, rest.tokens) == (8, 10)
    assert (first + rest).without_bytes() == count(model, tokens).without_bytes()
    assert first == count(model, tokens[:, :4])
    assert not model._forward_hooks
    for wrong in (0, 10):
        with pytest.raises(ConfigError, match="expected 1 to 9 tokens"):
            count_phases(model, tokens, wrong)


def test_the_json_is_what_its_schema_says(small_run, ask):
    targets = ("--target", "spinnaker2", "--target", "horowitz-45nm", "--target", "loihi1")
    plain = json.loads(ask("count", small_run.folder, "--tokens", 20, "--json"))
    full = json.loads(ask("count", small_run.folder, "--tokens", 20, "--prefill", 15, "--measure", *targets, "--json"))
    for table in (plain, full):
        validate(table)
    assert plain["phases"] is plain["measured"] is None and not plain["bills"]
    assert full["phases"]["decode"]["tokens"] == 5 and len(full["bills"]) == len(full["break_even"]) == 3


def test_the_schema_names_every_field_and_refuses_others(small_run, ask):
    import jsonschema

    assert SCHEMA["$defs"]["counts"]["required"] == [f.name for f in dataclasses.fields(Counts)]
    table = json.loads(ask("count", small_run.folder, "--tokens", 5, "--target", "loihi1", "--json"))
    for path, value in (
        (("tally", "total", "macs"), -1),
        (("tally", "total", "adds"), 0.5),
        (("tally", "total", "flops"), 3),
        (("bills", 0, "tokens"), None),
        (("bills", 0, "lines", 0, "joules"), 0),
        (("bills", 0, "idle_watts", "source"), ""),
    ):
        broken = json.loads(json.dumps(table))
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            validate(broken)


def test_both_phases_are_shown_and_strict_refuses_an_unknown_operator(small_run, ask, monkeypatch):
    text = ask("count", small_run.folder, "--tokens", 20, "--prefill", 15, "--strict")
    assert text.startswith("prefill: 15 tokens\n") and "\ndecode: 5 tokens\n" in text
    assert text.count("\ntotal ") == 4 and text.count("state values") == 2 and max(map(len, text.splitlines())) <= 120
    from rheobase.backends.counting import dispatch

    monkeypatch.setattr(dispatch, "RULES", {})
    assert "not counted: aten." in ask("count", small_run.folder, "--tokens", 5)
    said = ask("count", small_run.folder, "--tokens", 5, "--strict", status=1)
    assert said.startswith("rheobase: count: expected operators with a rule alone, got aten.") and said.count("\n") == 1
    assert "expected 1 to 20 tokens" in ask("count", small_run.folder, "--tokens", 20, "--prefill", 21, status=1)


def test_joules_stand_beside_the_bill_or_why_not(small_run, ask, tmp_path, monkeypatch):
    arguments = ("count", small_run.folder, "--tokens", 20, "--measure", "--target", "horowitz-45nm")
    monkeypatch.setattr(counting, "MEASURE_SECONDS", 0)

    runs, forward = [], EGRULM.forward
    monkeypatch.setattr(EGRULM, "forward", lambda self, *given: runs.append(1) or forward(self, *given))

    def measured(function, device):
        assert len(runs) == 2, "counted, and run to be warm"
        function()
        return Measured(3.5, 2.0, f"a counter of {device}")

    monkeypatch.setattr(counting, "measure", measured)
    text = ask(*arguments)
    assert "measured  175,000,000 nJ a token: 3.50 J, 20 tokens run in 2.00 s, a counter of cpu\n" in text
    assert "sum of what is priced" in text
    monkeypatch.setattr(counting, "measure", functools.partial(measure, powercap=tmp_path))
    assert "not measured, 20 tokens run in" in ask(*arguments)
    table = json.loads(ask(*arguments, "--json"))
    assert table["measured"]["joules"] is None and "expected RAPL's packages, got none" in table["measured"]["why"]
    validate(table)
    said = ask("count", small_run.folder, "--device", "cpu", status=1)
    assert "count --device: expected --measure beside it" in said
    if not torch.cuda.is_available():
        assert "a device that torch can use" in ask(*arguments, "--device", "cuda", status=1)
