"""Neurons of snnTorch, Norse and SpikingJelly, whose operators do not tell what of their results is kept as state."""

from torch import Tensor, nn

SNNTORCH = ("syn", "syn_exc", "syn_inh", "mem")
"""names under which snnTorch's neurons keep their state where they keep it themselves"""


def neuron_state(module: nn.Module, output) -> tuple[Tensor, int] | None:
    """What a neuron of another library sent in a call, and how many values a unit and step it keeps; None of others."""
    library = type(module).__module__.partition(".")[0]
    first, *rest = output if isinstance(output, tuple) else (output,)
    if not isinstance(first, Tensor):
        return None
    if library == "snntorch" and hasattr(module, "threshold"):
        return first, len(rest) or sum(isinstance(getattr(module, name, None), Tensor) for name in SNNTORCH)
    if library == "norse" and rest and hasattr(rest[0], "_fields"):
        return first, sum(isinstance(part, Tensor) for part in rest[0])
    if library == "spikingjelly" and isinstance(getattr(module, "v", None), Tensor):
        return first, 1
    return None
