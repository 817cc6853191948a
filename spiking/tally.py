"""What a computation did, as integers; and how a neuron tells a counter what its tensors are.

A counter never guesses from values what is a spike: the op that makes a tensor marks it (`mark`), and says what
it keeps as state (`announce`). An op whose own operators a counter cannot see, such as one in C, runs `unseen` and
says what it did (`work`, `product`). All of it does nothing unless a counter listens.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

BINARY, TERNARY, GRADED, DENSE = "BINARY", "TERNARY", "GRADED", "DENSE"
KINDS = (BINARY, TERNARY, GRADED, DENSE)
EVENT_KINDS = (BINARY, TERNARY, GRADED)
TRANSCENDENTALS = ("sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "division", "atan", "sin", "cos", "erf")
"""what `Counts.transcendentals` may name, and a target price"""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Additive integer counts of one operator, over all tokens given."""

    dense_macs: int = 0
    """in x out of every executed matrix product, every operand taken as dense; of a convolution, the pairs of a pixel
    and a weight that meet, none with padding"""
    macs: int = 0
    """multiply-accumulates on DENSE operands, zeros included, and on the non-zero ones of GRADED operands"""
    acs: int = 0
    """accumulates on the non-zero elements of BINARY and TERNARY operands"""
    rows: int = 0
    """weight rows read: one for each element of a DENSE operand, each non-zero one of an event operand, each token
    of an embedding"""
    deliveries: int = 0
    """events read by products: an event counts once for each product that it is routed to"""
    products: int = 0
    """elementwise products"""
    adds: int = 0
    """elementwise additions and subtractions: biases, residuals, leaks, resets, and the sums of norms and means; what
    adds up inside a matrix product is in macs and acs"""
    state_updates: int = 0
    """values written of what a cell keeps for itself from step to step, in each step of each unit, silent or not"""
    event_updates: int = 0
    """those of them in a step in which an event reached the layer, or that are driven by other than events: what is
    written where the others are left for later"""
    comparisons: int = 0
    """threshold and other comparisons"""
    transcendentals: Mapping[str, int] = field(default_factory=dict)
    """sigmoid, tanh, exp and the like, by kind"""
    events: int = 0
    """non-zero elements sent on BINARY, TERNARY and GRADED outputs"""
    weight_bytes: int = 0
    """logical bytes of weights: rows read x row length x item size, and biases"""
    state_bytes: int = 0
    """logical bytes of state read and written"""
    activation_bytes: int = 0
    """logical bytes of operands read and results written"""

    def __post_init__(self):
        object.__setattr__(self, "transcendentals", {kind: n for kind, n in self.transcendentals.items() if n})

    def __add__(self, other: "Counts") -> "Counts":
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in _INTEGERS}
        kinds = {**self.transcendentals, **other.transcendentals}
        both = {k: self.transcendentals.get(k, 0) + other.transcendentals.get(k, 0) for k in kinds}
        return Counts(**total, transcendentals=both)

    def without_bytes(self) -> "Counts":
        """The same counts with every byte field at zero: what two independent counters must agree on."""
        return dataclasses.replace(self, weight_bytes=0, state_bytes=0, activation_bytes=0)


_INTEGERS = [f for f in dataclasses.fields(Counts) if f.name != "transcendentals"]


@dataclass(frozen=True)
class Tally:
    """Counts by operator, and the number of tokens they are for. Tallies add.

    A field of `Counts` read off the tally itself is the sum over its operators: `tally.macs`.

    tokens     batch x steps of all tokens given
    operators  operator name -> Counts
    uncounted  names of operators that ran and have no counting rule: what is not known, never a silent zero
    """

    tokens: int = 0
    operators: Mapping[str, Counts] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        names = {**self.operators, **other.operators}
        return Tally(
            self.tokens + other.tokens,
            {n: self.operators.get(n, Counts()) + other.operators.get(n, Counts()) for n in names},
            tuple(sorted({*self.uncounted, *other.uncounted})),
        )

    def __radd__(self, other: int) -> "Tally":
        """For `sum`, which starts at 0."""
        return self if other == 0 else NotImplemented

    @property
    def total(self) -> Counts:
        """The sum over all operators."""
        return sum(self.operators.values(), Counts())

    def __getattr__(self, name: str):
        if name in Counts.__dataclass_fields__:
            return getattr(self.total, name)
        raise AttributeError(f"Tally has no field {name!r}")

    def without_bytes(self) -> "Tally":
        """The same tally with every byte field at zero."""
        return Tally(self.tokens, {n: c.without_bytes() for n, c in self.operators.items()}, self.uncounted)

    def to_table(self) -> dict:
        """A plain table, for JSON."""
        return {
            "tokens": self.tokens,
            "uncounted": list(self.uncounted),
            "total": dataclasses.asdict(self.total),
            "operators": {n: dataclasses.asdict(c) for n, c in self.operators.items()},
        }


_listeners: list = []


def _heard() -> list:
    """The listeners of this thread: what another one runs is not theirs."""
    return [each for each in _listeners if each.thread == threading.get_ident()] if _listeners else []


def listens() -> bool:
    """Whether any counter listens just now."""
    return bool(_heard())


def watches() -> bool:
    """Whether a counter listens that wants to see every operator of an op rather than be told."""
    return any(listener.watches for listener in _heard())


@contextlib.contextmanager
def unseen():
    """Context manager: operators that run inside are not counted; what `work`, `mark` and the like say still is."""
    with contextlib.ExitStack() as stack:
        for listener in _heard():
            stack.enter_context(listener.paused())
        yield


def work(**counts) -> None:
    """Tell listening counters what an op did that they could not see, as fields of `Counts`."""
    for listener in _heard():
        listener.add(**counts)


def product(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Tell listening counters of a matrix product x weight + bias that they could not see."""
    for listener in _heard():
        listener.add_product(x, weight, bias)


def mark(tensor: Tensor, kind: str, *, sent: bool = True) -> Tensor:
    """Tell listening counters that `tensor` carries events of this kind, and returns it.

    sent  whether these events are sent just now; False for those of an input or a state that is handed in, and for
          those that have been told of already
    """
    for listener in _heard():
        listener.mark(tensor, kind, sent)
    return tensor


def announce(*, state_updates: Tensor, cause: Tensor | None = None, parts: int = 1) -> None:
    """Tell listening counters that these values were written as a cell's own state.

    parts  how many such tensors of this shape were written
    cause  the input of each, of the same shape; where it is what events brought, a row of zeros is no input
    """
    for listener in _heard():
        listener.add_state_updates(state_updates, cause, parts)


class listening:
    """Context manager: `listener.mark`, `add_state_updates`, `add`, `add_product` and `paused` are called by every op
    inside of the thread `listener.thread`, and its `watches` says whether it wants ops to run as operators that it
    sees."""

    def __init__(self, listener):
        self.listener = listener

    def __enter__(self):
        _listeners.append(self.listener)

    def __exit__(self, *_):
        _listeners.remove(self.listener)
