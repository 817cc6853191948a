"""The integer arithmetic of the SpiNNaker 2 target: this file and `arithmetic_rwkv` are its specification.

Formats (two's complement; "Qf" is an integer that stands for itself x 2^-f):

    event values y, cells c, thresholds, gates z r g     int16   Q14, in [-1, 1]
    embedding vector x                                   int16   Qx, one x for the model
    weights                                              int8    one exponent e a target unit and gate: w 2^-e
    accumulators                                         int32   Q(e + 14) on events, Q(e + x) on embeddings
    pre-activations a, q                                 int32   Q11
    logits                                               int32   Q12

The rounding rule, everywhere: `shift_right` adds half of the divisor and shifts arithmetically, so that ties go
towards plus infinity. Accumulators, their bias and that half are proven to stay below 2^31 before anything is
written, so no order of additions can overflow. The one place that saturates is the index into the tables and q_g.
"""

import numpy as np

EVENT_FRAC, PRE_FRAC, LOGIT_FRAC = 14, 11, 12
ONE = 1 << EVENT_FRAC
TABLE_STEP = 6
TABLE_SIZE = (1 << (16 - TABLE_STEP)) + 1


def shift_right(x, s):
    """floor((x + 2^(s-1)) / 2^s), and x where s = 0; s may be an array."""
    x, s = np.asarray(x, np.int64), np.asarray(s, np.int64)
    return (x + ((np.int64(1) << s) >> 1)) >> s


def saturate16(x):
    """x, held within the range of int16."""
    return np.clip(x, -32768, 32767)


def rescale(x, s):
    """x 2^-s: `shift_right` where s >= 0, an exact shift to the left where s < 0."""
    s = np.asarray(s, np.int64)
    return shift_right(x, np.maximum(s, 0)) << np.maximum(-s, 0)


def make_table(function) -> np.ndarray:
    """A function of Q11 in [-16, 16] as 1,025 values in Q14, one every 1/32."""
    x = (np.arange(TABLE_SIZE) * (1 << TABLE_STEP) - 32768) / (1 << PRE_FRAC)
    return np.floor(function(x) * ONE + 0.5).astype(np.int16)


def sigmoid_table() -> np.ndarray:
    """The table of 1 / (1 + e^-x)."""
    return make_table(lambda x: 0.5 * (1 + np.tanh(0.5 * x)))


def tanh_table() -> np.ndarray:
    """The table of tanh(x)."""
    return make_table(np.tanh)


def look_up(table, x):
    """Linear interpolation in a table at x, Q11, saturated to int16; the result is Q14."""
    u = saturate16(x) + 32768
    i, f = u >> TABLE_STEP, u & ((1 << TABLE_STEP) - 1)
    low = table[i].astype(np.int64)
    return low + shift_right((table[i + 1] - low) * f, TABLE_STEP)


def accumulate(x, weight, bias):
    """bias + x weight in int32; x [.., in] int, weight [in, out] int8.

    Computed in float64, which holds every integer below 2^53 exactly, so that a fast product can be used.
    """
    return (np.asarray(x, np.float64) @ weight.astype(np.float64)).astype(np.int64) + bias


def egru_tick(a, q, c, thr, zoneout, sigmoid, tanh):
    """One EGRU step in integers.

        z, r = sigmoid(a + q)    g = tanh(a_g + r q_g)        r q_g rounded to Q11
        p = z c + (1 - z) g                                   rounded once, to Q14
        p = zoneout c + (1 - zoneout) p                       only where zoneout > 0, rounded to Q14
        o = [p > thr]      y = o p      c = p - o thr

    a, q     Q11 [.., 3n], gates z, r, g side by side      c, thr  Q14 [.., n]      zoneout  Q14
    returns  (y, c), Q14
    """
    n = c.shape[-1]
    zr = look_up(sigmoid, a[..., : 2 * n] + q[..., : 2 * n])
    z, r = zr[..., :n], zr[..., n:]
    g = look_up(tanh, a[..., 2 * n :] + shift_right(r * saturate16(q[..., 2 * n :]), EVENT_FRAC))
    p = shift_right(z * c + (ONE - z) * g, EVENT_FRAC)
    if zoneout:
        p = shift_right(zoneout * c + (ONE - zoneout) * p, EVENT_FRAC)
    o = p > thr
    return np.where(o, p, 0), np.where(o, p - thr, p)
