"""What a node of an EventGraph computes: the contract of every op."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rheobase.spiking.errors import GraphError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """What a node computes. A new op is a frozen dataclass that says its ports and its output shapes.

    inputs   names of the input ports; each takes exactly one edge
    outputs  output port -> kind of what it sends
    accepts  input port -> the one kind that it takes, where it does not take all
    roles    names of the arrays it needs; those that end in "?" may be absent
    state    names of the outputs that the node keeps for itself from step to step
    initial  value of a state before the first step, where it is not 0
    ids      ports that hold token ids in place of a vector: they read each other alone, without a delay
    """

    inputs: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[Mapping[str, str]] = {}
    accepts: ClassVar[Mapping[str, str]] = {}
    roles: ClassVar[tuple[str, ...]] = ()
    state: ClassVar[tuple[str, ...]] = ()
    initial: ClassVar[Mapping[str, float]] = {}
    ids: ClassVar[tuple[str, ...]] = ()

    def shapes(self, name: str, inputs: Mapping[str, Shape], arrays: Mapping[str, np.ndarray]) -> Mapping[str, Shape]:
        """Output port -> shape, from those of inputs and arrays; raises GraphError where they do not fit."""
        raise NotImplementedError(f"{type(self).__name__} gives no shapes")


@dataclass(frozen=True)
class Input(Op):
    """What a graph is fed. It has no input port, and says what it takes."""

    def accept(self, name: str, values: np.ndarray) -> np.ndarray:
        """What is fed for B streams and T steps, checked: [B, T, ...] -> one vector a step, [B, T, n].

        raises  ShapeError: another shape, or values out of range
        """
        raise NotImplementedError(f"{type(self).__name__} accepts nothing")


def require(where: str, what: str, got: Shape, wanted: Shape) -> None:
    """Raise GraphError unless two shapes are equal."""
    if tuple(got) != tuple(wanted):
        raise GraphError(f"{where}: {what}", f"shape {tuple(wanted)}", f"{tuple(got)}", "mend the graph")
