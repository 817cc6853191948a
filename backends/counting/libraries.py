"""Layers of torch, snnTorch, Norse and SpikingJelly that keep a state, of which their operators do not tell."""

from torch import Tensor, nn

from rheobase.backends.counting.operators import tensors

SNNTORCH = ("syn", "syn_exc", "syn_inh", "mem")
"""names under which snnTorch's neurons keep their state where they keep it themselves"""
SPIKINGJELLY = "spikingjelly.activation_based.neuron"
"""where SpikingJelly's neurons are, some of them, such as PSN, without a membrane v"""


def is_snntorch_neuron(module: nn.Module) -> bool:
    """Whether it is one, of whose state that of the modules inside is a part."""
    return "snntorch" in _libraries(module) and hasattr(module, "threshold")


def _libraries(module: nn.Module) -> set[str]:
    return {kind.__module__.partition(".")[0] for kind in type(module).__mro__}


def neuron_state(module: nn.Module, output) -> tuple[Tensor, int] | None:
    """What such a layer sent in a call, and how many values a unit and step it keeps: LSTM's cells, GRU's units, a
    neuron's currents and membrane. None of other modules; 0 where it is a neuron whose state is not known."""
    libraries = _libraries(module)
    first, *rest = output if isinstance(output, tuple) else (output,)
    first = first.data if isinstance(first, nn.utils.rnn.PackedSequence) else first
    if "spikingjelly" in libraries and isinstance(v := getattr(module, "v", None), Tensor):
        kept = getattr(module, "_memories", {}).values()  # whose sequences of states are of another shape
        parts = sum(isinstance(t, Tensor) and t.shape == v.shape for t in kept)
        return first if isinstance(first, Tensor) else v, parts
    if any(kind.__module__.startswith(SPIKINGJELLY) for kind in type(module).__mro__) and isinstance(first, Tensor):
        return first, 0
    if not isinstance(first, Tensor):
        return None
    if isinstance(module, nn.RNNBase):  # a projection narrows what is sent, not what is kept
        width = (2 if module.bidirectional else 1) * module.hidden_size
        return first[..., :1].expand(*first.shape[:-1], width), module.num_layers
    if isinstance(module, nn.RNNCellBase):
        return first, 1
    if is_snntorch_neuron(module):
        return first, len(rest) or sum(isinstance(getattr(module, name, None), Tensor) for name in SNNTORCH)
    if "norse" in libraries and rest and hasattr(rest[0], "_fields"):
        return first, len(tensors(rest))
    return None
