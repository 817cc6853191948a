"""WKV, the recurrent attention of RWKV-4 and SpikeGPT, in plain torch: the truth for every faster form.

B batch, T steps, D channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rheobase.spiking.errors import ShapeError
from rheobase.spiking.tally import announce

FIRST = -1e38


class WKVState(NamedTuple):
    """What WKV carries from step to step, each [B, D]: p e^o is the weighted sum of values, q e^o that of weights."""

    p: Tensor
    q: Tensor
    o: Tensor
    """the largest exponent so far, which keeps p and q near 1; -1e38 before the first step"""


def wkv_initial_state(batch: int, channels: int, *, dtype=None, device=None) -> WKVState:
    """The state before the first step."""
    zeros = torch.zeros(batch, channels, dtype=dtype, device=device)
    return WKVState(zeros, zeros.clone(), torch.full_like(zeros, FIRST))


def wkv_step(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    """One step with w = -exp(time_decay), u = time_first [D] and k, v [B, D] -> (y [B, D], state)."""
    p, q, o = state
    n = torch.maximum(o, u + k)
    a, e = torch.exp(o - n), torch.exp(u + k - n)
    y = (a * p + e * v) / (a * q + e)
    n = torch.maximum(w + o, k)
    a, e = torch.exp(w + o - n), torch.exp(k - n)
    state = WKVState(a * p + e * v, a * q + e, n)
    for part in state:
        announce(state_updates=part)
    return y, state


def wkv(
    time_decay: Tensor, time_first: Tensor, k: Tensor, v: Tensor, state: WKVState | None = None
) -> tuple[Tensor, WKVState]:
    """A weighted mean of all values so far, whose weights decay with time and depend on the keys.

        w = -exp(time_decay)      u = time_first
        y_t = (sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same sum without v)

    computed step by step with the largest exponent taken out, so that no k overflows.

    time_decay, time_first   raw parameters, one a channel                              [D]
    k, v                     keys and values                                            [B, T, D]
    state                    what an earlier call returned, empty sums if not given     each [B, D]
    returns                  (y [B, T, D], WKVState after the last step); gradients reach the initial state
    raises                   ShapeError: sizes that do not fit each other

    Source: RWKV-4 (Peng et al., arXiv 2305.13048, appendix on numerical stability), as used by SpikeGPT (Zhu et
    al., arXiv 2302.13939).
    """
    if k.dim() != 3 or k.shape != v.shape:
        raise ShapeError("wkv", "k and v of one shape [B, T, D]", f"{tuple(k.shape)}, {tuple(v.shape)}", "reshape them")
    batch, _, channels = k.shape
    if time_decay.shape != (channels,) or time_first.shape != (channels,):
        got = f"{tuple(time_decay.shape)}, {tuple(time_first.shape)}"
        raise ShapeError("wkv time_decay, time_first", f"shape ({channels},)", got, "give one number a channel")
    if state is None:
        state = wkv_initial_state(batch, channels, dtype=k.dtype, device=k.device)
    if any(part.shape != (batch, channels) for part in state):
        got = f"{[tuple(part.shape) for part in state]}"
        raise ShapeError("wkv state", f"parts of shape {(batch, channels)}", got, "start a new state")
    w = -torch.exp(time_decay)
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        y, state = wkv_step(w, time_first, k_t, v_t, state)
        outputs.append(y)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)), state
