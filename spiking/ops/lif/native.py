"""LIF over a sequence in C, on a CPU: the reference's spikes and membranes to the last bit, its gradients exactly.

B batch, T steps, D units. The source, with the equations of the backward pass, is `ops/native/lif.c`.
"""

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rheobase.spiking.ops.choice import SUFFIXES
from rheobase.spiking.ops.native import function
from rheobase.spiking.surrogates import ATan


class _Settings(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("v_reset", "alpha")),
        *((name, ctypes.c_int32) for name in ("hard", "decay_input", "strict", "ternary", "detach_reset", "learns")),
    ]


def _call(name: str, settings: _Settings, like: Tensor, tensors: list[Tensor | None]) -> None:
    types = [ctypes.c_void_p] * (1 + len(tensors)) + [ctypes.c_int64] * 3
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    function(f"{name}_{SUFFIXES[like.dtype]}", *types)(ctypes.addressof(settings), *pointers, *like.shape)


class _LIF(torch.autograd.Function):
    """Keeps x and the membranes for the backward pass, which finds h and the spikes again."""

    @staticmethod
    def forward(ctx, x_BTD, v0_BD, tau_D, theta_D, settings, surrogate):
        s_BTD, v_BTD = torch.empty_like(x_BTD), torch.empty_like(x_BTD)
        _call("lif_forward", settings, x_BTD, [x_BTD, v0_BD, tau_D, theta_D, s_BTD, v_BTD])
        ctx.save_for_backward(x_BTD, v0_BD, tau_D, theta_D, v_BTD)
        ctx.settings, ctx.surrogate = settings, surrogate
        ctx.set_materialize_grads(False)
        return s_BTD, v_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx, g_s, g_v):
        x, v0, tau, theta, v = ctx.saved_tensors
        slopes = [None, None]
        if type(ctx.surrogate) is not ATan:
            h = _before_reset(x, v0, v, tau, ctx.settings)
            slopes = [ctx.surrogate.slope(h - theta), ctx.surrogate.slope(-h - theta) if ctx.settings.ternary else None]
            slopes = [None if slope is None else slope.contiguous() for slope in slopes]
        incoming = [None if g is None else g.contiguous() for g in (g_s, g_v)]
        gradients = [torch.empty_like(x), torch.empty_like(v0), torch.zeros_like(tau), torch.zeros_like(theta)]
        _call("lif_backward", ctx.settings, x, [x, v0, v, tau, theta, *slopes, *incoming, *gradients])
        return *gradients, None, None


def _before_reset(x, v0, v, tau, settings: _Settings) -> Tensor:
    """h of `ops.lif` [B, T, D], found again from the membranes after each reset, to the last bit."""
    before = torch.cat([v0[:, None], v[:, :-1]], 1)
    above = before - settings.v_reset if settings.hard else before
    return before + (x - above) / tau if settings.decay_input else before - above / tau + x


def lif(x_BTD, v, *, tau, theta, v_reset, decay_input, fire, detach_reset, surrogate, ternary, with_h):
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
        learns=tau.requires_grad or theta.requires_grad,
    )
    x_BTD, v = x_BTD.contiguous(), v.contiguous()
    s_BTD, v_BTD = _LIF.apply(x_BTD, v, tau, theta, settings, surrogate)
    return s_BTD, v_BTD, _before_reset(x_BTD, v, v_BTD, tau, settings) if with_h else None
