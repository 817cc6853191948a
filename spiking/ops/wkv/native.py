"""WKV over a sequence in C, on a CPU; its own exponential, within 2 ulp, runs on several channels at once.

B batch, T steps, D channels. The source, with the rule of the backward pass, is `ops/native/wkv.c`.
"""

import ctypes

import torch
from torch import Tensor

from rheobase.spiking.ops.choice import SUFFIXES
from rheobase.spiking.ops.native import EVERY, UNITS, function
from rheobase.spiking.ops.native.memory import empty
from rheobase.spiking.ops.native.once import once, saved
from rheobase.spiking.ops.native.opaque import opaque
from rheobase.spiking.ops.native.threads import spread
from rheobase.spiking.ops.wkv.reference import WKVState


def _call(name: str, like: Tensor, tensors: list[Tensor | None]) -> None:
    batch, steps, channels = like.shape
    types = [ctypes.c_void_p] * len(tensors) + [ctypes.c_int64] * 4
    run = function(f"{name}_{SUFFIXES[like.dtype]}", *types)
    arguments = [*(None if t is None else t.data_ptr() for t in tensors), steps, channels]
    spread(lambda first, end, held=tensors: run(*arguments, first, end), batch * -(-channels // UNITS), like.numel())


def _outputs(w_D, u_D, k_BTD, v_BTD, state_B3D, keep, new=torch.empty):
    """y, the last state, and every 16th state if they are to be kept, not yet written."""
    batch, steps, channels = k_BTD.shape
    kept = k_BTD.new_empty(batch, -(-steps // EVERY) if keep else 0, 3, channels)
    return new(k_BTD.shape, dtype=k_BTD.dtype), torch.empty_like(state_B3D), kept


@opaque(_outputs)
def wkv_forward(
    w_D: Tensor, u_D: Tensor, k_BTD: Tensor, v_BTD: Tensor, state_B3D: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and every 16th state if they are to be kept."""
    y, last, kept = _outputs(w_D, u_D, k_BTD, v_BTD, state_B3D, keep, empty)
    _call("wkv_forward", k_BTD, [w_D, u_D, k_BTD, v_BTD, state_B3D, y, last, kept if keep else None])
    return y, last, kept


def _gradients(w_D, u_D, k_BTD, v_BTD, kept_BS3D, g_y_BTD, g_last_B3D, new=torch.empty):
    """Of w and u [B, D], 0 to be added to, of k, v and of the first state, not yet written."""
    g_w, g_u = (w_D.new_zeros(len(k_BTD), len(w_D)) for _ in range(2))
    g_k, g_v = (new(k_BTD.shape, dtype=k_BTD.dtype) for _ in range(2))
    return g_w, g_u, g_k, g_v, torch.empty_like(g_last_B3D)


@opaque(_gradients)
def wkv_backward(
    w_D: Tensor, u_D: Tensor, k_BTD: Tensor, v_BTD: Tensor, kept_BS3D: Tensor, g_y_BTD: Tensor, g_last_B3D: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w and u [B, D], of k, v and of the first state: those of its p and q, and the rest (`wkv.c`)."""
    g_w, g_u, g_k, g_v, g_state = _gradients(w_D, u_D, k_BTD, v_BTD, kept_BS3D, g_y_BTD, g_last_B3D, empty)
    g_state.copy_(g_last_B3D)
    _call("wkv_backward", k_BTD, [w_D, u_D, k_BTD, v_BTD, kept_BS3D, g_y_BTD, g_state, g_w, g_u, g_k, g_v])
    return g_w, g_u, g_k, g_v, g_state


class _WKV(torch.autograd.Function):
    """Keeps k, v and every 16th state for the backward pass, which runs each stretch between them again."""

    @staticmethod
    def forward(ctx, w_D, u_D, k_BTD, v_BTD, state_B3D, keep):
        y, last, kept = wkv_forward(w_D, u_D, k_BTD, v_BTD, state_B3D, keep)
        ctx.save_for_backward(w_D, u_D, k_BTD, v_BTD, state_B3D, last, kept)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once
    def backward(ctx, g_y, g_last):
        w, u, k, v, state, last, kept = saved(ctx)
        g_y = torch.zeros_like(k) if g_y is None else g_y.contiguous()
        g_state = torch.zeros_like(state)
        if g_last is not None:
            g_state[:, :2] = g_last[:, :2]
            g_state[:, 2] = g_last[:, 2] - (g_last[:, :2] * last[:, :2]).sum(1)
        g_w, g_u, g_k, g_v, g_state = wkv_backward(w, u, k, v, kept, g_y, g_state)
        g_state[:, 2] += (g_state[:, :2] * state[:, :2]).sum(1)
        return g_w.sum(0), g_u.sum(0), g_k, g_v, g_state, None


def wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    """`ops.wkv` in C with w = -exp(time_decay), u = time_first, for tensors of one type, float32 or float64, on a
    CPU; it can be differentiated once."""
    tensors = [w, u, k, v, torch.stack(state, 1)]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    y, last = _WKV.apply(*(t.contiguous() for t in tensors), keep)
    return y, WKVState(*(part.clone() for part in last.unbind(1)))  # views would not be changed or detached in place
