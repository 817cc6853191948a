"""A graph run a token at a time, as in generation: one call of the C library a token, whatever the graph's depth.

An event reads one weight row, a silent unit none. What depends on the token alone, such as the first layer's product
with its embedding, is looked up in a table made at the start. V vocabulary, T tokens.
"""

import ctypes
from collections.abc import Mapping

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.quantise import IntegerEGRUCell, IntegerEmbedding, IntegerLinear
from rheobase.backends.simulators._executor import feed, start_state
from rheobase.backends.simulators.event import EventKernels
from rheobase.backends.simulators.integer import IntegerKernels
from rheobase.spiking import graph as ops
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import EventGraph, Node, Tokens
from rheobase.spiking.graph.cells import LIFS
from rheobase.spiking.ops.egru.reference import TRACE_DECAY
from rheobase.spiking.ops.native import function
from rheobase.spiking.tally import EVENT_KINDS

ROW, LINEAR, EGRU, LIF, WKV, LAYER_NORM, AFFINE, MIX, SIGMOID, RELU, SQUARED_RELU, SPIKE, MULTIPLY, ADD, COPY = range(
    15
)
BY_EVENTS, HARD, DECAY_INPUT, STRICT, TERNARY, GRADED, NARROW = (1 << bit for bit in range(7))
LANES = 16
"""words of a block of int8 weights"""
FORMS = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
"""type of the vectors of a graph in floating point -> how the name of the library's function ends"""


