"""The programs of a SpikeGPT's sections: what a processing element does at a tick, over registers of its units.

An instruction is eleven integers, `COLUMNS`: op, the registers out, a, b, c, d, the first of its factors, the port that
it reads, and three settings. Registers, and factors, are arrays of one int32 a unit; registers keep their values from
tick to tick. Ports are products, then vectors: a product sums weight rows as events come, a vector keeps what each
unit of another section sent. At the end of a tick sums begin anew and vectors are zeros.

    product        out = sum 2^-shift; s0: held within int16               (of the port)
    slice          out = this slice's units                                (of the port)
    norm           out = layer_norm; factors weight, bias; s0 shift, s1 and s2 the halves of eps   (of the port)
    mix            out = mix(a, b); factors share, rest, bias; s0 shift
    sigmoid        out = look_up(sigmoid, a 2^-s0)
    squared_relu   out = squared_relu(a, s0)
    multiply       out = multiply(a, b, s0)
    add            out = add(a, b, s0, s1, s2)
    lif            out = spikes of a, b the membrane; factors leak, gain, offset, threshold, step; s0 v_reset,
                   s1 flags: RESETS to it, TERNARY, GRADED
    wkv            out = y of a = k and b = v; c, d, and the register s1: p, q, o; factors decay, first; s0 k_frac
    spike          out = [a >= 0]
    move           out = a
    send           each a that is not 0 is an event of the stream s0

The arithmetic is that of `arithmetic` and `arithmetic_rwkv`.
"""

from typing import NamedTuple

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import arithmetic_rwkv as rwkv

OPS = (
    *("product", "slice", "norm", "mix", "sigmoid", "squared_relu", "multiply"),
    *("add", "lif", "wkv", "spike", "move", "send"),
)
FACTORS = {"norm": 2, "mix": 3, "lif": 5, "wkv": 2}
RESETS, TERNARY, GRADED = 1, 2, 4
MOST_PRODUCTS, MOST_VECTORS = 4, 2
LOG = 0xFD
"""the first stream that is not of a section: see `image`"""
POWER_SIZE = (1 << rwkv.POWER_STEPS) + 1


class Instruction(NamedTuple):
    """One row of a program."""

    op: int
    out: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    factor: int = 0
    port: int = 0
    s0: int = 0
    s1: int = 0
    s2: int = 0


COLUMNS = Instruction._fields


def instruction(op: str, **columns: int) -> Instruction:
    """An instruction by the name of its op."""
    return Instruction(OPS.index(op), **columns)


def execute(i: Instruction, registers, factors, ports, first_unit: int, sigmoid, power) -> None:
    """One instruction other than send.

    registers, factors  [R, n], [F, n] int64; registers are changed
    ports               what each port gathered: (sum, shift) of a product, [units] of a vector
    """
    op, (a, b), f = OPS[i.op], (registers[i.a], registers[i.b]), factors[i.factor :]
    n = registers.shape[1]
    if op == "product":
        out = (rwkv.narrow if i.s0 else ints.rescale)(*ports[i.port])
    elif op == "slice":
        out = ports[i.port][first_unit : first_unit + n]
    elif op == "norm":
        eps, own = i.s2 << 32 | (i.s1 & 0xFFFFFFFF), slice(first_unit, first_unit + n)
        out = rwkv.layer_norm(ports[i.port], f[0], f[1], eps, i.s0, own)
    elif op == "mix":
        out = rwkv.mix(a, b, *f[:3], i.s0)
    elif op == "sigmoid":
        out = ints.look_up(sigmoid, ints.rescale(a, i.s0))
    elif op == "squared_relu":
        out = rwkv.squared_relu(a, i.s0)
    elif op == "multiply":
        out = rwkv.multiply(a, b, i.s0)
    elif op == "add":
        out = rwkv.add(a, b, i.s0, i.s1, i.s2)
    elif op == "lif":
        reset = i.s0 if i.s1 & RESETS else None
        out, registers[i.b], h = rwkv.lif_tick(a, b, *f[:5], reset, bool(i.s1 & TERNARY))
        out = np.where(out != 0, h, 0) if i.s1 & GRADED else out
    elif op == "wkv":
        sums = registers[i.c], registers[i.d], registers[i.s1]
        out, *sums = rwkv.wkv_tick(a, b, *sums, f[0], f[1], i.s0, power)
        registers[i.c], registers[i.d], registers[i.s1] = sums
    elif op == "spike":
        out = (a >= 0).astype(np.int64)
    else:
        out = a
    registers[i.out] = out


def check(program: list[Instruction], sizes: "Sizes") -> str | None:
    """What is wrong with a program, or None: every number that it names must be there, every shift in range."""
    for i in program:
        op = OPS[i.op] if 0 <= i.op < len(OPS) else None
        if op is None:
            return f"op {i.op}"
        registers = [i.out, i.a, i.b, i.c, i.d, *([i.s1] if op == "wkv" else [])]
        if not all(0 <= r < sizes.registers for r in registers):
            return f"a register of {op}"
        if not 0 <= i.factor <= sizes.factors - FACTORS.get(op, 0):
            return f"a factor of {op}"
        vector = i.port - sizes.products
        if op == "product" and not 0 <= i.port < sizes.products:
            return "a port of product"
        if op in ("slice", "norm") and not (
            0 <= vector < len(sizes.vectors) and sizes.vectors[vector] >= sizes.last_unit
        ):
            return f"a port of {op}"
        if op == "norm" and not (0 <= i.s2 < 1 << 29 and (i.s1 or i.s2) and sizes.vectors[vector] < 1 << 14):
            return "eps of norm"
        if op in ("sigmoid", "mix", "squared_relu", "multiply", "norm") and not -15 <= i.s0 <= 31:
            return f"a shift of {op}"
        if op == "add":
            low, high = sorted((i.s0, i.s1))
            if not (low >= -64 and high <= 64 and high - low <= 14 and -15 <= high - i.s2 <= 31 and -64 <= i.s2 <= 64):
                return "a shift of add"
        if op == "wkv" and not 0 <= i.s0 <= 20:
            return "a shift of wkv"
        if (op == "wkv" and not sizes.power) or (op == "sigmoid" and not sizes.sigmoid):
            return f"the table of {op}"
        if op == "send" and not 0 < i.s0 < LOG:
            return "a stream of send"
    return None


class Sizes(NamedTuple):
    """What a program may name."""

    registers: int
    factors: int
    products: int
    vectors: list[int]
    last_unit: int
    sigmoid: bool
    power: bool
