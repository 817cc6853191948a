"""The dense simulator on a GPU: it asks little more of it than the model itself does.

Weights stay there as long as their graph lives. The host waits once, for the tally; outputs, events and the state stay
on the GPU until they are asked for.
"""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from rheobase.backends.simulators.torch import TorchKernels
from rheobase.backends.trace import Later
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.events import Events
from rheobase.spiking.graph import LIFCell, Linear, Relu, Spike, SquaredRelu, TernaryLIFCell
from rheobase.spiking.tally import EVENT_KINDS

UPLOADED: WeakKeyDictionary = WeakKeyDictionary()
"""graph, whose arrays do not change -> device -> what `upload` gave"""
COUNTED = LIFCell, TernaryLIFCell, Spike, Relu, SquaredRelu
"""ops whose events are the elements of their output that are not 0"""


class GPUKernels(TorchKernels):
    """TorchKernels for a device on which a kernel's launch and the bytes that it moves are what costs."""

    def __init__(self, device: str):
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("simulate device", "a device of this machine", repr(device), 'use device="cpu"')
        self.device = device

    def begin(self, graph):
        self.constants: dict = {}
        super().begin(graph)
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
        return torch.linalg.vector_norm(array, 0, -1) if array.is_floating_point() else array.count_nonzero(-1)

    def per_pixel(self, images):
        return torch.linalg.vector_norm(images, 0, (0, 1), dtype=torch.float64)

    def tally(self, tokens):
        for name, source in self.rows_of.items():
            self.seen[name]["rows"] = self.seen[source]["events"]
        return super().tally(tokens)

    def linear(self, node, inputs):
        x, weight, bias = inputs["x"], *(self.arrays[node.name].get(role) for role in ("weight", "bias"))
        if self.kind[node.name]["x"] in EVENT_KINDS and node.name not in self.rows_of:
            self.saw(node, rows=self.count_nonzero(x))
        return {"out": F.linear(x, weight.t(), bias)}

    def conv2d(self, node, inputs):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # its 10 bits would fire other spikes
            return super().conv2d(node, inputs)

    def mix(self, node, inputs):
        arrays, x, before = self.arrays[node.name], inputs["x"], inputs["before"]
        out = x * arrays["share"] if "bias" not in arrays else torch.addcmul(arrays["bias"], x, arrays["share"])
        return {"out": torch.addcmul(out, before, arrays["rest"])}
