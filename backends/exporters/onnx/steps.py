"""Dense nodes in int8: their arrays and scales, chosen once, and what they compute in integers.

Every signal that a node reads is int8 with one power of two, q 2^-frac; so are weights, with one a target unit. What a
node gives is an integer times a power of two, exact, before it is rounded to int8 for its reader: half to even, held
within int8, as `QuantizeLinear` does. Accumulators stay below 2^24, where float32 holds every integer, so a runtime
that computes the same file in float32, in any order, gives the very same numbers.

N items, D sources, O targets.
"""

from dataclasses import dataclass, field

import numpy as np

from rheobase.backends.exporters.spinnaker2.arithmetic import accumulate
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import Conv2d, Embedding, EventGraph, Linear, Node, Spike
from rheobase.spiking.graph.images import sliding_windows
from rheobase.spiking.quantisation import LARGEST, best_exponents, round_weights

EXACT = 1 << 24
"""float32 holds every integer up to here"""
LOWEST = 128
"""the largest magnitude of an int8"""
SIGMOID_FRAC, SIGMOID_READS = 7, 5
"""the format of a sigmoid, and the finest that it reads: up to Q5 all its values are 1e-5 or more from the middle of
two integers, so that no runtime's own error moves one; at Q6 one of them is 8e-8 away"""
MOST_LOWERED = 4
"""bits of a weight that are given up, at most, so that its target's sum stays below 2^24"""


@dataclass(frozen=True)
class Step:
    """A node in integers.

    sources  name of what each input port reads, and its frac
    arrays   role -> int8, or int32 for what is added
    fracs    role -> exponent of each, one or one a target
    frac     exponent of what comes out, one or one a unit
    """

    node: Node
    sources: tuple[tuple[str, int], ...]
    frac: int | np.ndarray
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    fracs: dict[str, int | np.ndarray] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The op's class in lower case."""
        return type(self.node.op).__name__.lower()

    @property
    def out(self) -> str:
        """What it gives, "node.port"."""
        return f"{self.node.name}.{next(iter(self.node.op.outputs))}"

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """int64 [N, n] a source -> int64 [N, m], each standing for itself x 2^-frac."""
        return _RUN[self.kind](self, *inputs)


def requantise(x: np.ndarray, frac, to: int) -> np.ndarray:
    """Integers of Q frac as int8 of Q to: half to even, held within int8; frac is one or one a unit."""
    shift = np.asarray(frac, np.int64) - to
    up, down = np.maximum(-shift, 0), np.maximum(shift, 0)
    x = x << up
    low = x >> down
    twice = (x - (low << down)) * 2
    whole = np.int64(1) << down
    return np.clip(low + ((twice > whole) | ((twice == whole) & (low & 1 == 1))), -LOWEST, LOWEST - 1)


def _image(step: Step, x):
    return x.reshape(len(x), -1, *step.node.op.size)


def _conv2d(step: Step, x):
    op, weight = step.node.op, step.arrays["weight"]
    padded = np.pad(_image(step, x), ((0, 0), (0, 0), *2 * ((op.padding, op.padding),)))
    windows = sliding_windows(padded, weight.shape[2:], op.stride).transpose(0, 2, 3, 1, 4, 5)
    sums = accumulate(windows.reshape(*windows.shape[:3], -1), weight.reshape(len(weight), -1).T, step.arrays["bias"])
    return sums.transpose(0, 3, 1, 2).reshape(len(x), -1)


def _maxpool2d(step: Step, x):
    op = step.node.op
    return sliding_windows(_image(step, x), (op.kernel, op.kernel), op.stride).max((-2, -1)).reshape(len(x), -1)


def _add(step: Step, a, b):
    (_, a_frac), (_, b_frac) = step.sources
    return (a << (step.frac - a_frac)) + (b << (step.frac - b_frac))


def _mix(step: Step, x, before):
    finest = max(frac for _, frac in step.sources)
    x, before = (v << (finest - frac) for v, (_, frac) in zip((x, before), step.sources, strict=True))
    return x * step.arrays["share"] + before * step.arrays["rest"] + step.arrays["bias"]


def sigmoid_table(frac: int) -> np.ndarray:
    """The sigmoid of every int8 of Q frac, from -128 on, in Q7, held below 1."""
    exact = 0.5 * (1 + np.tanh(np.arange(-LOWEST, LOWEST) * 2.0**-frac / 2))
    return np.minimum(np.rint(exact * 2**SIGMOID_FRAC), LARGEST).astype(np.int64)


_RUN = {
    "linear": lambda step, x: accumulate(x, step.arrays["weight"], step.arrays["bias"]),
    "embedding": lambda step, token: step.arrays["table"].astype(np.int64)[token[:, 0]],
    "conv2d": _conv2d,
    "maxpool2d": _maxpool2d,
    "relu": lambda step, x: np.maximum(x, 0),
    "squaredrelu": lambda step, x: np.maximum(x, 0) ** 2,
    "sigmoid": lambda step, x: sigmoid_table(step.sources[0][1])[x + LOWEST],
    "spike": lambda step, x: (x >= 0).astype(np.int64),
    "multiply": lambda step, a, b: a * b,
    "add": _add,
    "affine": lambda step, x: x * step.arrays["scale"] + step.arrays["bias"],
    "mix": _mix,
}


