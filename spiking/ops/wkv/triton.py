"""WKV over a sequence in Triton, for GPUs: keys, values and y in any float type, the state in float32 or wider.

B batch, T steps, D channels. The rule of the backward pass is that of `ops/native/wkv.c`.

A program runs BLOCK channels of one sequence through time, in stretches of STEPS steps. So that the chain of states
waits for no memory, it asks for a stretch while it works on the one before and, forward, where registers are left, on
the one before that. The state before each stretch is kept; backward runs the stretch again before it walks back through
it. Each number is written by one program: equal runs give equal bits. What y is multiplied by, sigmoid(gate), is taken
while y is at hand, so that neither is written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rheobase.spiking.ops.rows import OPTIONS, before, bit, place, quick, within
from rheobase.spiking.ops.rows import load as _load
from rheobase.spiking.ops.rows import store as _store
from rheobase.spiking.ops.wkv.reference import FIRST, WKVState

STEPS, BLOCK = 16, 32
"""One channel a thread: 16 x 768 channels are 384 warps, three on each of an H100's 132 multiprocessors. 16 steps take
a warp longer than memory takes to answer, and two stretches of them fit in backward's registers."""


@triton.jit
def _decay(x):
    """e^-x by way of 2^x, which a GPU has an instruction for; `tl.exp` sees to results below 1e-38 too, which are
    nothing beside the 1 that they are weighed against."""
    return tl.exp2(x * -1.4426950408889634)


