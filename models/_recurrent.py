"""What the recurrent language models share: settings, embedding, tied decoder, dropout and lowering.

B batch, T steps, V vocabulary, E embedding width, H units of a layer.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rheobase.models._pretrained import LanguageModel, check_settings
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.graph import Edge, Embedding, EventGraph, Linear, Node, Op, Relu, Tokens, arrays_of
from rheobase.spiking.tally import BINARY, DENSE, GRADED, mark


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Sizes and regularisers of a recurrent language model."""

    vocabulary: int = 256
    """number of token ids; 256 for bytes"""
    embedding: int = 192
    """width of the embedding, shared with the decoder"""
    layers: tuple[int, ...] = (192,)
    """units of each layer; the last is as wide as the embedding unless there is a projection"""
    projection: bool = False
    """a rectified linear layer from the last layer's width to the embedding's"""
    embedding_range: float = 0.1
    """the embedding starts uniform in plus or minus this"""
    dropconnect: float = 0.0
    """probability with which an element of a recurrent kernel is dropped in training"""
    dropout_words: float = 0.0
    """probability with which a word of the vocabulary is dropped for a step of training, wherever it stands"""
    dropout_embedding: float = 0.0
    """variational dropout after the embedding"""
    dropout_forward: float = 0.0
    """variational dropout between layers"""
    dropout_output: float = 0.0
    """variational dropout before the decoder"""


@dataclass(frozen=True)
class Lowering:
    """How a layer becomes two products and a cell.

    cell        the cell's op, with the inputs a and q
    arrays      its own arrays: role -> parameter name within the layer
    kernels     (weight, bias) of the product from below, and of the one from the layer's own output
    transposed  whether the weights are stored [out, in]
    gates       width of a pre-activation over the number of units
    port        the output that is sent on; its kind is the op's own word
    """

    cell: Op
    arrays: Mapping[str, str]
    kernels: tuple[tuple[str, str], tuple[str, str]]
    transposed: bool
    gates: int
    port: str

    def layer(self, name: str, below: str, kind: str, width: int, units: int) -> tuple[list[Node], list[Edge]]:
        """Nodes and edges of a layer of that name and size, on the output `below` of that kind and width."""
        fed, back = ({"weight": f"{name}.{weight}", "bias": f"{name}.{bias}"} for weight, bias in self.kernels)
        nodes = [Node(arrays["weight"], Linear(self.transposed), arrays) for arrays in (fed, back)]
        nodes.append(Node(name, self.cell, {role: f"{name}.{array}" for role, array in self.arrays.items()}))
        edges = [
            Edge(below, f"{fed['weight']}.x", kind, (width,)),
            Edge(f"{name}.{self.port}", f"{back['weight']}.x", self.cell.outputs[self.port], (units,), delay=1),
            Edge(f"{fed['weight']}.out", f"{name}.a", DENSE, (self.gates * units,)),
            Edge(f"{back['weight']}.out", f"{name}.q", DENSE, (self.gates * units,)),
        ]
        return nodes, edges


def variational_dropout(x_BTH: Tensor, p: float, training: bool) -> Tensor:
    """Dropout with one mask [B, 1, H] a sequence, shared over time (Gal and Ghahramani, NeurIPS 2016)."""
    if not training or p == 0:
        return x_BTH
    return x_BTH * F.dropout(x_BTH.new_ones(x_BTH.shape[0], 1, x_BTH.shape[2]), p)


def word_dropout(x_BTE: Tensor, tokens_BT: Tensor, vocabulary: int, p: float, training: bool) -> Tensor:
    """Dropout of whole words: m[token] x, with one mask m [V] a call, each 1 / (1 - p) or, with probability p, 0.

    The decoder that shares the table is not masked. Source: Gal and Ghahramani, NeurIPS 2016, section 4.2; "embedding
    dropout" of Merity, Keskar, Socher, ICLR 2018, section 4.3.
    """
    if not training or p == 0:
        return x_BTE
    return x_BTE * F.dropout(x_BTE.new_ones(vocabulary), p)[tokens_BT].unsqueeze(-1)


def in_own_type(forward: Callable) -> Callable:
    """Decorator: the `forward` of torch's own LSTM or GRU goes without autocast, in the type of its weights.

    On a GPU autocast hands them to cuDNN in float16, whichever type it was asked for (torch, AutocastRNN.cpp), and
    gradients of a mean over many tokens are too small for that; a CPU without bfloat16 of its own refuses an LSTM.
    """

    @functools.wraps(forward)
    def run(self, x_BTI, state=None):
        place = x_BTI.device.type
        if not torch.is_autocast_enabled(place):
            return forward(self, x_BTI, state)
        own = self.weight_hh_l0.dtype
        with torch.autocast(place, enabled=False):
            return forward(self, x_BTI.to(own), state and type(state)(*(part.to(own) for part in state)))

    return run


class TiedDecoder(nn.Module):
    """logits = h embedding^T + bias: the embedding's table is the decoder's weight."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, h_BTE: Tensor, table_VE: Tensor) -> Tensor:
        return F.linear(h_BTE, table_VE, self.bias)


class GradedRelu(nn.Module):
    """max(x, 0), sent as graded events: one where x is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return mark(F.relu(x), GRADED)


