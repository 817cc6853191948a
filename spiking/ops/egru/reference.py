"""EGRU over a sequence, in plain torch: the truth that every faster form is tested against.

B batch, T steps, I inputs, H units; the three gates lie side by side in the order z (update), r (reset),
g (candidate).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rheobase.spiking.errors import ShapeError
from rheobase.spiking.surrogates import Surrogate
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
    """One step from the two pre-activations a, q [B, 3H]; returns (o, EGRUState). Equations: see `egru`."""
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
    x: Tensor,
    kernel: Tensor,
    recurrent_kernel: Tensor,
    bias: Tensor,
    recurrent_bias: Tensor,
    thr: Tensor,
    state: EGRUState | None = None,
    *,
    surrogate: Surrogate,
    zoneout: float = 0.0,
    training: bool = False,
    zoneout_mask: Tensor | None = None,
) -> tuple[EGRUTrajectory, EGRUState]:
    """Event-based gated recurrent units along the time axis of x.

        a = x_t kernel + bias                     q = y_{t-1} recurrent_kernel + recurrent_bias
        z = sigmoid(a_z + q_z)    r = sigmoid(a_r + q_r)    g = tanh(a_g + r q_g)
        p = z c_{t-1} + (1 - z) g
        zoneout ζ: in training p stays c_{t-1} with probability ζ; in evaluation p = ζ c_{t-1} + (1 - ζ) p
        o = [p > thr]     y = o p     c = p - o thr     trace = 0.9 trace + 0.1 y

    Only y is communicated, and it is 0 where a unit is silent.

    x                 input                                                              [B, T, I]
    kernel            [I, 3H]      recurrent_kernel [H, 3H]      bias, recurrent_bias [3H]
    thr               threshold of each unit, in [0, 1]                                  [H]
    state             what an earlier call returned, zeros if not given                  each [B, H]
    zoneout_mask      1 where the update is kept, drawn if not given (training only)     [B, T, H]
    returns           (EGRUTrajectory, each [B, T, H]; EGRUState after the last step, each [B, H])
    raises            ShapeError: sizes that do not fit each other

    Source: Subramoney, Nazeer, Schöne, Mayr, Kappel, "Efficient recurrent architectures through activity
    sparsity and sparse back-propagation through time", ICLR 2023, in the form that its published runs use: the
    update gate is the paper's 1 - u, the reset gate acts after the product, and a spike subtracts thr.
    """
    if x.dim() != 3:
        raise ShapeError("egru", "x of shape [B, T, I]", f"{tuple(x.shape)}", "add the missing axis")
    batch, steps, inputs = x.shape
    units = thr.shape[0]
    wanted = {
        "kernel": (kernel, (inputs, 3 * units)),
        "recurrent_kernel": (recurrent_kernel, (units, 3 * units)),
        "bias": (bias, (3 * units,)),
        "recurrent_bias": (recurrent_bias, (3 * units,)),
        "zoneout_mask": (zoneout_mask, (batch, steps, units)),
    }
    if state is None:
        zeros = x.new_zeros(batch, units)
        state = EGRUState(zeros, zeros, zeros)
    wanted |= {f"state.{name}": (part, (batch, units)) for name, part in state._asdict().items()}
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(f"egru {name}", f"shape {shape}", f"{tuple(tensor.shape)}", "give a matching one")

    mark(state.y, GRADED, sent=False)
    a_BTG = F.linear(x, kernel.t(), bias)
    masks = [None] * steps if zoneout_mask is None else zoneout_mask.unbind(1)
    rows = []
    for a, mask in zip(a_BTG.unbind(1), masks, strict=True):
        q = F.linear(state.y, recurrent_kernel.t(), recurrent_bias)
        o, state = egru_cell(
            a, q, thr, state, surrogate=surrogate, zoneout=zoneout, training=training, zoneout_mask=mask
        )
        rows.append((state.y, state.c, o, state.trace))
    if not rows:
        empty = x.new_zeros(batch, 0, units)
        return EGRUTrajectory(empty, empty, empty, empty), state
    y, c, o, trace = (torch.stack(column, 1) for column in zip(*rows, strict=True))
    return EGRUTrajectory(y, c, o, trace), state
