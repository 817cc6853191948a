"""Ops on images. An image [C, H, W] travels as one vector of C H W numbers, in that order."""

import math
from dataclasses import dataclass

import numpy as np

from rheobase.spiking.errors import GraphError, ShapeError
from rheobase.spiking.graph.op import Input, Op, Shape, require
from rheobase.spiking.tally import BINARY, DENSE, EVENT_KINDS, GRADED, KINDS, TERNARY

LEVELS = {BINARY: (0, 1), TERNARY: (-1, 0, 1)}
"""the values of events whose kind says them"""


def places(size: int, kernel: int, stride: int, padding: int = 0) -> int:
    """Positions of a kernel along an axis of an image with `padding` zeros on either side; 0 where it does not fit."""
    return max((size + 2 * padding - kernel) // stride + 1, 0)


def sliding_windows(images: np.ndarray, kernel: tuple[int, int], stride: int) -> np.ndarray:
    """Images [.., H, W] -> their windows of a size `kernel`, `stride` apart, [.., H', W', *kernel]."""
    return np.lib.stride_tricks.sliding_window_view(images, kernel, (-2, -1))[..., ::stride, ::stride, :, :]


def _windows(size: int, kernel: int, stride: int, padding: int) -> np.ndarray:
    """How many of the `places` hold each pixel of an axis [size]."""
    at = stride * np.arange(places(size, kernel, stride, padding))[:, None] + np.arange(kernel) - padding
    return np.bincount(at[(at >= 0) & (at < size)], minlength=size)


def _check_sizes(name: str, op: "Conv2d | MaxPool2d | SumPool2d", **fields: int) -> None:
    """Refuse an image or a field of no pixels, with a GraphError; `padding` may be 0."""
    least = {"height": op.size[0], "width": op.size[1], "stride": op.stride, **fields}
    for field, value in least.items():
        if value < (field != "padding"):
            raise GraphError(f"{name}: {field}", "at least 1, of padding 0", str(value), "mend the graph")


def check_levels(where: str, kind: str, values: np.ndarray) -> None:
    """Refuse values that events of a kind cannot have, with a ShapeError."""
    if kind in LEVELS and not np.isin(values, LEVELS[kind]).all():
        raise ShapeError(where, f"{kind} pixels, each one of {LEVELS[kind]}", "others", "declare another kind")


@dataclass(frozen=True)
class Frames(Input):
    """The input: one image a step, such as what an event camera sent within it.

    size  [C, H, W]
    kind  what the pixels hold: BINARY or TERNARY events, GRADED ones such as numbers of events, or DENSE values
    """

    size: tuple[int, int, int]
    kind: str = GRADED

    def __post_init__(self):
        if self.kind not in KINDS or len(self.size) != 3 or min(self.size) < 1:
            got = f"{self.kind!r}, {self.size}"
            raise GraphError("Frames", f"a kind of {', '.join(KINDS)} and a size (C, H, W)", got, "mend it")

    @property
    def outputs(self):
        return {"out": self.kind}

    def shapes(self, name, inputs, arrays):
        return {"out": (math.prod(self.size),)}

    def accept(self, name, values):
        """Frames [B, T, C, H, W] -> [B, T, C H W]."""
        if values.dtype.kind == "b":
            values = values.astype(np.uint8)
        if values.ndim != 5 or values.shape[2:] != tuple(self.size) or values.dtype.kind not in "iuf":
            got = f"{values.dtype} {values.shape}"
            raise ShapeError(name, f"frames [B, T, {', '.join(map(str, self.size))}]", got, "reshape them")
        check_levels(name, self.kind, values)
        return values.reshape(*values.shape[:2], math.prod(self.size))


@dataclass(frozen=True)
class Conv2d(Op):
    """out[o, i, j] = bias[o] + sum over c, u, v of weight[o, c, u, v] x[c, s i + u - p, s j + v - p].

    size     (H, W) of x; its channels are those of the weight [O, C, U, V]
    stride   s;  padding   p, zeros on every side

    A tap that falls on the padding is no product: it is neither done nor counted, for dense operands either.
    """

    inputs, outputs, roles = ("x",), {"out": DENSE}, ("weight", "bias?")
    size: tuple[int, int]
    stride: int = 1
    padding: int = 0

    def image(self, weight: np.ndarray) -> Shape:
        """[O, H', W'] of what comes out."""
        return weight.shape[0], *(places(n, k, self.stride, self.padding) for n, k in self._axes(weight))

    def taps(self, weight: np.ndarray) -> int:
        """Pairs of a pixel and a weight that meet, in one image and for one output channel."""
        return weight.shape[1] * math.prod(int(count.sum()) for count in self.windows(weight))

    def windows(self, weight: np.ndarray) -> list[np.ndarray]:
        """How many places of the kernel hold each row of pixels [H], and each column [W]."""
        return [_windows(n, k, self.stride, self.padding) for n, k in self._axes(weight)]

    def _axes(self, weight):
        return zip(self.size, weight.shape[2:], strict=True)

    def shapes(self, name, inputs, arrays):
        weight = arrays["weight"]
        if weight.ndim != 4:
            raise GraphError(f"{name}: weight", "shape (O, C, U, V)", f"{weight.shape}", "mend the graph")
        _check_sizes(name, self, padding=self.padding)
        require(name, "x", inputs["x"], (weight.shape[1] * self.size[0] * self.size[1],))
        if "bias" in arrays:
            require(name, "bias", arrays["bias"].shape, weight.shape[:1])
        return {"out": _vector(name, self.image(weight))}


@dataclass(frozen=True)
class MaxPool2d(Op):
    """out[c, i, j] = the largest of x[c, s i + u, s j + v], u and v from 0 to kernel - 1: events give events.

    size  (H, W) of x;  stride  s;  kind  that of x
    """

    inputs = ("x",)
    size: tuple[int, int]
    kernel: int
    stride: int
    kind: str = GRADED

    @property
    def outputs(self):
        return {"out": self.kind}

    @property
    def accepts(self):
        return {"x": self.kind}

    def shapes(self, name, inputs, arrays):
        _check_sizes(name, self, kernel=self.kernel)
        channels = inputs["x"][0] // (self.size[0] * self.size[1])
        require(name, "x", inputs["x"], (channels * self.size[0] * self.size[1],))
        return {"out": _vector(name, (channels, *(places(n, self.kernel, self.stride) for n in self.size)))}


@dataclass(frozen=True)
class SumPool2d(Op):
    """out[c, i, j] = sum of x[c, s i + u - p, s j + v - p], u and v from 0 to kernel - 1, over kernel^2 where `mean`.

    size  (H, W) of x;  stride  s;  padding  p, zeros on every side;  kind  that of x: events give GRADED ones
    """

    inputs = ("x",)
    size: tuple[int, int]
    kernel: int
    stride: int
    padding: int = 0
    mean: bool = False
    kind: str = GRADED

    @property
    def outputs(self):
        return {"out": GRADED if self.kind in EVENT_KINDS else DENSE}

    @property
    def accepts(self):
        return {"x": self.kind}

    def image(self, n: int) -> Shape:
        """[C, H', W'] of what comes out of n values."""
        channels = n // (self.size[0] * self.size[1])
        return channels, *(places(length, self.kernel, self.stride, self.padding) for length in self.size)

    def taps(self) -> int:
        """Pixels of one channel that are added up, once for each field that holds them."""
        return math.prod(int(_windows(n, self.kernel, self.stride, self.padding).sum()) for n in self.size)

    def shapes(self, name, inputs, arrays):
        _check_sizes(name, self, kernel=self.kernel, padding=self.padding)
        image = self.image(inputs["x"][0])
        require(name, "x", inputs["x"], (image[0] * self.size[0] * self.size[1],))
        return {"out": _vector(name, image)}


def _vector(name: str, image: Shape) -> Shape:
    if min(image) < 1:
        raise GraphError(name, "an image at least as large as the kernel", f"{image} out of it", "mend the graph")
    return (math.prod(image),)