@triton.jit
def _inverse(x):
    """1 / x of what is above 0; `/` takes four times the instructions."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def _shares(x1, x2):
    """e^(x1 - n), e^(x2 - n) and n = max(x1, x2): of the two, one is 1 where n is finite, and the other is computed."""
    apart, n = x1 - x2, tl.maximum(x1, x2, propagate_nan=tl.PropagateNan.ALL)
    less, one = _decay(tl.abs(apart)), 1 + (n - n)
    return tl.where(apart >= 0, one, less), tl.where(apart >= 0, less, one), n


@triton.jit
def _carry(o, w, k, live):
    """What a step keeps of p and q, what it takes of v and 1, and the next o; where it is not live all stays."""
    a, e, n = _shares(w + o, k)
    return tl.where(live, a, 1.0), tl.where(live, e, 0.0), tl.where(live, n, o)


@triton.jit
def _begin(time_decay, time_first, state, b, d, inside, D: tl.constexpr, FIRST: tl.constexpr):
    """w = -e^time_decay, u = time_first, and p, q, o before the first step, which are those of empty sums where no
    state is given."""
    w, u = -tl.exp(tl.load(time_decay + d, mask=inside, other=0.0)), tl.load(time_first + d, mask=inside, other=0.0)
    p, q, o = tl.zeros_like(u), tl.zeros_like(u), tl.zeros_like(u) + FIRST
    if state is not None:
        p, q, o = _load(state + b * 3 * D + d, D, 0, 3, 3, inside)
    return w, u, p, q, o


@triton.jit
def _inputs(k, v, gate, first, T, inside, D: tl.constexpr, GATED: tl.constexpr, WHOLE: tl.constexpr,
            STEPS: tl.constexpr):  # fmt: skip
    """Keys, values and gates of the stretch from step `first`, to which the pointers point."""
    k_S, v_S = _load(k, D, first, T, STEPS, inside, WHOLE), _load(v, D, first, T, STEPS, inside, WHOLE)
    return k_S, v_S, _load(gate, D, first, T, STEPS, inside & GATED, WHOLE)


@quick
@triton.jit
def _forward(
    time_decay, time_first, k, v, gate, state, y, last, kept, T,
    D: tl.constexpr, FIRST: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr, WHOLE: tl.constexpr,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, d = place(D, BLOCK)
    inside, row = within(d, D, BLOCK), b * T * D + d
    w, u, p, q, o = _begin(time_decay, time_first, state, b, d, inside, D, FIRST)
    k, v, gate, y, kept = k + row, v + row, gate + row, y + row, kept + b * tl.cdiv(T, STEPS) * 3 * D + d
    coming = _inputs(k, v, gate, 0, T, inside, D, GATED, WHOLE, STEPS)
    k, v, gate = k + STEPS * D, v + STEPS * D, gate + STEPS * D
    later = _inputs(k, v, gate, STEPS, T, inside, D, GATED, WHOLE, STEPS)
    for first in range(0, T, STEPS):
        k_S, v_S, gate_S = coming
        coming = later
        k, v, gate = k + STEPS * D, v + STEPS * D, gate + STEPS * D
        later = _inputs(k, v, gate, first + 2 * STEPS, T, inside, D, GATED, WHOLE, STEPS)
        if KEEP:
            _store(kept, D, (p, q, o), inside)
            kept += 3 * D
        for i in tl.static_range(STEPS):
            live, k_t, v_t = before(first + i, T, WHOLE), k_S[i].to(p.dtype), v_S[i].to(p.dtype)
            a, e, _ = _shares(o, u + k_t)
            y_t = (a * p + e * v_t) * _inverse(a * q + e)
            if GATED:
                y_t *= _inverse(1 + _decay(gate_S[i].to(p.dtype)))
            tl.store(y + i * D, y_t, mask=inside & live)
            a, e, o = _carry(o, w, k_t, live)
            p, q = a * p + e * v_t, a * q + e
        y += STEPS * D
    _store(last + b * 3 * D + d, D, (p, q, o), inside)


@quick
@triton.jit
def _backward(
    time_decay, time_first, k, v, gate, state, last, kept, g_y, g_last, g_decay, g_first, g_k, g_v, g_gate, g_state, T,
    D: tl.constexpr, FIRST: tl.constexpr, GATED: tl.constexpr, WHOLE: tl.constexpr, STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b, d = place(D, BLOCK)
    inside, stretches = within(d, D, BLOCK), tl.cdiv(T, STEPS)
    w, u, p_0, q_0, _ = _begin(time_decay, time_first, state, b, d, inside, D, FIRST)
    p, q, _ = _load(last + b * 3 * D + d, D, 0, 3, 3, inside)
    of_p, of_q, of_o = _load(g_last + b * 3 * D + d, D, 0, 3, 3, inside)
    rest = of_o - of_p * p - of_q * q
    of_w, of_u = tl.zeros_like(w), tl.zeros_like(w)
    first = (stretches - 1) * STEPS
    row, some = (b * T + first) * D + d, inside & bit(T > 0)
    k, v, gate, g_y = k + row, v + row, gate + row, g_y + row
    g_k, g_v, g_gate = g_k + row, g_v + row, g_gate + row
    kept += (b * stretches + stretches - 1) * 3 * D + d
    coming = _inputs(k, v, gate, first, T, some, D, GATED, WHOLE, STEPS)
    next_g, next_kept = _load(g_y, D, first, T, STEPS, some, WHOLE), _load(kept, D, 0, 3, 3, some)
    for _ in range(stretches):
        k_S, v_S, gate_S = coming
        g_S = next_g
        p, q, o = next_kept
        k, v, g_y, gate, kept = k - STEPS * D, v - STEPS * D, g_y - STEPS * D, gate - STEPS * D, kept - 3 * D
        some = inside & bit(first > 0)  # all stretches but the last are whole
        coming = _inputs(k, v, gate, 0, STEPS, some, D, GATED, True, STEPS)
        next_g, next_kept = _load(g_y, D, 0, STEPS, STEPS, some, True), _load(kept, D, 0, 3, 3, some)
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
            inverse = _inverse(now_a * q + now_e)
            y_t, g = (now_a * p + now_e * v_t) * inverse, g_S[i].to(p.dtype)
            if GATED:
                share = _inverse(1 + _decay(gate_S[i].to(p.dtype)))
                g *= share
                tl.store(g_gate + i * D, g * y_t * (1 - share), mask=inside & live)
            g *= inverse
            by_now = g * now_e * now_a * (q * v_t - p) * inverse
            a, e = shares[i]
            decayed = w + o
            to_k = tl.where(live & (decayed <= k_t), tl.where(decayed < k_t, rest, rest * 0.5), 0.0)
            rest -= to_k
            tl.store(g_v + i * D, g * now_e + of_p * e, mask=inside & live)
            tl.store(g_k + i * D, by_now + e * (of_p * v_t + of_q) + to_k, mask=inside & live)
            of_u += by_now
            of_w += tl.where(live, a * (of_p * p + of_q * q) + rest, 0.0)
            of_p, of_q = a * of_p + g * now_a, a * of_q - g * now_a * y_t
        g_k, g_v, g_gate, first = g_k - STEPS * D, g_v - STEPS * D, g_gate - STEPS * D, first - STEPS
    if state is not None:
        _store(g_state + b * 3 * D + d, D, (of_p, of_q, rest + of_p * p_0 + of_q * q_0), inside)
    tl.store(g_decay + b * D + d, of_w * w, mask=inside)
    tl.store(g_first + b * D + d, of_u, mask=inside)


def _launch(kernel, tensors: list[Tensor | None], k_BTD: Tensor, **options) -> None:
    batch, steps, channels = k_BTD.shape
    options |= {"FIRST": FIRST, "WHOLE": steps % STEPS == 0, "STEPS": STEPS, "BLOCK": BLOCK}
    if programs := batch * triton.cdiv(channels, BLOCK):
        with torch.cuda.device_of(k_BTD):
            kernel[(programs,)](*tensors, steps, channels, **options, **OPTIONS, enable_fp_fusion=True)


def _prepared(inputs: list[Tensor | None], k_BTD: Tensor) -> list[Tensor | None]:
    """Contiguous; in the gate's place, which comes fifth, the keys where there is none: the kernel does not look."""
    inputs = [*inputs[:4], k_BTD if inputs[4] is None else inputs[4], *inputs[5:]]
    return [t if t is None else t.contiguous() for t in inputs]


