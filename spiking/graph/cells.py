"""Ops with a state of their own: neurons and gated units. They hold no matrices."""

from dataclasses import dataclass

from rheobase.spiking.errors import GraphError
from rheobase.spiking.graph.op import Op, require
from rheobase.spiking.surrogates import FIRE_RULES
from rheobase.spiking.tally import BINARY, DENSE, GRADED, TERNARY


@dataclass(frozen=True)
class EGRUCell(Op):
    """EGRU from its two pre-activations a (input) and q (recurrent), each [3H]; equations: `ops.egru`, evaluation."""

    inputs, outputs = ("a", "q"), {"y": GRADED, "c": DENSE, "trace": DENSE}
    roles, state = ("thr",), ("c", "trace")
    zoneout: float = 0.0

    def shapes(self, name, inputs, arrays):
        (units,) = arrays["thr"].shape
        for port in self.inputs:
            require(name, port, inputs[port], (3 * units,))
        return {"y": (units,), "c": (units,), "trace": (units,)}


@dataclass(frozen=True)
class LSTMCell(Op):
    """LSTM from its two pre-activations a and q, each [4H], gates in the order i, f, g, o.

    i, f, o = sigmoid, g = tanh of a + q;   c = f c + i g;   h = o tanh(c).
    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; torch.nn.LSTM.
    """

    inputs, outputs, state = ("a", "q"), {"h": DENSE, "c": DENSE}, ("c",)

    def shapes(self, name, inputs, arrays):
        require(name, "q", inputs["q"], inputs["a"])
        units = inputs["a"][0] // 4
        require(name, "a", inputs["a"], (4 * units,))
        return {"h": (units,), "c": (units,)}


@dataclass(frozen=True)
class GRUCell(Op):
    """GRU from its two pre-activations a and q, each [3H], gates in the order r, z, n; reset after the product.

    r, z = sigmoid of a + q;   n = tanh(a_n + r q_n);   h = n + z (h - n).
    Source: Cho et al., EMNLP 2014; torch.nn.GRU.
    """

    inputs, outputs, state = ("a", "q"), {"h": DENSE}, ("h",)

    def shapes(self, name, inputs, arrays):
        require(name, "q", inputs["q"], inputs["a"])
        units = inputs["a"][0] // 3
        require(name, "a", inputs["a"], (3 * units,))
        return {"h": (units,)}


@dataclass(frozen=True)
class LIFCell(Op):
    """Leaky integrate-and-fire units; equations: `ops.lif`. v_reset None: reset by subtraction.

    The arrays tau and theta, one value a unit, take the place of the numbers where they are given.
    """

    inputs, outputs, state = ("x",), {"s": BINARY, "v": DENSE}, ("v",)
    roles, ternary = ("tau?", "theta?"), False
    tau: float = 2.0
    theta: float = 1.0
    v_reset: float | None = 0.0
    decay_input: bool = True
    fire: str = ">="

    def __post_init__(self):
        if self.fire not in FIRE_RULES:
            raise GraphError("LIFCell fire", "'>' or '>='", repr(self.fire), "name the firing rule")
        if self.ternary and not self.theta > 0:
            raise GraphError("LIFCell theta", "above 0, to fire at -theta too", f"{self.theta}", "give a threshold")

    @property
    def initial(self):
        return {"v": self.v_reset or 0.0}

    def shapes(self, name, inputs, arrays):
        for role, array in arrays.items():
            require(name, role, array.shape, inputs["x"])
        return {"s": inputs["x"], "v": inputs["x"]}


RESETS = ("now", "next", "never")


@dataclass(frozen=True)
class CubaLIFCell(Op):
    """Current-based leaky integrate-and-fire units: a synapse that decays, then a membrane that decays.

        i' = alpha i + x        h = beta v + gain i'        s = [h > theta]
        v' = h - s (h - v_reset)                reset "now";   v_reset None: h - s theta
        v' = h, and the next step's h is        reset "next":  r = [v > theta] is the spike of the step before
             h - r (h - v_reset)                               v_reset None: h - r theta
        v' = h                                  reset "never"

    With alpha = 0 there is no synapse: i is the input itself. At rest i = v = 0.
    Peers: Norse's LIF and snnTorch's Synaptic (see `rheobase.spiking.adapters`).
    """

    inputs, outputs, state = ("x",), {"s": BINARY, "v": DENSE, "i": DENSE}, ("v", "i")
    alpha: float = 0.0
    beta: float = 0.5
    gain: float = 1.0
    theta: float = 1.0
    v_reset: float | None = 0.0
    reset: str = "now"

    def __post_init__(self):
        if self.reset not in RESETS:
            raise GraphError("CubaLIFCell reset", f"one of {RESETS}", repr(self.reset), "name when it resets")

    def shapes(self, name, inputs, arrays):
        return dict.fromkeys(self.outputs, inputs["x"])


@dataclass(frozen=True)
class TernaryLIFCell(LIFCell):
    """LIF units that fire at -theta too, with a spike of -1: `ops.lif` with ternary=True."""

    outputs, ternary = {"s": TERNARY, "v": DENSE}, True


@dataclass(frozen=True)
class GradedLIFCell(LIFCell):
    """LIF units whose spike carries the membrane before the reset: the output is h where they fire, else 0."""

    outputs = {"s": GRADED, "v": DENSE}
    ternary: bool = False


LIFS = LIFCell, TernaryLIFCell, GradedLIFCell
"""The ops that `ops.lif` computes; what a class made of one of them computes is not known"""


@dataclass(frozen=True)
class WKVCell(Op):
    """The recurrent attention of RWKV-4; equations: `ops.wkv`."""

    inputs, outputs = ("k", "v"), {"y": DENSE, "p": DENSE, "q": DENSE, "o": DENSE}
    roles, state, initial = ("time_decay", "time_first"), ("p", "q", "o"), {"o": -1e38}

    def shapes(self, name, inputs, arrays):
        for role in self.roles:
            require(name, role, arrays[role].shape, inputs["k"])
        require(name, "v", inputs["v"], inputs["k"])
        return dict.fromkeys(self.outputs, inputs["k"])
