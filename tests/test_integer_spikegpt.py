"""SpikeGPT's graphs in the integers of SpiNNaker 2: cut anywhere, within their formats, and close to float32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from integers import draw
from spikegpts import FORMS, TEXT, model_of

from rheobase import cli
from rheobase.backends import simulate
from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.quantise import IntegerLinear, errors, formats, quantise
from rheobase.backends.exporters.spinnaker2.quantise.weights import fit_exponents
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.training import loop
from rheobase.models.training.evaluate import bits_per_token
from rheobase.models.training.run import RunConfig
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import EventGraph, LIFCell


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    """A model's graph, and its integers."""
    graph = model_of(**FORMS[request.param]).lower()
    return graph, quantise(graph, TEXT)[0]


def test_thresholds_are_exact_for_every_membrane():
    model = model_of(depth=1, learn=("tau", "theta"))
    generator = np.random.default_rng(0)
    with torch.no_grad():
        model.blocks[0].att.lif_k.theta.copy_(torch.as_tensor(generator.integers(1, 40, 24) / 16.0))
        model.blocks[0].att.lif_v.theta.copy_(torch.as_tensor(generator.uniform(0.001, 3, 24)))
    graph = model.lower()
    integer, _ = quantise(graph, TEXT)
    h = np.arange(-32768, 32768)[:, None]
    for name in ("blocks.0.att.lif_k", "blocks.0.att.lif_v"):
        theta, frac = graph.arrays[f"{name}.theta"].astype(np.float64), integer.node(name).op.frac
        assert ((h > integer.arrays[f"{name}.threshold"]) == (h * 2.0**-frac >= theta)).all()


@pytest.mark.parametrize("cut", [0, 1, 57, 119])
def test_a_sequence_may_be_cut_anywhere(form, cut):
    graph, integer = form
    names = [
        name for name, f in formats(integer).items() if f.bits > 8 and integer.node(name.rpartition(".")[0]).op.inputs
    ]
    whole = simulate(integer, TEXT, on="integer", record=names)
    first = simulate(integer, TEXT[:, :cut], on="integer", record=names)
    second = simulate(integer, TEXT[:, cut:], first.state, on="integer", record=names)
    for name in names:
        both = np.concatenate([first.recorded[name], second.recorded[name]], 1)
        assert np.array_equal(both, whole.recorded[name]), name
    assert all(np.array_equal(second.state[name], whole.state[name]) for name in whole.state)


def test_every_signal_stays_within_its_format(form):
    """On random tokens, and with weights that are random or at the ends of their format."""
    graph, integer = form
    generator = np.random.default_rng(0)
    weights = {n.arrays["weight"] for n in integer.nodes if isinstance(n.op, IntegerLinear)}
    noise = {name: draw(generator, integer.arrays[name].shape, -127, 128).astype(np.int8) for name in weights}
    wild = EventGraph(integer.nodes, integer.edges, {**integer.arrays, **noise}, integer.outputs)
    tokens = generator.integers(0, 256, (2, 100))
    stated = {name: f for name, f in formats(integer).items() if integer.node(name.rpartition(".")[0]).op.inputs}
    assert stated.keys() == {f"{n.name}.{p}" for n in integer.nodes if n.op.inputs for p in n.op.outputs}
    assert {bits for bits, _ in stated.values()} <= {8, 16, 32}
    for graph in (integer, wild):
        seen = simulate(graph, tokens, on="integer", record=list(stated)).recorded
        for name, (bits, _) in stated.items():
            assert seen[name].dtype == np.int64
            assert -(2 ** (bits - 1)) <= seen[name].min() and seen[name].max() < 2 ** (bits - 1), name


