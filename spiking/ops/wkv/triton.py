"""WKV over a sequence in Triton, for GPUs: keys, values and y in any float type, the state in float32 or wider.

B batch, T steps, D channels. The rule of the backward pass is that of `ops/native/wkv.c`.

A program runs BLOCK channels of one sequence through time. It loads a stretch of STEPS steps while it works on the one
before, so that the chain of states waits for no memory. The state before each stretch is kept; backward runs the
stretch again before it walks back through it. Each number is written by one program: equal runs give equal bits. What
y is multiplied by, sigmoid(gate), is taken while y is at hand, so that neither is written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rheobase.spiking.ops.rows import before, within
from rheobase.spiking.ops.rows import load as _load
from rheobase.spiking.ops.rows import store as _store
from rheobase.spiking.ops.wkv.reference import WKVState

STEPS, BLOCK, WARPS = 16, 32, 1
"""One channel a thread: 16 x 768 channels are 384 warps, three on each of an H100's 132 multiprocessors. 16 steps take
a warp longer than memory takes to answer, and two stretches of them fit in backward's registers."""


@triton.jit
def _shares(x1, x2):
    """e^(x1 - n), e^(x2 - n) and n = max(x1, x2): of the two, one is 1 where n is finite, and the other is computed."""
    apart, n = x1 - x2, tl.maximum(x1, x2, propagate_nan=tl.PropagateNan.ALL)
    less, one = tl.exp(-tl.abs(apart)), 1 + (n - n)
    return tl.where(apart >= 0, one, less), tl.where(apart >= 0, less, one), n


@triton.jit
def _carry(o, w, k, live):
    """What a step keeps of p and q, what it takes of v and 1, and the next o; where it is not live all stays."""
    a, e, n = _shares(w + o, k)
    return tl.where(live, a, 1.0), tl.where(live, e, 0.0), tl.where(live, n, o)


