"""The integer simulator: a graph quantised for SpiNNaker 2, unpartitioned, in the arithmetic of its specification."""

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2.quantise import embed
from rheobase.backends.simulators._executor import Kernels


class IntegerKernels(Kernels):
    """Kernels over int64 arrays that hold the specification's int8, int16 and int32 values."""

    def begin(self, graph):
        self.arrays = {n.name: graph.arrays_of(n) for n in graph.nodes}
        self.sigmoid, self.tanh = ints.sigmoid_table(), ints.tanh_table()

    def zeros(self, *shape):
        return np.zeros(shape, np.int64)

    def from_numpy(self, array):
        return np.asarray(array, np.int64)

    def stack(self, arrays):
        return np.stack(arrays)

    def shift(self, whole, first):
        return np.concatenate([first[None], whole[:-1]]) if len(whole) else whole

    def integerembedding(self, node, inputs):
        arrays = self.arrays[node.name]
        return {"out": embed(arrays["table"], arrays["exponent"], node.op.out_frac, inputs["token"][:, 0])}

    def integerlinear(self, node, inputs):
        arrays = self.arrays[node.name]
        weight = arrays["weight"].T if node.op.transposed else arrays["weight"]
        total = ints.accumulate(inputs["x"], weight, arrays["bias"])
        return {"out": ints.shift_right(total, node.op.shift(arrays["exponent"]))}

    def integeregrucell(self, node, inputs, state):
        thr = self.arrays[node.name]["thr"].astype(np.int64)
        tables = self.sigmoid, self.tanh
        y, c = ints.egru_tick(inputs["a"], inputs["q"], state["c"], thr, node.op.zoneout, *tables)
        return {"y": y, "c": c}


KERNELS = IntegerKernels
