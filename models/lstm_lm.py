"""The LSTM language model: the non-spiking baseline, of the same interface as the EGRU's."""

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from rheobase.models._recurrent import RecurrentLM
from rheobase.spiking.graph import Edge, Embedding, EventGraph, Linear, LSTMCell, Node, Relu, Tokens
from rheobase.spiking.tally import BINARY, DENSE, GRADED, announce
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LSTMLMConfig:
    """Sizes and regularisers of an LSTM language model."""

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
    dropout_embedding: float = 0.0
    """variational dropout after the embedding"""
    dropout_forward: float = 0.0
    """variational dropout between layers"""
    dropout_output: float = 0.0
    """variational dropout before the decoder"""


class LSTMState(NamedTuple):
    """Hidden value and cell of one layer, each [B, H]."""

    h: Tensor
    c: Tensor


class LSTM(nn.LSTM):
    """torch's LSTM of one layer, batch first, with dropconnect on the recurrent kernel and an LSTMState."""

    def __init__(self, input_size: int, hidden_size: int, dropconnect: float = 0.0):
        super().__init__(input_size, hidden_size, batch_first=True)
        self.dropconnect = dropconnect

    def forward(self, x_BTI, state=None):
        if state is None:
            zeros = x_BTI.new_zeros(x_BTI.shape[0], self.hidden_size)
            state = LSTMState(zeros, zeros)
        if x_BTI.shape[1] == 0:
            return x_BTI.new_zeros(x_BTI.shape[0], 0, self.hidden_size), state
        pair = (state.h[None].contiguous(), state.c[None].contiguous())
        if self.dropconnect and self.training:
            kernel = F.dropout(self.weight_hh_l0, self.dropconnect)
            weights = [self.weight_ih_l0, kernel, self.bias_ih_l0, self.bias_hh_l0]
            y, h, c = nn.modules.rnn._VF.lstm(x_BTI, pair, weights, True, 1, 0.0, True, False, True)
        else:
            y, (h, c) = super().forward(x_BTI, pair)
        announce(state_updates=y)
        return y, LSTMState(h[0], c[0])


class LSTMLM(RecurrentLM):
    """A language model of stacked LSTM layers.

    Source: Hochreiter and Schmidhuber 1997; regularised as in Merity, Keskar, Socher, ICLR 2018.
    """

    Config = LSTMLMConfig
    name = "lstm_lm"
    state_type = LSTMState
    citations = (
        "@article{hochreiter1997lstm, title={Long short-term memory}, author={Hochreiter, Sepp and Schmidhuber, "
        'J{\\"u}rgen}, journal={Neural Computation}, volume={9}, number={8}, year={1997}}',
    )

    def make_layers(self, config):
        widths = (config.embedding, *config.layers)
        return [LSTM(widths[i], widths[i + 1], config.dropconnect) for i in range(len(config.layers))]

    def run_layer(self, index, x_BTH, state):
        y, state = self.layers[index](x_BTH, state)
        return y, state, None

    def lower(self) -> EventGraph:
        """The whole model as an EventGraph in evaluation semantics; array names are those of `state_dict()`."""
        c = self.config
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}
        nodes = [
            Node("tokens", Tokens(c.vocabulary)),
            Node("embedding", Embedding(), {"table": "embedding.weight"}),
        ]
        edges = [Edge("tokens.out", "embedding.token", BINARY, (c.vocabulary,))]
        below, width = "embedding.out", c.embedding
        for i, units in enumerate(c.layers):
            cell = f"layers.{i}"
            for weight, bias in (("weight_ih_l0", "bias_ih_l0"), ("weight_hh_l0", "bias_hh_l0")):
                names = {"weight": f"{cell}.{weight}", "bias": f"{cell}.{bias}"}
                nodes.append(Node(f"{cell}.{weight}", Linear(transposed=True), names))
            nodes.append(Node(cell, LSTMCell()))
            edges += [
                Edge(below, f"{cell}.weight_ih_l0.x", DENSE, (width,)),
                Edge(f"{cell}.h", f"{cell}.weight_hh_l0.x", DENSE, (units,), delay=1),
                Edge(f"{cell}.weight_ih_l0.out", f"{cell}.a", DENSE, (4 * units,)),
                Edge(f"{cell}.weight_hh_l0.out", f"{cell}.q", DENSE, (4 * units,)),
            ]
            below, width = f"{cell}.h", units
        kind = DENSE
        if c.projection:
            arrays_of = {"weight": "projection.weight", "bias": "projection.bias"}
            nodes += [Node("projection", Linear(transposed=True), arrays_of), Node("relu", Relu())]
            edges += [
                Edge(below, "projection.x", DENSE, (width,)),
                Edge("projection.out", "relu.x", DENSE, (c.embedding,)),
            ]
            below, kind, width = "relu.out", GRADED, c.embedding
        tied = {"weight": "embedding.weight", "bias": "decoder.bias"}
        nodes.append(Node("decoder", Linear(transposed=True), tied))
        edges.append(Edge(below, "decoder.x", kind, (width,)))
        return EventGraph(tuple(nodes), tuple(edges), arrays, {"logits": "decoder.out"})


Config, Model = LSTMLMConfig, LSTMLM
