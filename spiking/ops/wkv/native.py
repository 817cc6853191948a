"""WKV over a sequence in C, on a CPU; its own exponential, within 2 ulp, runs on several channels at once.

B batch, T steps, D channels. The source, with the rule of the backward pass, is `ops/native/wkv.c`.
"""

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rheobase.spiking.ops.choice import SUFFIXES
from rheobase.spiking.ops.native import function
from rheobase.spiking.ops.native.opaque import opaque
from rheobase.spiking.ops.wkv.reference import WKVState

EVERY = 16
"""Steps from one kept state to the next: as in `wkv.c`"""


def _call(name: str, like: Tensor, tensors: list[Tensor | None]) -> None:
    types = [ctypes.c_void_p] * len(tensors) + [ctypes.c_int64] * 3
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    function(f"{name}_{SUFFIXES[like.dtype]}", *types)(*pointers, *like.shape)


def _results(w_D, u_D, k_BTD, v_BTD, state_3BD, keep):
    """y, the last state, and every 16th state if they are to be kept, not yet written."""
    batch, steps, channels = k_BTD.shape
    kept = k_BTD.new_empty(batch, -(-steps // EVERY) if keep else 0, 3, channels)
    return torch.empty_like(k_BTD), torch.empty_like(state_3BD), kept


@opaque(_results)
def wkv_forward(
    w_D: Tensor, u_D: Tensor, k_BTD: Tensor, v_BTD: Tensor, state_3BD: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, last, kept = _results(w_D, u_D, k_BTD, v_BTD, state_3BD, keep)
    _call("wkv_forward", k_BTD, [w_D, u_D, k_BTD, v_BTD, state_3BD, y, last, kept if keep else None])
    return y, last, kept


@opaque(lambda w, u, k, v, kept, g_y, g_last: tuple(torch.empty_like(t) for t in (w, u, k, v, g_last)))
def wkv_backward(
    w_D: Tensor, u_D: Tensor, k_BTD: Tensor, v_BTD: Tensor, kept_BS3D: Tensor, g_y_BTD: Tensor, g_last_3BD: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v and of the first state: of the states, those of p, of q and the rest (`wkv.c`)."""
    gradients = [torch.zeros_like(w_D), torch.zeros_like(u_D), torch.empty_like(k_BTD), torch.empty_like(v_BTD)]
    g_state = g_last_3BD.clone()
    _call("wkv_backward", k_BTD, [w_D, u_D, k_BTD, v_BTD, kept_BS3D, g_y_BTD, g_state, *gradients])
    return *gradients, g_state


class _WKV(torch.autograd.Function):
    """Keeps k, v and every 16th state for the backward pass, which runs each stretch between them again."""

    @staticmethod
    def forward(ctx, w_D, u_D, k_BTD, v_BTD, state_3BD, keep):
        y, last, kept = wkv_forward(w_D, u_D, k_BTD, v_BTD, state_3BD, keep)
        ctx.save_for_backward(w_D, u_D, k_BTD, v_BTD, state_3BD, last, kept)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, g_y, g_last):
        w, u, k, v, state, last, kept = ctx.saved_tensors
        g_y = torch.zeros_like(k) if g_y is None else g_y.contiguous()
        g_state = torch.zeros_like(state)
        if g_last is not None:
            g_state[:2] = g_last[:2]
            g_state[2] = g_last[2] - (g_last[:2] * last[:2]).sum(0)
        *gradients, g_state = wkv_backward(w, u, k, v, kept, g_y, g_state)
        g_state[2] += (g_state[:2] * state[:2]).sum(0)
        return *gradients, g_state, None


def wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    """`ops.wkv` in C with w = -exp(time_decay), u = time_first, for tensors of one type, float32 or float64, on a
    CPU; it can be differentiated once."""
    tensors = [w, u, k, v, torch.stack(state)]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    y, last = _WKV.apply(*(t.contiguous() for t in tensors), keep)
    return y, WKVState(*last)