class RecurrentLM(LanguageModel):
    """Embedding, recurrent layers, an optional projection h = relu(W h + b), and a tied decoder with bias.

        logits, state = model(tokens, state=None)     tokens [B, T] int64 -> logits [B, T, V]

    A subclass is one file with `Config`, `Model`, `make_layers`, `run_layer`, `lowering` and `state_type`.

    raises  ShapeError: tokens not [B, T] integers below V, or a state of another batch size or model
    """

    heads = ("embedding.weight",)
    training_settings = frozenset(
        ("embedding_range", "dropconnect", "dropout_words", "dropout_embedding", "dropout_forward", "dropout_output")
    )

    def __init__(self, config):
        super().__init__()
        check_settings(self.name, config)
        if not config.layers or min(config.layers) < 1:
            raise ConfigError(
                f"{self.name} layers", "at least one size, each at least 1", f"{config.layers}", "mend it"
            )
        if not config.projection and config.layers[-1] != config.embedding:
            raise ConfigError(
                f"{self.name} layers",
                f"a last layer of {config.embedding} units, as wide as the embedding that the decoder shares",
                str(config.layers[-1]),
                "make them equal or set projection = true",
            )
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        nn.init.uniform_(self.embedding.weight, -config.embedding_range, config.embedding_range)
        self.layers = nn.ModuleList(self.make_layers(config))
        self.projection = nn.Linear(config.layers[-1], config.embedding) if config.projection else None
        self.relu = GradedRelu() if config.projection else None
        self.decoder = TiedDecoder(config.vocabulary)

    def make_layers(self, config) -> list[nn.Module]:
        """The recurrent layers, first to last."""
        raise NotImplementedError(f"{type(self).__name__} makes no layers")

    def run_layer(self, index: int, x_BTH: Tensor, state) -> tuple[Tensor, Any, Any]:
        """One layer over a sequence: (output, state, whatever `penalty` and `rates` need of the run)."""
        raise NotImplementedError(f"{type(self).__name__} runs no layers")

    def lowering(self) -> Lowering:
        """How each layer lowers."""
        raise NotImplementedError(f"{type(self).__name__} does not lower")

    def segments(self):
        return list(self.layers)

    def products(self):
        how = self.lowering()
        names = [f"layers.{i}.{weight}" for i in range(len(self.layers)) for weight, _ in how.kernels]
        return {"embedding.weight": True} | dict.fromkeys(names, how.transposed) | super().products()

    def hidden(self, tokens, state=None):
        state = self.check(tokens, state)
        c = self.config
        h = word_dropout(self.embedding(tokens), tokens, c.vocabulary, c.dropout_words, self.training)
        h = variational_dropout(h, c.dropout_embedding, self.training)
        states, runs = [], []
        for index in range(len(self.layers)):
            h, layer_state, layer_run = self.run_layer(index, h, None if state is None else state[index])
            states.append(layer_state)
            runs.append(layer_run)
            last = index == len(self.layers) - 1
            h = variational_dropout(h, c.dropout_output if last else c.dropout_forward, self.training)
        if self.projection is not None:
            h = self.relu(self.projection(h))
        return h, tuple(states), runs

    def decode(self, h_BTE):
        return self.decoder(h_BTE, self.embedding.weight)

    def state_shapes(self, batch):
        return [tuple((batch, n) for _ in self.state_type._fields) for n in self.config.layers]

    @classmethod
    def least_numbers(cls, config):
        return config.vocabulary * config.embedding + sum(n * n for n in config.layers)

    def lower(self) -> EventGraph:
        """The whole model as an EventGraph in evaluation semantics; array names are those of `state_dict()`."""
        c, how = self.config, self.lowering()
        nodes = [Node("tokens", Tokens(c.vocabulary)), Node("embedding", Embedding(), {"table": "embedding.weight"})]
        edges = [Edge("tokens.out", "embedding.token", BINARY, (c.vocabulary,))]
        below, kind, width = "embedding.out", DENSE, c.embedding
        for i, units in enumerate(c.layers):
            layer_nodes, layer_edges = how.layer(f"layers.{i}", below, kind, width, units)
            nodes += layer_nodes
            edges += layer_edges
            below, kind, width = f"layers.{i}.{how.port}", how.cell.outputs[how.port], units
        if c.projection:
            own = {"weight": "projection.weight", "bias": "projection.bias"}
            nodes += [Node("projection", Linear(transposed=True), own), Node("relu", Relu())]
            edges += [
                Edge(below, "projection.x", kind, (width,)),
                Edge("projection.out", "relu.x", DENSE, (c.embedding,)),
            ]
            below, kind = "relu.out", GRADED
        tied = {"weight": "embedding.weight", "bias": "decoder.bias"}
        nodes.append(Node("decoder", Linear(transposed=True), tied))
        edges.append(Edge(below, "decoder.x", kind, (c.embedding,)))
        arrays = arrays_of(self)
        return EventGraph(tuple(nodes), tuple(edges), arrays, {"logits": "decoder.out"})
