"""NIR to an EventGraph, whoever wrote it.

Euler's step of NIR's equations, `v' = v + dt / tau (v_leak - v + r I)`, `z = v' > v_threshold`, `v = v_reset where z`,
is an LIFCell where v_leak = v_reset and r is 1 or tau / dt, else a CubaLIFCell with its potentials counted from v_leak.
Sub-graphs become flat, edges that meet a sum, and the edge that closes a cycle one of delay 1.
"""

import math
from pathlib import Path

import numpy as np

from rheobase.backends.importers._neurons import neuron_op
from rheobase.backends.importers._wires import Wires, early, flatten
from rheobase.backends.nir_file import read_nir, step_order
from rheobase.spiking.errors import ConfigError, FormatError, GraphError, ShapeError, UnsupportedError
from rheobase.spiking.graph import Affine, Conv2d, EventGraph, Frames, Linear, Node, SumPool2d
from rheobase.spiking.registry import nearest
from rheobase.spiking.tally import DENSE, KINDS

WRITERS = ("norse",)


def import_file(
    path: str | Path, *, dt_s: float | None = None, input_kind: str | None = None, written_by: str | None = None
) -> EventGraph:
    """The graph of a `.nir` file.

    dt_s        duration of a step; the file's own `dt` in its metadata if it has one
    input_kind  BINARY, TERNARY, GRADED or DENSE; the file's own word, else DENSE: values never decide
    written_by  "norse": its writer gives time constants times dt, CubaLIF no w_in and IF no 1 / dt; dt_s is its dt
    raises      FormatError: no NIR, or a damaged one;  UnsupportedError: a node that no graph op computes, and which;
                ConfigError: no dt_s anywhere
    """
    return graph_of_nir(read_nir(path), path, dt_s=dt_s, input_kind=input_kind, written_by=written_by)


def graph_of_nir(net, where, *, dt_s=None, input_kind=None, written_by=None) -> EventGraph:
    """The graph of a nir.NIRGraph; see `import_file`."""
    if written_by not in (None, *WRITERS):
        raise ConfigError("written_by", f"one of {WRITERS}", repr(written_by), nearest(str(written_by), WRITERS))
    said = {k: v for k, v in net.metadata.items() if k in ("dt", "inputs")}
    try:
        dt_s = float(said["dt"]) if dt_s is None and "dt" in said else dt_s
        return _Reader(where, flatten(where, net), dt_s, input_kind, said.get("inputs", {}), written_by).graph()
    except (GraphError, ShapeError) as error:
        raise FormatError(where, "nodes that fit", str(error), "mend the file") from None
    except (ConfigError, FormatError):
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # fields of other kinds than NIR's
        raise FormatError(where, "fields of NIR", f"{type(error).__name__}: {error}", "mend the file") from None


