"""The integer arithmetic of SpikeGPT's parts: the specification, continued.

Formats, beside those of `arithmetic`; the f of each signal is one a node and chosen by calibration:

    dense signals: residual stream, mixes, k, v, y      int16   Qf, held within int16 by `narrow`
    membranes v, graded spikes                          int16   Qf of what feeds the neuron
    binary and ternary spikes                           -1, 0, 1
    factors: shares, leaks, gains, norms' weights       int16   Qf, one f a node; leaks and gains Q14
    accumulators of these products                      int32   proven below 2^31
    WKV's p, q, o                                       int32   Q(f of v + 14), Q29, Q20

Products of an int32 with an int16 or an int32, and the sum of squares of a norm, take 64 bits. Everything else fits 32.
"""

import numpy as np

from rheobase.backends.exporters.spinnaker2.arithmetic import rescale, saturate16, shift_right

FACTOR_FRAC = 14
POWER_FRAC, POWER_STEPS = 30, 8
EXPONENT_FRAC, WEIGHT_FRAC = 20, 29
LOG2_E = 1_549_082_005
"""log2(e) in Q30"""
START = -(1 << 30)
"""WKV's o before the first step: so low that what it weighs is 0"""


def narrow(x, s):
    """x 2^-s, rounded, held within int16; s >= -15.

    To the left, x is held within int16 before the shift and after it: the result is the same, and fits int32 between.
    """
    s = np.asarray(s, np.int64)
    return saturate16(rescale(saturate16(shift_right(x, np.maximum(s, 0))), np.minimum(s, 0)))


def divide(x, d):
    """floor((x + floor(d / 2)) / d), d > 0: rounded as `shift_right` does."""
    return (x + (d >> 1)) // d


def mix(x, before, share, rest, bias, s):
    """(x share + before rest + bias) 2^-s, by `narrow`: the token shift's mix, and with before = 0 an affine map."""
    return narrow(x * share + before * rest + bias, s)


def multiply(a, b, s):
    """a b 2^-s, by `narrow`."""
    return narrow(a * b, s)


def add(a, b, a_frac, b_frac, out_frac):
    """a + b, by `narrow` from the finer of their formats, which differ by 14 at most."""
    frac = max(a_frac, b_frac)
    return narrow((a << (frac - a_frac)) + (b << (frac - b_frac)), frac - out_frac)


def squared_relu(x, s):
    """max(x, 0)^2 2^-s, by `narrow`."""
    x = np.maximum(x, 0)
    return narrow(x * x, s)


def lif_tick(x, v, leak, gain, offset, threshold, step, v_reset, ternary):
    """One step of leaky integrate-and-fire units.

        h = leak v + gain x + offset         from Q14, by `narrow`
        s = [h > threshold]                  ternary: [h > threshold] - [-h > threshold]
        v = v_reset where s, else h          v_reset None: h - s step

    x, v, threshold, step, v_reset  Qf      leak, gain  Q14      offset  int32, Q(f + 14)
    returns  (s, v, h)

    leak = 1 - 1/tau, and gain = 1/tau where the input decays too: leak + gain is 2^14 exactly, so that h is within
    the range of x and v. "h >= theta" is h > ceil(theta 2^f) - 1, "h > theta" is h > floor(theta 2^f): both exact.
    """
    h = narrow(leak * v + gain * x + offset, FACTOR_FRAC)
    s = (h > threshold).astype(np.int64)
    if ternary:
        s = s - (-h > threshold)
    v = h - s * step if v_reset is None else np.where(s != 0, v_reset, h)
    return s, v, h


def bit_length(x):
    """The number of bits of x, 0 <= x < 2^63: 64 less its leading zeros."""
    bits = np.zeros_like(x)
    for s in (32, 16, 8, 4, 2, 1):
        high = x >> s
        bits = bits + np.where(high > 0, s, 0)
        x = np.where(high > 0, high, x)
    return bits + (x > 0)


def square_root(m):
    """The integer nearest to the root of m < 2^32. Float64 holds m exactly and rounds its root to the right floor."""
    g = np.sqrt(m.astype(np.float64)).astype(np.int64)
    return g + (m - g * g > g)


