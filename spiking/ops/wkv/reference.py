"""WKV, the recurrent attention of RWKV-4 and SpikeGPT, in plain torch: the truth for every faster form.

B batch, T steps, D channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

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
    now, past = u + k, w + o
    n = torch.maximum(o, now)
    a, e = torch.exp(o - n), torch.exp(now - n)
    y = (a * p + e * v) / (a * q + e)
    n = torch.maximum(past, k)
    a, e = torch.exp(past - n), torch.exp(k - n)
    state = WKVState(a * p + e * v, a * q + e, n)
    for part in state:
        announce(state_updates=part)
    return y, state


def wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    """`ops.wkv` as a loop over `wkv_step`, with w = -exp(time_decay) and u = time_first."""
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        y, state = wkv_step(w, u, k_t, v_t, state)
        outputs.append(y)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)), state
