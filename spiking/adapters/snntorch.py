"""snnTorch's neurons with an elementwise state as cells: Leaky, Lapicque, Synaptic.

snnTorch keeps the state in buffers, the last reset in an attribute and every instance in a global list, and its
surrogates give float32 whatever they are given. Here the state goes in and out, nothing stays behind, the spike is
that of a surrogate of ours, and the type is that of the input.
"""

import copy
import inspect
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rheobase.spiking.adapters._library import alike, load, require_sizes
from rheobase.spiking.config import checked
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.graph import CubaLIFCell, LIFCell, Op
from rheobase.spiking.neurons import Cell
from rheobase.spiking.registry import nearest
from rheobase.spiking.surrogates import ATan, Surrogate
from rheobase.spiking.tally import BINARY, announce, mark

RESETS = ("subtract", "zero", "none")
THRESHOLD_MIN = 1e-3


class MembraneState(NamedTuple):
    """The membrane after the step, [B, D]; a reset that is late is not yet in it."""

    mem: Tensor


class SynapticState(NamedTuple):
    """The synaptic current and the membrane, [B, D] each."""

    syn: Tensor
    mem: Tensor


STATES = {"Leaky": MembraneState, "Lapicque": MembraneState, "Synaptic": SynapticState}
_KINDS = {
    **dict.fromkeys(("alpha", "beta", "R", "C", "time_step", "threshold"), float),
    **dict.fromkeys(("learn_alpha", "learn_beta", "learn_threshold", "reset_delay"), bool),
    "reset_mechanism": str,
    "surrogate": Surrogate,
}
_REFUSED = {
    "RLeaky": "it holds recurrent weights",
    "RSynaptic": "it holds recurrent weights",
    "SLSTM": "it holds matrices",
    "SConv2dLSTM": "it holds matrices",
    "Alpha": "its membrane is made anew each step, and the old one passes no gradient",
    "DeltaLeaky": "it hands back an earlier membrane that it never reads",
    **dict.fromkeys(("StateLeaky", "LinearLeaky", "AssociativeLeaky", "LeakyParallel"), "it has no single step"),
}


class SnnTorch(Cell):
    """A neuron of snnTorch over a layer of units, as its own `forward` computes it.

    name    "snntorch:Leaky" and the like
    neuron  snnTorch's module; what is learnt is its parameters, one number for the whole layer
    detach_reset  whether any reset is in play: snnTorch cuts the late reset from the gradient, and so a finite
                  difference does not see what the gradient claims

    Fires at mem > threshold. With reset_delay (snnTorch's default) the reset falls into the next step.
    """

    def __init__(self, name: str, units: int, neuron: nn.Module, state_type: type, surrogate: Surrogate):
        super().__init__()
        self.name, self.units, self.input_size = name, units, units
        self.neuron, self.state_type, self.surrogate = neuron, state_type, surrogate
        self.detach_reset = neuron.reset_mechanism != "none"

    def initial_state(self, batch, *, dtype=None, device=None):
        own = next(self.parameters(), torch.empty(0))
        like = {"dtype": dtype or own.dtype, "device": device or own.device}
        return self.state_type(*(torch.zeros(batch, self.units, **like) for _ in self.state_type._fields))

    def step(self, x_BD, state):
        require_sizes(self.name, self.units, x_BD, state)
        self.neuron.spike_grad = self.surrogate.spike
        s, *parts = self.neuron(x_BD, *state)
        _forget(self.neuron, self.state_type)
        for part in parts:
            announce(state_updates=part, cause=x_BD)
        return mark(s, BINARY), self.state_type(*parts)

    def lower(self):
        """Leaky that resets to zero is an LIFCell, the others a CubaLIFCell.

        Counting: the graph op leaves out what snnTorch computes beside: products with graded_spikes_factor, and
        one comparison a step for each decay, which it clamps each time.
        """
        neuron, v_reset = self.neuron, None if self.neuron.reset_mechanism == "subtract" else 0.0
        late = getattr(neuron, "reset_delay", True)
        if not late and v_reset is None:
            got = "a reset by subtraction in the same step, which beyond 2 threshold comes before the spike"
            remedy = 'set reset_delay = true, or reset_mechanism = "zero"'
            raise UnsupportedError(self.name, "a neuron that a graph op computes", got, remedy)
        reset = "never" if neuron.reset_mechanism == "none" else "next" if late else "now"
        theta = neuron.threshold.item()
        if self.name == "snntorch:Lapicque":
            dt, r, c = (value.item() for value in (neuron.time_step, neuron.R, neuron.C))
            return CubaLIFCell(0.0, 1 - dt / (r * c), dt / c, theta, v_reset, reset)
        beta = neuron.beta.clamp(0, 1).item()
        if self.name == "snntorch:Synaptic":
            return CubaLIFCell(neuron.alpha.clamp(0, 1).item(), beta, 1.0, theta, v_reset, reset)
        if neuron.reset_mechanism == "zero":
            return LIFCell(1 / (1 - beta) if beta < 1 else math.inf, theta, 0.0, decay_input=False, fire=">")
        return CubaLIFCell(0.0, beta, 1.0, theta, v_reset, reset)

    @torch.no_grad()
    def project_(self):
        """Decays into [0, 1], where the forward pass clamps them; the threshold to at least 0.001."""
        for name, parameter in self.neuron.named_parameters():
            parameter.clamp_(min=THRESHOLD_MIN) if name == "threshold" else parameter.clamp_(0, 1)