@torch.library.custom_op("rheobase::wkv_triton", mutates_args=())
def _wkv(
    decay_D: Tensor, first_D: Tensor, k_BTD: Tensor, v_BTD: Tensor, gate_BTD: Tensor | None, state_B3D: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = [decay_D, first_D, k_BTD, v_BTD, gate_BTD, state_B3D]
    outputs = _outputs(*inputs, keep)
    _launch(_forward, [*_prepared(inputs, k_BTD), *outputs], k_BTD, GATED=gate_BTD is not None, KEEP=keep)
    return outputs


@_wkv.register_fake
def _outputs(decay_D, first_D, k_BTD, v_BTD, gate_BTD, state_B3D, keep):
    """y, the last state, and the states to keep, not yet written."""
    batch, steps, channels = k_BTD.shape
    stretches = -(-steps // STEPS) if keep else 0
    new = decay_D.new_empty
    return k_BTD.new_empty(k_BTD.shape), new(batch, 3, channels), new(batch, stretches, 3, channels)


@torch.library.custom_op("rheobase::wkv_triton_backward", mutates_args=())
def _wkv_backward(
    decay_D: Tensor, first_D: Tensor, k_BTD: Tensor, v_BTD: Tensor, gate_BTD: Tensor | None, state_B3D: Tensor | None,
    last_B3D: Tensor, kept_BS3D: Tensor, g_y_BTD: Tensor, g_last_B3D: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = [decay_D, first_D, k_BTD, v_BTD, gate_BTD, state_B3D, last_B3D, kept_BS3D, g_y_BTD, g_last_B3D]
    gradients = _gradients(*inputs[:6])
    _launch(_backward, [*_prepared(inputs, k_BTD), *gradients], k_BTD, GATED=gate_BTD is not None)
    return gradients


@_wkv_backward.register_fake
def _gradients(decay_D, first_D, k_BTD, v_BTD, gate_BTD, state_B3D, *_):
    """Gradients of time_decay and time_first [B, D], of k, v, the gate and the first state, not yet written; of a gate
    or a state that is not there, of no size."""
    batch, _, channels = k_BTD.shape
    narrow, wide = k_BTD.new_empty, decay_D.new_empty
    of_gate = narrow(0 if gate_BTD is None else k_BTD.shape)
    of_state = wide(0 if state_B3D is None else (batch, 3, channels))
    shared = [wide(batch, channels) for _ in range(2)]
    return *shared, narrow(k_BTD.shape), narrow(k_BTD.shape), of_gate, of_state


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, g_y, g_last, _):
    saved = ctx.saved_tensors
    k, gate, state, last = saved[2], *saved[4:7]
    g_y = torch.zeros_like(k) if g_y is None else g_y
    g_last = torch.zeros_like(last) if g_last is None else g_last
    g_decay, g_first, g_k, g_v, g_gate, g_state = _wkv_backward(*saved, g_y, g_last)
    g_gate, g_state = None if gate is None else g_gate, None if state is None else g_state
    return g_decay.sum(0), g_first.sum(0), g_k, g_v, g_gate, g_state, None


_wkv.register_autograd(_differentiate, setup_context=_keep)


def wkv(
    time_decay: Tensor, time_first: Tensor, k: Tensor, v: Tensor, state: WKVState | None, gate: Tensor | None = None
) -> tuple[Tensor, WKVState]:
    """`ops.wkv` in Triton for tensors on one device, k, v and gate of one type; it can be differentiated once."""
    tensors = [time_decay, time_first, k, v, gate, None if state is None else torch.stack(state, 1)]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, last, _ = _wkv(*tensors, keep)
    return y, WKVState(*(part.clone() for part in last.unbind(1)))
