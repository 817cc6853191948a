"""The blocks that SpikeGPT makes of RWKV-4's mixes.

B batch, T steps, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rheobase.models._norms import NORMS
from rheobase.models._rwkv_neurons import SpikingChannelMix, SpikingTimeMix, fire, make_neuron, rest
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.ops import WKVState
from rheobase.spiking.ops.wkv.reference import FIRST
from rheobase.spiking.rwkv import ChannelMix, TimeMix

LEAST_GAIN, MOST_GAIN = 2.0**-8, 2.0**8
"""within which `wake` looks for what a neuron's input is to be scaled by"""


class Block(nn.Module):
    """The layers that every placement has, under the original's names; block 0 has a norm of its own before.

    x_BTD, state -> (x_BTD, state, the spikes of each neuron layer)
    """

    state_type: type
    neurons: tuple[str, ...] = ()
    """paths of the neurons, in the order of the spikes that `forward` gives"""

    def __init__(self, config, layer: int):
        super().__init__()
        d, depth = config.embedding, config.depth
        if layer == 0:
            self.ln0 = NORMS[config.norm](d)
        self.ln1, self.ln2 = NORMS[config.norm](d), NORMS[config.norm](d)
        self.pre = layer == 0 and config.ffn_pre
        if self.pre:
            self.ffnPre, self.ffn = (ChannelMix(d, 0, depth) for _ in range(2))
        else:
            self.att, self.ffn = self.mixes(config, layer)
        self.first = layer == 0
        self.dropout = nn.Dropout(config.dropout)

    def mixes(self, config, layer: int) -> tuple[TimeMix, ChannelMix]:
        """The mix over time, and that over channels."""
        return TimeMix(config.embedding, layer, config.depth), ChannelMix(config.embedding, layer, config.depth)

    def initial_state(self, batch: int):
        """The state before the first token."""
        like = {"dtype": self.ln1.weight.dtype, "device": self.ln1.weight.device}
        d = self.ln1.weight.shape[0]
        shifts = [torch.zeros(batch, d, **like) for _ in range(2)]
        membranes = [rest(self.get_submodule(name), batch, **like) for name in self.neurons]
        sums = [torch.zeros(batch, 0 if self.pre else d, **like) for _ in range(3)]
        least = max(FIRST, torch.finfo(sums[2].dtype).min)
        return self.state_type(*shifts, *membranes, *sums[:2], torch.full_like(sums[2], least))

    def spikes(self, x: Tensor, state) -> tuple[Tensor, ...]:
        """The spikes alone of a run."""
        return self(x, state)[2]

    def gains(self) -> list[tuple[nn.Parameter, tuple[int, ...]]]:
        """What scales the input of which neurons, in the order in which they depend on each other."""
        return []

    def fan_outs(self) -> list[int]:
        """Weights that one spike of each neuron layer reads; empty where no product reads spikes."""
        return []


class BlockState(NamedTuple):
    """What a reference block carries from token to token, each [B, D]; p, q, o are [B, 0] in one without WKV. A neuron
    of several membranes a unit has them side by side, [B, membranes x D]."""

    shift1: Tensor
    """what the first mix sees as the token before"""
    shift2: Tensor
    """what the second mix sees as the token before"""
    v1: Tensor
    """state of the first neuron"""
    v2: Tensor
    """state of the second neuron"""
    p: Tensor
    q: Tensor
    o: Tensor
    """state of WKV"""


class ReferenceBlock(Block):
    """As the original's code: neurons after the mixes, whose linear layers read dense values.

    x += LIF(TimeMix(LN1 x)); x += LIF(ChannelMix(LN2 x)); block 0 normalises its input first.
    """

    state_type = BlockState
    neurons = ("lif1", "lif2")

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.lif1, self.lif2 = (make_neuron(config, config.embedding) for _ in self.neurons)

    def forward(self, x: Tensor, s: BlockState) -> tuple[Tensor, BlockState, tuple[Tensor, ...]]:
        if x.shape[1] == 0:
            return x, s, (x, x)
        if self.first:
            x = self.ln0(x)
        a, before, shift1 = self.ln1.shifted(x, s.shift1)
        if self.pre:
            out, memory = self.ffnPre(a, before), (s.p, s.q, s.o)
        else:
            out, memory = self.att(a, before, WKVState(s.p, s.q, s.o))
        y1, s1, v1 = fire(self.lif1, out, s.v1)
        x = x + y1
        b, before, shift2 = self.ln2.shifted(x, s.shift2)
        y2, s2, v2 = fire(self.lif2, self.ffn(b, before), s.v2)
        x = self.dropout(x + y2)
        return x, BlockState(shift1, shift2, v1, v2, *memory), (s1, s2)

    def gains(self):
        first = self.ffnPre.value if self.pre else self.att.output
        return [(first.weight, (0,)), (self.ffn.value.weight, (1,))]


class ContinuousState(NamedTuple):
    """What a block without neurons carries from token to token, each [B, D]."""

    shift1: Tensor
    shift2: Tensor
    p: Tensor
    q: Tensor
    o: Tensor


