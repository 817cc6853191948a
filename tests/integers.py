"""The specification's SpikeGPT parts once more, number by number in Python's integers, as a port to C would have them:
every value outside a 64-bit product is checked to fit 32 bits."""

import numpy as np


def draw(generator, size, low=-32768, high=32768):
    """Integers of a range, a third of them at its ends."""
    values = generator.integers(low, high, size)
    return np.where(generator.random(size) < 1 / 3, generator.choice([low, high - 1], size), values)


def i32(x: int) -> int:
    assert -(2**31) <= x < 2**31, x
    return x


def i64(x: int) -> int:
    assert -(2**63) <= x < 2**63, x
    return x


def right(x: int, s: int) -> int:
    return i64(x + (1 << s >> 1)) >> s


def hold(x: int) -> int:
    return max(-32768, min(32767, x))


def narrow(x: int, s: int) -> int:
    return hold(i32(hold(i32(right(x, s) if s >= 0 else x)) << max(-s, 0)))


def lif(x, v, leak, gain, offset, threshold, step, v_reset, ternary):
    h = narrow(i32(i32(i32(leak * v) + i32(gain * x)) + offset), 14)
    s = int(h > threshold) - int(ternary and -h > threshold)
    v = i32(h - s * step) if v_reset is None else v_reset if s else h
    return s, v, h


def mix(x, before, share, rest, bias, s):
    return narrow(i32(i32(i32(x * share) + i32(before * rest)) + bias), s)


def layer_norm(xs, weights, biases, eps, s):
    n, total = len(xs), i32(sum(xs))
    a = i64(n * sum(x * x for x in xs) - total * total + eps)
    h = (a.bit_length() - 31) // 2
    m = a >> 2 * h if h > 0 else a << -2 * h
    assert 2**30 <= m < 2**32
    g = 0
    for bit in reversed(range(16)):
        g += (1 << bit) * ((g + (1 << bit)) ** 2 <= m)
    g += m - g * g > g
    root = (2**31 + g // 2) // g
    us = [i32(right(i64(i32(n * x - total) * root), 17 + h)) for x in xs]
    return [narrow(i32(right(i64(u * w + b), s)) if s > 0 else i32(u * w + b), s if s <= 0 else 0)
            for u, w, b in zip(us, weights, biases, strict=True)]  # fmt: skip


def power(table, d):
    whole, part = i32(d) >> 20, d & (2**20 - 1)
    if whole > 30:
        return 0
    i, f = part >> 12, part & 4095
    between = i32(table[i] + right((table[i + 1] - table[i]) * f, 12))
    return right(between, whole)


def wkv(k, v, p, q, o, decay, first, k_frac, table):
    def weighed(past, now):
        n = max(past, now)
        a, e = power(table, i32(n - past)), power(table, i32(n - now))
        return i32(right(a * p, 30) + right(e * v, 16)), i32(right(a * q, 30) + right(e, 1)), n

    k = i32(right(i64(k * 1_549_082_005), k_frac + 10))
    above, below, _ = weighed(o, i32(first + k))
    d = right(below, 15)
    y = hold(i32(above + d // 2) // d)
    p, q, o = weighed(i32(o - decay), k)
    if q >= 2**30:
        p, q, o = right(p, 1), right(q, 1), i32(o + 2**20)
    return y, max(-q, min(q, p)), q, o
