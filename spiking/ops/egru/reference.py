"""EGRU over a sequence, in plain torch: the truth that every faster form is tested against.

B batch, T steps, I inputs, H units; the three gates lie side by side in the order z (update), r (reset),
g (candidate).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rheobase.spiking.tally import GRADED, announce, mark

TRACE_DECAY = 0.9


class EGRUState(NamedTuple):
    """What an EGRU layer carries from one step to the next, each [B, H]."""

    y: Tensor
    """graded event emitted at the last step, 0 where the unit was silent"""
    c: Tensor
    """cell after the reset"""
    trace: Tensor
    """low-pass filter of y"""


class EGRUTrajectory(NamedTuple):
    """Every step of an EGRU layer, each [B, T, H]: events y, cells c, firing o in {0, 1}, traces."""

    y: Tensor
    c: Tensor
    o: Tensor
    trace: Tensor


def egru_cell(a, q, thr, state, *, surrogate, zoneout=0.0, training=False, zoneout_mask=None):
    """One step from the two pre-activations a, q [B, 3H]; returns (o, EGRUState). Equations: see `ops.egru`."""
    units = thr.shape[0]
    (a_zr, a_g), (q_zr, q_g) = (x.split((2 * units, units), -1) for x in (a, q))
    z, r = torch.sigmoid(a_zr + q_zr).chunk(2, -1)
    g = torch.tanh(a_g + r * q_g)
    p = z * state.c + (1 - z) * g
    if zoneout and training:
        keep = torch.rand_like(p) >= zoneout if zoneout_mask is None else zoneout_mask.bool()
        p = torch.where(keep, p, state.c)
    elif zoneout:
        p = zoneout * state.c + (1 - zoneout) * p
    o = surrogate.spike(p - thr, ">")
    y = mark(o * p, GRADED)
    c = p - o * thr
    trace = TRACE_DECAY * state.trace + (1 - TRACE_DECAY) * y
    announce(state_updates=c)
    announce(state_updates=trace)
    return o, EGRUState(y, c, trace)


def egru(
    x, kernel, recurrent_kernel, bias, recurrent_bias, thr, state, *, zoneout_mask=None, **settings
) -> tuple[EGRUTrajectory, EGRUState]:
    """`ops.egru` as a loop over `egru_cell`, whose settings it takes."""
    a_BTG = x if kernel is None else F.linear(x, kernel.t(), bias)
    masks = [None] * x.shape[1] if zoneout_mask is None else zoneout_mask.unbind(1)
    rows = []
    for a, mask in zip(a_BTG.unbind(1), masks, strict=True):
        q = F.linear(state.y, recurrent_kernel.t(), recurrent_bias)
        o, state = egru_cell(a, q, thr, state, zoneout_mask=mask, **settings)
        rows.append((state.y, state.c, o, state.trace))
    if not rows:
        empty = x.new_zeros(x.shape[0], 0, thr.shape[0])
        return EGRUTrajectory(empty, empty, empty, empty), state
    y, c, o, trace = (torch.stack(column, 1) for column in zip(*rows, strict=True))
    return EGRUTrajectory(y, c, o, trace), state
