"""SpikeGPT in the integers of SpiNNaker 2: each function by hand, against a port in plain integers and against
floating point; whole models against their float32."""

import integers as port
import numpy as np
import pytest
import torch

from rheobase.__main__ import main
from rheobase.backends import export, simulate
from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import arithmetic_rwkv as rwkv
from rheobase.backends.exporters.spinnaker2.partition import layers_of
from rheobase.backends.exporters.spinnaker2.quantise import errors, formats, quantise
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.models.training import loop
from rheobase.models.training.evaluate import bits_per_token
from rheobase.models.training.run import RunConfig
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import EventGraph
from rheobase.spiking.ops import lif, wkv
from rheobase.spiking.surrogates import ATan

TEXT = np.arange(240).reshape(2, 120) * 7 % 256
FORMS = {
    "plain": {},
    "graded, no memory": {"graded": True, "tau": 1.0, "head": "spiking", "binary_embedding": False},
    "ternary, static norms": {"ternary": True, "norm": "static", "learn": ("tau", "theta")},
    "spiking head, static norms": {"norm": "static", "head": "spiking", "learn": ("theta",)},
    "reference": {"placement": "reference", "ffn_pre": True},
}
POWER = rwkv.power_table()


def model_of(**settings) -> SpikeGPT:
    torch.manual_seed(0)
    config = SpikeGPTConfig(**{"embedding": 24, "depth": 2, "placement": "spike_fed", **settings})
    model = SpikeGPT(config).eval()
    model.wake(torch.as_tensor(TEXT))
    model.advance(1.0)
    return model


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    """A model's graph, and its integers."""
    graph = model_of(**FORMS[request.param]).lower()
    return graph, quantise(graph, TEXT)[0]


def draw(generator, size, low=-32768, high=32768):
    """Integers of a range, a third of them at its ends."""
    values = generator.integers(low, high, size)
    return np.where(generator.random(size) < 1 / 3, generator.choice([low, high - 1], size), values)


def test_shifts_by_hand():
    assert ints.rescale(np.array([5, 6, -6]), 2).tolist() == [1, 2, -1]
    assert ints.rescale(np.array([5, -6]), [-3, 1]).tolist() == [40, -3]
    assert rwkv.narrow(np.array([70000, -70000, 100000, 3]), [1, 1, 1, -2]).tolist() == [32767, -32768, 32767, 12]
    assert rwkv.narrow(np.array([16384, -16384, 2, 10**6]), -1).tolist() == [32767, -32768, 4, 32767]
    assert rwkv.divide(np.array([7, -7, 5, -5]), np.array([2, 2, 10, 10])).tolist() == [4, -3, 1, 0]


