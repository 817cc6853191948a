"""Neurons of a SpikeGPT's blocks, and RWKV-4's mixes with a neuron before each product.

B batch, T steps, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rheobase.spiking import adapters
from rheobase.spiking.config import set_key
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.neurons import LIF, Cell
from rheobase.spiking.ops import wkv
from rheobase.spiking.rwkv import ChannelMix, TimeMix, mix
from rheobase.spiking.surrogates import ATan

NEURON = {"v_reset": 0.0, "decay_input": True, "fire": ">="}
"""SpikeGPT's LIF, but for its time constant and threshold"""


def make_neuron(config, units: int) -> Cell:
    """The neuron of one layer, as the configuration names it."""
    if config.neuron == "lif":
        own = {name: getattr(config, name) for name in ("tau", "theta", "ternary", "graded", "learn")}
        return LIF(units, **NEURON, surrogate=ATan(config.alpha), **own)
    settings: dict = {}
    for assignment in config.neuron_settings:
        set_key(settings, assignment)
    neuron = adapters.make_neuron(config.neuron, units, **settings)
    for part in neuron.initial_state(2):  # which lie side by side in the model's state
        if part.shape != (2, units) or not part.is_floating_point():
            got, remedy = f"{tuple(part.shape)} of {part.dtype} for 2", "keep such a neuron for a model of your own"
            raise ConfigError(f"neuron {config.neuron}", "a state of floating-point parts [B, units]", got, remedy)
    return neuron


def fire(neuron: Cell, x_BTD: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A neuron over a sequence -> (output, spikes, state); a state's tensors stand side by side in [B, parts x D]."""
    parts = packed.chunk(packed.shape[1] // x_BTD.shape[2], 1)
    before = type(neuron.initial_state(0))(*parts)
    if isinstance(neuron, LIF) and neuron.graded:
        out, spikes, state = neuron(x_BTD, before, apart=True)
    else:
        out, state = neuron(x_BTD, before)
        spikes = out
    return out, spikes, _side_by_side(state)


def events(out: Tensor) -> Tensor:
    """A neuron's output as events of size 1, whose gradient is that of what they carry, over its size."""
    size = out.detach().abs()
    return out / torch.where(size > 0, size, 1)


def rest(neuron: Cell, batch: int, **like) -> Tensor:
    """The packed state of a neuron before the first step, of a dtype and on a device."""
    return _side_by_side(neuron.initial_state(batch, **like))


def _side_by_side(state) -> Tensor:
    return torch.cat(list(state), 1) if len(state) > 1 else state[0]


class _Firing:
    """Neurons of a layer one after another, their states given, and their spikes and next states collected."""

    def __init__(self, before: Sequence[Tensor]):
        self._before, self.spikes, self.after = iter(before), [], []

    def __call__(self, neuron: Cell, x_BTD: Tensor) -> Tensor:
        out, spikes, state = fire(neuron, x_BTD, next(self._before))
        self.spikes.append(spikes)
        self.after.append(state)
        return out


class SpikingTimeMix(TimeMix):
    """The time mix with a neuron before each product:

        s_i = LIF(mix_i(a, before)), i in k, v, r    y = W_o LIF(sigmoid(W_r s_r) wkv(W_k s_k, W_v s_v))

    a, before [B, T, D], state, the neurons' states -> (y, state, their spikes, their states)
    """

    neurons = ("lif_k", "lif_v", "lif_r", "lif_o")

    def __init__(self, config, layer: int):
        super().__init__(config.embedding, layer, config.depth)
        for name in self.neurons:
            self.add_module(name, make_neuron(config, config.embedding))

    def forward(self, a, before, state, membranes):
        firing = _Firing(membranes)
        k = self.key(firing(self.lif_k, mix(a, before, self.time_mix_k)))
        v = self.value(firing(self.lif_v, mix(a, before, self.time_mix_v)))
        r = self.receptance(firing(self.lif_r, mix(a, before, self.time_mix_r)))
        y, state = wkv(self.time_decay, self.time_first, k, v, state, gate=r, kernels=self.kernels)
        return self.output(firing(self.lif_o, y)), state, firing.spikes, firing.after


class SpikingChannelMix(ChannelMix):
    """The channel mix with a neuron before each product:

        s_i = LIF(mix_i(b, before)), i in k, r    y = sigmoid(W_r s_r) (W_v LIF(W_k s_k))

    b, before [B, T, D], the neurons' states -> (y, their spikes, their states)
    """

    neurons = ("lif_k", "lif_r", "lif_h")

    def __init__(self, config, layer: int):
        super().__init__(config.embedding, layer, config.depth)
        for name in self.neurons:
            self.add_module(name, make_neuron(config, config.embedding * (4 if name == "lif_h" else 1)))

    def forward(self, b, before, membranes):
        firing = _Firing(membranes)
        k = self.key(firing(self.lif_k, mix(b, before, self.time_mix_k)))
        r = torch.sigmoid(self.receptance(firing(self.lif_r, mix(b, before, self.time_mix_r))))
        return r * self.value(firing(self.lif_h, k)), firing.spikes, firing.after
