"""The contract of every neuron."""

import torch
from torch import Tensor, nn

from rheobase.spiking.errors import ShapeError, UnsupportedError
from rheobase.spiking.graph import Op


class Cell(nn.Module):
    """A neuron layer whose state is an argument and a return value.

    A subclass defines `initial_state` and `step`, or the faster `forward`. The law that the tests hold it to:
    `forward` equals the fold of `step`; cutting a sequence anywhere and carrying the state changes nothing;
    T = 0 is legal; gradients reach the initial state. A module of `spiking/neurons` also has `examples()`, a list
    of small instances on which the laws are tried.

    input_size   width of x, or None where any width will do
    hidden_size  width of the output, where it is not that of x
    elementwise  True: no matrix products, so `forward` and the fold of `step` agree to the last bit
    """

    input_size: int | None = None
    elementwise: bool = True

    def initial_state(self, batch: int, *, dtype: torch.dtype | None = None, device=None):
        """The state before the first step: a NamedTuple of tensors."""
        raise NotImplementedError(f"{type(self).__name__} defines no initial_state")

    def step(self, x_BD: Tensor, state) -> tuple[Tensor, tuple]:
        """One step: x [B, D] and the state before -> output [B, H] and the state after."""
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def forward(self, x_BTD: Tensor, state=None) -> tuple[Tensor, tuple]:
        """A sequence: x [B, T, D] and the state before -> output [B, T, H] and the state after the last step."""
        if x_BTD.dim() != 3:
            raise ShapeError(type(self).__name__, "x of shape [B, T, D]", f"{tuple(x_BTD.shape)}", "add an axis")
        if state is None:
            state = self.initial_state(x_BTD.shape[0], dtype=x_BTD.dtype, device=x_BTD.device)
        outputs = []
        for x_BD in x_BTD.unbind(1):
            y, state = self.step(x_BD, state)
            outputs.append(y)
        if not outputs:
            return x_BTD.new_zeros(x_BTD.shape[0], 0, getattr(self, "hidden_size", x_BTD.shape[2])), state
        return torch.stack(outputs, 1), state

    def lower(self) -> Op:
        """The graph op that computes the same from rest. Its arrays are the parameters named as its roles.

        raises  UnsupportedError: no graph op does, and why
        """
        what = "a neuron that a graph op computes"
        raise UnsupportedError(type(self).__name__, what, "one without", "give its class a `lower`")

    def project_(self) -> None:
        """Bring the parameters back into their legal range; call it after each step of the optimiser."""


def stored(module: nn.Module, name: str) -> nn.Parameter | None:
    """What holds a learnt setting: the parameter of that name, or NAME_orig where torch prunes it. None where it is not
    learnt, or is the result of a parametrization, whose bounds are its own."""
    return module._parameters.get(name, module._parameters.get(f"{name}_orig"))
