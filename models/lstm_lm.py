"""The LSTM language model: the non-spiking baseline, of the same interface as the EGRU's."""

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from rheobase.models._recurrent import Lowering, RecurrentConfig, RecurrentLM, in_own_type
from rheobase.spiking.graph import LSTMCell


@dataclass(frozen=True, kw_only=True)
class LSTMLMConfig(RecurrentConfig):
    """Sizes and regularisers of an LSTM language model."""


class LSTMState(NamedTuple):
    """Hidden value and cell of one layer, each [B, H]."""

    h: Tensor
    c: Tensor


class LSTM(nn.LSTM):
    """torch's LSTM of one layer, batch first, with dropconnect on the recurrent kernel and an LSTMState."""

    def __init__(self, input_size: int, hidden_size: int, dropconnect: float = 0.0):
        super().__init__(input_size, hidden_size, batch_first=True)
        self.dropconnect = dropconnect

    @in_own_type
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
        return y, LSTMState(h[0], c[0])


class LSTMLM(RecurrentLM):
    """A language model of stacked LSTM layers.

    Source: Hochreiter and Schmidhuber 1997; regularised as in Merity, Keskar, Socher, ICLR 2018.

    call    logits, state = model(tokens, state=None)     tokens [B, T] int64 -> logits [B, T, V]
    raises  ShapeError: tokens not [B, T] integers below V, or a state of another batch size or model
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

    def lowering(self):
        return Lowering(
            cell=LSTMCell(),
            arrays={},
            kernels=(("weight_ih_l0", "bias_ih_l0"), ("weight_hh_l0", "bias_hh_l0")),
            transposed=True,
            gates=4,
            port="h",
        )


Config, Model = LSTMLMConfig, LSTMLM
