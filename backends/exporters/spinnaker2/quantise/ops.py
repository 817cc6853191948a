"""The ops of an integer graph: what the integers are in is a field or an array of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import arithmetic_rwkv as rwkv
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import (
    Affine,
    EGRUCell,
    Embedding,
    EventGraph,
    LayerNorm,
    Linear,
    Mix,
    Multiply,
    Op,
    Sigmoid,
    Tokens,
    WKVCell,
    require,
)
from rheobase.spiking.tally import BINARY, DENSE, GRADED, TERNARY


class Format(NamedTuple):
    """A signal's integers: two's complement of `bits`, each standing for itself x 2^-frac."""

    bits: int
    frac: int


EVENT = Format(8, 0)
"""Binary and ternary spikes"""


class Formats(dict):
    """ "node.port" -> Format, of all that integers give; raises UnsupportedError for what they do not, or not yet."""

    def __missing__(self, source: str):
        wanted, got = "a signal in integers, made before its format is asked for", "none"
        raise UnsupportedError(source, wanted, got, "quantise a graph that a model lowers to")


def formats(graph: EventGraph) -> dict[str, Format]:
    """The format of every signal of an integer graph, "node.port" -> Format."""
    found = {}
    for node in graph.nodes:
        ports = node.op.formats() if isinstance(node.op, IntegerOp) else {}
        plain = Format(32, 0) if isinstance(node.op, Tokens) else EVENT
        found |= {f"{node.name}.{port}": ports.get(port, plain) for port in node.op.outputs}
    return found


@dataclass(frozen=True)
class IntegerOp(Op):
    """An op over integers, in formats that it states."""

    def formats(self) -> Mapping[str, Format]:
        """Output port -> Format; ports of binary and ternary spikes may be absent."""
        return {"out": Format(16, self.out_frac)}


@dataclass(frozen=True)
class IntegerEmbedding(IntegerOp):
    """out = table[token] 2^(out_frac - exponent[token]), rounded; table int8 [V, E], exponent int8 [V]."""

    inputs, outputs, roles, ids = ("token",), {"out": DENSE}, ("table", "exponent"), ("token",)
    out_frac: int = 0

    def shapes(self, name, inputs, arrays):
        require(name, "exponent", arrays["exponent"].shape, arrays["table"].shape[:1])
        return Embedding().shapes(name, inputs, arrays)


def embed(table, exponent, x_frac, token):
    """Embedding vectors in Q x_frac: a left shift, or a rounding right shift, of the int8 rows."""
    return ints.rescale(table[token].astype(np.int64), exponent[token].astype(np.int64)[..., None] - x_frac)


@dataclass(frozen=True)
class IntegerLinear(IntegerOp):
    """out = (x weight + bias) 2^-shift, rounded; shift = exponent + in_frac - out_frac, one a target.

    bits  32, or 16: `narrow` holds the result within int16
    """

    inputs, outputs = ("x",), {"out": DENSE}
    roles = ("weight", "exponent", "bias")
    transposed: bool = False
    in_frac: int = 0
    out_frac: int = 0
    bits: int = 32

    def formats(self):
        return {"out": Format(self.bits, self.out_frac)}

    def shapes(self, name, inputs, arrays):
        out = Linear(self.transposed).shapes(name, inputs, arrays)
        require(name, "exponent", arrays["exponent"].shape, out["out"])
        return out

    def shift(self, exponent: np.ndarray) -> np.ndarray:
        """The right shift of each target; below 0 a shift to the left."""
        return exponent.astype(np.int64) + self.in_frac - self.out_frac


@dataclass(frozen=True)
class IntegerEGRUCell(IntegerOp):
    """`arithmetic.egru_tick`; zoneout in Q14. The trace is not computed: nothing in the graph reads it."""

    inputs, outputs = ("a", "q"), {"y": GRADED, "c": DENSE}
    roles, state = ("thr",), ("c",)
    zoneout: int = 0

    def formats(self):
        return dict.fromkeys(self.outputs, Format(16, ints.EVENT_FRAC))

    def shapes(self, name, inputs, arrays):
        return {p: s for p, s in EGRUCell().shapes(name, inputs, arrays).items() if p in self.outputs}


@dataclass(frozen=True)
class IntegerMix(IntegerOp):
    """`arithmetic_rwkv.mix` with share and rest in Q factor_frac."""

    inputs, outputs, roles = ("x", "before"), {"out": DENSE}, ("share", "rest", "bias")
    shapes = Mix.shapes
    in_frac: int = 0
    factor_frac: int = 0
    out_frac: int = 0

    @property
    def shift(self) -> int:
        return self.in_frac + self.factor_frac - self.out_frac


@dataclass(frozen=True)
class IntegerAffine(IntegerMix):
    """`arithmetic_rwkv.mix` of x alone; scale in Q factor_frac."""

    inputs, roles = ("x",), ("scale", "offset")
    shapes = Affine.shapes


@dataclass(frozen=True)
class IntegerLayerNorm(IntegerOp):
    """`arithmetic_rwkv.layer_norm` with its weight in Q factor_frac."""

    inputs, outputs, roles = ("x",), {"out": DENSE}, ("weight", "bias")
    shapes = LayerNorm.shapes
    eps: int = 1
    factor_frac: int = 0
    out_frac: int = 0

    @property
    def shift(self) -> int:
        return rwkv.FACTOR_FRAC + self.factor_frac - self.out_frac


@dataclass(frozen=True)
class IntegerSigmoid(IntegerOp):
    """`arithmetic.look_up` in the sigmoid's table, of x brought to Q11."""

    inputs, outputs = ("x",), {"out": DENSE}
    shapes = Sigmoid.shapes
    in_frac: int = 0

    def formats(self):
        return {"out": Format(16, ints.EVENT_FRAC)}