def inverse_root(a):
    """(R, h) with 1 / sqrt(a) = R 2^-(31 + h), R within 2^-15 of the truth; 0 < a < 2^62.

    m = a 4^-h in [2^30, 2^32)      g = the root of m, rounded      R = 2^31 / g, rounded
    """
    h = (bit_length(a) - 31) >> 1
    m = np.where(h > 0, a >> np.maximum(2 * h, 0), a << np.maximum(-2 * h, 0))
    return divide(np.int64(1) << 31, square_root(m)), h


def layer_norm(x, weight, bias, eps, s, own=slice(None)):
    """LayerNorm over n < 2^14 units, of which `own` are given.

        c = n x - sum x      a = n sum x^2 - (sum x)^2 + eps      n (x - mean), n^2 (variance + eps)
        u = c / sqrt(a)      from `inverse_root`, rounded to Q14
        (u weight + bias) 2^-s, by `narrow`

    x  int16 Qf      eps  int64, n^2 eps in Q2f, at least 1      bias  int32, in the format of the product
    """
    n = x.shape[-1]
    total = x.sum(-1, keepdims=True)
    root, h = inverse_root(n * (x * x).sum(-1, keepdims=True) - total * total + eps)
    u = shift_right((n * x[..., own] - total) * root, 31 + h - FACTOR_FRAC)
    return narrow(u * weight + bias, s)


def power_table() -> np.ndarray:
    """2^-x in Q30 for x = 0, 1/256, .. 1."""
    x = np.arange((1 << POWER_STEPS) + 1) / (1 << POWER_STEPS)
    return np.floor(2.0 ** (POWER_FRAC - x) + 0.5).astype(np.int32)


def power(table, d):
    """2^-d in Q30, d >= 0 in Q20: linear interpolation in the table, then a rounding shift; 0 from d = 31 on."""
    whole, part = d >> EXPONENT_FRAC, d & ((1 << EXPONENT_FRAC) - 1)
    step = EXPONENT_FRAC - POWER_STEPS
    i, f = part >> step, part & ((1 << step) - 1)
    low = table[i].astype(np.int64)
    between = low + shift_right((table[i + 1] - low) * f, step)
    return np.where(whole > POWER_FRAC, 0, shift_right(between, np.minimum(whole, POWER_FRAC)))


def _weighed(p, q, v, a, e):
    """(a p + e v, a q + e) from Q30, each product rounded."""
    p = shift_right(a * p, POWER_FRAC) + shift_right(e * v, POWER_FRAC - FACTOR_FRAC)
    return p, shift_right(a * q, POWER_FRAC) + shift_right(e, POWER_FRAC - WEIGHT_FRAC)


def wkv_tick(k, v, p, q, o, decay, first, k_frac, table):
    """One step of WKV, whose exponents are to the base 2.

        k = k log2(e)                                   Q20
        n = max(o, first + k)      a = 2^(o - n)      e = 2^(first + k - n)
        y = (a p + e v) / (a q + e)                     by `divide`, the divisor rounded to Q14 before
        n = max(o - decay, k)      a = 2^(o - decay - n)      e = 2^(k - n)
        p, q = a p + e v, a q + e      o = n
        p, q, o = p/2, q/2, o + 1                       where q >= 2

    k, v            int16, Q k_frac and Qf, k_frac from 7 to 16      y  int16, Qf
    p, q            int32, Q(f + 14), Q29: p 2^o is the sum of weighed values, q 2^o that of weights
    o               int32, Q20: no less than the largest exponent so far, decayed
    decay, first    int32, Q20, below 2^28: e^time_decay and time_first, times log2(e)
    returns         (y, p, q, o)

    After a step 1 <= q < 2; p is held within -q..q in the integers, where it lies but for rounding, as |v| <= 2^15:
    so every sum stays below 2^31 however long the sequence. o - 33 never passes the largest k.
    """
    k = shift_right(k * LOG2_E, k_frac + 30 - EXPONENT_FRAC)
    now, past = first + k, o - decay
    n = np.maximum(o, now)
    above, below = _weighed(p, q, v, power(table, n - o), power(table, n - now))
    y = saturate16(divide(above, np.maximum(shift_right(below, WEIGHT_FRAC - FACTOR_FRAC), 1)))
    n = np.maximum(past, k)
    p, q = _weighed(p, q, v, power(table, n - past), power(table, n - k))
    full = (q >= 1 << (WEIGHT_FRAC + 1)).astype(np.int64)
    q = shift_right(q, full)
    p = np.clip(shift_right(p, full), -q, q)
    return y, p, q, n + (full << EXPONENT_FRAC)
