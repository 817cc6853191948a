"""RWKV-4's mixes, and the blocks that SpikeGPT makes of them.

B batch, T steps, D width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rheobase.spiking.ops import WKVState, lif, wkv
from rheobase.spiking.surrogates import ATan
from rheobase.spiking.tally import GRADED, mark

NEURON = {"tau": 2.0, "theta": 1.0, "v_reset": 0.0, "decay_input": True, "fire": ">="}
"""The neuron of every layer: SpikeGPT's LIF"""


class BlockState(NamedTuple):
    """What a reference block carries from token to token, each [B, D]; p, q, o are [B, 0] in one without WKV."""

    shift1: Tensor
    """input of the first mix at the last token"""
    shift2: Tensor
    """input of the second mix at the last token"""
    v1: Tensor
    """membrane of the first LIF"""
    v2: Tensor
    """membrane of the second LIF"""
    p: Tensor
    q: Tensor
    o: Tensor
    """state of WKV"""


def token_shift(x_BTD: Tensor, last_BD: Tensor) -> Tensor:
    """The sequence one token later, `last_BD` first."""
    return torch.cat([last_BD[:, None], x_BTD], 1)[:, :-1]


def mix(x_BTD: Tensor, before_BTD: Tensor, share_11D: Tensor) -> Tensor:
    """x share + before (1 - share)."""
    return x_BTD * share_11D + before_BTD * (1 - share_11D)


class TimeMix(nn.Module):
    """W_o (sigmoid(W_r x_r) wkv(W_k x_k, W_v x_v)), each x a mix of this token and the one before."""

    def __init__(self, d: int, layer: int, depth: int):
        super().__init__()
        ratio, rest = layer / max(depth - 1, 1), 1 - layer / depth
        h = torch.arange(d)
        self.time_decay = nn.Parameter(-5 + 8 * (h / max(d - 1, 1)) ** (0.7 + 1.3 * ratio))
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * ((h + 1) % 3 - 1).float())
        share = (h / d)[None, None]
        self.time_mix_k = nn.Parameter(share**rest)
        self.time_mix_v = nn.Parameter(share**rest + 0.3 * ratio)
        self.time_mix_r = nn.Parameter(share ** (0.5 * rest))
        self.key, self.value, self.receptance, self.output = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor, last: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
        before = token_shift(x, last)
        k = self.key(mix(x, before, self.time_mix_k))
        v = self.value(mix(x, before, self.time_mix_v))
        r = torch.sigmoid(self.receptance(mix(x, before, self.time_mix_r)))
        y, state = wkv(self.time_decay, self.time_first, k, v, state)
        return self.output(r * y), state


class ChannelMix(nn.Module):
    """sigmoid(W_r x_r) (W_v relu(W_k x_k)^2), each x a mix of this token and the one before."""

    def __init__(self, d: int, layer: int, depth: int):
        super().__init__()
        share = (torch.arange(d) / d)[None, None] ** (1 - layer / depth)
        self.time_mix_k, self.time_mix_r = nn.Parameter(share), nn.Parameter(share.clone())
        self.key = nn.Linear(d, 4 * d, bias=False)
        self.receptance = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor, last: Tensor) -> Tensor:
        before = token_shift(x, last)
        k = mark(torch.relu(self.key(mix(x, before, self.time_mix_k))) ** 2, GRADED)
        r = torch.sigmoid(self.receptance(mix(x, before, self.time_mix_r)))
        return r * self.value(k)


class Block(nn.Module):
    """The layers that every placement has, under the original's names; block 0 has a norm of its own before."""

    def __init__(self, config, layer: int):
        super().__init__()
        d, depth = config.embedding, config.depth
        if layer == 0:
            self.ln0 = nn.LayerNorm(d)
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.pre = layer == 0 and config.ffn_pre
        if self.pre:
            self.ffnPre = ChannelMix(d, 0, depth)
        else:
            self.att = TimeMix(d, layer, depth)
        self.ffn = ChannelMix(d, layer, depth)
        self.first = layer == 0
        self.dropout = nn.Dropout(config.dropout)
        self.surrogate = ATan(config.alpha)


class ReferenceBlock(Block):
    """As the original's code: neurons after the mixes, whose linear layers read dense values.

    x += LIF(TimeMix(LN1 x)); x += LIF(ChannelMix(LN2 x)); block 0 normalises its input first.
    """

    state_type = BlockState

    def forward(self, x: Tensor, s: BlockState) -> tuple[Tensor, BlockState, tuple[Tensor, Tensor]]:
        if x.shape[1] == 0:
            return x, s, (x, x)
        if self.first:
            x = self.ln0(x)
        a, memory = self.ln1(x), WKVState(s.p, s.q, s.o)
        if self.pre:
            out = self.ffnPre(a, s.shift1)
        else:
            out, memory = self.att(a, s.shift1, memory)
        s1, v1 = lif(out, s.v1, surrogate=self.surrogate, **NEURON)
        x = x + s1
        b = self.ln2(x)
        s2, v2 = lif(self.ffn(b, s.shift2), s.v2, surrogate=self.surrogate, **NEURON)
        x = self.dropout(x + s2)
        return x, BlockState(a[:, -1], b[:, -1], v1[:, -1], v2[:, -1], *memory), (s1, s2)

    def gains(self) -> list[tuple[nn.Parameter, tuple[int, ...]]]:
        """What scales the input of which neurons, in the order in which they depend on each other."""
        first = self.ffnPre.value if self.pre else self.att.output
        return [(first.weight, (0,)), (self.ffn.value.weight, (1,))]

    def state_shapes(self, batch: int, d: int) -> tuple[tuple[int, int], ...]:
        """The shapes of this block's state."""
        return ((batch, d),) * 4 + ((batch, 0 if self.pre else d),) * 3


