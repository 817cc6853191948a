"""The integer functions of SpikeGPT's parts: by hand, against a port in plain integers, against floating point."""

import integers as port
import numpy as np
import pytest
import torch
from integers import draw

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import arithmetic_rwkv as rwkv
from rheobase.spiking.ops import lif, wkv
from rheobase.spiking.surrogates import ATan

POWER = rwkv.power_table()


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
    a = np.concatenate(
        [1 << np.arange(62), (1 << np.arange(1, 62)) - 1, np.random.default_rng(0).integers(1, 2**62, 999)]
    )
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
    one = ints.shift_right(256 * rwkv.LOG2_E, 18)
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
            assert got.tolist() == [
                port.layer_norm(row.tolist(), factor.tolist(), offset.tolist(), eps, s) for row in rows
            ]


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


@pytest.mark.parametrize(("spread", "k_frac"), [(0.1, 12), (3, 11), (60, 8), (1e9, 7)])
def test_wkv_is_within_two_digits_of_float64(spread, k_frac):
    """2,000 steps, decays from e^-14 to e^5 a step, values over all of int16; exponents up to the ends of theirs."""
    generator = np.random.default_rng(0)
    time_decay = np.array([-14, -10, -8, -5, -3, -1, 0, 1, 3, 5.0])
    time_first = generator.normal(size=10)
    shape = 2000, 10
    k = ints.saturate16(np.floor(generator.normal(size=shape) * spread * 2.0**k_frac)).astype(np.int64)
    v = draw(generator, shape)
    decay, first = (
        np.floor(np.log2(np.e) * x * 2.0**rwkv.EXPONENT_FRAC + 0.5).astype(np.int64)
        for x in (np.exp(time_decay), time_first)
    )
    state = np.zeros(10, np.int64), np.zeros(10, np.int64), np.full(10, rwkv.START)
    got = []
    for k_t, v_t in zip(k, v, strict=True):
        y, *state = rwkv.wkv_tick(k_t, v_t, *state, decay, first, k_frac, POWER)
        got.append(y)
    w, u, k, v = (torch.as_tensor(x, dtype=torch.float64) for x in (time_decay, time_first, k * 2.0**-k_frac, v))
    wanted = wkv(w, u, k[None], v[None])[0][0].numpy()
    assert np.abs(np.stack(got) - wanted).max() < 2


@pytest.mark.parametrize("units", [12, 48, 512])
@pytest.mark.parametrize("size", [3, 300, 32767])
def test_norms_are_within_a_digit_of_float64(units, size):
    """With the finest format in which no output of so many units leaves int16."""
    generator = np.random.default_rng(0)
    x, frac = generator.integers(-size, size + 1, (300, units)), 8
    x[0], x[1], x[2, 1:] = 5, size, 0
    out_frac = 14 - int(np.ceil(np.log2(units) / 2))
    eps = int(np.floor(1e-5 * units**2 * 4**frac + 0.5))  # the norm's own, rounded
    weight, bias = np.full(units, 1 << 14), np.arange(units) % 3 << 26
    got = rwkv.layer_norm(x, weight, bias, eps, 28 - out_frac)
    x = torch.as_tensor(x / 2.0**frac)
    wanted = torch.nn.functional.layer_norm(x, (units,), eps=eps / units**2 / 4**frac).numpy() + bias * 2.0**-28
    assert np.abs(got - wanted * 2.0**out_frac).max() < 1
    assert (got[:2] == ints.shift_right(bias, 28 - out_frac)).all()


@pytest.mark.parametrize("v_reset", [0.0, None, -0.25])
@pytest.mark.parametrize("decay_input", [True, False])
def test_a_neuron_without_rounding_is_that_of_floating_point(v_reset, decay_input):
    """tau = 2 for 8 steps of numbers with 8 spare bits: every membrane and every spike is the same."""
    generator = np.random.default_rng(0)
    x, theta = generator.integers(-60, 90, (50, 8)) << 8, 24 << 8
    settings = {"tau": 2.0, "theta": theta / 2.0**13, "v_reset": v_reset, "decay_input": decay_input, "fire": ">="}
    wanted, _ = lif(torch.as_tensor(x / 2.0**13)[..., None], **settings, detach_reset=True, surrogate=ATan())
    half, unit = ints.ONE // 2, ints.ONE
    reset = None if v_reset is None else int(v_reset * 2**13)
    v = np.full(50, reset or 0)
    gain = half if decay_input else unit
    for t in range(8):
        s, v, _ = rwkv.lif_tick(x[:, t], v, half, gain, (reset or 0) * half, theta - 1, theta, reset, False)
        assert (s == wanted[:, t, 0].numpy()).all(), t
    assert 0.1 < wanted.mean() < 0.9
