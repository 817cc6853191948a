"""WKV over a sequence: `reference.py` in plain torch is the truth, `native.py` the same in C, `triton.py` on a GPU.

B batch, T steps, D channels.
"""

import functools

import torch
from torch import Tensor

from rheobase.spiking.errors import ShapeError
from rheobase.spiking.ops.choice import takes
from rheobase.spiking.ops.wkv import native, reference
from rheobase.spiking.ops.wkv.reference import WKVState, wkv_initial_state
from rheobase.spiking.tally import announce, listens, unseen, work


def wkv(
    time_decay: Tensor,
    time_first: Tensor,
    k: Tensor,
    v: Tensor,
    state: WKVState | None = None,
    *,
    gate: Tensor | None = None,
    kernels: str = "auto",
) -> tuple[Tensor, WKVState]:
    """A weighted mean of all values so far, whose weights decay with time and depend on the keys.

        w = -exp(time_decay)      u = time_first
        y_t = (sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same sum without v)

        y_t sigmoid(gate_t)                                                              with a gate

    computed step by step with the largest exponent taken out, so that no k overflows, in float32 or the widest type
    given; y is of the type of k, v and the gate.

    time_decay, time_first   raw parameters, one a channel                              [D]
    k, v                     keys and values                                            [B, T, D]
    gate                     what y is to be multiplied by, before its sigmoid: a model's receptance    [B, T, D]
    state                    what an earlier call returned, empty sums if not given     each [B, D]
    kernels                  which form runs (`ops/choice.py`): "auto", "reference", "native" (C) or "triton"; the
                             environment variable RHEOBASE_KERNELS goes before it
    returns                  (y [B, T, D], WKVState after the last step); gradients reach the initial state
    raises                   ShapeError: sizes that do not fit each other;  ConfigError: no such kernels;
                             UnsupportedError: the form named cannot run this call

    Source: RWKV-4 (Peng et al., arXiv 2305.13048, appendix on numerical stability), as used by SpikeGPT (Zhu et
    al., arXiv 2302.13939).
    """
    if k.dim() != 3 or k.shape != v.shape:
        raise ShapeError("wkv", "k and v of one shape [B, T, D]", f"{tuple(k.shape)}, {tuple(v.shape)}", "reshape them")
    batch, _, channels = k.shape
    if time_decay.shape != (channels,) or time_first.shape != (channels,):
        got = f"{tuple(time_decay.shape)}, {tuple(time_first.shape)}"
        raise ShapeError("wkv time_decay, time_first", f"shape ({channels},)", got, "give one number a channel")
    if gate is not None and gate.shape != k.shape:
        raise ShapeError("wkv gate", f"shape {tuple(k.shape)}", f"{tuple(gate.shape)}", "give one for each value")
    if state is not None and (isinstance(state, Tensor) or len(state) != len(WKVState._fields)):
        raise ShapeError("wkv state", "p, q and o", type(state).__name__, "give what an earlier call returned")
    if state is not None and any(part.shape != (batch, channels) for part in state):
        got = f"{[tuple(part.shape) for part in state]}"
        raise ShapeError("wkv state", f"parts of shape {(batch, channels)}", got, "start a new state")
    over_time = (k, v) if gate is None else (k, v, gate)
    narrow = functools.reduce(torch.promote_types, [t.dtype for t in over_time])
    types = {t.dtype for t in (time_decay, time_first, *over_time, *(state or ()))}
    wide = functools.reduce(torch.promote_types, types, torch.float32)
    if types != {wide}:
        time_decay, time_first = time_decay.to(wide), time_first.to(wide)
        state = WKVState(*(part.to(wide) for part in state)) if state else None
    form = takes("wkv", kernels, [time_decay, time_first, *over_time, *(state or ())])
    fused = form == "triton" and gate is not None and not listens()  # a counter sees the gate's own operators
    if form == "triton":
        from rheobase.spiking.ops.wkv import triton

        with unseen():
            gated = gate.to(narrow) if fused else None
            y, state = triton.wkv(time_decay, time_first, k.to(narrow), v.to(narrow), state, gated)
    else:
        state = WKVState(*state) if state else wkv_initial_state(batch, channels, dtype=wide, device=k.device)
        w, u = -torch.exp(time_decay), time_first
        if form == "native":
            with unseen():
                y, state = native.wkv(w, u, k, v, state)
        else:
            y, state = reference.wkv(w, u, k.to(wide), v.to(wide), state)
            y = y.to(narrow)
    if form != "reference" and listens():  # what the reference's operators do, for a counter that does not see them
        n, size = k.numel(), k.element_size()
        work(
            products=6 * n,
            adds=10 * n,
            comparisons=2 * n,
            transcendentals={"exp": 4 * n, "division": n},
            weight_bytes=2 * n * size,
            activation_bytes=3 * n * size,
        )
        announce(state_updates=k, parts=3)
    return y if gate is None or fused else torch.sigmoid(gate) * y, state