class _Reader:
    def __init__(self, where, flat, dt_s, input_kind, said_kinds, written_by):
        self.where, self.flat, self.dt_s, self.written_by = where, flat, dt_s, written_by
        self.input_kind, self.said_kinds = input_kind, said_kinds
        self.order, late = step_order(flat.nodes, flat.edges)
        self.late = early(flat.nodes, flat.edges, late)
        self.wires, self.arrays, self.images = Wires(), {}, {}

    def graph(self) -> EventGraph:
        kinds = [type(n).__name__ for n in self.flat.nodes.values()]
        if kinds.count("Input") != 1 or "Output" not in kinds:
            got = f"{kinds.count('Input')} inputs, {kinds.count('Output')} outputs"
            raise UnsupportedError(self.where, "one input, and an output", got, "cut the file, or import what it is of")
        for name in self.order:
            self._add(name, self.flat.nodes[name])
        outputs = {}
        for name in self.order:
            kind, terms = type(self.flat.nodes[name]).__name__, self._terms(name)
            if kind != "Input" and not terms:
                raise FormatError(self.where, f"an edge into {name}", "none", "mend the file")
            if kind == "Output":
                outputs[name] = self.wires.output(self.wires.sum(name, terms)[0])
            elif kind != "Input":
                self.wires.feed(name, terms)
        return EventGraph(tuple(self.wires.nodes), self.wires.edges(), self.arrays, outputs, self.dt_s)

    def _terms(self, name) -> list[tuple[str, int]]:
        """(node, delay) of what adds up in a node."""
        return [(a, int((a, b) in self.late)) for a, b in self.flat.edges if b == name]

    def _image(self, name):
        """The shape of what enters a node: that of the first term that has been seen."""
        return next((self.images[a] for a, delay in self._terms(name) if not delay and a in self.images), None)

    def _add(self, name, node) -> None:
        kind = type(node).__name__
        if kind == "Output":
            return
        if kind == "Input":
            return self._add_input(name, node)
        self.wires.add(*getattr(self, f"_{kind.lower()}", self._neuron)(name, node))

    def _add_input(self, name, node):
        shape = _shape(node.input_type.get("input") if node.input_type else None)
        readers = [self.flat.nodes[b] for a, b in self.flat.edges if a == name]
        for reader in readers:
            if type(reader).__name__ in ("Linear", "Affine"):
                shape = (reader.weight.shape[-1],)  # writers put a batch axis into the shape
        if shape is not None and len(shape) not in (1, 3) and math.prod(shape) == math.prod(shape[-3:]):
            shape = shape[-3:] if len(shape) > 3 else shape[-1:]
        if shape is None or len(shape) not in (1, 3) or min(shape) < 1 or math.prod(shape) > 1 << 28:
            remedy = "say it: --shape of a network in Python, input_type in a file"
            raise FormatError(self.where, f"a shape [n] or [C, H, W] of {name}", f"{shape}", remedy)
        said = self.said_kinds.get(name, DENSE) if isinstance(self.said_kinds, dict) else DENSE
        said = self.input_kind or (said.decode() if isinstance(said, bytes) else said)
        if said not in KINDS:
            raise ConfigError("input kind", f"one of {', '.join(KINDS)}", repr(said), "name the input's kind")
        self.images[name] = shape
        op = Frames(tuple(shape) if len(shape) == 3 else (*shape, 1, 1), said)
        self.wires.add(Node(name, op), "out", said, (math.prod(shape),))

    def _array(self, name, role, array):
        array = np.ascontiguousarray(array)
        if array.dtype.kind != "f":
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise FormatError(self.where, f"finite numbers in {name}.{role}", "others", "mend the file")
        self.arrays[f"{name}.{role}"] = array
        return f"{name}.{role}"

    def _linear(self, name, node):
        weight = np.asarray(node.weight)
        if weight.ndim != 2:
            raise UnsupportedError(name, "a weight [out, in]", f"{weight.shape}", "write it as a matrix")
        roles = {
            role: self._array(name, role, getattr(node, role)) for role in ("weight", "bias") if hasattr(node, role)
        }
        self.images[name] = weight.shape[:1]
        return Node(name, Linear(transposed=True), roles), "out", DENSE, weight.shape[:1]

    _affine = _linear

    def _scale(self, name, node):
        shape = self._image(name)
        scale = np.broadcast_to(np.asarray(node.scale, np.result_type(node.scale, np.float32)), shape).reshape(-1)
        roles = {"scale": self._array(name, "scale", scale)}
        roles["offset"] = self._array(name, "offset", np.zeros_like(scale))
        self.images[name] = shape
        return Node(name, Affine(), roles), "out", DENSE, scale.shape

    def _conv2d(self, name, node):
        weight, before = np.asarray(node.weight), self._image(name)
        whole = {k: _pair(getattr(node, k)) for k in ("stride", "padding", "dilation")}
        square = whole["stride"] and whole["padding"] and all(a == b for a, b in (whole["stride"], whole["padding"]))
        if not square or whole["dilation"] != (1, 1) or int(node.groups) != 1 or weight.ndim != 4:
            got = f"stride {node.stride}, padding {node.padding}, dilation {node.dilation}, groups {node.groups}"
            raise UnsupportedError(name, "one stride and padding, no dilation, one group", got, "write it so")
        given = _shape(node.input_shape)
        size = given or (before[-2:] if before and len(before) == 3 else None)
        if size is None or len(size) != 2:
            raise FormatError(self.where, f"the image that {name} reads", f"{before}", "give input_shape")
        op = Conv2d(size, whole["stride"][0], whole["padding"][0])
        roles = {"weight": self._array(name, "weight", weight), "bias": self._array(name, "bias", node.bias)}
        self.images[name] = op.image(weight)
        return Node(name, op, roles), "out", DENSE, (math.prod(self.images[name]),)

    def _sumpool2d(self, name, node, mean=False):
        before, terms = self._image(name), self._terms(name)
        kernel, stride, padding = (_pair(getattr(node, k)) for k in ("kernel_size", "stride", "padding"))
        if not all(pair and pair[0] == pair[1] for pair in (kernel, stride, padding)):
            got = f"kernel {node.kernel_size}, stride {node.stride}, padding {node.padding}"
            raise UnsupportedError(name, "a square kernel, one stride and one padding", got, "write it so")
        if before is None or len(before) != 3 or any(delay for _, delay in terms):
            raise UnsupportedError(name, "an image [C, H, W] of the same step", f"{before}", "pool what is one")
        op = SumPool2d(tuple(before[1:]), kernel[0], stride[0], padding[0], mean, self.wires.kind(terms))
        self.images[name] = op.image(math.prod(before))
        return Node(name, op), "out", op.outputs["out"], (math.prod(self.images[name]),)

    def _avgpool2d(self, name, node):
        return self._sumpool2d(name, node, mean=True)

    def _neuron(self, name, node):
        op, arrays, port, kind, shape = neuron_op(
            name, node, self._image(name), dt_s=self.dt_s, written_by=self.written_by
        )
        self.images[name] = shape
        roles = {role: self._array(name, role, array.reshape(-1)) for role, array in arrays.items()}
        return Node(name, op, roles), port, kind, (math.prod(shape),)


def _shape(value) -> tuple[int, ...] | None:
    if isinstance(value, dict):
        value = value.get("input")
    if value is None:
        return None
    return tuple(int(n) for n in np.asarray(value).reshape(-1))


def _pair(value) -> tuple[int, int] | None:
    if isinstance(value, str | bytes):
        return None
    numbers = tuple(int(n) for n in np.asarray(value).reshape(-1))
    return numbers * 2 if len(numbers) == 1 else numbers
