"""LIF over a sequence, in plain torch: the truth that every faster form is tested against.

B batch, T steps, D units.
"""

import torch
from torch import Tensor

from rheobase.spiking.tally import BINARY, TERNARY, announce, mark


def lif_step(x, v, *, tau, theta, v_reset, decay_input, fire, detach_reset, surrogate, ternary):
    """One step of `lif`: x and v of one shape -> (s, v after the reset, h before it)."""
    above = v - v_reset if v_reset else v
    h = v + (x - above) / tau if decay_input else v - above / tau + x
    s = fired = surrogate.spike(h - theta, fire)
    if ternary:
        below = surrogate.spike(-h - theta, fire)
        s, fired = s - below, s + below
    mark(s, TERNARY if ternary else BINARY)
    reset = s if v_reset is None else fired
    reset = reset.detach() if detach_reset else reset
    v = h - reset * (theta if v_reset is None else h - v_reset if v_reset else h)
    announce(state_updates=v, cause=x)
    return s, v, h


def lif(x_BTD: Tensor, v: Tensor, **settings) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.lif` as a loop over `lif_step`, whose settings it takes; (s, v, h), each [B, T, D]."""
    steps = []
    for x_BD in x_BTD.unbind(1):
        steps.append(lif_step(x_BD, v, **settings))
        v = steps[-1][1]
    if not steps:
        return tuple(x_BTD.clone() for _ in range(3))
    return tuple(torch.stack(parts, 1) for parts in zip(*steps, strict=True))