@dataclass(frozen=True)
class IntegerSquaredRelu(IntegerOp):
    """`arithmetic_rwkv.squared_relu`."""

    inputs, outputs = ("x",), {"out": GRADED}
    shapes = Sigmoid.shapes
    in_frac: int = 0
    out_frac: int = 0

    @property
    def shift(self) -> int:
        return 2 * self.in_frac - self.out_frac


@dataclass(frozen=True)
class IntegerAdd(IntegerOp):
    """`arithmetic_rwkv.add`."""

    inputs, outputs = ("a", "b"), {"out": DENSE}
    shapes = Multiply.shapes
    a_frac: int = 0
    b_frac: int = 0
    out_frac: int = 0


@dataclass(frozen=True)
class IntegerMultiply(IntegerAdd):
    """`arithmetic_rwkv.multiply`."""

    @property
    def shift(self) -> int:
        return self.a_frac + self.b_frac - self.out_frac


@dataclass(frozen=True)
class IntegerLIFCell(IntegerOp):
    """`arithmetic_rwkv.lif_tick`; x, v, v_reset, threshold and step in Q frac."""

    inputs, outputs, state = ("x",), {"s": BINARY, "v": DENSE}, ("v",)
    roles, ternary = ("leak", "gain", "offset", "threshold", "step"), False
    frac: int = 0
    v_reset: int | None = 0

    @property
    def initial(self):
        return {"v": self.v_reset or 0}

    def formats(self):
        return {"v": Format(16, self.frac)}

    def shapes(self, name, inputs, arrays):
        for role, array in arrays.items():
            require(name, role, array.shape, inputs["x"])
        return {"s": inputs["x"], "v": inputs["x"]}


@dataclass(frozen=True)
class IntegerTernaryLIFCell(IntegerLIFCell):
    """The same with spikes of -1 too."""

    outputs, ternary = {"s": TERNARY, "v": DENSE}, True


@dataclass(frozen=True)
class IntegerGradedLIFCell(IntegerLIFCell):
    """The same, whose spikes carry h: the output is h where a unit fires, else 0."""

    outputs = {"s": GRADED, "v": DENSE}
    ternary: bool = False

    def formats(self):
        return dict.fromkeys(self.outputs, Format(16, self.frac))


@dataclass(frozen=True)
class IntegerWKVCell(IntegerOp):
    """`arithmetic_rwkv.wkv_tick` with k in Q k_frac, v and y in Q v_frac; o is to the base 2."""

    inputs, outputs = ("k", "v"), {"y": DENSE, "p": DENSE, "q": DENSE, "o": DENSE}
    roles, state, initial = ("decay", "first"), ("p", "q", "o"), {"o": rwkv.START}
    k_frac: int = 0
    v_frac: int = 0

    def formats(self):
        p = Format(32, self.v_frac + rwkv.FACTOR_FRAC)
        q, o = Format(32, rwkv.WEIGHT_FRAC), Format(32, rwkv.EXPONENT_FRAC)
        return {"y": Format(16, self.v_frac), "p": p, "q": q, "o": o}

    def shapes(self, name, inputs, arrays):
        arrays = {"time_decay": arrays["decay"], "time_first": arrays["first"]}
        return WKVCell().shapes(name, inputs, arrays)