def _forget(neuron: nn.Module, state_type: type) -> None:
    """Take out of a neuron what its last step left in it."""
    for name in state_type._fields:
        setattr(neuron, name, torch.zeros(0))
    del neuron.reset


def _check(name: str, known, settings: dict) -> dict:
    kinds = {setting: kind for setting, kind in _KINDS.items() if setting in known or setting == "surrogate"}
    if name == "snntorch:Lapicque":
        del kinds["learn_beta"]  # its step does not use beta, but R and C made of it once
    for setting in settings:
        if setting in known and setting not in kinds:
            why = "one that a cell of explicit state, binary spikes and our surrogate has no use for"
            raise ConfigError(name, "a setting with an effect", f"{setting!r}, {why}", nearest(setting, kinds))
    settings = checked(settings, kinds, name)
    if (reset := settings.get("reset_mechanism", "subtract")) not in RESETS:
        raise ConfigError(f"{name} reset_mechanism", f"one of {RESETS}", repr(reset), nearest(reset, RESETS))
    if not settings.get("threshold", 1.0) >= THRESHOLD_MIN:
        got = str(settings["threshold"])
        raise ConfigError(f"{name} threshold", f"at least {THRESHOLD_MIN}", got, "raise it")
    for decay in ("alpha", "beta"):
        if not 0 <= settings.get(decay, 0.0) <= 1:
            raise ConfigError(f"{name} {decay}", "a decay from 0 to 1", str(settings[decay]), "mend it")
        if decay in known and name != "snntorch:Lapicque" and decay not in settings:
            raise ConfigError(name, f"the setting {decay!r}", "none", "add it")
    if name == "snntorch:Lapicque" and sum(k in settings for k in ("beta", "R", "C")) != 2:
        if set(settings) & {"beta", "R", "C"} != {"beta"}:
            raise ConfigError(name, "beta, or two of beta, R and C", f"{sorted(settings)}", "give for instance beta")
    for positive in ("R", "C", "time_step", *(("beta",) if name == "snntorch:Lapicque" else ())):
        if not 0 < settings.get(positive, 0.5) < (1 if positive == "beta" else math.inf):
            raise ConfigError(f"{name} {positive}", "more than 0, and beta below 1", str(settings[positive]), "mend it")
    return settings


