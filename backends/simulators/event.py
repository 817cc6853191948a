"""The event-driven simulator on the CPU: for every event one weight row is read; silent units cost nothing.

Products whose operand is DENSE are dense, and are counted so. N items (streams, or streams x steps), H units.
"""

import math

import numpy as np

from rheobase.backends.simulators._cells import cuba_lif_step
from rheobase.backends.simulators._executor import Kernels
from rheobase.spiking.graph import Conv2d, EGRUCell, Linear, WKVCell
from rheobase.spiking.ops.egru.reference import TRACE_DECAY
from rheobase.spiking.ops.native import Gather
from rheobase.spiking.ops.native.egru import egru_sequence
from rheobase.spiking.tally import BINARY, EVENT_KINDS, TERNARY, Counts, Tally


def sigmoid(x):
    """1 / (1 + e^-x), without overflow for any x."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def sliding_windows(images, kernel, stride):
    """Images [.., H, W] -> their windows of a size `kernel`, `stride` apart, [.., H', W', *kernel]."""
    return np.lib.stride_tricks.sliding_window_view(images, kernel, (-2, -1))[..., ::stride, ::stride, :, :]


class EventKernels(Kernels):
    """Kernels in NumPy with the C gather and the C EGRU layer; they count what they do as they do it."""

    def begin(self, graph):
        self.graph = graph
        self.counts: dict[str, dict[str, int]] = {}
        self.kind = {n.name: {p: e.kind for p, e in graph.inputs_of(n.name).items()} for n in graph.nodes}
        self.arrays = {}
        for node in graph.nodes:
            arrays = graph.arrays_of(node)
            if isinstance(node.op, Linear):
                weight = arrays["weight"].T if node.op.transposed else arrays["weight"]
                arrays = {"product": Gather(weight, arrays.get("bias"))}
            if isinstance(node.op, Conv2d):
                weight = arrays["weight"]
                arrays = {"weight": weight, "product": Gather(weight.reshape(len(weight), -1).T, arrays.get("bias"))}
            if isinstance(node.op, WKVCell):
                arrays = {**arrays, "w": -np.exp(arrays["time_decay"])}
            self.arrays[node.name] = arrays
        self.dtype = np.result_type(*(a.dtype for a in graph.arrays.values()))
        self.size = self.dtype.itemsize

    def zeros(self, *shape):
        return np.zeros(shape, self.dtype)

    def from_numpy(self, array):
        return np.asarray(array, self.dtype)

    def stack(self, arrays):
        return np.stack(arrays)

    def shift(self, whole, first):
        return np.concatenate([first[None], whole[:-1]]) if len(whole) else whole

    def tally(self, tokens):
        return Tally(tokens, {name: _counts(entry) for name, entry in self.counts.items()})

    def count(self, name, **numbers):
        """Add to the counts of an operator; transcendentals are given by their kind."""
        entry = self.counts.setdefault(name, {})
        for key, number in numbers.items():
            entry[key] = entry.get(key, 0) + int(number)

    def embedding(self, node, inputs):
        table = self.arrays[node.name]["table"]
        token = inputs["token"][:, 0]
        n_bytes = token.size * table.shape[1] * self.size
        self.count(node.name, rows=token.size, weight_bytes=n_bytes, activation_bytes=n_bytes)
        return {"out": table[token]}

    def linear(self, node, inputs):
        out, rows = self.product(node, inputs["x"])
        self.count_linear(node, len(out), rows)
        return {"out": out}

    def product(self, node, x):
        """(x weight + bias of a product's node, weight rows that were read): those of events alone, else all."""
        product = self.arrays[node.name]["product"]
        if self.kind[node.name]["x"] in EVENT_KINDS:
            return product(x)
        out = x @ product.weight
        if product.bias is not None:
            out += product.bias
        return out, x.size

    def count_linear(self, node, n_items, rows):
        product, kind = self.arrays[node.name]["product"], self.kind[node.name]["x"]
        n_in, n_out = product.weight.shape
        self.count(
            node.name,
            dense_macs=n_items * n_in * n_out,
            rows=rows,
            deliveries=rows if kind in EVENT_KINDS else 0,
            adds=0 if product.bias is None else n_items * n_out,
            weight_bytes=(rows * n_out + (n_items * n_out if product.bias is not None else 0)) * self.size,
            activation_bytes=(rows + n_items * n_out) * self.size,
            **{"acs" if kind in (BINARY, TERNARY) else "macs": rows * n_out},
        )

    def conv2d(self, node, inputs):
        """Each window is an item of one product: an event's row is read in every window that holds the event."""
        op, x, weight = node.op, inputs["x"], self.arrays[node.name]["weight"]
        n_out, n_in = weight.shape[:2]
        out, read = np.empty((len(x), math.prod(op.image(weight))), self.dtype), 0
        edge = (0, 0), *2 * ((op.padding, op.padding),)
        for image, result in zip(x.reshape(len(x), n_in, *op.size), out, strict=True):
            windows = sliding_windows(np.pad(image, edge), weight.shape[2:], op.stride)
            sums, rows = self.product(node, windows.transpose(1, 2, 0, 3, 4).reshape(-1, weight[0].size))
            result[:] = sums.T.reshape(-1)
            read += rows
        dense, kind = len(x) * op.taps(weight) * n_out, self.kind[node.name]["x"]
        done = read * n_out if kind in EVENT_KINDS else dense
        rows = np.count_nonzero(x) if kind in EVENT_KINDS else x.size
        biases = 0 if self.arrays[node.name]["product"].bias is None else out.size
        self.count(
            node.name,
            dense_macs=dense,
            rows=rows,
            deliveries=rows if kind in EVENT_KINDS else 0,
            adds=biases,
            weight_bytes=(done + biases) * self.size,
            activation_bytes=(rows + out.size) * self.size,
            **{"acs" if kind in (BINARY, TERNARY) else "macs": done},
        )
        return {"out": out}

    def maxpool2d(self, node, inputs):
        op, x = node.op, inputs["x"]
        images = x.reshape(len(x), x.shape[1] // math.prod(op.size), *op.size)
        out = sliding_windows(images, (op.kernel, op.kernel), op.stride).max((-2, -1))
        self.count(
            node.name,
            comparisons=(op.kernel**2 - 1) * out.size,
            events=np.count_nonzero(out) if op.kind in EVENT_KINDS else 0,
            activation_bytes=(x.size + out.size) * self.size,
        )
        return {"out": out.reshape(len(x), math.prod(out.shape[1:]))}

    def relu(self, node, inputs):
        x = inputs["x"]
        y = np.maximum(x, 0)
        n_events = np.count_nonzero(y)
        self.count(node.name, comparisons=x.size, events=n_events, activation_bytes=(x.size + n_events) * self.size)
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
        self.count_egrucell(node, c.size, np.count_nonzero(o))
        trace = TRACE_DECAY * state["trace"] + (1 - TRACE_DECAY) * y
        return {"y": y, "c": np.where(o, p - thr, p), "trace": trace}

    def count_egrucell(self, node, n, n_events):
        self.count(
            node.name,
            products=(9 if node.op.zoneout else 7) * n,
            adds=(9 if node.op.zoneout else 8) * n,
            state_updates=2 * n,
            event_updates=2 * n,
            comparisons=n,
            events=n_events,
            sigmoid=2 * n,
            tanh=n,
            state_bytes=4 * n * self.size,
            weight_bytes=n * self.size,
            activation_bytes=(6 * n + n_events) * self.size,
        )

    def sequence(self, nodes, edges, values, carried):
        """An EGRU layer in C: a cell with the product of its own last events, as `egrucell` and `linear` step it."""
        by_op = {type(n.op): n for n in nodes}
        if len(nodes) != 2 or by_op.keys() != {Linear, EGRUCell}:
            return None
        cell, linear = by_op[EGRUCell], by_op[Linear]
        a, q, x = edges[cell.name]["a"], edges[cell.name]["q"], edges[linear.name]["x"]
        inside = (x.source, x.delay, q.source, q.delay) == (f"{cell.name}.y", 1, f"{linear.name}.out", 0)
        product, thr = self.arrays[linear.name]["product"], self.arrays[cell.name]["thr"]
        typed = product.dtype == thr.dtype == self.dtype
        if not inside or a.delay or a.source == q.source or not typed or product.function is None:
            return None
        before = tuple(carried[f"{cell.name}.{port}"] for port in ("y", "c", "trace"))
        run = egru_sequence(values[a.source], product, thr, before, zoneout=cell.op.zoneout, decay=TRACE_DECAY)
        steps, streams = run.q.shape[:2]
        self.count_linear(linear, steps * streams, run.rows)
        self.count_egrucell(cell, steps * streams * thr.size, run.events)
        outputs = {q.source: run.q, **{f"{cell.name}.{port}": getattr(run, port)[1:] for port in cell.op.outputs}}
        return outputs, {f"{cell.name}.{port}": getattr(run, port)[-1].copy() for port in cell.op.state}

    def lstmcell(self, node, inputs, state):
        c = state["c"]
        i, f, g, o = np.split(inputs["a"] + inputs["q"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        n = c.size
        self.count(
            node.name,
            products=3 * n,
            adds=5 * n,
            state_updates=n,
            event_updates=n,
            sigmoid=3 * n,
            tanh=2 * n,
            state_bytes=2 * n * self.size,
            activation_bytes=9 * n * self.size,
        )
        return {"h": sigmoid(o) * np.tanh(c), "c": c}

    def grucell(self, node, inputs, state):
        h = state["h"]
        (a_r, a_z, a_n), (q_r, q_z, q_n) = (np.split(inputs[port], 3, axis=1) for port in "aq")
        new = np.tanh(a_n + sigmoid(a_r + q_r) * q_n)
        n = h.size
        self.count(
            node.name,
            products=2 * n,
            adds=5 * n,
            state_updates=n,
            event_updates=n,
            sigmoid=2 * n,
            tanh=n,
            state_bytes=2 * n * self.size,
            activation_bytes=7 * n * self.size,
        )
        return {"h": new + sigmoid(a_z + q_z) * (h - new)}

    def spike(self, node, inputs):
        s = (inputs["x"] >= 0).astype(self.dtype)
        n, sent = s.size, np.count_nonzero(s)
        self.count(node.name, comparisons=n, events=sent, activation_bytes=(n + sent) * self.size)
        return {"out": s}

    def lifcell(self, node, inputs, state, ternary=False, graded=False):
        op, x, v, arrays = node.op, inputs["x"], state["v"], self.arrays[node.name]
        tau, theta = arrays.get("tau", op.tau), arrays.get("theta", op.theta)
        above = v - op.v_reset if op.v_reset else v
        h = v + (x - above) / tau if op.decay_input else v - above / tau + x
        beyond = np.greater if op.fire == ">" else np.greater_equal
        s = fired = beyond(h - theta, 0).astype(self.dtype)
        if ternary:
            below = beyond(-h - theta, 0).astype(self.dtype)
            s, fired = s - below, s + below
        n, sent = x.size, np.count_nonzero(s)
        self.count(
            node.name,
            products=n,
            division=n,
            adds=(7 if ternary else 4) * n + (2 * n if op.v_reset else 0),
            comparisons=(2 if ternary else 1) * n,
            state_updates=n,
            event_updates=self.reached(node, x),
            events=sent,
            weight_bytes=len(arrays) * n * self.size,
            state_bytes=2 * n * self.size,
            activation_bytes=(n + sent) * self.size,
        )
        after = h - s * theta if op.v_reset is None else h - fired * (h - op.v_reset)
        return {"s": np.where(fired, h, 0) if graded else s, "v": after}

    def reached(self, node, x):
        """Updates that its input brings about: none by a row of zeros, where events bring it and nothing else."""
        source = self.graph.node(self.graph.inputs_of(node.name)["x"].source_node)
        product = self.arrays[source.name].get("product")
        by_events = product is not None and product.bias is None and self.kind[source.name]["x"] in EVENT_KINDS
        return np.count_nonzero(x.any(1)) * x.shape[1] if by_events else x.size

    def ternarylifcell(self, node, inputs, state):
        return self.lifcell(node, inputs, state, ternary=True)

    def gradedlifcell(self, node, inputs, state):
        return self.lifcell(node, inputs, state, ternary=node.op.ternary, graded=True)

    def cubalifcell(self, node, inputs, state):
        op, x = node.op, inputs["x"]
        out = cuba_lif_step(op, x, state["i"], state["v"], step=lambda u: (u > 0).astype(self.dtype))
        n, sent, parts = x.size, np.count_nonzero(out["s"]), 1 + (op.alpha != 0)
        self.count(
            node.name,
            products=(parts + (op.gain != 1) + (op.reset != "never")) * n,
            adds=(3 + 2 * (op.reset != "never")) * n,
            comparisons=(1 + (op.reset == "next")) * n,
            state_updates=parts * n,
            event_updates=parts * self.reached(node, x),
            events=sent,
            state_bytes=2 * parts * n * self.size,
            activation_bytes=(n + sent) * self.size,
        )
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
        n = k.size
        self.count(
            node.name,
            products=6 * n,
            adds=10 * n,
            exp=4 * n,
            division=n,
            comparisons=2 * n,
            state_updates=3 * n,
            event_updates=3 * n,
            weight_bytes=2 * n * self.size,
            state_bytes=6 * n * self.size,
            activation_bytes=3 * n * self.size,
        )
        return {"y": y, "p": a * p + e * v, "q": a * q + e, "o": most}

    def layernorm(self, node, inputs):
        x, arrays = inputs["x"], self.arrays[node.name]
        centred = x - x.mean(1, keepdims=True)
        scale = 1 / np.sqrt(np.square(centred).mean(1, keepdims=True) + node.op.eps)
        self.count(
            node.name,
            products=3 * x.size + 2 * len(x),
            adds=4 * x.size - len(x),
            rsqrt=len(x),
            weight_bytes=2 * x.size * self.size,
            activation_bytes=2 * x.size * self.size,
        )
        return {"out": centred * scale * arrays["weight"] + arrays["bias"]}

    def affine(self, node, inputs):
        x, arrays = inputs["x"], self.arrays[node.name]
        self.count(
            node.name,
            products=x.size,
            adds=x.size,
            weight_bytes=2 * x.size * self.size,
            activation_bytes=2 * x.size * self.size,
        )
        return {"out": x * arrays["scale"] + arrays["offset"]}

    def mix(self, node, inputs):
        x, arrays = inputs["x"], self.arrays[node.name]
        share = arrays["share"].reshape(-1)
        self.count(
            node.name,
            products=2 * x.size,
            adds=(2 if "bias" in arrays else 1) * x.size,
            weight_bytes=len(arrays) * x.size * self.size,
            activation_bytes=3 * x.size * self.size,
        )
        out = x * share + inputs["before"] * arrays.get("rest", 1 - share)
        return {"out": out + arrays["bias"] if "bias" in arrays else out}

    def sigmoid(self, node, inputs):
        n = inputs["x"].size
        self.count(node.name, sigmoid=n, activation_bytes=2 * n * self.size)
        return {"out": sigmoid(inputs["x"])}

    def squaredrelu(self, node, inputs):
        y = np.square(np.maximum(inputs["x"], 0))
        n, sent = y.size, np.count_nonzero(y)
        self.count(node.name, comparisons=n, products=n, events=sent, activation_bytes=(n + sent) * self.size)
        return {"out": y}

    def multiply(self, node, inputs):
        n = inputs["a"].size
        self.count(node.name, products=n, activation_bytes=3 * n * self.size)
        return {"out": inputs["a"] * inputs["b"]}

    def add(self, node, inputs):
        n = inputs["a"].size
        self.count(node.name, adds=n, activation_bytes=3 * n * self.size)
        return {"out": inputs["a"] + inputs["b"]}


_TRANSCENDENTALS = ("sigmoid", "tanh", "exp", "rsqrt", "division")


def _counts(entry: dict[str, int]) -> Counts:
    plain = {k: v for k, v in entry.items() if k not in _TRANSCENDENTALS}
    return Counts(**plain, transcendentals={k: entry[k] for k in _TRANSCENDENTALS if k in entry})


KERNELS = EventKernels
