"""LIF over a sequence in C, on a CPU: the reference's spikes and membranes to the last bit, its gradients exactly.

B batch, T steps, D units. The source, with the equations of the backward pass, is `ops/native/lif.c`.
"""

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rheobase.spiking.ops.choice import SUFFIXES
from rheobase.spiking.ops.native import function
from rheobase.spiking.ops.native.memory import empty
from rheobase.spiking.ops.native.threads import spread
from rheobase.spiking.surrogates import ATan

UNITS, EVERY = 128, 16
"""Units of a block, and steps from one kept membrane to the next: as in `lif.c`"""


class _Settings(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("v_reset", "alpha")),
        *((name, ctypes.c_int32) for name in ("hard", "decay_input", "strict", "ternary", "detach_reset", "learns")),
    ]


def _call(name: str, settings: _Settings, like: Tensor, tensors: list[Tensor | None]) -> None:
    batch, steps, units = like.shape
    types = [ctypes.c_void_p] * (1 + len(tensors)) + [ctypes.c_int64] * 4
    run = function(f"{name}_{SUFFIXES[like.dtype]}", *types)
    arguments = [ctypes.addressof(settings), *(None if t is None else t.data_ptr() for t in tensors), steps, units]
    spread(lambda first, end: run(*arguments, first, end), batch * -(-units // UNITS), like.numel())


class _LIF(torch.autograd.Function):
    """Keeps x and every 16th membrane for the backward pass, which runs each stretch between them again."""

    @staticmethod
    def forward(ctx, x_BTD, v0_BD, tau_D, theta_D, settings, surrogate, whole, with_h, keep):
        (batch, steps, units), dtype = x_BTD.shape, x_BTD.dtype
        s_BTD, last_BD = empty(x_BTD.shape, dtype), torch.empty_like(v0_BD)
        h_BTD, v_BTD = (empty(x_BTD.shape, dtype) if wanted else None for wanted in (with_h, whole))
        kept = empty((batch, steps // EVERY, units), dtype) if keep else None
        _call("lif_forward", settings, x_BTD, [x_BTD, v0_BD, tau_D, theta_D, s_BTD, h_BTD, v_BTD, last_BD, kept])
        ctx.save_for_backward(x_BTD, v0_BD, tau_D, theta_D, kept)
        ctx.settings, ctx.surrogate, ctx.whole = settings, surrogate, whole
        ctx.set_materialize_grads(False)
        return s_BTD, v_BTD if whole else last_BD, h_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx, g_s, g_v, g_h):
        x, v0, tau, theta, kept = ctx.saved_tensors
        g_s, g_v, g_h = (None if g is None else g.contiguous() for g in (g_s, g_v, g_h))
        g_x, g_last = empty(x.shape, x.dtype), torch.zeros_like(v0)
        if g_v is not None and not ctx.whole:
            g_last, g_v = g_v.clone(), None
        g_tau, g_theta = (torch.zeros_like(v0) if ctx.settings.learns else None for _ in range(2))
        slopes = _slopes(ctx, g_x) if type(ctx.surrogate) is not ATan else [None, None]
        tensors = [x, v0, kept, tau, theta, *slopes, g_s, g_h, g_v, g_x, g_last, g_tau, g_theta]
        _call("lif_backward", ctx.settings, x, tensors)
        of_parameters = (None if g is None else g.sum(0) for g in (g_tau, g_theta))
        return g_x, g_last, *of_parameters, *[None] * 5


def _slopes(ctx, spare_BTD: Tensor) -> list[Tensor | None]:
    """The surrogate's slopes at h - theta and at -h - theta [B, T, D]; the spikes, found again, go where g_x will."""
    x, v0, tau, theta, _ = ctx.saved_tensors
    h = empty(x.shape, x.dtype)
    _call("lif_forward", ctx.settings, x, [x, v0, tau, theta, spare_BTD, h, None, torch.empty_like(v0), None])
    sides = [h - theta, -h - theta] if ctx.settings.ternary else [h - theta]
    slopes = [ctx.surrogate.slope(side).contiguous() for side in sides]
    return slopes if ctx.settings.ternary else [*slopes, None]


def lif(x_BTD, v, *, tau, theta, v_reset, decay_input, fire, detach_reset, surrogate, ternary, with_h, whole):
    """`ops.lif` in C, for tensors of one type, float32 or float64, on a CPU; it can be differentiated once."""
    units = x_BTD.shape[2:]
    tau, theta = (torch.as_tensor(p, dtype=x_BTD.dtype).expand(units).contiguous() for p in (tau, theta))
    settings = _Settings(
        v_reset=v_reset or 0.0,
        alpha=getattr(surrogate, "alpha", 0.0),
        hard=v_reset is not None,
        decay_input=decay_input,
        strict=fire == ">",
        ternary=ternary,
        detach_reset=detach_reset,
        learns=ternary or tau.requires_grad or theta.requires_grad,  # as ternary ones do in `lif.c`
    )
    tensors = [x_BTD, v, tau, theta]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _LIF.apply(*(t.contiguous() for t in tensors), settings, surrogate, whole, with_h, keep)