class Maker:
    """Makes the steps of a float graph.

    fracs  what a signal is when it is read, "node.port" -> frac
    power  "node.port" -> mean square of each unit over the calibration data
    notes  what the rounding of weights changes: (node, role, bound)
    """

    def __init__(self, graph: EventGraph, fracs: dict[str, int], power: dict[str, np.ndarray]):
        self.graph, self.fracs, self.power = graph, fracs, power
        self.notes: list[tuple[str, str, float]] = []

    def step(self, name: str, sources: tuple[tuple[str, int], ...]) -> Step:
        """The step of a node; raises UnsupportedError: numbers that leave float32's integers, or int8's exponents."""
        node = self.graph.node(name)
        arrays = {role: np.asarray(a, np.float64) for role, a in self.graph.arrays_of(node).items()}
        fracs = [frac for _, frac in sources]
        if isinstance(node.op, Linear):
            weight = arrays["weight"].T if node.op.transposed else arrays["weight"]
            power = self.power[self.graph.inputs_of(name)["x"].source]
            return self._product(node, sources, weight, arrays.get("bias"), power)
        if isinstance(node.op, Conv2d):
            flat = arrays["weight"].reshape(len(arrays["weight"]), -1).T
            made = self._product(node, sources, flat, arrays.get("bias"), np.ones(len(flat)))
            weight = made.arrays["weight"].T.reshape(arrays["weight"].shape)
            places = self.graph.shape_of(made.out)[0] // len(weight)
            return Step(node, sources, np.repeat(made.frac, places), made.arrays | {"weight": weight}, made.fracs)
        if isinstance(node.op, Embedding):
            return self._embedding(node, sources, arrays["table"])
        kind = type(node.op).__name__.lower()
        if kind in ("affine", "mix"):
            return self._factors(node, sources, arrays)
        if kind == "add":
            if sum(LOWEST * 2.0 ** (max(fracs) - f) for f in fracs) >= EXACT:
                raise UnsupportedError(name, "operands of like size", f"Q{fracs[0]} and Q{fracs[1]}", "train it longer")
            return Step(node, sources, max(fracs))
        out = {"relu": fracs[0], "squaredrelu": 2 * fracs[0], "multiply": sum(fracs), "sigmoid": SIGMOID_FRAC}
        return Step(node, sources, 0 if isinstance(node.op, Spike) else out.get(kind, fracs[0]))

    def _product(self, node, sources, weight_DO, bias, power, clip=True, reach=1.0) -> Step:
        """A sum of products; reach: by how much each source's unit is coarser than the finest, 1 or [D]."""
        finest = max(frac for _, frac in sources)
        added = np.zeros(weight_DO.shape[1]) if bias is None else bias
        best = best_exponents(weight_DO, power, clip=clip).astype(np.int64)
        exponent = best.copy()
        while True:
            whole, offset = round_weights(weight_DO, exponent), np.floor(added * 2.0 ** (exponent + finest) + 0.5)
            over = (np.abs(whole).T * reach).sum(1) * LOWEST + np.abs(offset) >= EXACT
            if not over.any():
                break
            exponent[over] -= 1
            if (exponent < best - MOST_LOWERED).any():
                unit = int((best - exponent).argmax())
                got = f"{np.abs(whole[:, unit]).sum() * LOWEST + np.abs(offset[unit]):.3g} in unit {unit}"
                raise UnsupportedError(node.name, "sums below 2^24", got, "shrink its bias, or split its inputs")
        self.notes.append((node.name, "weights", float(np.abs(weight_DO - whole * 2.0**-exponent).max())))
        if bias is not None:
            self.notes.append((node.name, "what is added", float((2.0 ** -(exponent + finest + 1)).max())))
        arrays = {"weight": whole.astype(np.int8), "bias": offset.astype(np.int32)}
        return Step(node, sources, exponent + finest, arrays, {"weight": exponent, "bias": exponent + finest})

    def _embedding(self, node, sources, table) -> Step:
        readers = [self.graph.node(e.target_node).op for e in self.graph.edges if e.source == f"{node.name}.out"]
        shown = f"{node.name}.out" in self.graph.outputs.values()
        if not shown and readers and all(isinstance(op, Spike) for op in readers):
            self.notes.append((node.name, "table, its signs, all that is read", 0.0))
            return Step(node, sources, 0, {"table": np.where(table < 0, -1, 1).astype(np.int8)}, {"table": 0})
        frac = int(best_exponents(table.reshape(-1, 1), np.ones(table.size), clip=False)[0])
        whole = round_weights(table, frac)
        self.notes.append((node.name, "table", np.abs(table - whole * 2.0**-frac).max()))
        return Step(node, sources, frac, {"table": whole.astype(np.int8)}, {"table": frac})

    def _factors(self, node, sources, arrays) -> Step:
        """A mix, or an affine map: a product of one or two sources a unit."""
        arrays = {role: a.reshape(-1) for role, a in arrays.items()}
        roles = ("share", "rest") if "share" in arrays else ("scale",)
        factors = np.stack([arrays[role] if role in arrays else 1 - arrays["share"] for role in roles])
        finest = max(frac for _, frac in sources)
        reach = np.array([2.0 ** (finest - frac) for _, frac in sources])
        added, ones = arrays.get("bias", arrays.get("offset")), np.ones(len(roles))
        made = self._product(node, sources, factors, added, ones, clip=False, reach=reach)
        named = dict(zip(roles, made.arrays["weight"], strict=True)) | {"bias": made.arrays["bias"]}
        fracs = dict.fromkeys(roles, made.fracs["weight"]) | {"bias": made.frac}
        return Step(node, sources, made.frac, named, fracs)
