"""LIF over a sequence in C, on a CPU: the reference's spikes and membranes to the last bit, its gradients exactly.

B batch, T steps, D units. The source, with the equations of the backward pass, is `ops/native/lif.c`.
"""

import ctypes
import dataclasses
import functools
import math
import platform

import torch
from torch import Tensor

from rheobase.spiking.ops.choice import SUFFIXES
from rheobase.spiking.ops.native import EVERY, UNITS, function
from rheobase.spiking.ops.native.memory import empty
from rheobase.spiking.ops.native.once import once, saved
from rheobase.spiking.ops.native.opaque import opaque
from rheobase.spiking.ops.native.threads import spread
from rheobase.spiking.surrogates import IN_KERNELS


class _Settings(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("v_reset", "inverse", "first", "second")),
        *((name, ctypes.c_int32) for name in ("hard", "decay_input", "strict", "ternary", "detach_reset", "learns")),
        *((name, ctypes.c_int32) for name in ("by_inverse", "surrogate", "past")),
    ]


PAST = 1 << 23 if platform.machine() in ("x86_64", "AMD64") else math.inf
"""Bytes of an array from which on it is written past the caches, which would keep little of it for who reads it next;
`write_past` in `native.h` can do so on x86-64"""
TERNARY, LEARNS = 7, 9
"""Places of these among the settings, which are `_Settings` but for `past` as a list of numbers"""


@functools.cache
def _struct(*settings: float) -> _Settings:
    fields = zip(_Settings._fields_, settings, strict=True)
    return _Settings(*(value if kind is ctypes.c_double else int(value) for (_, kind), value in fields))


