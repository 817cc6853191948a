"""The dense simulator in torch, on the CPU or a GPU, counted as if events alone were read.

Products are dense, but for those of few events on the CPU, which the model's own ops take by events too.

B streams, T steps, n units. Arrays [T, B, n] lie in memory as [B, T, n], as the ops take them.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from rheobase.backends.simulators._cells import cuba_lif_step, egru_layer
from rheobase.backends.simulators._counting import Counting
from rheobase.backends.simulators._executor import arriving, execute, number_type
from rheobase.backends.trace import Trace
from rheobase.spiking.graph import Conv2d, GradedLIFCell, Linear, Mix, WKVCell
from rheobase.spiking.graph.cells import LIFS
from rheobase.spiking.neurons.egru import EGRUState
from rheobase.spiking.ops import egru, lif, wkv
from rheobase.spiking.ops.egru.reference import egru_cell
from rheobase.spiking.ops.lif.reference import lif_step
from rheobase.spiking.ops.native.product import product
from rheobase.spiking.ops.wkv.reference import WKVState, wkv_step
from rheobase.spiking.surrogates import Triangle
from rheobase.spiking.tally import EVENT_KINDS


class TorchKernels(Counting):
    """Kernels in torch; a cell's step is the reference's own."""

    device = "cpu"

    def begin(self, graph):
        super().begin(graph)
        self.arrays, self.dtype = self.upload(graph)

    def upload(self, graph) -> tuple[dict, torch.dtype]:
        """(Node -> role -> tensor, with what follows from the arrays alone; the type of the numbers)."""
        dtype = number_type(graph)
        table = {n: torch.tensor(np.ascontiguousarray(a, dtype), device=self.device) for n, a in graph.arrays.items()}
        arrays = {n.name: {role: table[name] for role, name in n.arrays.items()} for n in graph.nodes}
        for node in graph.nodes:
            own = arrays[node.name]
            if isinstance(node.op, Linear) and node.op.transposed:
                own["weight"] = self.transposed(own["weight"], self.kind[node.name]["x"] in EVENT_KINDS)
            if isinstance(node.op, Conv2d):
                windows = np.outer(*node.op.windows(own["weight"]))
                own["windows"] = torch.tensor(windows, dtype=torch.float64, device=self.device)
            if isinstance(node.op, Mix):
                own["share"] = own["share"].reshape(-1)
                own.setdefault("rest", 1 - own["share"])
        return arrays, torch.from_numpy(np.empty(0, dtype)).dtype

    def transposed(self, weight, by_rows: bool):
        """A weight [O, I] as [I, O]; by_rows: where events read its rows."""
        return weight.t().contiguous() if by_rows else weight.t()

    def zeros(self, *shape):
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def from_numpy(self, array):
        return torch.as_tensor(np.ascontiguousarray(array), dtype=self.dtype, device=self.device)

    def indices(self, array):
        return torch.tensor(array, dtype=torch.long, device=self.device)

    def to_numpy(self, array):
        return array.cpu().numpy()

    def stack(self, arrays):
        return torch.stack(arrays, 1).transpose(0, 1)

    def shift(self, whole, first):
        return torch.cat([first[:, None], whole.transpose(0, 1)[:, :-1]], 1).transpose(0, 1) if len(whole) else whole

    def flat(self, whole):
        return super().flat(whole.transpose(0, 1))

    def deep(self, batch, steps, streams):
        return super().deep(batch, streams, steps).transpose(0, 1)

    def count_nonzero(self, array):
        return np.intp(np.count_nonzero(array.numpy() != 0))  # a third of torch's time, or less

    def integers(self, numbers):
        """Integers, or the sums of arrays of integers."""
        tensors, groups = [torch.as_tensor(number) for number in numbers], {}
        for i, number in enumerate(tensors):
            groups.setdefault((number.dtype, number.shape), []).append(i)
        if not groups:
            return []
        stacks = [torch.stack([tensors[i] for i in group]).reshape(len(group), -1) for group in groups.values()]
        sums = torch.cat([stack.sum(1, dtype=torch.float64) for stack in stacks]).tolist()
        found = dict(zip(itertools.chain(*groups.values()), sums, strict=True))
        return [int(found[i]) for i in range(len(tensors))]

    def embedding(self, node, inputs):
        return {"out": F.embedding(inputs["token"][:, 0], self.arrays[node.name]["table"])}

    def linear(self, node, inputs):
        x, weight, bias = inputs["x"], *(self.arrays[node.name].get(role) for role in ("weight", "bias"))
        if self.kind[node.name]["x"] not in EVENT_KINDS:
            return {"out": F.linear(x, weight.t(), bias)}
        rows = self.count_nonzero(x)
        self.saw(node, rows=rows)
        return {"out": product(x, weight, bias, rows)}

    def conv2d(self, node, inputs):
        op, weight, bias = node.op, *(self.arrays[node.name].get(role) for role in ("weight", "bias"))
        images = inputs["x"].unflatten(1, (weight.shape[1], *op.size))
        if self.kind[node.name]["x"] in EVENT_KINDS:
            here = self.per_pixel(images)
            self.saw(node, rows=here, reads=here * self.arrays[node.name]["windows"])
        return {"out": F.conv2d(images, weight, bias, op.stride, op.padding).flatten(1)}

    def per_pixel(self, images):
        """How many of the images and their channels hold an event at each pixel [H, W]."""
        return (images != 0).sum((0, 1))

    def maxpool2d(self, node, inputs):
        op, x = node.op, inputs["x"]
        images = x.unflatten(1, (-1, *op.size))
        out = F.max_pool2d(images, op.kernel, op.stride).flatten(1)
        if op.kind in EVENT_KINDS:
            self.saw(node, events=self.count_nonzero(out))
        return {"out": out}

    def sumpool2d(self, node, inputs):
        op, images = node.op, inputs["x"].unflatten(1, (-1, *node.op.size))
        over = op.kernel**2 if op.mean else 1
        out = F.avg_pool2d(images, op.kernel, op.stride, op.padding, divisor_override=over).flatten(1)
        if op.kind in EVENT_KINDS:
            self.saw(node, events=self.count_nonzero(out))
        return {"out": out}

    def relu(self, node, inputs):
        y = F.relu(inputs["x"])
        self.saw(node, events=self.count_nonzero(y))
        return {"out": y}

    def sequence(self, nodes, edges, values, carried, wanted):
        """A LIF or WKV cell alone, or an EGRU cell with the product of its own last events: by the op of that name."""
        layer = egru_layer(nodes, edges)
        if layer is not None:
            return self.egru_sequence(*layer, edges[layer[0].name]["a"], values, carried, wanted)
        node, *others = nodes
        if others or any(e.source_node == node.name for e in edges[node.name].values()):
            return None
        inputs = {port: arriving(e, values, carried, self).transpose(0, 1) for port, e in edges[node.name].items()}
        before = {name: carried[f"{node.name}.{name}"] for name in node.op.state}
        if type(node.op) in LIFS:
            outputs, after = self.lif_sequence(node, inputs["x"], before["v"], f"{node.name}.v" in wanted)
        elif type(node.op) is WKVCell and wanted.isdisjoint(f"{node.name}.{name}" for name in before):
            outputs, after = self.wkv_sequence(node, **inputs, state=WKVState(**before))
        else:
            return None
        outputs = {f"{node.name}.{port}": out.transpose(0, 1) for port, out in outputs.items()}
        return outputs, {f"{node.name}.{name}": part for name, part in after.items()}

    def egru_sequence(self, cell, linear, a, values, carried, wanted):
        thr, weight, bias = self.arrays[cell.name]["thr"], *map(self.arrays[linear.name].get, ("weight", "bias"))
        bias = bias if bias is not None else weight.new_zeros(weight.shape[1])
        before = EGRUState(*(carried[f"{cell.name}.{port}"] for port in EGRUState._fields))
        a_BTG = values[a.source].transpose(0, 1)
        run, after = egru(a_BTG, None, weight, None, bias, thr, before, surrogate=Triangle(), zoneout=cell.op.zoneout)
        y = run.y.transpose(0, 1)
        for read in (before.y, y[:-1]) if len(y) else ():
            self.saw(linear, rows=torch.as_tensor(self.count_nonzero(read)).sum(dtype=torch.float64))
        self.saw(cell, events=self.count_nonzero(run.o))
        outputs = {f"{cell.name}.y": y}
        outputs |= {f"{cell.name}.{port}": getattr(run, port).transpose(0, 1) for port in ("c", "trace")}
        if f"{linear.name}.out" in wanted:
            outputs[f"{linear.name}.out"] = F.linear(self.shift(y, before.y), weight.t(), bias)
        return outputs, {f"{cell.name}.{port}": getattr(after, port) for port in cell.op.state}

    def lif_sequence(self, node, x, v, whole):
        """whole  True: v at every step is an output too"""
        graded = isinstance(node.op, GradedLIFCell)
        s, after, *h = lif(x, v, **self.lif_settings(node), with_h=graded, whole=whole)
        self.saw_spikes(node, x, s)
        outputs = {"s": torch.where(s != 0, h[0], 0) if graded else s}
        if not whole:
            return outputs, {"v": after}
        return {**outputs, "v": after}, {"v": after[:, -1] if x.shape[1] else v}

    def wkv_sequence(self, node, k, v, state):
        arrays = self.arrays[node.name]
        y, after = wkv(arrays["time_decay"], arrays["time_first"], k, v, state)
        return {"y": y}, after._asdict()

    def egrucell(self, node, inputs, state):
        before = EGRUState(state["c"], state["c"], state["trace"])
        thr = self.arrays[node.name]["thr"]
        o, after = egru_cell(inputs["a"], inputs["q"], thr, before, surrogate=Triangle(), zoneout=node.op.zoneout)
        self.saw(node, events=self.count_nonzero(o))
        return after._asdict()

    def lstmcell(self, node, inputs, state):
        i, f, g, o = (inputs["a"] + inputs["q"]).chunk(4, 1)
        c = torch.sigmoid(f) * state["c"] + torch.sigmoid(i) * torch.tanh(g)
        return {"h": torch.sigmoid(o) * torch.tanh(c), "c": c}

    def grucell(self, node, inputs, state):
        (a_r, a_z, a_n), (q_r, q_z, q_n) = inputs["a"].chunk(3, 1), inputs["q"].chunk(3, 1)
        n = torch.tanh(a_n + torch.sigmoid(a_r + q_r) * q_n)
        return {"h": n + torch.sigmoid(a_z + q_z) * (state["h"] - n)}

    def spike(self, node, inputs):
        s = (inputs["x"] >= 0).to(inputs["x"].dtype)
        self.saw(node, events=self.count_nonzero(s))
        return {"out": s}

    def lifcell(self, node, inputs, state):
        s, v, h = lif_step(inputs["x"], state["v"], **self.lif_settings(node), detach_reset=False)
        self.saw_spikes(node, inputs["x"], s)
        return {"s": torch.where(s != 0, h, 0) if isinstance(node.op, GradedLIFCell) else s, "v": v}

    ternarylifcell = gradedlifcell = lifcell

    def lif_settings(self, node):
        names = ("tau", "theta", "v_reset", "decay_input", "fire", "ternary")
        return {**{n: getattr(node.op, n) for n in names}, **self.arrays[node.name], "surrogate": Triangle()}

    def cubalifcell(self, node, inputs, state):
        x = inputs["x"]
        out = cuba_lif_step(node.op, x, state["i"], state["v"], step=lambda u: (u > 0).to(x.dtype))
        self.saw_spikes(node, x, out["s"])
        return out

    def wkvcell(self, node, inputs, state):
        arrays = self.arrays[node.name]
        w, before = -torch.exp(arrays["time_decay"]), WKVState(state["p"], state["q"], state["o"])
        y, after = wkv_step(w, arrays["time_first"], inputs["k"], inputs["v"], before)
        return {"y": y, **after._asdict()}

    def layernorm(self, node, inputs):
        x, arrays = inputs["x"], self.arrays[node.name]
        return {"out": F.layer_norm(x, x.shape[-1:], arrays["weight"], arrays["bias"], node.op.eps)}

    def affine(self, node, inputs):
        arrays = self.arrays[node.name]
        return {"out": inputs["x"] * arrays["scale"] + arrays["offset"]}

    def mix(self, node, inputs):
        arrays, x, before = self.arrays[node.name], inputs["x"], inputs["before"]
        out = x * arrays["share"] + before * arrays["rest"]
        return {"out": out + arrays["bias"] if "bias" in arrays else out}

    def sigmoid(self, node, inputs):
        return {"out": torch.sigmoid(inputs["x"])}

    def squaredrelu(self, node, inputs):
        y = torch.relu(inputs["x"]) ** 2
        self.saw(node, events=self.count_nonzero(y))
        return {"out": y}

    def multiply(self, node, inputs):
        return {"out": inputs["a"] * inputs["b"]}

    def add(self, node, inputs):
        return {"out": inputs["a"] + inputs["b"]}


def run(graph, tokens, state, record, device: str = "cpu") -> Trace:
    """As of every simulator; raises ConfigError: no such device here."""
    if device == "cpu":
        return execute(graph, tokens, state, TorchKernels(), record)
    from rheobase.backends.simulators._gpu import GPUKernels

    return execute(graph, tokens, state, GPUKernels(device), record)
