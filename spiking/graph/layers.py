"""Ops without a state: the input, products, norms, and what is done unit by unit."""

from dataclasses import dataclass

from rheobase.spiking.errors import ShapeError
from rheobase.spiking.graph.op import Input, Op, require
from rheobase.spiking.tally import BINARY, DENSE, GRADED


@dataclass(frozen=True)
class Tokens(Input):
    """The input: one token id a step, seen as a binary event on one of `vocabulary` lines."""

    outputs, ids = {"out": BINARY}, ("out",)
    vocabulary: int

    def shapes(self, name, inputs, arrays):
        return {"out": (self.vocabulary,)}

    def accept(self, name, values):
        """Ids [B, T] -> [B, T, 1]."""
        if values.ndim != 2 or values.dtype.kind not in "iu":
            raise ShapeError(name, "integers [B, T]", f"{values.dtype} {values.shape}", "reshape them")
        if values.size and not (0 <= values.min() and values.max() < self.vocabulary):
            wrong = values.min() if values.min() < 0 else values.max()
            raise ShapeError(name, f"ids from 0 to {self.vocabulary - 1}", str(wrong), "check the tokenizer")
        return values[..., None]


@dataclass(frozen=True)
class Embedding(Op):
    """out = table[token]; table [V, D]."""

    inputs, outputs, roles, ids = ("token",), {"out": DENSE}, ("table",), ("token",)

    def shapes(self, name, inputs, arrays):
        require(name, "token lines", inputs["token"], arrays["table"].shape[:1])
        return {"out": arrays["table"].shape[1:]}


@dataclass(frozen=True)
class Linear(Op):
    """out = x weight + bias, with weight [in, out]; `transposed`: the array is stored [out, in]."""

    inputs, outputs, roles = ("x",), {"out": DENSE}, ("weight", "bias?")
    transposed: bool = False

    def shapes(self, name, inputs, arrays):
        n_in, n_out = arrays["weight"].shape[:: -1 if self.transposed else 1]
        require(name, "x", inputs["x"], (n_in,))
        if "bias" in arrays:
            require(name, "bias", arrays["bias"].shape, (n_out,))
        return {"out": (n_out,)}


@dataclass(frozen=True)
class Relu(Op):
    """out = max(x, 0): a graded event where x is positive."""

    inputs, outputs = ("x",), {"out": GRADED}

    def shapes(self, name, inputs, arrays):
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class Spike(Op):
    """out = 1 where x >= 0, else 0."""

    inputs, outputs = ("x",), {"out": BINARY}

    def shapes(self, name, inputs, arrays):
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class LayerNorm(Op):
    """out = (x - mean) / sqrt(variance + eps) weight + bias, over the units (Ba, Kiros, Hinton, arXiv 1607.06450)."""

    inputs, outputs, roles = ("x",), {"out": DENSE}, ("weight", "bias")
    eps: float = 1e-5

    def shapes(self, name, inputs, arrays):
        for role in self.roles:
            require(name, role, arrays[role].shape, inputs["x"])
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class Affine(Op):
    """out = x scale + offset, unit by unit."""

    inputs, outputs, roles = ("x",), {"out": DENSE}, ("scale", "offset")

    def shapes(self, name, inputs, arrays):
        for role in self.roles:
            require(name, role, arrays[role].shape, inputs["x"])
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class Mix(Op):
    """out = x share + before rest + bias: `before` is x at the token before, over a delayed edge.

    Without the arrays, rest = 1 - share and bias = 0.
    """

    inputs, outputs, roles = ("x", "before"), {"out": DENSE}, ("share", "rest?", "bias?")

    def shapes(self, name, inputs, arrays):
        require(name, "before", inputs["before"], inputs["x"])
        for role, array in arrays.items():
            require(name, role, array.reshape(-1).shape, inputs["x"])
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class Sigmoid(Op):
    """out = 1 / (1 + e^-x)."""

    inputs, outputs = ("x",), {"out": DENSE}

    def shapes(self, name, inputs, arrays):
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class SquaredRelu(Op):
    """out = max(x, 0)^2: a graded event where x is positive."""

    inputs, outputs = ("x",), {"out": GRADED}

    def shapes(self, name, inputs, arrays):
        return {"out": inputs["x"]}


@dataclass(frozen=True)
class Multiply(Op):
    """out = a b, unit by unit."""

    inputs, outputs = ("a", "b"), {"out": DENSE}

    def shapes(self, name, inputs, arrays):
        require(name, "b", inputs["b"], inputs["a"])
        return {"out": inputs["a"]}


@dataclass(frozen=True)
class Add(Multiply):
    """out = a + b, unit by unit."""