class ContinuousBlock(Block):
    """RWKV-4's own block, without neurons: x += TimeMix(LN1 x); x += ChannelMix(LN2 x)."""

    state_type = ContinuousState

    def forward(self, x: Tensor, s: ContinuousState) -> tuple[Tensor, ContinuousState, tuple[Tensor, ...]]:
        if x.shape[1] == 0:
            return x, s, ()
        if self.first:
            x = self.ln0(x)
        a, before, shift1 = self.ln1.shifted(x, s.shift1)
        out, memory = self.att(a, before, WKVState(s.p, s.q, s.o))
        x = x + out
        b, before, shift2 = self.ln2.shifted(x, s.shift2)
        x = self.dropout(x + self.ffn(b, before))
        return x, ContinuousState(shift1, shift2, *memory), ()


class SpikeFedState(NamedTuple):
    """What a spike-fed block carries from token to token, each [B, D] but v_h [B, 4D]; of several membranes a unit as
    in `BlockState`."""

    shift1: Tensor
    """what the first mix sees as the token before"""
    shift2: Tensor
    """what the second mix sees as the token before"""
    v_k: Tensor
    v_v: Tensor
    v_r: Tensor
    """states of the neurons before the time mix's three products"""
    v_o: Tensor
    """state of the neuron before its output product"""
    v_fk: Tensor
    v_fr: Tensor
    """states of the neurons before the channel mix's products"""
    v_h: Tensor
    """state of its hidden units"""
    p: Tensor
    q: Tensor
    o: Tensor
    """state of WKV"""


class SpikeFedBlock(Block):
    """A neuron before every linear layer, so that each product only adds the weight rows of units that spiked.

        x += SpikingTimeMix(LN1 x)    x += SpikingChannelMix(LN2 x)

    Parameter names are the reference block's.
    """

    state_type = SpikeFedState
    neurons = (
        *(f"att.{name}" for name in SpikingTimeMix.neurons),
        *(f"ffn.{name}" for name in SpikingChannelMix.neurons),
    )

    def mixes(self, config, layer):
        return SpikingTimeMix(config, layer), SpikingChannelMix(config, layer)

    def forward(self, x: Tensor, s: SpikeFedState) -> tuple[Tensor, SpikeFedState, tuple[Tensor, ...]]:
        if x.shape[1] == 0:
            return x, s, (x,) * 6 + (x.new_zeros(*x.shape[:2], 4 * x.shape[2]),)
        if self.first:
            x = self.ln0(x)
        a, before, shift1 = self.ln1.shifted(x, s.shift1)
        memory = WKVState(s.p, s.q, s.o)
        y, memory, spikes, membranes = self.att(a, before, memory, (s.v_k, s.v_v, s.v_r, s.v_o))
        x = x + y
        b, before, shift2 = self.ln2.shifted(x, s.shift2)
        y, *more = self.ffn(b, before, (s.v_fk, s.v_fr, s.v_h))
        x = self.dropout(x + y)
        return x, SpikeFedState(shift1, shift2, *membranes, *more[1], *memory), (*spikes, *more[0])

    def gains(self):
        att, ffn = self.att, self.ffn
        norms = (self.ln1.weight, (0, 1, 2)), (self.ln2.weight, (4, 5))
        return [norms[0], (att.value.weight, (3,)), norms[1], (ffn.key.weight, (6,))]

    def fan_outs(self):
        d = self.ln1.weight.shape[0]
        return [d, d, d, d, 4 * d, d, d]


@torch.no_grad()
def wake(gains, spikes, names, rate: float, trained: bool) -> None:
    """Scale what feeds each neuron until its spikes come at the given mean rate.

    gains    (parameter, indices of the neurons whose input it scales), in the order in which they depend on each other
    spikes   called without arguments: the spikes of every neuron with the parameters as they are
    names    of the neurons
    trained  whether the weights are a trained model's: it may have learnt that few of a layer's inputs are above 0, as
             before RWKV-4's squared relu, and then it is enough that the layer fires
    raises   ConfigError: neurons that no gain brings to the rate

    Each gain is found by halving an interval of 2^-8 to 2^8. Where it ends at an end of that, the rate may miss by less
    than one unit of those fed: the signs of the weights of a few units allow but a few rates.
    """
    for parameter, which in gains:
        start, low, high = parameter.clone(), LEAST_GAIN, MOST_GAIN
        for _ in range(16):
            middle = (low * high) ** 0.5
            parameter.copy_(start * middle)
            fired = spikes()
            mean = sum(fired[i].ne(0).to(fired[i].dtype).mean() for i in which) / len(which)
            low, high = (middle, high) if mean < rate else (low, middle)
        units = sum(fired[i].shape[-1] for i in which)
        ended = low == LEAST_GAIN or high == MOST_GAIN
        if ended and abs(mean - rate) * units >= 1 and not (trained and 0 < mean < rate):
            where, got = ", ".join(names[i] for i in which), f"{mean:.3f} at {middle:.3g} times the weights"
            remedy = 'set model.init_rate within its reach, or model.init = "original"'
            raise ConfigError(where, f"a mean rate of {rate} on the first batch", got, remedy)


BLOCKS = {"reference": ReferenceBlock, "spike_fed": SpikeFedBlock, "continuous": ContinuousBlock}
"""The placements of the neurons, by name"""
