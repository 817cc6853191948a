"""The integer simulator: a graph quantised for SpiNNaker 2, unpartitioned, in the arithmetic of its specification."""

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import arithmetic_rwkv as rwkv
from rheobase.backends.exporters.spinnaker2.quantise import embed
from rheobase.backends.exporters.spinnaker2.quantise.ops import IntegerOp
from rheobase.backends.simulators._executor import Kernels, by
from rheobase.spiking.errors import UnsupportedError


class IntegerKernels(Kernels):
    """Kernels over int64 arrays that hold the specification's int8, int16 and int32 values."""

    def begin(self, graph):
        for node in graph.nodes:
            if node.arrays and not isinstance(node.op, IntegerOp):
                remedy = "take the graph that exporters.spinnaker2.quantise.quantise(graph, tokens) gives"
                raise UnsupportedError(f"simulate on integer: {node.name}", "an op of integers", f"{node.op}", remedy)
        self.arrays = {n.name: graph.arrays_of(n) for n in graph.nodes}
        self.sigmoid, self.tanh, self.power = ints.sigmoid_table(), ints.tanh_table(), rwkv.power_table()

    def zeros(self, *shape):
        return np.zeros(shape, np.int64)

    def full(self, shape, value):
        return np.full(shape, value, np.int64)

    def from_numpy(self, array):
        return np.asarray(array, np.int64)

    def _wide(self, node, *roles):
        """A node's arrays in int64, so that no product of theirs is taken in fewer bits."""
        return [self.arrays[node.name][role].astype(np.int64) for role in roles]

    def integerembedding(self, node, inputs):
        arrays = self.arrays[node.name]
        return {"out": embed(arrays["table"], arrays["exponent"], node.op.out_frac, inputs["token"][:, 0])}

    def integerlinear(self, node, inputs):
        arrays = self.arrays[node.name]
        weight = arrays["weight"].T if node.op.transposed else arrays["weight"]
        total = ints.accumulate(inputs["x"], weight, arrays["bias"])
        finish = rwkv.narrow if node.op.bits == 16 else ints.rescale
        return {"out": finish(total, node.op.shift(arrays["exponent"]))}

    def integeregrucell(self, node, inputs, state):
        tables = self.sigmoid, self.tanh
        y, c = ints.egru_tick(inputs["a"], inputs["q"], state["c"], *self._wide(node, "thr"), node.op.zoneout, *tables)
        return {"y": y, "c": c}

    def spike(self, node, inputs):
        return {"out": (inputs["x"] >= 0).astype(np.int64)}

    def integermix(self, node, inputs):
        factors = self._wide(node, "share", "rest", "bias")
        return {"out": rwkv.mix(inputs["x"], inputs["before"], *factors, node.op.shift)}

    def integeraffine(self, node, inputs):
        scale, offset = self._wide(node, "scale", "offset")
        return {"out": rwkv.mix(inputs["x"], 0, scale, 0, offset, node.op.shift)}

    def integerlayernorm(self, node, inputs):
        factors = self._wide(node, "weight", "bias")
        return {"out": rwkv.layer_norm(inputs["x"], *factors, node.op.eps, node.op.shift)}

    def integersigmoid(self, node, inputs):
        return {"out": ints.look_up(self.sigmoid, ints.rescale(inputs["x"], node.op.in_frac - ints.PRE_FRAC))}

    def integersquaredrelu(self, node, inputs):
        return {"out": rwkv.squared_relu(inputs["x"], node.op.shift)}

    def integermultiply(self, node, inputs):
        return {"out": rwkv.multiply(inputs["a"], inputs["b"], node.op.shift)}

    def integeradd(self, node, inputs):
        op = node.op
        return {"out": rwkv.add(inputs["a"], inputs["b"], op.a_frac, op.b_frac, op.out_frac)}

    def integerlifcell(self, node, inputs, state):
        factors = self._wide(node, "leak", "gain", "offset", "threshold", "step")
        s, v, _ = rwkv.lif_tick(inputs["x"], state["v"], *factors, node.op.v_reset, node.op.ternary)
        return {"s": s, "v": v}

    integerternarylifcell = integerlifcell

    def integergradedlifcell(self, node, inputs, state):
        factors = self._wide(node, "leak", "gain", "offset", "threshold", "step")
        s, v, h = rwkv.lif_tick(inputs["x"], state["v"], *factors, node.op.v_reset, node.op.ternary)
        return {"s": np.where(s != 0, h, 0), "v": v}

    def integerwkvcell(self, node, inputs, state):
        sums = state["p"], state["q"], state["o"]
        factors = self._wide(node, "decay", "first")
        y, p, q, o = rwkv.wkv_tick(inputs["k"], inputs["v"], *sums, *factors, node.op.k_frac, self.power)
        return {"y": y, "p": p, "q": q, "o": o}


run = by(IntegerKernels)