class _Instruction(ctypes.Structure):
    """As in `spiking/ops/native/stream.c`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("op", "flags", "n_in", "n_out", "rows")),
        ("input", ctypes.c_void_p * 2),
        ("array", ctypes.c_void_p * 3),
        ("out", ctypes.c_void_p),
        ("state", ctypes.c_void_p * 3),
        ("number", ctypes.c_double * 2),
    ]


class Stream:
    """Runs one stream of tokens through a graph in float32 or float64, or through an EGRU quantised for SpiNNaker 2.

    graph    what `model.lower()` or `quantise` gives, with one output of size V
    tables   look up what depends on the token alone, at V rows of memory for each such value that is read
    dense    read every weight row, of silent units too: the same results, to see what events save
    raises   UnsupportedError: no C library, an op without an instruction, or arrays of a type that C has not;
             ConfigError: a graph with more than one output

    The integers are those of the specification, bit for bit. In floating point the sums of a product are taken in
    another order than by `simulate`, so that results agree to rounding.
    """

    def __init__(self, graph: EventGraph, *, tables: bool = True, dense: bool = False):
        if len(graph.outputs) != 1:
            raise ConfigError("Stream", "a graph with one output", f"{len(graph.outputs)}", "lower a language model")
        self.graph, (output,) = graph, graph.outputs.values()
        integer = any(isinstance(n.op, IntegerEmbedding | IntegerLinear) for n in graph.nodes)
        self.dtype = np.dtype(np.int32) if integer else np.result_type(*(a.dtype for a in graph.arrays.values()))
        self._kernels = IntegerKernels() if integer else EventKernels()
        self._kernels.begin(graph)
        self._tables, self._dense = tables, dense
        self._keep: list[np.ndarray] = []
        shapes = {f"{n.name}.{port}": graph.shape_of(f"{n.name}.{port}") for n in graph.nodes for port in n.op.outputs}
        self._values = {name: np.zeros(shape, self.dtype) for name, shape in shapes.items()}
        self._before = {e.source: np.zeros(e.shape, self.dtype) for e in graph.edges if e.delay}
        program = self._program(self._tabulated() if tables else {})
        self._nodes = [name for name, _ in program]
        self._instructions = (_Instruction * len(program))(*(instruction for _, instruction in program))
        self._output, self._token = self._values[output], np.zeros(1, np.int64)
        self._room = np.empty(max(e.shape[0] for e in graph.edges), np.int32)
        self._vocabulary = feed(graph, np.zeros((1, 0), np.int64))[0].op.vocabulary
        types = [ctypes.c_void_p, ctypes.c_int64] * 2 + [ctypes.c_void_p] * 2 + [ctypes.c_int64, ctypes.c_void_p]
        form = "i8" if integer else FORMS.get(self.dtype)
        self._function = function(f"stream_{form}", *types)
        if self._function is None:
            got = "none" if form else str(self.dtype)
            raise UnsupportedError("Stream", "the C library's stream", got, 'simulate on="event", or reinstall')
        self._one = self._arguments(self._token, self._output[None, :0])
        self.state = None

    def __call__(self, tokens) -> np.ndarray:
        """The output after each of some tokens [T], [T, V], carrying the state on; of a token alone, [V].

        A quantised graph's output is integers, as of `simulate(on="integer")`.

        raises  ShapeError: not integers of the vocabulary, or not [T] or one
        """
        # the short way of one token: in generation, what Python takes counts beside what C takes
        number = isinstance(tokens, int | np.integer) and not isinstance(tokens, bool | np.timedelta64)
        if number and 0 <= tokens < self._vocabulary:
            self._token[0] = tokens
            self._function(*self._one)
            return self._output.copy()
        ids = np.asarray(tokens)
        ids = ids if ids.size else ids.astype(np.int64)  # an empty list has no type
        feed(self.graph, ids.reshape(1, -1) if ids.ndim < 2 else ids[None])
        row = np.ascontiguousarray(ids.reshape(-1), np.int64)
        out = np.empty((row.size, self._output.size), self.dtype)
        self._function(*self._arguments(row, out))
        return out.reshape(*ids.shape, self._output.size)

    def _arguments(self, row_T: np.ndarray, out_TV: np.ndarray) -> tuple[int, ...]:
        """Of the C function, for some tokens and the outputs that are wanted after each."""
        program, addresses = self._instructions, [a.ctypes.data for a in (row_T, self._output, out_TV, self._room)]
        row, output, out, room = addresses
        return ctypes.addressof(program), len(program), row, row_T.size, output, out, out_TV.shape[1], room

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What is carried from token to token, as `Trace.state` of one stream; may be set, and None starts anew."""
        return {name: self._carried(name).copy()[None] for name in self.graph.state_shapes()}

    @state.setter
    def state(self, state: Mapping[str, np.ndarray] | None) -> None:
        for name, array in start_state(self.graph, state, 1, self._kernels).items():
            for held in (self._values, self._before):
                if name in held:
                    held[name][:] = array[0]

    def __reduce__(self):  # instructions hold addresses, which are those of one process
        return _again, (type(self), self.graph, self._tables, self._dense, self.state, self.rows)

    @property
    def rows(self) -> dict[str, int]:
        """Weight rows that each product has read so far; a dense one reads all at each token."""
        pairs = zip(self._nodes, self._instructions, strict=True)
        return {name: i.rows for name, i in pairs if i.op == LINEAR}

    def _carried(self, name: str) -> np.ndarray:
        return self._before.get(name, self._values[name])

    def _tabulated(self) -> dict[str, np.ndarray]:
        """ "node.port" -> its value for each token of the vocabulary, where it depends on the token alone."""
        found: dict[str, np.ndarray] = {}
        for name in (name for group in self.graph.order() for name in group):
            node, edges = self.graph.node(name), self.graph.inputs_of(name)
            if isinstance(node.op, Tokens):
                found[f"{name}.out"] = np.arange(node.op.vocabulary)[:, None]
            elif edges and not node.op.state and all(e.source in found and not e.delay for e in edges.values()):
                method = getattr(self._kernels, type(node.op).__name__.lower())
                outputs = method(node, {port: found[e.source] for port, e in edges.items()})
                found |= {f"{name}.{port}": array for port, array in outputs.items()}
        return found

    def _program(self, tables: Mapping[str, np.ndarray]) -> list[tuple[str, _Instruction]]:
        """(Node, instruction) in the order of a step; delayed values are set aside at its end."""
        read = {e.source for e in self.graph.edges if e.delay or f"{e.target_node}.out" not in tables}
        read |= set(self.graph.outputs.values())
        program = []
        for node in (self.graph.node(name) for group in self.graph.order() for name in group):
            out = f"{node.name}.out"
            if isinstance(node.op, Tokens):
                continue
            if out not in tables:
                program.append((node.name, self._instruction(node)))
            elif out in read:
                program.append((node.name, self._make(ROW, out, arrays=[tables[out]])))
        for source, before in self._before.items():
            copy = self._make(COPY, source, inputs=[self._values[source]])
            copy.out = before.ctypes.data
            program.append((source, copy))
        return program

    def _make(self, op, out, *, inputs=(), arrays=(), state=(), numbers=(), flags=0, n_in=0) -> _Instruction:
        """An instruction whose arrays are brought to the vectors' type, a quantised product's weights to words of int8,
        and kept alive."""
        ready = [np.ascontiguousarray(a, self.dtype) for a in arrays]
        if op == LINEAR and self.dtype == np.int32:
            weight = np.asarray(arrays[0], np.int8)
            if not np.array_equal(weight, arrays[0]):
                raise UnsupportedError(out, "weights that int8 holds", "others", "quantise the graph anew")
            ready[0] = _words(weight)
        self._keep += ready
        made = _Instruction(op=op, flags=flags, n_in=n_in, n_out=self._values[out].size)
        for to, given in (("input", inputs), ("array", ready), ("state", state)):
            for index, array in enumerate(given):
                getattr(made, to)[index] = array.ctypes.data
        for index, number in enumerate(numbers):
            made.number[index] = number
        made.out = self._values[out].ctypes.data
        return made

    def _instruction(self, node: Node) -> _Instruction:
        op, edges, arrays = node.op, self.graph.inputs_of(node.name), self.graph.arrays_of(node)
        if self.dtype != np.int32:  # first, so that what follows from them is as exact as in the simulators
            arrays = {role: np.asarray(array, self.dtype) for role, array in arrays.items()}
        inputs = [(self._before if e.delay else self._values)[e.source] for e in map(edges.get, op.inputs)]
        state = [self._values[f"{node.name}.{port}"] for port in op.state]
        first = f"{node.name}.{next(iter(op.outputs))}"

        def filled(role, value=0.0):
            return arrays.get(role, np.broadcast_to(np.asarray(value, self.dtype), self._values[first].shape))

        def make(code, *given, **more):
            return self._make(code, first, inputs=inputs, arrays=given, state=state, **more)

        kind = type(op)  # a class made of one of these may compute something else
        if kind in (ops.Embedding, IntegerEmbedding):
            tokens = np.arange(len(arrays["table"]))[:, None]
            kernel = getattr(self._kernels, kind.__name__.lower())
            return self._make(ROW, first, arrays=[kernel(node, {"token": tokens})["out"]])
        if kind in (ops.Linear, IntegerLinear):
            weight = arrays["weight"].T if op.transposed else arrays["weight"]
            shift, flags = (), BY_EVENTS * (edges["x"].kind in EVENT_KINDS and not self._dense)
            if kind is IntegerLinear:
                shift, flags = (op.shift(arrays["exponent"]),), flags + NARROW * (op.bits == 16)
            return make(LINEAR, weight, filled("bias"), *shift, flags=flags, n_in=len(weight))
        if kind is IntegerEGRUCell:
            tables = map(_pairs, (ints.sigmoid_table(), ints.tanh_table()))
            return make(EGRU, arrays["thr"], *tables, numbers=[op.zoneout])
        if kind is ops.EGRUCell:
            return make(EGRU, arrays["thr"], numbers=[op.zoneout, TRACE_DECAY])
        if kind in LIFS:
            flags = HARD * (op.v_reset is not None) + DECAY_INPUT * op.decay_input + STRICT * (op.fire == ">")
            flags += TERNARY * op.ternary + GRADED * (kind is ops.GradedLIFCell)
            both = filled("tau", op.tau), filled("theta", op.theta)
            return make(LIF, *both, numbers=[op.v_reset or 0.0], flags=flags)
        if kind is ops.WKVCell:
            return make(WKV, -np.exp(arrays["time_decay"]), arrays["time_first"])
        if kind is ops.LayerNorm:
            return make(LAYER_NORM, arrays["weight"], arrays["bias"], numbers=[op.eps])
        if kind is ops.Affine:
            return make(AFFINE, arrays["scale"], arrays["offset"])
        if kind is ops.Mix:
            share = arrays["share"].reshape(-1)
            return make(MIX, share, arrays.get("rest", 1 - share), filled("bias"))
        if kind in _PLAIN:
            return make(_PLAIN[kind])
        remedy = f'simulate on="{"integer" if self.dtype == np.int32 else "event"}"'
        raise UnsupportedError(node.name, "an op that Stream has an instruction for", kind.__name__, remedy)


