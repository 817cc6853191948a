"""Late and lost events, and flipped bits, on processing elements."""

import json

import numpy as np
import pytest
from spikegpts import TEXT, model_of

from rheobase.backends.exporters.spinnaker2.faults import Faults, FaultyMachine, compare
from rheobase.backends.exporters.spinnaker2.image import key
from rheobase.backends.exporters.spinnaker2.machine import EmbeddingElement, Machine
from rheobase.backends.exporters.spinnaker2.partition import build
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.backends.exporters.spinnaker2.samples import random_machine
from rheobase.cli import run
from rheobase.spiking.errors import ConfigError

TOKENS = [1, 6, 0, 3, 3, 5, 2, 4, 1, 0]


def run_machine(machine, tokens=TOKENS):
    return [(machine.step(t)[0].tolist(), machine.hashes()) for t in tokens]


def faulty(seed=0, **rates):
    return FaultyMachine(None, random_machine(1)[1], Faults(**rates), seed)


@pytest.fixture(scope="module")
def spikegpt():
    return build(quantise(model_of(embedding=12, depth=1).lower(), TEXT)[0])


def test_without_faults_every_integer_is_the_machine_s(spikegpt):
    machine = faulty()
    assert run_machine(machine) == run_machine(random_machine(1)[0])
    assert machine.happened.deliveries > 100
    assert not (machine.happened.late or machine.happened.drop or machine.happened.flip)
    dram, pes = spikegpt.images
    assert run_machine(FaultyMachine(dram, pes, Faults()), TEXT[0, :8]) == run_machine(Machine(dram, pes), TEXT[0, :8])


def test_all_lost_is_what_no_event_gives():
    machine, silent = faulty(drop=1.0), random_machine(1)[0]
    silent.deliver = lambda events: None
    assert run_machine(machine) == run_machine(silent)
    assert machine.happened.drop == machine.happened.deliveries > len(TOKENS)


def test_a_late_event_by_hand():
    """The token comes after the embedding's first tick; what comes late at the next token counts at the one after."""
    machine, plain = faulty(), random_machine(1)[0]
    embedding, layer = machine.elements[0][0], machine.elements[1][0]
    assert isinstance(embedding, EmbeddingElement)
    value = np.array([100])
    bias = [bias.copy() for bias in layer.bias]
    layer.injector.faults = Faults(late=1.0)
    layer.receive((np.array([key(0, 0, 2)]), value))
    assert all(np.array_equal(s, b) for s, b in zip(layer.sum, bias, strict=True))
    layer.tick()
    row = plain.elements[1][0].products[0].weight[2]
    assert np.array_equal(layer.sum[0], bias[0] + 100 * row) and np.array_equal(layer.sum[1], bias[1])
    layer.tick()
    assert np.array_equal(layer.sum[0], bias[0])
    assert machine.happened.late == machine.happened.deliveries == 1


def test_flipped_bits_are_counted_and_stay():
    machine, plain = faulty(flip=0.01), random_machine(1)[0]

    def bits():
        both = zip((pe for s in machine.elements for pe in s), (pe for s in plain.elements for pe in s), strict=True)
        found = 0
        for a, b in both:
            for p, q in zip(
                *([e.table] if isinstance(e, EmbeddingElement) else e.products for e in (a, b)), strict=True
            ):
                changed = p.weight.astype(np.int8) ^ q.weight.astype(np.int8)
                assert np.array_equal(p.weight, p.weight.astype(np.int8))
                found += int(np.unpackbits(changed.view(np.uint8)).sum())
        return found

    machine.step(0)
    assert machine.happened.flip == bits() > 0
    before, machine._injector.faults = bits(), Faults()
    machine.step(1)
    assert bits() == before
    every = faulty(flip=1.0)
    every.step(0)
    weight = random_machine(1)[0].elements[1][0].products[0].weight
    assert np.array_equal(every.elements[1][0].products[0].weight, -1 - weight)


def test_the_seed_decides(spikegpt):
    rates = Faults(late=0.05, drop=0.05, flip=1e-4)
    found = [list(compare(spikegpt, TEXT[0, :20], rates, seed)) for seed in (3, 3, 4)]
    assert [name for name, *_ in found[0]] == ["none", "late", "drop", "flip", "all"]
    for (_, _, a, counted), (_, _, b, again) in zip(found[0], found[1], strict=True):
        assert np.array_equal(a, b) and counted == again
    assert found[0][4][3] != found[2][4][3]
    happened = found[0][4][3]
    assert 0.02 < happened.late / happened.deliveries < 0.1 and 0.02 < happened.drop / happened.deliveries < 0.1
    assert found[0][1][3].drop == 0 < found[0][1][3].late


def test_rates_are_read_or_refused_in_one_line():
    assert Faults.parse("late=1e-4, flip=1e-9") == Faults(late=1e-4, flip=1e-9)
    for text, line in (
        ("lat=1", "did you mean 'late'"),
        ("late", "expected a number"),
        ("drop=x", "expected a number, got 'x'"),
        ("drop=nan", "a probability from 0 to 1"),
        ("drop=-1", "a probability from 0 to 1"),
        ("drop=.1,drop=.2", "one rate of drop"),
        ("drop=.6,late=.6", "at most 1"),
    ):
        with pytest.raises(ConfigError, match=line):
            Faults.parse(text)


def test_the_command_says_what_happened_and_what_did_not(small_run, capsys):
    argv = ["simulate", str(small_run.folder), "--on", "integer", "--tokens", "60", "--fault"]
    assert run([*argv, "late=0.2,drop=1e-12"]) == 0
    none, late, drop, both, last = capsys.readouterr().out.splitlines()
    assert none.startswith("none ") and none.endswith("bits a byte") and "came late" in late
    assert "none happened: this says nothing" in drop and "came late, 0 were lost" in both
    assert "59 predictions" in last and "seed 0" in last
    assert run([*argv, "late=0.2", "--json", "--seed", "5"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert set(table["runs"]) == {"none", "late"} and table["runs"]["late"]["late"] > 0
    assert table["runs"]["none"]["bits_per_token"] == pytest.approx(float(none.split()[1]), abs=1e-4)
    for wrong, line in ((["drop=0"], "a rate above 0"), (["drop=2"], "a probability"), (["x=1"], "KIND=RATE")):
        assert run([*argv, *wrong]) == 1
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1
    assert run(["simulate", str(small_run.folder), "--fault", "drop=1"]) == 1
    assert "expected --on integer" in capsys.readouterr().err


def test_a_seed_is_not_negative():
    with pytest.raises(ConfigError, match="faults' seed: expected 0 or more, got -1"):
        faulty(-1, late=0.1)
