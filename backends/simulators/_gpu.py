"""The dense simulator on a GPU: it asks little more of it than the model itself does.

Weights stay there as long as their graph lives. The host waits once, for the tally; outputs, events and the state stay
on the GPU until they are asked for.
"""

import contextlib
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from rheobase.backends.simulators._cells import egru_layer
from rheobase.backends.simulators.torch import TorchKernels
from rheobase.backends.trace import Later
from rheobase.spiking.devices import is_here
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.events import Events
from rheobase.spiking.graph import GRUCell, LIFCell, Linear, LSTMCell, Relu, Spike, SquaredRelu, TernaryLIFCell
from rheobase.spiking.tally import EVENT_KINDS

UPLOADED: WeakKeyDictionary = WeakKeyDictionary()
"""graph, whose arrays do not change -> device -> what `upload` gave"""
COUNTED = LIFCell, TernaryLIFCell, Spike, Relu, SquaredRelu
"""ops whose events are the elements of their output that are not 0"""

RNNS = {LSTMCell: nn.LSTM, GRUCell: nn.GRU}


@contextlib.contextmanager
def exact():
    """cuDNN without its rounding to 10 bits, which would fire other spikes, however it was asked for: `allow_tf32`
    refuses to be read after torch's newer `fp32_precision` was set, and does not go before it."""
    ops = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [op.fp32_precision for op in ops]
    for op in ops:
        op.fp32_precision = "ieee"
    try:
        yield
    finally:
        for op, was in zip(ops, before, strict=True):
            op.fp32_precision = was


class GPUKernels(TorchKernels):
    """TorchKernels for a device on which a kernel's launch and the bytes that it moves are what costs."""

    def __init__(self, device: str):
        if device.startswith("cuda") and not is_here(device):
            raise ConfigError("simulate device", "a device of this machine", repr(device), 'use device="cpu"')
        self.device = f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device

    def begin(self, graph):
        self.constants: dict = {}
        super().begin(graph)
        cells = [node.name for node in graph.nodes if type(node.op) in RNNS]
        self.fed = dict.fromkeys(graph.inputs_of(name)["a"].source_node for name in cells)
        self.rows_of = dict(self._rows_of())

    def upload(self, graph):
        there = UPLOADED.setdefault(graph, {})
        if self.device not in there:
            there[self.device] = super().upload(graph)
        return there[self.device]

    def transposed(self, weight, by_rows):
        return weight.t()

    def _rows_of(self):
        """Products whose rows are what another node sent, which is counted there, and that node."""
        for node in self.graph.nodes:
            edge = self.graph.inputs_of(node.name).get("x")
            if isinstance(node.op, Linear) and edge.kind in EVENT_KINDS and not edge.delay:
                if type(self.graph.node(edge.source_node).op) in COUNTED:
                    yield node.name, edge.source_node

    def full(self, shape, value):
        if (shape, value) not in self.constants:
            self.constants[shape, value] = torch.full(shape, value, dtype=self.dtype, device=self.device)
        return self.constants[shape, value]

    def table(self, makers):
        return Later(makers)

    def events(self, whole):
        return Events.from_dense(whole.swapaxes(0, 1))

    def count_nonzero(self, array):
        """Of each row, in one kernel; float32 holds it exactly."""
        if not array.is_floating_point():
            return array.count_nonzero(-1)
        return torch.linalg.vector_norm(array, 0, -1, dtype=torch.promote_types(array.dtype, torch.float32))

    def per_pixel(self, images):
        return torch.linalg.vector_norm(images, 0, (0, 1), dtype=torch.float64)

    def tally(self, tokens):
        for name, source in self.rows_of.items():
            if "events" in self.seen[source]:  # of no step nothing was said
                self.seen[name]["rows"] = self.seen[source]["events"]
        found = super().tally(tokens)
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)  # a graph without events has asked it for nothing
        return found

    def sequence(self, nodes, edges, values, carried, wanted):
        """Also an LSTM or GRU layer, by torch's own; it computes the product with its input anew."""
        for kind, layer in RNNS.items():
            found = egru_layer(nodes, edges, kind, "h")
            if found is not None:
                return self._rnn(*found, edges[found[0].name]["a"], layer, values, carried, wanted)
        return super().sequence(nodes, edges, values, carried, wanted)

    def _rnn(self, cell, linear, a, layer, values, carried, wanted):
        steps, streams = values[a.source].shape[:2]
        fed, h, c = self.fed.get(a.source_node), f"{cell.name}.h", f"{cell.name}.c"
        if fed is None or not steps or {c, f"{linear.name}.out"} & wanted:
            return None
        if len(fed) < steps * streams:  # the product with its input is in a loop of its own: this is of its last step
            return None
        own = self.arrays[linear.name]
        if "layer" not in own:
            own["layer"] = self._layer(layer, self.arrays[a.source_node], own)
        before = [carried[name][None] for name in (h, c) if name in carried]
        with exact():
            y, after = own["layer"](fed.reshape(streams, steps, -1), tuple(before) if len(before) > 1 else before[0])
        whole, last = {h: y.transpose(0, 1)}, after if isinstance(after, tuple) else (after,)
        state = {name: part[0] for name, part in zip((h, c), last, strict=False)}
        return whole, {name: state[name] for name in (f"{cell.name}.{port}" for port in cell.op.state)}

    def _layer(self, layer, of_x: dict, of_h: dict) -> nn.RNNBase:
        like = {"device": self.device, "dtype": self.dtype}
        made = layer(of_x["weight"].shape[0], of_h["weight"].shape[0], batch_first=True, **like)
        for part, arrays in (("ih", of_x), ("hh", of_h)):
            made.get_parameter(f"weight_{part}_l0").copy_(arrays["weight"].t())
            bias = made.get_parameter(f"bias_{part}_l0").zero_()
            if "bias" in arrays:
                bias.copy_(arrays["bias"])
        return made.eval()

    def linear(self, node, inputs):
        if node.name in self.fed:
            self.fed[node.name] = inputs["x"]
        x, weight, bias = inputs["x"], *(self.arrays[node.name].get(role) for role in ("weight", "bias"))
        if self.kind[node.name]["x"] in EVENT_KINDS and node.name not in self.rows_of:
            self.saw(node, rows=self.count_nonzero(x))
        return {"out": F.linear(x, weight.t(), bias)}

    def conv2d(self, node, inputs):
        with exact():
            return super().conv2d(node, inputs)

    def mix(self, node, inputs):
        arrays, x, before = self.arrays[node.name], inputs["x"], inputs["before"]
        out = x * arrays["share"] if "bias" not in arrays else torch.addcmul(arrays["bias"], x, arrays["share"])
        return {"out": torch.addcmul(out, before, arrays["rest"])}