@triton.jit
def _forward(
    w, u, k, v, gate, state, y, last, kept, T,
    D: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr, WHOLE: tl.constexpr, STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b, d = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, row = within(d, D, BLOCK), b * T * D + d
    w, u = tl.load(w + d, mask=inside), tl.load(u + d, mask=inside)
    p, q, o = _load(state + b * 3 * D + d, D, 0, 3, 3, inside)
    k, v, gate, y, kept = k + row, v + row, gate + row, y + row, kept + b * tl.cdiv(T, STEPS) * 3 * D + d
    next_k, next_v = _load(k, D, 0, T, STEPS, inside, WHOLE), _load(v, D, 0, T, STEPS, inside, WHOLE)
    next_gate = _load(gate, D, 0, T, STEPS, inside & GATED, WHOLE)
    for first in range(0, T, STEPS):
        k_S, v_S, gate_S = next_k, next_v, next_gate
        k, v, gate = k + STEPS * D, v + STEPS * D, gate + STEPS * D
        next_k = _load(k, D, first + STEPS, T, STEPS, inside, WHOLE)
        next_v = _load(v, D, first + STEPS, T, STEPS, inside, WHOLE)
        next_gate = _load(gate, D, first + STEPS, T, STEPS, inside & GATED, WHOLE)
        if KEEP:
            _store(kept, D, (p, q, o), inside)
            kept += 3 * D
        for i in tl.static_range(STEPS):
            live, k_t, v_t = before(first + i, T, WHOLE), k_S[i].to(p.dtype), v_S[i].to(p.dtype)
            a, e, _ = _shares(o, u + k_t)
            y_t = (a * p + e * v_t) / (a * q + e)
            if GATED:
                y_t *= tl.sigmoid(gate_S[i].to(p.dtype))
            tl.store(y + i * D, y_t, mask=inside & live)
            a, e, o = _carry(o, w, k_t, live)
            p, q = a * p + e * v_t, a * q + e
        y += STEPS * D
    _store(last + b * 3 * D + d, D, (p, q, o), inside)


@triton.jit
def _backward(
    w, u, k, v, gate, state, last, kept, g_y, g_last, g_w, g_u, g_k, g_v, g_gate, g_state, T,
    D: tl.constexpr, GATED: tl.constexpr, WHOLE: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, d = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, stretches = within(d, D, BLOCK), tl.cdiv(T, STEPS)
    w, u = tl.load(w + d, mask=inside), tl.load(u + d, mask=inside)
    p, q, _ = _load(last + b * 3 * D + d, D, 0, 3, 3, inside)
    of_p, of_q, of_o = _load(g_last + b * 3 * D + d, D, 0, 3, 3, inside)
    rest = of_o - of_p * p - of_q * q
    of_w, of_u = tl.zeros_like(w), tl.zeros_like(w)
    first = (stretches - 1) * STEPS
    row, some = (b * T + first) * D + d, inside & (T > 0)
    k, v, gate, g_y = k + row, v + row, gate + row, g_y + row
    g_k, g_v, g_gate = g_k + row, g_v + row, g_gate + row
    kept += (b * stretches + stretches - 1) * 3 * D + d
    next_k, next_v = _load(k, D, first, T, STEPS, some, WHOLE), _load(v, D, first, T, STEPS, some, WHOLE)
    next_g = _load(g_y, D, first, T, STEPS, some, WHOLE)
    next_gate = _load(gate, D, first, T, STEPS, some & GATED, WHOLE)
    next_kept = _load(kept, D, 0, 3, 3, some)
    for _ in range(stretches):
        k_S, v_S, g_S, gate_S = next_k, next_v, next_g, next_gate
        p, q, o = next_kept
        k, v, g_y, gate, kept = k - STEPS * D, v - STEPS * D, g_y - STEPS * D, gate - STEPS * D, kept - 3 * D
        some = inside & (first > 0)  # all stretches but the last are whole
        next_k, next_v = _load(k, D, 0, STEPS, STEPS, some, True), _load(v, D, 0, STEPS, STEPS, some, True)
        next_g = _load(g_y, D, 0, STEPS, STEPS, some, True)
        next_gate = _load(gate, D, 0, STEPS, STEPS, some & GATED, True)
        next_kept = _load(kept, D, 0, 3, 3, some)
        states, shares = (), ()
        for i in tl.static_range(STEPS):
            states += ((p, q, o),)
            k_t, v_t = k_S[i].to(p.dtype), v_S[i].to(p.dtype)
            a, e, o = _carry(o, w, k_t, before(first + i, T, WHOLE))
            shares += ((a, e),)
            p, q = a * p + e * v_t, a * q + e
        for i in tl.static_range(STEPS - 1, -1, -1):
            live, k_t, v_t = before(first + i, T, WHOLE), k_S[i].to(p.dtype), v_S[i].to(p.dtype)
            p, q, o = states[i]
            now_a, now_e, _ = _shares(o, u + k_t)
            inverse = 1 / (now_a * q + now_e)
            y_t, g = (now_a * p + now_e * v_t) * inverse, g_S[i].to(p.dtype)
            if GATED:
                share = tl.sigmoid(gate_S[i].to(p.dtype))
                g *= share
                tl.store(g_gate + i * D, g * y_t * (1 - share), mask=inside & live)
            g *= inverse
            by_now = g * now_e * now_a * (q * v_t - p) * inverse
            a, e = shares[i]
            decayed = w + o
            to_k = tl.where(live & (decayed <= k_t), tl.where(decayed < k_t, rest, rest / 2), 0.0)
            rest -= to_k
            tl.store(g_v + i * D, g * now_e + of_p * e, mask=inside & live)
            tl.store(g_k + i * D, by_now + e * (of_p * v_t + of_q) + to_k, mask=inside & live)
            of_u += by_now
            of_w += tl.where(live, a * (of_p * p + of_q * q) + rest, 0.0)
            of_p, of_q = a * of_p + g * now_a, a * of_q - g * now_a * y_t
        g_k, g_v, g_gate, first = g_k - STEPS * D, g_v - STEPS * D, g_gate - STEPS * D, first - STEPS
    p, q, _ = _load(state + b * 3 * D + d, D, 0, 3, 3, inside)
    _store(g_state + b * 3 * D + d, D, (of_p, of_q, rest + of_p * p + of_q * q), inside)
    tl.store(g_w + b * D + d, of_w, mask=inside)
    tl.store(g_u + b * D + d, of_u, mask=inside)


def _launch(kernel, tensors: list[Tensor], k_BTD: Tensor, **options) -> None:
    batch, steps, channels = k_BTD.shape
    grid, options = (triton.cdiv(channels, BLOCK), batch), options | {"WHOLE": steps % STEPS == 0}
    with torch.cuda.device_of(k_BTD):
        kernel[grid](*tensors, steps, channels, **options, STEPS=STEPS, BLOCK=BLOCK, num_warps=WARPS)


@torch.library.custom_op("rheobase::wkv_triton", mutates_args=())
def _wkv(
    w_D: Tensor, u_D: Tensor, k_BTD: Tensor, v_BTD: Tensor, gate_BTD: Tensor | None, state_B3D: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gated = gate_BTD is not None
    inputs = [w_D, u_D, k_BTD, v_BTD, gate_BTD if gated else k_BTD, state_B3D]
    outputs = _outputs(*inputs, keep)
    _launch(_forward, [*(t.contiguous() for t in inputs), *outputs], k_BTD, GATED=gated, KEEP=keep)
    return outputs


@_wkv.register_fake
def _outputs(w_D, u_D, k_BTD, v_BTD, gate_BTD, state_B3D, keep):
    """y, the last state, and the states to keep, not yet written."""
    batch, steps, channels = k_BTD.shape
    stretches = -(-steps // STEPS) if keep else 0
    new = state_B3D.new_empty
    return k_BTD.new_empty(k_BTD.shape), new(batch, 3, channels), new(batch, stretches, 3, channels)


@torch.library.custom_op("rheobase::wkv_triton_backward", mutates_args=())
def _wkv_backward(
    w_D: Tensor, u_D: Tensor, k_BTD: Tensor, v_BTD: Tensor, gate_BTD: Tensor | None, state_B3D: Tensor,
    last_B3D: Tensor, kept_BS3D: Tensor, g_y_BTD: Tensor, g_last_B3D: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    gated = gate_BTD is not None
    inputs = [w_D, u_D, k_BTD, v_BTD, gate_BTD if gated else k_BTD, state_B3D, last_B3D, kept_BS3D, g_y_BTD, g_last_B3D]
    gradients = _gradients(*inputs[:4], gate_BTD, state_B3D)
    _launch(_backward, [*(t.contiguous() for t in inputs), *gradients], k_BTD, GATED=gated)
    return gradients


@_wkv_backward.register_fake
def _gradients(w_D, u_D, k_BTD, v_BTD, gate_BTD, state_B3D, *_):
    """Gradients of w and u [B, D], of k, v, the gate and the first state, not yet written; without a gate, of none."""
    batch, _, channels = k_BTD.shape
    narrow, wide = k_BTD.new_empty, state_B3D.new_empty
    of_gate = narrow(0 if gate_BTD is None else k_BTD.shape)
    shared = [wide(batch, channels) for _ in range(2)]
    return *shared, narrow(k_BTD.shape), narrow(k_BTD.shape), of_gate, wide(batch, 3, channels)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, g_y, g_last, _):
    saved = ctx.saved_tensors
    k, gate, state = saved[2], saved[4], saved[5]
    g_y = torch.zeros_like(k) if g_y is None else g_y
    g_last = torch.zeros_like(state) if g_last is None else g_last
    g_w, g_u, g_k, g_v, g_gate, g_state = _wkv_backward(*saved, g_y, g_last)
    return g_w.sum(0), g_u.sum(0), g_k, g_v, None if gate is None else g_gate, g_state, None


_wkv.register_autograd(_differentiate, setup_context=_keep)


def wkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: WKVState, gate: Tensor | None = None
) -> tuple[Tensor, WKVState]:
    """`ops.wkv` in Triton with w = -exp(time_decay), u = time_first, for tensors on one device, k, v and gate of one
    type; it can be differentiated once."""
    tensors = [w, u, k, v, gate, torch.stack(state, 1)]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, last, _ = _wkv(*tensors, keep)
    return y, WKVState(*last.unbind(1))