def _call(name: str, settings: list[float], like: Tensor, tensors: list[Tensor | None]) -> None:
    batch, steps, units = like.shape
    types = [ctypes.c_void_p] * (1 + len(tensors)) + [ctypes.c_int64] * 4
    run = function(f"{name}_{SUFFIXES[like.dtype]}", *types)
    past = like.nbytes >= PAST and units * like.itemsize % 64 == 0  # `empty` gives such arrays whole pages
    struct = _struct(*settings, past)
    arguments = [ctypes.addressof(struct), *(None if t is None else t.data_ptr() for t in tensors), steps, units]
    spread(
        lambda first, end, held=(struct, tensors): run(*arguments, first, end), batch * -(-units // UNITS), like.numel()
    )


def _outputs(x_BTD, v0_BD, tau_D, theta_D, settings, whole, with_h, keep, new=torch.empty):
    """Spikes, the last membrane, then what is wanted of h, all membranes and every 16th, not yet written."""
    batch, steps, units = x_BTD.shape
    outputs = [new(x_BTD.shape, dtype=x_BTD.dtype), torch.empty_like(v0_BD)]
    outputs += [new(x_BTD.shape, dtype=x_BTD.dtype) for wanted in (with_h, whole) if wanted]
    return outputs + [new((batch, steps // EVERY, units), dtype=x_BTD.dtype)] if keep else outputs


@opaque(_outputs)
def lif_forward(
    x_BTD: Tensor, v0_BD: Tensor, tau_D: Tensor, theta_D: Tensor, settings: list[float], whole: bool, with_h: bool,
    keep: bool,
) -> list[Tensor]:  # fmt: skip
    """Spikes, the last membrane, then what is wanted of h, all membranes and every 16th."""
    inputs = [x_BTD, v0_BD, tau_D, theta_D]
    outputs = _outputs(*inputs, settings, whole, with_h, keep, empty)
    s, last, h, v, kept = _by_name(outputs, whole, with_h, keep)
    _call("lif_forward", settings, x_BTD, [*inputs, s, h, v, last, kept])
    return outputs


def _by_name(outputs: list[Tensor], whole: bool, with_h: bool, keep: bool) -> list[Tensor | None]:
    """Spikes, the last membrane, h, all membranes and every 16th, None for what is not wanted."""
    more = iter(outputs[2:])
    return outputs[:2] + [next(more) if wanted else None for wanted in (with_h, whole, keep)]


def _gradients(x_BTD, v0_BD, kept, tau_D, theta_D, up, down, g_s, g_h, g_v, g_last_BD, settings, new=torch.empty):
    """Of x, of the first membrane, and of tau and theta [B, D] if they learn, to be written."""
    shared = [torch.zeros_like(v0_BD) for _ in range(2)] if settings[LEARNS] else []
    return [new(x_BTD.shape, dtype=x_BTD.dtype), g_last_BD.clone(), *shared]


@opaque(_gradients)
def lif_backward(
    x_BTD: Tensor, v0_BD: Tensor, kept_BSD: Tensor, tau_D: Tensor, theta_D: Tensor, up_BTD: Tensor | None,
    down_BTD: Tensor | None, g_s_BTD: Tensor | None, g_h_BTD: Tensor | None, g_v_BTD: Tensor | None,
    g_last_BD: Tensor, settings: list[float],
) -> list[Tensor]:  # fmt: skip
    """Gradients of x, of the first membrane, and of tau and theta [B, D] if they learn."""
    inputs = [x_BTD, v0_BD, kept_BSD, tau_D, theta_D, up_BTD, down_BTD, g_s_BTD, g_h_BTD, g_v_BTD]
    gradients = _gradients(*inputs, g_last_BD, settings, empty)
    _call("lif_backward", settings, x_BTD, [*inputs, *gradients, *([] if settings[LEARNS] else [None, None])])
    return gradients


class _LIF(torch.autograd.Function):
    """Keeps x and every 16th membrane for the backward pass, which runs each stretch between them again."""

    @staticmethod
    def forward(ctx, x_BTD, v0_BD, tau_D, theta_D, settings, surrogate, whole, with_h, keep):
        outputs = lif_forward(x_BTD, v0_BD, tau_D, theta_D, settings, whole, with_h, keep)
        s_BTD, last_BD, h_BTD, v_BTD, kept = _by_name(outputs, whole, with_h, keep)
        ctx.save_for_backward(x_BTD, v0_BD, tau_D, theta_D, kept)
        ctx.settings, ctx.surrogate, ctx.whole = settings, surrogate, whole
        ctx.set_materialize_grads(False)
        return s_BTD, v_BTD if whole else last_BD, h_BTD

    @staticmethod
    @once
    def backward(ctx, g_s, g_v, g_h):
        x, v0, tau, theta, kept = saved(ctx)
        g_s, g_v, g_h = (None if g is None else g.contiguous() for g in (g_s, g_v, g_h))
        g_last = torch.zeros_like(v0)
        if g_v is not None and not ctx.whole:
            g_last, g_v = g_v, None
        slopes = (None, None) if ctx.settings[-1] else _slopes(ctx, x, v0, tau, theta)
        tensors = [x, v0, kept, tau, theta, *slopes, g_s, g_h, g_v, g_last]
        g_x, g_first, *shared = lif_backward(*tensors, ctx.settings)
        of_parameters = [g.sum(0) for g in shared] or [None, None]
        return g_x, g_first, *of_parameters, *[None] * 5


def _slopes(ctx, x, v0, tau, theta) -> tuple[Tensor, Tensor | None]:
    """The surrogate's slopes at h - theta and at -h - theta [B, T, D]. (A checkpoint gives saved tensors once.)"""
    h = lif_forward(x, v0, tau, theta, ctx.settings, False, True, False)[2]
    sides = [h - theta, -h - theta] if ctx.settings[TERNARY] else [h - theta]
    slopes = [ctx.surrogate.slopes(side) for side in sides]
    return tuple(slopes) if ctx.settings[TERNARY] else (*slopes, None)


def lif(x_BTD, v, *, tau, theta, v_reset, decay_input, fire, detach_reset, surrogate, ternary, with_h, whole):
    """`ops.lif` in C, for tensors of one type, float32 or float64, on a CPU; it can be differentiated once."""
    units, exact = x_BTD.shape[2:], not isinstance(tau, Tensor) and 1e-30 < tau < 1e30 and math.frexp(tau)[0] == 0.5
    inverse = 1 / tau if exact else 0.0
    like = {"dtype": x_BTD.dtype, "device": x_BTD.device}
    tau, theta = (
        p.expand(units).contiguous() if isinstance(p, Tensor) else torch.full(units, p, **like) for p in (tau, theta)
    )
    learns = ternary or tau.requires_grad or theta.requires_grad  # as ternary ones do in `lif.c`
    known = type(surrogate) in IN_KERNELS and surrogate.of_numbers()
    number = 1 + IN_KERNELS.index(type(surrogate)) if known else 0  # 0 in `lif.c`: the slopes are given
    shape = dataclasses.astuple(surrogate) if known else ()
    numbers = v_reset or 0.0, inverse, *(*shape, 0.0, 0.0)[:2]
    flags = v_reset is not None, decay_input, fire == ">", ternary, detach_reset, learns, exact
    settings = [float(setting) for setting in (*numbers, *flags, number)]
    tensors = [x_BTD, v, tau, theta]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _LIF.apply(*(t.contiguous() for t in tensors), settings, surrogate, whole, with_h, keep)