def test_formats_leave_a_bit_of_room_and_what_they_hold_is_recorded(form):
    graph, _ = form
    integer, deviations = quantise(graph, TEXT)
    notes = [d for d in deviations if "at its limits" in d.written]
    assert notes and all(", 0 of " in d.written for d in notes)
    loud = {"blocks.1.ffn.value.weight": graph.arrays["blocks.1.ffn.value.weight"] * 0 + 3}
    held = quantise(EventGraph(graph.nodes, graph.edges, {**graph.arrays, **loud}, graph.outputs), TEXT)[0]
    name = "blocks.1.lif2.add.out"
    assert formats(held)[name].frac <= formats(integer)[name].frac


def test_recorded_bounds_by_hand():
    """1/3 in Q14 is 5461, which lacks 1/3 of 2^-14; halves of a last digit; signs are what is read."""
    graph = model_of(depth=1).lower()
    soft = {n.name: replace(n.op, tau=3.0, v_reset=None) for n in graph.nodes if isinstance(n.op, LIFCell)}
    nodes = tuple(replace(n, op=soft.get(n.name, n.op)) for n in graph.nodes)
    integer, deviations = quantise(EventGraph(nodes, graph.edges, graph.arrays, graph.outputs), TEXT)
    half = 2.0 ** -formats(integer)["blocks.0.att.lif_k.v"].frac / 2
    wanted = {"tau": pytest.approx([2**-14 / 3]), "theta": [half], "v": [half, half], "offset": [2.0**-15 * 2 * half]}
    for field, bounds in wanted.items():
        assert [d.bound for d in deviations if (d.node, d.field) == ("blocks.0.att.lif_k", field)] == bounds, field
    assert [d.bound for d in deviations if (d.node, d.field) == ("emb", "table")] == [0]


def test_another_librarys_neuron_has_no_integer_form():
    config = SpikeGPTConfig(depth=1, placement="spike_fed", neuron="snntorch:Leaky", neuron_settings=("beta=0.5",))
    graph = SpikeGPT(config).eval().lower()
    with pytest.raises(UnsupportedError, match="att.lif_k: expected an EGRU .*, or a SpikeGPT, got Cuba"):
        quantise(graph, TEXT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.att.key.weight": 300}, "k: expected values below 128"),
        ({"blocks.0.att.time_first": 1e3}, "time_first: expected values within 177"),
        ({"blocks.0.att.output.weight": 1e6}, "blocks.0.att.output.out: expected values below 4,096"),
        ({"blocks.0.ln1.weight": 1e9}, "blocks.0.ln1.out: expected values below 4,096"),
        ({"head.weight": 1e9}, "head unit .*: expected"),
        ({"blocks.0.ln1.weight": 1.5e38}, "expected finite values on the calibration data, got"),
    ],
)
def test_numbers_out_of_range_are_named(changes, message):
    graph = model_of(depth=1).lower()
    arrays = {name: np.abs(graph.arrays[name]) * np.float32(factor) for name, factor in changes.items()}
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(UnsupportedError, match=message):
        quantise(EventGraph(graph.nodes, graph.edges, {**graph.arrays, **arrays}, graph.outputs), TEXT)


def test_a_gain_beyond_int16_is_named():
    graph = model_of(depth=1, learn=("tau",)).lower()
    arrays = {name: np.full_like(a, 0.4) if name.endswith(".tau") else a for name, a in graph.arrays.items()}
    with pytest.raises(UnsupportedError, match="tau: expected time constants of at least 1 step, got 0.4"):
        quantise(EventGraph(graph.nodes, graph.edges, arrays, graph.outputs), TEXT)


def test_biases_below_zero_lower_exponents_as_those_above_do():
    given = np.full((2, 3), 0.5), np.full(3, 7), np.array([0.0, 3e5, 1.0])
    below = fit_exponents(given[0], given[1], -given[2], 11, 1 << 15)
    assert below.tolist() == fit_exponents(*given, 11, 1 << 15).tolist() and below[1] < below[0]


