"""The event-driven simulator on the CPU: for every event one weight row is read; silent units cost nothing.

Products whose operand is DENSE are dense. N items (streams, or streams x steps), H units.
"""

import math

import numpy as np

from rheobase.backends.simulators._cells import cuba_lif_step, egru_layer
from rheobase.backends.simulators._counting import Counting
from rheobase.backends.simulators._executor import by, number_type
from rheobase.spiking.graph import Conv2d, GradedLIFCell, Linear, WKVCell
from rheobase.spiking.graph.images import sliding_windows
from rheobase.spiking.ops.egru.reference import TRACE_DECAY
from rheobase.spiking.ops.native import Gather
from rheobase.spiking.ops.native.egru import egru_sequence
from rheobase.spiking.tally import EVENT_KINDS


def sigmoid(x):
    """1 / (1 + e^-x), without overflow or cancellation for any x."""
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


class EventKernels(Counting):
    """Kernels in NumPy with the C gather and the C EGRU layer; they count what they do as they do it."""

    def begin(self, graph):
        super().begin(graph)
        self.arrays, self.dtype = {}, number_type(graph)
        for node in graph.nodes:
            arrays = {role: np.asarray(array, self.dtype) for role, array in graph.arrays_of(node).items()}
            if isinstance(node.op, Linear):
                weight = arrays["weight"].T if node.op.transposed else arrays["weight"]
                arrays = {"product": Gather(weight, arrays.get("bias"))}
            if isinstance(node.op, Conv2d):
                weight = arrays["weight"]
                arrays = {"weight": weight, "product": Gather(weight.reshape(len(weight), -1).T, arrays.get("bias"))}
            if isinstance(node.op, WKVCell):
                arrays = {**arrays, "w": -np.exp(arrays["time_decay"])}
            self.arrays[node.name] = arrays

    def zeros(self, *shape):
        return np.zeros(shape, self.dtype)

    def from_numpy(self, array):
        return np.asarray(array, self.dtype)

    def count_nonzero(self, array):
        return np.count_nonzero(array)

    def embedding(self, node, inputs):
        table = self.arrays[node.name]["table"]
        return {"out": table[inputs["token"][:, 0]]}

    def linear(self, node, inputs):
        out, rows = self.product(node, inputs["x"])
        self.saw(node, rows=rows)
        return {"out": out}

    def product(self, node, x):
        """(x weight + bias of a product's node, weight rows that were read): those of events alone, else all."""
        product = self.arrays[node.name]["product"]
        if self.kind[node.name]["x"] in EVENT_KINDS:
            return product(x)
        return product.dense(x), x.size

    def conv2d(self, node, inputs):
        """Each window is an item of one product: an event's row is read in every window that holds the event."""
        op, x, weight = node.op, inputs["x"], self.arrays[node.name]["weight"]
        out, reads = np.empty((len(x), math.prod(op.image(weight))), self.dtype), 0
        edge = (0, 0), *2 * ((op.padding, op.padding),)
        for image, result in zip(x.reshape(len(x), weight.shape[1], *op.size), out, strict=True):
            windows = sliding_windows(np.pad(image, edge), weight.shape[2:], op.stride)
            sums, rows = self.product(node, windows.transpose(1, 2, 0, 3, 4).reshape(-1, weight[0].size))
            result[:] = sums.T.reshape(-1)
            reads += rows
        self.saw(node, rows=np.count_nonzero(x), reads=reads)
        return {"out": out}

    def maxpool2d(self, node, inputs):
        op, x = node.op, inputs["x"]
        images = x.reshape(len(x), x.shape[1] // math.prod(op.size), *op.size)
        out = sliding_windows(images, (op.kernel, op.kernel), op.stride).max((-2, -1))
        if op.kind in EVENT_KINDS:
            self.saw(node, events=np.count_nonzero(out))
        return {"out": out.reshape(len(x), math.prod(out.shape[1:]))}

    def sumpool2d(self, node, inputs):
        op, x = node.op, inputs["x"]
        edge = (0, 0), (0, 0), *2 * ((op.padding, op.padding),)
        images = np.pad(x.reshape(len(x), x.shape[1] // math.prod(op.size), *op.size), edge)
        out = sliding_windows(images, (op.kernel, op.kernel), op.stride).sum((-2, -1))
        out = out / op.kernel**2 if op.mean else out
        if op.kind in EVENT_KINDS:
            self.saw(node, events=np.count_nonzero(out))
        return {"out": out.reshape(len(x), math.prod(out.shape[1:]))}

    def relu(self, node, inputs):
        y = np.maximum(inputs["x"], 0)
        self.saw(node, events=np.count_nonzero(y))
        return {"out": y}

    def egrucell(self, node, inputs, state):
        a, q, c, zoneout = inputs["a"], inputs["q"], state["c"], node.op.zoneout
        units = c.shape[1]
        zr = sigmoid(a[:, : 2 * units] + q[:, : 2 * units])
        z, r = zr[:, :units], zr[:, units:]
        g = np.tanh(a[:, 2 * units :] + r * q[:, 2 * units :])
        p = z * c + (1 - z) * g
        if zoneout:
            p = zoneout * c + (1 - zoneout) * p
        thr = self.arrays[node.name]["thr"]
        o = p - thr > 0
        y = np.where(o, p, 0)
        self.saw(node, events=np.count_nonzero(o))
        trace = TRACE_DECAY * state["trace"] + (1 - TRACE_DECAY) * y
        return {"y": y, "c": np.where(o, p - thr, p), "trace": trace}

    def sequence(self, nodes, edges, values, carried, wanted):
        """An EGRU layer in C: a cell with the product of its own last events, as `egrucell` and `linear` step it."""
        layer = egru_layer(nodes, edges)
        if layer is None:
            return None
        cell, linear = layer
        a, q = (edges[cell.name][port] for port in "aq")
        product, thr = self.arrays[linear.name]["product"], self.arrays[cell.name]["thr"]
        if not product.dtype == thr.dtype == self.dtype or product.function is None:
            return None
        before = tuple(carried[f"{cell.name}.{port}"] for port in ("y", "c", "trace"))
        run = egru_sequence(values[a.source], product, thr, before, zoneout=cell.op.zoneout, decay=TRACE_DECAY)
        self.saw(linear, rows=run.rows)
        self.saw(cell, events=run.events)
        outputs = {q.source: run.q, **{f"{cell.name}.{port}": getattr(run, port)[1:] for port in cell.op.outputs}}
        return outputs, {f"{cell.name}.{port}": getattr(run, port)[-1].copy() for port in cell.op.state}

    def lstmcell(self, node, inputs, state):
        c = state["c"]
        i, f, g, o = np.split(inputs["a"] + inputs["q"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return {"h": sigmoid(o) * np.tanh(c), "c": c}

    def grucell(self, node, inputs, state):
        h = state["h"]
        (a_r, a_z, a_n), (q_r, q_z, q_n) = (np.split(inputs[port], 3, axis=1) for port in "aq")
        new = np.tanh(a_n + sigmoid(a_r + q_r) * q_n)
        return {"h": new + sigmoid(a_z + q_z) * (h - new)}

    def spike(self, node, inputs):
        s = (inputs["x"] >= 0).astype(self.dtype)
        self.saw(node, events=np.count_nonzero(s))
        return {"out": s}

    def lifcell(self, node, inputs, state):
        op, x, v, arrays = node.op, inputs["x"], state["v"], self.arrays[node.name]
        tau, theta = arrays.get("tau", op.tau), arrays.get("theta", op.theta)
        above = v - op.v_reset if op.v_reset else v
        h = v + (x - above) / tau if op.decay_input else v - above / tau + x
        beyond = np.greater if op.fire == ">" else np.greater_equal
        s = fired = beyond(h - theta, 0).astype(self.dtype)
        if op.ternary:
            below = beyond(-h - theta, 0).astype(self.dtype)
            s, fired = s - below, s + below
        self.saw_spikes(node, x, s)
        after = h - s * theta if op.v_reset is None else h - fired * (h - op.v_reset)
        return {"s": np.where(fired, h, 0) if isinstance(op, GradedLIFCell) else s, "v": after}

    ternarylifcell = gradedlifcell = lifcell

    def cubalifcell(self, node, inputs, state):
        x = inputs["x"]
        out = cuba_lif_step(node.op, x, state["i"], state["v"], step=lambda u: (u > 0).astype(self.dtype))
        self.saw_spikes(node, x, out["s"])
        return out

    def wkvcell(self, node, inputs, state):
        arrays, k, v = self.arrays[node.name], inputs["k"], inputs["v"]
        w, u = arrays["w"], arrays["time_first"]
        p, q, o = (state[name] for name in "pqo")
        now, past = u + k, w + o
        most = np.maximum(o, now)
        a, e = np.exp(o - most), np.exp(now - most)
        y = (a * p + e * v) / (a * q + e)
        most = np.maximum(past, k)
        a, e = np.exp(past - most), np.exp(k - most)
        return {"y": y, "p": a * p + e * v, "q": a * q + e, "o": most}

    def layernorm(self, node, inputs):
        x, arrays = inputs["x"], self.arrays[node.name]
        centred = x - x.mean(1, keepdims=True)
        scale = 1 / np.sqrt(np.square(centred).mean(1, keepdims=True) + node.op.eps)
        return {"out": centred * scale * arrays["weight"] + arrays["bias"]}

    def affine(self, node, inputs):
        x, arrays = inputs["x"], self.arrays[node.name]
        return {"out": x * arrays["scale"] + arrays["offset"]}

    def mix(self, node, inputs):
        x, arrays = inputs["x"], self.arrays[node.name]
        share = arrays["share"].reshape(-1)
        out = x * share + inputs["before"] * arrays.get("rest", 1 - share)
        return {"out": out + arrays["bias"] if "bias" in arrays else out}

    def sigmoid(self, node, inputs):
        return {"out": sigmoid(inputs["x"])}

    def squaredrelu(self, node, inputs):
        y = np.square(np.maximum(inputs["x"], 0))
        self.saw(node, events=np.count_nonzero(y))
        return {"out": y}

    def multiply(self, node, inputs):
        return {"out": inputs["a"] * inputs["b"]}

    def add(self, node, inputs):
        return {"out": inputs["a"] + inputs["b"]}


run = by(EventKernels)