def make(kind: str, units: int, settings: dict) -> SnnTorch:
    """The neuron `kind` of snnTorch; settings are its arguments, and `surrogate` (ATan(2), as snnTorch's default)."""
    name = f"snntorch:{kind}"
    library = load("snntorch", "snntorch>=1.0")
    if kind in _REFUSED:
        what = "a neuron of binary spikes, elementwise state and no matrices"
        raise UnsupportedError(name, what, f"{kind}: {_REFUSED[kind]}", f"choose one of {', '.join(STATES)}")
    if kind not in STATES:
        raise ConfigError(name, "a neuron of snnTorch", repr(kind), nearest(kind, STATES))
    settings = _check(name, inspect.signature(getattr(library, kind)).parameters, settings)
    surrogate = settings.pop("surrogate", ATan())
    values = {
        k: torch.tensor(v, dtype=None if settings.get(f"learn_{k}") else torch.float64) if _KINDS[k] is float else v
        for k, v in settings.items()
    }
    neuron = getattr(library, kind)(**values)
    instances = library.SpikingNeuron.instances
    del instances[next(i for i, other in enumerate(instances) if other is neuron)]
    for buffer, value in list(neuron.named_buffers()):
        neuron.register_buffer(buffer, value, persistent=False)
    return SnnTorch(name, units, neuron, STATES[kind], surrogate)


def op_of(neuron: nn.Module) -> Op:
    """The graph op of a neuron of somebody's network, of RLeaky without its recurrent layer.

    raises  UnsupportedError: no graph op computes it, its units differ in a parameter, or it fires by another rule
    """
    kind = type(neuron).__name__
    name, plain = f"snntorch:{kind}", "Leaky" if kind == "RLeaky" else kind
    if plain not in STATES:
        raise UnsupportedError(name, f"one of {', '.join(STATES)}, RLeaky", kind, "replace it")
    if neuron.graded_spikes_factor.ne(1).any() or neuron.inhibition or neuron.state_quant:
        expected = "spikes of 1, each unit for itself, a state that is not quantised"
        raise UnsupportedError(name, expected, "others", "leave graded_spikes_factor, inhibition, state_quant out")
    over = torch.arange(-200, 201) / 100
    with torch.no_grad():
        fired = neuron.spike_grad(over)
    if not fired.eq(over > 0).all():
        expected, remedy = "spikes of 0 and 1 above the threshold", "change its gradient alone"
        raise UnsupportedError(f"{name} spike_grad", expected, "another forward", remedy)
    neuron = copy.deepcopy(neuron)
    for setting, value in [*neuron.named_buffers(recurse=False), *neuron.named_parameters(recurse=False)]:
        if setting in _KINDS:
            value.data = torch.tensor(alike(f"{name} {setting}", value), dtype=value.dtype)
    if kind != plain and (neuron.reset_mechanism != "zero" or getattr(neuron, "reset_delay", True)):
        got = f'"{neuron.reset_mechanism}"' + (", a step late" if getattr(neuron, "reset_delay", True) else "")
        raise UnsupportedError(name, 'reset_mechanism="zero", reset_delay=False', got, "set them")
    return SnnTorch(f"snntorch:{plain}", 1, neuron, STATES[plain], ATan()).lower()


def examples() -> list[SnnTorch]:
    """Small instances for the laws: every neuron, every reset, late and at once, learnt numbers."""
    cells = [make("Leaky", 3, {"beta": 0.9, "threshold": 0.6, "reset_mechanism": reset}) for reset in RESETS]
    cells += [
        make("Leaky", 2, {"beta": 0.7, "learn_beta": True, "learn_threshold": True, "reset_delay": False}),
        make("Leaky", 2, {"beta": 0.7, "reset_mechanism": "zero", "reset_delay": False}),
        make("Lapicque", 3, {"beta": 0.6, "threshold": 0.4}),
        make("Lapicque", 2, {"R": 2.0, "C": 1.0, "reset_mechanism": "zero"}),
        make("Lapicque", 2, {"R": 2.0, "beta": 0.7, "reset_mechanism": "none"}),
    ]
    learnt = {"learn_alpha": True, "learn_beta": True, "learn_threshold": True}
    cells += [make("Synaptic", 3, {"alpha": 0.5, "beta": 0.8, "reset_mechanism": reset}) for reset in RESETS]
    return [*cells, make("Synaptic", 2, {"alpha": 0.5, "beta": 0.8, "reset_mechanism": "none", **learnt})]
