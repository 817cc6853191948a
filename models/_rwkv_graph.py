"""Lowers a stack of RWKV blocks, whatever the placement of their neurons, to an EventGraph.

V vocabulary, D width. Norms whose statistics are constants vanish here: into the embedding's table, into the mixes,
into the head.
"""

import torch
from torch import Tensor

from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.graph import (
    Add,
    Affine,
    Edge,
    Embedding,
    EventGraph,
    LayerNorm,
    Linear,
    Mix,
    Multiply,
    Node,
    Op,
    Sigmoid,
    Spike,
    SquaredRelu,
    Tokens,
    WKVCell,
    array_of,
)


@torch.no_grad()
def lower(model) -> EventGraph:
    """The whole model in evaluation semantics; edges declare events only where events are sent.

    raises  UnsupportedError: a norm that is not yet removed, or a neuron that no graph op computes
    """
    return _Lowering(model).graph()


class _Lowering:
    def __init__(self, model):
        self.model, self.config, self.d = model, model.config, model.config.embedding
        self.fed = self.config.placement == "spike_fed"
        self.static = self.config.norm == "static"
        self.nodes, self.edges = [], []
        self.arrays = {name: array_of(tensor, name) for name, tensor in model.named_parameters()}
        if self.static and not model.complete:
            where, share = "spikegpt norm", f"removed to {100 * model.ln_out.removed:.0f} %"
            raise UnsupportedError(where, "norms that are removed", share, "train to the end of the schedule")

    def graph(self) -> EventGraph:
        c, model = self.config, self.model
        self.nodes.append(Node("tokens", Tokens(c.vocabulary)))
        x = self.embedding()
        for i, block in enumerate(model.blocks):
            name = f"blocks.{i}"
            a = self.norm(f"{name}.ln1", x)
            y = self.channel_mix(f"{name}.ffnPre", a) if block.pre else self.time_mix(f"{name}.att", a)
            x = self.residual(f"{name}.lif1", x, y)
            x = self.residual(f"{name}.lif2", x, self.channel_mix(f"{name}.ffn", self.norm(f"{name}.ln2", x)))
        self.head(x)
        return EventGraph(tuple(self.nodes), tuple(self.edges), self.arrays, {"logits": "head.out"})

    def add(self, name: str, op: Op, arrays=None, **inputs) -> str:
        """A node whose inputs are given as port = (source, width[, delay]); its first output."""
        self.nodes.append(Node(name, op, arrays or {}))
        kinds = {n.name: n.op.outputs for n in self.nodes}
        for port, (source, width, *delay) in inputs.items():
            node, _, out = source.rpartition(".")
            self.edges.append(Edge(source, f"{name}.{port}", kinds[node][out], (width,), *delay))
        return f"{name}.{next(iter(op.outputs))}"

    def derived(self, name: str, tensor: Tensor) -> str:
        """A name for an array that is computed from parameters."""
        self.arrays[name] = array_of(tensor, name)
        return name

    def embedding(self) -> str:
        c, d, model = self.config, self.d, self.model
        if self.static:
            ids = torch.arange(c.vocabulary, device=model.emb.weight.device)
            table = self.derived("emb.folded", model.blocks[0].ln0(model.embed(ids)))
            return self.add("emb", Embedding(), {"table": table}, token=("tokens.out", c.vocabulary))
        x = self.add("emb", Embedding(), {"table": "emb.weight"}, token=("tokens.out", c.vocabulary))
        if c.binary_embedding:
            x = self.add("emb.spike", Spike(), x=(x, d))
        return self.norm("blocks.0.ln0", x)

    def norm(self, name: str, x: str) -> str:
        """A LayerNorm's node; where it is removed, x itself: its linear form goes into what reads it."""
        if self.static:
            return x
        arrays = {role: f"{name}.{role}" for role in ("weight", "bias")}
        return self.add(name, LayerNorm(self.model.get_submodule(name).eps), arrays, x=(x, self.d))

    def mixed(self, name: str, x: str) -> str:
        """The mix of this token and the one before, with the removed norm of its block inside."""
        arrays = {"share": name}
        if self.static:
            block, mixer, _ = name.rsplit(".", 2)
            norm = self.model.get_submodule(f"{block}.{'ln1' if mixer == 'att' else 'ln2'}")
            share = self.model.get_parameter(name).reshape(-1)
            folded = {"share": norm.scale() * share, "rest": norm.scale() * (1 - share), "bias": norm.offset()}
            arrays = {role: self.derived(f"{name}.{role}", tensor) for role, tensor in folded.items()}
        return self.add(name, Mix(), arrays, x=(x, self.d), before=(x, self.d, 1))

    def neuron(self, name: str, x: str, width: int) -> str:
        cell = self.model.get_submodule(name)
        op = cell.lower()
        roles = {role.rstrip("?") for role in op.roles}
        learnt = {parameter: f"{name}.{parameter}" for parameter, _ in cell.named_parameters()}
        if lost := sorted(learnt.keys() - roles):
            wanted = f"parameters that {type(op).__name__} has: {', '.join(sorted(roles)) or 'none'}"
            raise UnsupportedError(name, wanted, ", ".join(lost), "name them so, or give the neuron no lower()")
        return self.add(name, op, learnt, x=(x, width))

    def linear(self, name: str, x: str, width: int) -> str:
        return self.add(name, Linear(transposed=True), {"weight": f"{name}.weight"}, x=(x, width))

    def read(self, name: str, port: str, x: str) -> str:
        """The linear layer `port` of a mix, fed by the mixed values or by their spikes."""
        x = self.mixed(f"{name}.time_mix_{port[0]}", x)
        x = self.neuron(f"{name}.lif_{port[0]}", x, self.d) if self.fed else x
        return self.linear(f"{name}.{port}", x, self.d)

    def gated(self, name: str, x: str, y: str) -> str:
        gate = self.add(f"{name}.gate", Sigmoid(), x=(self.read(name, "receptance", x), self.d))
        return self.add(f"{name}.product", Multiply(), a=(gate, self.d), b=(y, self.d))

    def time_mix(self, name: str, x: str) -> str:
        k, v = self.read(name, "key", x), self.read(name, "value", x)
        arrays = {role: f"{name}.{role}" for role in WKVCell.roles}
        y = self.gated(name, x, self.add(f"{name}.wkv", WKVCell(), arrays, k=(k, self.d), v=(v, self.d)))
        y = self.neuron(f"{name}.lif_o", y, self.d) if self.fed else y
        return self.linear(f"{name}.output", y, self.d)

    def channel_mix(self, name: str, x: str) -> str:
        k, wide = self.read(name, "key", x), 4 * self.d
        if self.fed:
            k = self.neuron(f"{name}.lif_h", k, wide)
        else:
            k = self.add(f"{name}.relu", SquaredRelu(), x=(k, wide))
        return self.gated(name, x, self.linear(f"{name}.value", k, wide))

    def residual(self, name: str, x: str, y: str) -> str:
        if self.config.placement == "reference":
            y = self.neuron(name, y, self.d)
        return self.add(f"{name}.add", Add(), a=(x, self.d), b=(y, self.d))

    def head(self, x: str) -> None:
        model, norm, arrays = self.model, self.model.ln_out, {"weight": "head.weight"}
        if self.config.head == "spiking":
            if self.static:
                folded = {"scale": norm.scale(), "offset": norm.offset()}
                arrays_of = {role: self.derived(f"ln_out.{role}", tensor) for role, tensor in folded.items()}
                x = self.add("ln_out", Affine(), arrays_of, x=(x, self.d))
            x = self.neuron("lif_out", self.norm("ln_out", x), self.d)
        elif self.static:
            weight = model.head.weight
            arrays = {
                "weight": self.derived("head.folded", weight * norm.scale()),
                "bias": self.derived("head.bias", weight @ norm.offset()),
            }
        else:
            x = self.norm("ln_out", x)
        self.add("head", Linear(transposed=True), arrays, x=(x, self.d))