def test_what_is_done_unit_by_unit_by_hand():
    """3 x 0.75 + 5 x 0.25 + 0.5 = 4;  1.5 x -2 = -3;  1 + 0.25 = 1.25;  max(1.5, 0)^2 = 2.25."""
    q14 = 1 << 14
    assert rwkv.mix(3 * 256, 5 * 256, 3 * q14 // 4, q14 // 4, 128 * q14, 14) == 4 * 256
    assert rwkv.multiply(3 << 7, -2 << 10, 10) == -3 << 8
    assert rwkv.add(1 << 8, 1 << 12, 8, 14, 10) == 5 << 8
    assert rwkv.add(1 << 8, 1 << 12, 8, 14, 1) == 3
    assert rwkv.squared_relu(np.array([3 << 9, -3 << 9]), 10).tolist() == [9 << 8, 0]


def test_a_neuron_by_hand():
    """tau = 2: h = (1 + 2) / 2 = 1.5 fires at theta = 1.5 by >=, not by >; both resets."""
    half, theta = ints.ONE // 2, 3 << 9
    state = 2 << 10, 1 << 10, half, half, 0
    assert rwkv.lif_tick(*map(np.int64, (*state, theta - 1, theta)), 0, False) == (1, 0, theta)
    assert rwkv.lif_tick(*map(np.int64, (*state, theta, theta)), 0, False) == (0, theta, theta)
    assert rwkv.lif_tick(*map(np.int64, (*state, theta - 1, theta)), None, False) == (1, 0, theta)
    below = (-2 << 10, -1 << 10, half, half, 0, theta - 1, theta)
    assert rwkv.lif_tick(*map(np.int64, below), None, True) == (-1, 0, -theta)
    assert rwkv.lif_tick(*map(np.int64, below), 5, False) == (0, -theta, -theta)


def test_a_norm_by_hand():
    """1, 3 with n^2 eps = 12: n^2 (variance + eps) = 16, so that (x - mean) n / 4 is -1/2 and 1/2; of equal values
    the bias alone is left; the widest int16 are -1 and 1."""
    x = np.array([[1, 3], [7, 7], [-32768, 32767]])
    out = rwkv.layer_norm(x, np.array([1 << 14, 1 << 13]), np.array([1 << 26, 0]), 12, 18)
    assert out.tolist() == [[-256, 256], [256, 0], [-768, 512]]


def test_roots_and_powers():
    m = np.array([2**30, 2**32 - 1, 32768**2 + 32768, 32768**2 + 32769])
    assert rwkv.square_root(m).tolist() == [32768, 65536, 32768, 32769]
    a = np.concatenate([1 << np.arange(62), (1 << np.arange(1, 62)) - 1, np.random.default_rng(0).integers(1, 2**62, 999)])
    assert rwkv.bit_length(a).tolist() == [int(x).bit_length() for x in a]
    root, h = rwkv.inverse_root(a)
    assert np.abs(root * 2.0 ** -(31 + h) * np.sqrt(a.astype(np.float64)) - 1).max() < 2**-15
    assert rwkv.power(POWER, np.array([0, 1 << 20, 30 << 20, 31 << 20, 2**31 - 1])).tolist() == [2**30, 2**29, 1, 0, 0]
    d = np.arange(0, 20 << 20, 997)
    assert np.abs(rwkv.power(POWER, d) / 2.0**30 - 2.0 ** (-d / 2.0**20)).max() < 2**-19


def test_wkv_by_hand():
    """The first value comes out whole; a second of equal weight gives the mean, and a later one of a far lower
    exponent nothing."""
    step = {"decay": 0, "first": 0, "k_frac": 8, "table": POWER}
    y, *state = rwkv.wkv_tick(*map(np.int64, (256, 1000, 0, 0, rwkv.START)), **step)
    one = 256 * rwkv.LOG2_E >> 2
    assert (y, *state) == (1000, 1000 << 14, 1 << 29, one)
    y, *state = rwkv.wkv_tick(np.int64(256), np.int64(3000), *state, **step)
    assert (y, *state) == (2000, 2000 << 14, 1 << 29, one + (1 << 20))
    y, *later = rwkv.wkv_tick(np.int64(-32768), np.int64(3000), *state, **step)
    assert (y, *later) == (2000, *state)


@pytest.mark.parametrize("ternary", [False, True])
def test_the_functions_are_those_of_a_port_in_32_bits(ternary):
    """Bit for bit, at the ends of every format, with no value outside 32 bits."""
    generator = np.random.default_rng(ternary)
    n = 400
    x, v, before = (draw(generator, n) for _ in range(3))
    rate = draw(generator, n, 0, ints.ONE + 1)
    theta, offset = draw(generator, n, 0), draw(generator, n, -(2**28), 2**28)
    for gain, v_reset in ((rate, None), (np.full(n, ints.ONE), -7)):
        given = x, v, ints.ONE - rate, gain, offset, theta, theta
        got = np.stack(rwkv.lif_tick(*given, v_reset, ternary), 1)
        wanted = [port.lif(*map(int, row), v_reset, ternary) for row in zip(*given, strict=True)]
        assert got.tolist() == [list(row) for row in wanted]
    share = draw(generator, n, -32767, 32767)
    rest, bias = 32767 - np.abs(share), draw(generator, n, -(2**29) + 1, 2**29)
    for s in (-14, 0, 28):
        given = x, before, share, rest, bias
        assert rwkv.mix(*given, s).tolist() == [port.mix(*map(int, row), s) for row in zip(*given, strict=True)]
    for width in (1, 7, 400):
        for eps, s in ((1, 17), (2**40, 26), (5, 12)):
            factor, offset = draw(generator, width, -32767), draw(generator, width, -(2**29), 2**29)
            rows = np.stack([draw(generator, width), generator.integers(-3, 3, width), np.full(width, -32768)])
            got = rwkv.layer_norm(rows, factor, offset, eps, s)
            assert got.tolist() == [port.layer_norm(row.tolist(), factor.tolist(), offset.tolist(), eps, s) for row in rows]


def test_wkv_is_that_of_a_port_in_32_bits():
    """Over long sequences at the ends of every format: p, q, o stay where the specification says."""
    generator = np.random.default_rng(0)
    n, steps, table = 12, 400, POWER.tolist()
    decay = np.array([0, 1, 500, 1 << 20, 20 << 20, 2**28 - 1] * 2)
    first = np.repeat([-(2**28) + 1, 1 << 19], 6)
    for k_frac in (7, 12, 16):
        state = np.zeros(n, np.int64), np.zeros(n, np.int64), np.full(n, rwkv.START)
        by_hand = [[0, 0, rwkv.START] for _ in range(n)]
        k, v = draw(generator, (steps, n)), draw(generator, (steps, n))
        k[: steps // 2] >>= 8
        for t in range(steps):
            y, *state = rwkv.wkv_tick(k[t], v[t], *state, decay, first, k_frac, POWER)
            rows = zip(*(x.tolist() for x in (k[t], v[t])), by_hand, decay.tolist(), first.tolist(), strict=True)
            wanted = [port.wkv(k_, v_, *s, w, u, k_frac, table) for k_, v_, s, w, u in rows]
            assert np.stack([y, *state], 1).tolist() == [list(row) for row in wanted]
            by_hand = [row[1:] for row in wanted]
            p, q, o = state
            assert (q >= 1 << 29).all() and (q < 1 << 30).all() and (np.abs(p) <= q).all()