def _words(weight_DO: np.ndarray) -> np.ndarray:
    """Rows of int8 as words of four columns each, as `rows_i8` in `stream.c` reads them."""
    n_in, n_out = weight_DO.shape
    blocks = np.pad(weight_DO, ((0, 0), (0, -n_out % (4 * LANES)))).reshape(n_in, -1, 4, LANES)
    return np.ascontiguousarray(blocks.swapaxes(2, 3)).view("<i4").astype(np.int32)


def _pairs(table: np.ndarray) -> np.ndarray:
    """A table as `look_up` in `stream.c` reads it: a value of int16, and above it what the next is more."""
    return (np.diff(table.astype(np.int32)) << 16) | (table[:-1].astype(np.int32) & 0xFFFF)


def _again(
    kind: type[Stream], graph: EventGraph, tables: bool, dense: bool, state: Mapping, rows: Mapping[str, int]
) -> Stream:
    """A copy of a stream, in this process or another."""
    stream = kind(graph, tables=tables, dense=dense)
    stream.state = state
    for name, instruction in zip(stream._nodes, stream._instructions, strict=True):
        instruction.rows = rows.get(name, 0)
    return stream


_PLAIN = {
    ops.Sigmoid: SIGMOID,
    ops.Relu: RELU,
    ops.SquaredRelu: SQUARED_RELU,
    ops.Spike: SPIKE,
    ops.Multiply: MULTIPLY,
    ops.Add: ADD,
}
