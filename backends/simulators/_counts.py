"""What each op of a graph does, as `spiking.tally` counts it: one rule an op, for every simulator that counts.

A rule gives the fields of `Counts` that are not zero, transcendentals by their kind, and bytes as numbers of values.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rheobase.spiking import graph as ops
from rheobase.spiking.graph import Op
from rheobase.spiking.tally import BINARY, EVENT_KINDS, TERNARY


@dataclass(frozen=True)
class Seen:
    """A node, and what was seen of it over so many tokens, streams x steps."""

    op: Op
    arrays: Mapping[str, np.ndarray]
    kind: Mapping[str, str]
    """kind of what each input port takes"""
    width: Mapping[str, int]
    """units of each port"""
    tokens: int
    rows: int = 0
    """weight rows that events had a product read"""
    reads: int = 0
    """those of a convolution, each as often as there are windows that hold its event"""
    events: int = 0
    """events sent"""
    reached: int | None = None
    """tokens at which an event reached a cell; None: a cell that others than events drive, at all of them"""

    def values(self, port: str) -> int:
        """Numbers that passed a port."""
        return self.tokens * self.width[port]


def embedding(at: Seen) -> dict:
    n = at.values("out")
    return {"rows": at.tokens, "weight_bytes": n, "activation_bytes": n}


def linear(at: Seen) -> dict:
    from_events, n_out = at.kind["x"] in EVENT_KINDS, at.width["out"]
    rows = at.rows if from_events else at.values("x")
    return _product(at, at.values("x") * n_out, rows, rows * n_out)


def conv2d(at: Seen) -> dict:
    from_events, n_out, weight = at.kind["x"] in EVENT_KINDS, len(at.arrays["weight"]), at.arrays["weight"]
    dense = at.tokens * at.op.taps(weight) * n_out
    rows, done = (at.rows, at.reads * n_out) if from_events else (at.values("x"), dense)
    return _product(at, dense, rows, done)


def _product(at: Seen, dense: int, rows: int, done: int) -> dict:
    """dense, done: pairs of an operand and a weight, all of them and those that were multiplied or added up."""
    biases = at.values("out") if "bias" in at.arrays else 0
    return {
        "dense_macs": dense,
        "acs" if at.kind["x"] in (BINARY, TERNARY) else "macs": done,
        "rows": rows,
        "deliveries": rows if at.kind["x"] in EVENT_KINDS else 0,
        "adds": biases,
        "weight_bytes": done + biases,
        "activation_bytes": rows + at.values("out"),
    }


def maxpool2d(at: Seen) -> dict:
    n = at.values("out")
    return {
        "comparisons": (at.op.kernel**2 - 1) * n,
        "events": at.events,
        "activation_bytes": at.values("x") + n,
    }


def sumpool2d(at: Seen) -> dict:
    n = at.values("out")
    summed = at.tokens * at.op.taps() * (at.width["x"] // math.prod(at.op.size))
    return {
        "adds": summed - n,
        "products": n if at.op.mean else 0,
        "events": at.events if at.kind["x"] in EVENT_KINDS else 0,
        "activation_bytes": at.values("x") + n,
    }


def egrucell(at: Seen) -> dict:
    n = at.values("c")
    return {
        "products": (9 if at.op.zoneout else 7) * n,
        "adds": (9 if at.op.zoneout else 8) * n,
        "state_updates": 2 * n,
        "event_updates": 2 * n,
        "comparisons": n,
        "events": at.events,
        "sigmoid": 2 * n,
        "tanh": n,
        "state_bytes": 4 * n,
        "weight_bytes": n,
        "activation_bytes": 6 * n + at.events,
    }


def lstmcell(at: Seen) -> dict:
    n = at.values("c")
    return {
        "products": 3 * n,
        "adds": 5 * n,
        "state_updates": n,
        "event_updates": n,
        "sigmoid": 3 * n,
        "tanh": 2 * n,
        "state_bytes": 2 * n,
        "activation_bytes": 9 * n,
    }


def grucell(at: Seen) -> dict:
    n = at.values("h")
    return {
        "products": 2 * n,
        "adds": 5 * n,
        "state_updates": n,
        "event_updates": n,
        "sigmoid": 2 * n,
        "tanh": n,
        "state_bytes": 2 * n,
        "activation_bytes": 7 * n,
    }


def lifcell(at: Seen) -> dict:
    n = at.values("x")
    return {
        "products": n,
        "division": n,
        "adds": (7 if at.op.ternary else 4) * n + (2 * n if at.op.v_reset else 0),
        "comparisons": (2 if at.op.ternary else 1) * n,
        "state_updates": n,
        "event_updates": _reached(at),
        "events": at.events,
        "weight_bytes": len(at.arrays) * n,
        "state_bytes": 2 * n,
        "activation_bytes": n + at.events,
    }


def cubalifcell(at: Seen) -> dict:
    op, n, parts = at.op, at.values("x"), 1 + (at.op.alpha != 0)
    reset = {"never": 0, "now": 1, "next": 2}[op.reset] + bool(op.reset != "never" and op.v_reset)
    return {
        "products": (parts + (op.gain != 1) + (op.reset != "never")) * n,
        "adds": (parts + 1 + reset) * n,
        "comparisons": (1 + (op.reset == "next")) * n,
        "state_updates": parts * n,
        "event_updates": parts * _reached(at),
        "events": at.events,
        "state_bytes": 2 * parts * n,
        "activation_bytes": n + at.events,
    }


def _reached(at: Seen) -> int:
    """Updates that its input brings about: none by a row of zeros, where events bring it and nothing else."""
    return (at.tokens if at.reached is None else at.reached) * at.width["x"]


def wkvcell(at: Seen) -> dict:
    n = at.values("k")
    return {
        "products": 6 * n,
        "adds": 10 * n,
        "exp": 4 * n,
        "division": n,
        "comparisons": 2 * n,
        "state_updates": 3 * n,
        "event_updates": 3 * n,
        "weight_bytes": 2 * n,
        "state_bytes": 6 * n,
        "activation_bytes": 3 * n,
    }


def layernorm(at: Seen) -> dict:
    n = at.values("x")
    return {
        "products": 3 * n + 2 * at.tokens,
        "adds": 4 * n - at.tokens,
        "rsqrt": at.tokens,
        "weight_bytes": 2 * n,
        "activation_bytes": 2 * n,
    }


def affine(at: Seen) -> dict:
    n = at.values("x")
    return {"products": n, "adds": n, "weight_bytes": 2 * n, "activation_bytes": 2 * n}


def mix(at: Seen) -> dict:
    n = at.values("x")
    return {
        "products": 2 * n,
        "adds": (2 if "bias" in at.arrays else 1) * n,
        "weight_bytes": (3 if "bias" in at.arrays else 2) * n,
        "activation_bytes": 3 * n,
    }


def spike(at: Seen) -> dict:
    return {"comparisons": at.values("x"), "events": at.events, "activation_bytes": at.values("x") + at.events}


def squaredrelu(at: Seen) -> dict:
    return {**spike(at), "products": at.values("x")}


def sigmoid(at: Seen) -> dict:
    return {"sigmoid": at.values("x"), "activation_bytes": 2 * at.values("x")}


def multiply(at: Seen) -> dict:
    return {"products": at.values("a"), "activation_bytes": 3 * at.values("a")}


def add(at: Seen) -> dict:
    return {"adds": at.values("a"), "activation_bytes": 3 * at.values("a")}


RULES = {
    ops.Embedding: embedding,
    ops.Linear: linear,
    ops.Conv2d: conv2d,
    ops.MaxPool2d: maxpool2d,
    ops.SumPool2d: sumpool2d,
    ops.EGRUCell: egrucell,
    ops.LSTMCell: lstmcell,
    ops.GRUCell: grucell,
    ops.LIFCell: lifcell,
    ops.TernaryLIFCell: lifcell,
    ops.GradedLIFCell: lifcell,
    ops.CubaLIFCell: cubalifcell,
    ops.WKVCell: wkvcell,
    ops.LayerNorm: layernorm,
    ops.Affine: affine,
    ops.Mix: mix,
    ops.Spike: spike,
    ops.Relu: spike,
    ops.SquaredRelu: squaredrelu,
    ops.Sigmoid: sigmoid,
    ops.Multiply: multiply,
    ops.Add: add,
}