class SpikeFedState(NamedTuple):
    """What a spike-fed block carries from token to token, each [B, D] but v_h [B, 4D]."""

    shift1: Tensor
    """input of the first mix at the last token"""
    shift2: Tensor
    """input of the second mix at the last token"""
    v_k: Tensor
    v_v: Tensor
    v_r: Tensor
    """membranes before the time mix's three products"""
    v_o: Tensor
    """membrane before its output product"""
    v_fk: Tensor
    v_fr: Tensor
    """membranes before the channel mix's products"""
    v_h: Tensor
    """membrane of its hidden units"""
    p: Tensor
    q: Tensor
    o: Tensor
    """state of WKV"""


class SpikeFedBlock(Block):
    """A neuron before every linear layer, so that each product only adds the weight rows of units that spiked.

        a = LN1 x    s_i = LIF(mix_i a), i in k, v, r    k, v = W s    r = sigmoid(W_r s_r)    x += W_o LIF(r wkv)
        b = LN2 x    s_i = LIF(mix_i b), i in k, r       h = LIF(W_k s_k)    x += sigmoid(W_r s_r) (W_v h)

    Parameter names are the reference block's.
    """

    state_type = SpikeFedState

    def forward(self, x: Tensor, s: SpikeFedState) -> tuple[Tensor, SpikeFedState, tuple[Tensor, ...]]:
        if x.shape[1] == 0:
            return x, s, (x,) * 6 + (x.new_zeros(*x.shape[:2], 4 * x.shape[2]),)
        membranes, spikes = [], []

        def fire(x, v):
            spike, v = lif(x, v, surrogate=self.surrogate, **NEURON)
            membranes.append(v[:, -1])
            spikes.append(spike)
            return spike

        att, ffn = self.att, self.ffn
        if self.first:
            x = self.ln0(x)
        a = self.ln1(x)
        before = token_shift(a, s.shift1)
        k = att.key(fire(mix(a, before, att.time_mix_k), s.v_k))
        v = att.value(fire(mix(a, before, att.time_mix_v), s.v_v))
        r = torch.sigmoid(att.receptance(fire(mix(a, before, att.time_mix_r), s.v_r)))
        y, memory = wkv(att.time_decay, att.time_first, k, v, WKVState(s.p, s.q, s.o))
        x = x + att.output(fire(r * y, s.v_o))
        b = self.ln2(x)
        before = token_shift(b, s.shift2)
        k = ffn.key(fire(mix(b, before, ffn.time_mix_k), s.v_fk))
        r = torch.sigmoid(ffn.receptance(fire(mix(b, before, ffn.time_mix_r), s.v_fr)))
        x = self.dropout(x + r * ffn.value(fire(k, s.v_h)))
        return x, SpikeFedState(a[:, -1], b[:, -1], *membranes, *memory), tuple(spikes)

    def gains(self) -> list[tuple[nn.Parameter, tuple[int, ...]]]:
        """What scales the input of which neurons, in the order in which they depend on each other."""
        att, ffn = self.att, self.ffn
        norms = (self.ln1.weight, (0, 1, 2)), (self.ln2.weight, (4, 5))
        return [norms[0], (att.value.weight, (3,)), norms[1], (ffn.key.weight, (6,))]

    def state_shapes(self, batch: int, d: int) -> tuple[tuple[int, int], ...]:
        """The shapes of this block's state."""
        return ((batch, d),) * 8 + ((batch, 4 * d),) + ((batch, d),) * 3


@torch.no_grad()
def wake_block(block: nn.Module, x_BTD: Tensor, state, rate: float) -> None:
    """Scale what feeds each neuron of a block until, on this input, its spikes come at the given mean rate.

    The gain of each parameter in `block.gains()` is found by halving an interval of 2^-8 to 2^8; a layer that
    cannot reach the rate is left at the end of the interval.
    """
    for parameter, which in block.gains():
        start, low, high = parameter.clone(), 2.0**-8, 2.0**8
        for _ in range(16):
            middle = (low * high) ** 0.5
            parameter.copy_(start * middle)
            spikes = block(x_BTD, state)[2]
            mean = sum(spikes[i].mean() for i in which) / len(which)
            low, high = (middle, high) if mean < rate else (low, middle)


BLOCKS = {"reference": ReferenceBlock, "spike_fed": SpikeFedBlock}
"""The placements of the neurons, by name"""
