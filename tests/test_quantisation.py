"""The rounding of weights that training and exporters share."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rheobase.backends import simulate
from rheobase.backends.exporters.spinnaker2.quantise import quantise, sensitivity
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.spiking.graph import EventGraph, Linear
from rheobase.spiking.quantisation import MAX_EXPONENT, best_exponents, round_weights, rounded, scaled

ONES = np.ones(2)


def test_exponents_and_rounding_by_hand():
    """127 fits at 2^0 and 127.5 does not; 1 fits at 2^6, and so do zeros; the least take the largest exponent."""
    weight = np.array([[127.0, 127.5, 1.0, 0.0, 1e-9], [0.4, 1.0, -0.5 / 64, 0.0, 0.0]])
    exponent = best_exponents(weight, ONES, clip=False)
    assert exponent.tolist() == [0, -1, 6, 6, MAX_EXPONENT]
    assert round_weights(weight, exponent).tolist() == [[127, 64, 64, 0, 0], [0, 1, 0, 0, 0]]
    assert round_weights(np.array([[300.0, -300.0]]), np.array([0, 0])).tolist() == [[127, -127]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_scaled_exactly(dtype):
    exponent = torch.arange(-126, 128)
    weight = torch.full((1, len(exponent)), 1.0, dtype=dtype)
    wanted = torch.from_numpy(np.ldexp(np.float64(1), exponent.numpy())).to(dtype)
    assert scaled(weight, exponent).dtype == dtype and torch.equal(scaled(weight, exponent)[0], wanted)
    assert torch.equal(scaled(wanted[None], -exponent), weight)


def test_narrow_weights_are_rounded_as_wide_ones_are():
    """255/512 is a bfloat16; with a half it takes a digit more, and would become 1."""
    weight, exponent = torch.tensor([[255 / 512, 113.0]]).bfloat16(), torch.tensor([0, 0])
    assert round_weights(weight, exponent).tolist() == [[0, 113]]


def test_clipping_is_chosen_where_it_costs_less():
    """1 is exact at 2^6 and clipped above; 0.004 becomes 0 at 2^6 and 1/256 at 2^8."""
    weight = np.array([[1.0]] + [[0.004]] * 99)
    exponents = {power: best_exponents(weight, np.array([power] + [1.0] * 99), clip=True).item() for power in (0, 100)}
    assert exponents == {0: 8, 100: 6}


@pytest.mark.parametrize("kind", ["float64", "float32"])
@given(seed=st.integers(0, 2**32), scale=st.integers(-26, 6), clip=st.booleans())
def test_what_was_rounded_stays_what_it_is(kind, seed, scale, clip):
    """By any power and either choice of clipping: what training rounds, an exporter keeps to the bit."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=generator.integers(1, 20, 2)).astype(kind) * np.float32(2.0**scale)
    weight *= generator.random(weight.shape) < generator.random()
    power = generator.random(len(weight))
    tensor = torch.from_numpy(weight)
    exponent = best_exponents(tensor, torch.ones(len(weight), dtype=tensor.dtype), clip=clip)
    once = rounded(tensor, exponent)
    assert once.dtype == tensor.dtype and (round_weights(tensor, exponent).abs() <= 127).all()
    exact = once.double().numpy()
    for again in (False, True):
        assert np.array_equal(rounded(exact, best_exponents(exact, power, clip=again)), exact)


@given(seed=st.integers(0, 2**32), clip=st.booleans())
def test_numpy_and_torch_agree(seed, clip):
    generator = np.random.default_rng(seed)
    weight, power = generator.normal(size=(12, 7)), generator.random(12)
    exponent = best_exponents(weight, power, clip)
    other = best_exponents(torch.from_numpy(weight), torch.from_numpy(power), clip)
    assert np.array_equal(exponent, other.numpy())
    assert np.array_equal(rounded(weight, exponent), rounded(torch.from_numpy(weight), other).numpy())


def test_sensitivity_is_what_one_rounded_matrix_adds():
    """Weights that are int8 already add nothing; the others what a hand-rounded copy does."""
    torch.manual_seed(0)
    graph = EGRULM(EGRULMConfig(vocabulary=11, embedding=6, layers=(8, 6), thr_mean=0.02)).lower()
    tokens = np.random.default_rng(0).integers(0, 11, (2, 40))
    coarse = dict(graph.arrays)
    coarse["layers.1.kernel"] = np.round(coarse["layers.1.kernel"] * 16) / 16

    def cost(logits):
        return float(np.abs(logits).sum())

    made = EventGraph(graph.nodes, graph.edges, coarse, graph.outputs)
    found = sensitivity(made, tokens, cost)
    assert set(found) == {n.arrays["weight"] for n in graph.nodes if isinstance(n.op, Linear)}
    assert found["layers.1.kernel"] == 0 and all(found[name] for name in found if name != "layers.1.kernel")
    weight = coarse["layers.0.kernel"].astype(np.float64)
    by_hand = rounded(weight, best_exponents(weight, np.ones(len(weight)), clip=True)).astype(np.float32)
    changed = EventGraph(graph.nodes, graph.edges, {**coarse, "layers.0.kernel": by_hand}, graph.outputs)
    want = [cost(simulate(g, tokens, on="torch").outputs["logits"]) for g in (changed, made)]
    assert found["layers.0.kernel"] == want[0] - want[1]


def test_calibration_may_be_a_tensor():
    torch.manual_seed(0)
    graph, tokens = EGRULM(EGRULMConfig(embedding=8, layers=(8,), thr_mean=0.1)).lower(), torch.arange(40)[None]
    given = quantise(graph, tokens)
    assert given[0].hash() == quantise(graph, tokens.numpy())[0].hash()