def test_wide_graded_products_are_made_to_fit():
    """2,048 graded events of int16 and weights near 127 would pass 2^31: exponents go down until none can."""
    model = model_of(depth=1, embedding=512, graded=True, vocabulary=32)
    with torch.no_grad():
        model.blocks[0].ffn.value.weight.uniform_(0.9, 1.0)
    tokens = TEXT[:1, :8] % 32
    integer, _ = quantise(model.lower(), tokens)
    weight = np.abs(integer.arrays["blocks.0.ffn.value.weight"].astype(np.int64))
    assert (3 << 28) < weight.sum(1).max() * 32768 < 3 << 29
    assert weight.max() == 16 and integer.arrays["blocks.0.att.output.weight"].max() > 63


def test_both_products_of_a_mix_fit_int32_together():
    """Factors of 1.99 twice: in Q14, where each fits, two of them and a bias could pass 2^31."""
    graph = model_of(depth=1, norm="static").lower()
    mix = graph.node("blocks.0.att.time_mix_k")
    wide = {mix.arrays[role]: np.full_like(graph.arrays[mix.arrays[role]], 1.99) for role in ("share", "rest")}
    integer, _ = quantise(EventGraph(graph.nodes, graph.edges, {**graph.arrays, **wide}, graph.outputs), TEXT)
    share, rest, bias = (integer.arrays_of(integer.node(mix.name))[role] for role in ("share", "rest", "bias"))
    assert share.tolist() == rest.tolist() == [int(1.99 * 2**13 + 0.5)] * len(share)
    assert (32768 * (share + rest.astype(np.int64)) + np.abs(bias.astype(np.int64))).max() < 3 << 29


TRAINED = {
    "plain": {},
    "graded": {"graded": True, "tau": 1.0, "head": "spiking", "binary_embedding": False, "learn": ["theta"]},
    "static norms": {"norm": "static", "ternary": True},
}


@pytest.fixture(scope="module", params=TRAINED)
def run(request, tmp_path_factory):
    """A run of a few seconds on the built-in text."""
    table = {
        "model": {"name": "spikegpt", "placement": "spike_fed", "embedding": 48, "depth": 2, **TRAINED[request.param]},
        "train": {"steps": 60, "batch": 16, "context": 32, "warmup": 5, "evaluate_every": 60, "checkpoint_every": 60},
    }
    return loop.start(tmp_path_factory.mktemp("runs") / "run", RunConfig.from_table(table), quiet=True)


def test_a_trained_model_loses_less_than_one_and_a_half_percent(run, record_property):
    graph, parts = run.model().lower(), run.config.splits()
    integer, _ = quantise(graph, parts.valid[: 8 * 128].reshape(8, 128).astype(np.int64))
    tokens = parts.test[:3000].astype(np.int64).reshape(6, 500)

    def bits(trace, frac):
        logits = trace.outputs["logits"][:, :-1] * 2.0**-frac
        return bits_per_token(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))

    floats = bits(simulate(graph, tokens), 0)
    integers = bits(simulate(integer, tokens, on="integer"), ints.LOGIT_FRAC)
    record_property("bits a byte", (floats, integers))
    print(f"float32 {floats:.4f}, integers {integers:.4f} bits a byte")
    assert abs(integers / floats - 1) < 0.015


def test_errors_are_given_signal_by_signal(run):
    graph, parts = run.model().lower(), run.config.splits()
    integer, _ = quantise(graph, parts.valid[: 8 * 128].reshape(8, 128).astype(np.int64))
    found = errors(graph, integer, parts.test[:300].astype(np.int64).reshape(2, 150))
    assert 0 < found["head.out"] < 0.3
    assert found["blocks.0.att.time_mix_k.out"] < 0.01
    assert found["blocks.0.ffn.gate.out"] < found["blocks.0.ffn.receptance.out"]
    assert not any(name.startswith(("tokens", "blocks.0.att.wkv.o")) for name in found)


def test_the_command_line_runs_it(run, capsys):
    assert cli.run(["simulate", str(run.folder), "--on", "integer", "--tokens", "40"]) == 0
    assert "40 tokens on integer" in capsys.readouterr().out
