"""The GRU language model: the non-spiking relative of the EGRU, of the same interface."""

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from rheobase.models._recurrent import Lowering, RecurrentConfig, RecurrentLM, in_own_type
from rheobase.spiking.graph import GRUCell


@dataclass(frozen=True, kw_only=True)
class GRULMConfig(RecurrentConfig):
    """Sizes and regularisers of a GRU language model."""


class GRUState(NamedTuple):
    """Hidden value of one layer, [B, H]."""

    h: Tensor


class GRU(nn.GRU):
    """torch's GRU of one layer, batch first, with dropconnect on the recurrent kernel and a GRUState."""

    def __init__(self, input_size: int, hidden_size: int, dropconnect: float = 0.0):
        super().__init__(input_size, hidden_size, batch_first=True)
        self.dropconnect = dropconnect

    @in_own_type
    def forward(self, x_BTI, state=None):
        if state is None:
            state = GRUState(x_BTI.new_zeros(x_BTI.shape[0], self.hidden_size))
        if x_BTI.shape[1] == 0:
            return x_BTI.new_zeros(x_BTI.shape[0], 0, self.hidden_size), state
        before = state.h[None].contiguous()
        if self.dropconnect and self.training:
            kernel = F.dropout(self.weight_hh_l0, self.dropconnect)
            weights = [self.weight_ih_l0, kernel, self.bias_ih_l0, self.bias_hh_l0]
            y, h = nn.modules.rnn._VF.gru(x_BTI, before, weights, True, 1, 0.0, True, False, True)
        else:
            y, h = super().forward(x_BTI, before)
        return y, GRUState(h[0])


class GRULM(RecurrentLM):
    """A language model of stacked GRU layers, the reset gate after the recurrent product.

    Source: Cho et al., EMNLP 2014 (arXiv 1406.1078), in the form of torch.nn.GRU and cuDNN, whose reset gate
    multiplies the product of the hidden value and not the hidden value.

    call    logits, state = model(tokens, state=None)     tokens [B, T] int64 -> logits [B, T, V]
    raises  ShapeError: tokens not [B, T] integers below V, or a state of another batch size or model
    """

    Config = GRULMConfig
    name = "gru_lm"
    state_type = GRUState
    citations = (
        "@inproceedings{cho2014gru, title={Learning phrase representations using {RNN} encoder-decoder for "
        'statistical machine translation}, author={Cho, Kyunghyun and van Merri{\\"e}nboer, Bart and '
        "Gulcehre, Caglar and Bahdanau, Dzmitry and Bougares, Fethi and Schwenk, Holger and Bengio, Yoshua}, "
        "booktitle={EMNLP}, year={2014}}",
    )

    def make_layers(self, config):
        widths = (config.embedding, *config.layers)
        return [GRU(widths[i], widths[i + 1], config.dropconnect) for i in range(len(config.layers))]

    def run_layer(self, index, x_BTH, state):
        y, state = self.layers[index](x_BTH, state)
        return y, state, None

    def lowering(self):
        return Lowering(
            cell=GRUCell(),
            arrays={},
            kernels=(("weight_ih_l0", "bias_ih_l0"), ("weight_hh_l0", "bias_hh_l0")),
            transposed=True,
            gates=3,
            port="h",
        )


Config, Model = GRULMConfig, GRULM
