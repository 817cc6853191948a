"""LIF over a sequence in Triton, for GPUs: input, spikes and h in any float type, membranes in float32 or wider.

B batch, T steps, D units. The rule of the backward pass is that of `ops/native/lif.c`.

A program runs BLOCK units of one sequence through time, in stretches of STEPS steps. It asks for a stretch two ahead
of the one that it works on, since where in a stretch the loads are issued is the compiler's choice, and one ahead would
wait for all of its memory. The membrane before each stretch is kept; backward runs the stretch again before it walks
back through it. No product that rounds is fused with a sum and divisions round as torch's do on a CPU (on a GPU it
multiplies by 1/tau, if tau is a number), so that spikes are those of the reference there; a division, the longest link
of the chain, is a product where tau is a power of two.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rheobase.spiking.ops.rows import OPTIONS, before, bit, load, place, quick, within

STEPS, BLOCK = 32, 32
"""One unit a thread; 32 steps forward take a warp about as long as memory takes to answer."""


@triton.jit
def _slope(u, SURROGATE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    if SURROGATE == "ATan":
        z = u * (1.5707963267948966 * FIRST)
        root = tl.rsqrt(1 + z * z)  # twice the root is a quarter of what a quotient takes
        return FIRST / 2 * root * root
    elif SURROGATE == "Triangle":
        return FIRST * tl.maximum(1 - SECOND * tl.abs(u), 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif SURROGATE == "Sigmoid":
        s = 1 / (1 + tl.exp(-FIRST * u))
        return FIRST * s * (1 - s)
    elif SURROGATE == "FastSigmoid":
        z = 1 + FIRST * tl.abs(u)
        return 1 / (z * z)
    else:
        return tl.zeros_like(u) + 1


@triton.jit
def _divide(a, b, INVERSE: tl.constexpr):
    """As torch rounds it on a CPU: of float32, `/` is within two units in the last place only; by an INVERSE that is
    exact, a power of two, a product rounds the same."""
    if INVERSE is not None:
        return a * INVERSE
    elif a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def _constants(tau, theta, d, inside, like, TAU: tl.constexpr, THETA: tl.constexpr):
    """tau and theta of a block's units, from memory where they are one a unit."""
    if tau is not None:
        tau = tl.load(tau + d, mask=inside, other=1.0)
    else:
        tau = tl.zeros_like(like) + TAU
    if theta is not None:
        theta = tl.load(theta + d, mask=inside, other=1.0)
    else:
        theta = tl.zeros_like(like) + THETA
    return tau, theta


@triton.jit
def _fired(h, theta, STRICT: tl.constexpr, TERNARY: tl.constexpr):
    """Whether a unit fires at theta, and at -theta: 1 or 0. (A difference is 0 of equal numbers alone, so that what
    the reference asks of h - theta can be asked sooner.)"""
    up = (h > theta if STRICT else h >= theta).to(h.dtype)
    down = (-h > theta if STRICT else -h >= theta).to(h.dtype) if TERNARY else tl.zeros_like(h)
    return up, down


@triton.jit
def _step(x, v, tau, theta, INVERSE: tl.constexpr, REST: tl.constexpr, HARD: tl.constexpr, DECAY: tl.constexpr,
          STRICT: tl.constexpr, TERNARY: tl.constexpr):  # fmt: skip
    """h, what of it was divided by tau, the spikes, and the membrane after the reset."""
    drive = x - (v - REST) if DECAY else -(v - REST)
    h = v + _divide(drive, tau, INVERSE)
    h = h if DECAY else h + x
    up, down = _fired(h, theta, STRICT, TERNARY)
    # fused, since a product by 0, 1 or 2 is exact
    v = tl.fma(up + down, REST - h, h) if HARD else tl.fma(up - down, -theta, h)
    return h, drive, up - down, v


@quick
@triton.jit
def _forward(
    x, v0, tau, theta, s, v, h, last, kept, T, D: tl.constexpr, TAU: tl.constexpr, INVERSE: tl.constexpr,
    THETA: tl.constexpr, REST: tl.constexpr, HARD: tl.constexpr, DECAY: tl.constexpr, STRICT: tl.constexpr,
    TERNARY: tl.constexpr, ALL_V: tl.constexpr, WITH_H: tl.constexpr, KEEP: tl.constexpr, WHOLE: tl.constexpr,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, d = place(D, BLOCK)
    inside, row = within(d, D, BLOCK), b * T * D + d
    now = tl.load(v0 + b * D + d, mask=inside, other=0.0)
    tau, theta = _constants(tau, theta, d, inside, now, TAU, THETA)
    x, s, v, h, kept = x + row, s + row, v + row, h + row, kept + b * tl.cdiv(T, STEPS) * D + d
    next_x = load(x, D, 0, T, STEPS, inside, WHOLE)
    later_x = load(x + STEPS * D, D, STEPS, T, STEPS, inside, WHOLE)
    x += 2 * STEPS * D
    for first in range(0, T, STEPS):
        x_S, next_x = next_x, later_x
        later_x = load(x, D, first + 2 * STEPS, T, STEPS, inside, WHOLE)
        x += STEPS * D
        if KEEP:
            tl.store(kept, now, mask=inside)
            kept += D
        for i in tl.static_range(STEPS):
            live = before(first + i, T, WHOLE)
            h_t, _, s_t, after = _step(
                x_S[i].to(now.dtype), now, tau, theta, INVERSE, REST, HARD, DECAY, STRICT, TERNARY
            )
            now = tl.where(live, after, now)
            tl.store(s + i * D, s_t, mask=inside & live)
            if WITH_H:
                tl.store(h + i * D, h_t, mask=inside & live)
            if ALL_V:
                tl.store(v + i * D, now, mask=inside & live)
        s, v, h = s + STEPS * D, v + STEPS * D, h + STEPS * D
    tl.store(last + b * D + d, now, mask=inside)


@quick
@triton.jit
def _backward(
    x, tau, theta, kept, g_s, g_v, g_h, g_last, g_x, g_v0, g_tau, g_theta, T, D: tl.constexpr, TAU: tl.constexpr,
    INVERSE: tl.constexpr, THETA: tl.constexpr, REST: tl.constexpr, HARD: tl.constexpr, DECAY: tl.constexpr,
    STRICT: tl.constexpr, TERNARY: tl.constexpr, THROUGH: tl.constexpr, SURROGATE: tl.constexpr, FIRST: tl.constexpr,
    SECOND: tl.constexpr, ALL_V: tl.constexpr, WITH_H: tl.constexpr, LEARNS: tl.constexpr, WHOLE: tl.constexpr,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, d = place(D, BLOCK)
    inside, stretches = within(d, D, BLOCK), tl.cdiv(T, STEPS)
    carried = tl.load(g_last + b * D + d, mask=inside, other=0.0)
    tau, theta = _constants(tau, theta, d, inside, carried, TAU, THETA)
    of_tau, of_theta = tl.zeros_like(carried), tl.zeros_like(carried)
    inverse = 1 / tau
    first = (stretches - 1) * STEPS
    row, some = (b * T + first) * D + d, inside & bit(T > 0)
    x, g_s, g_v, g_h, g_x = x + row, g_s + row, g_v + row, g_h + row, g_x + row
    kept += (b * stretches + stretches - 1) * D + d
    next_x, next_g = load(x, D, first, T, STEPS, some, WHOLE), load(g_s, D, first, T, STEPS, some, WHOLE)
    next_v = tl.load(kept, mask=some, other=0.0)
    x, g_s, kept, some = x - STEPS * D, g_s - STEPS * D, kept - D, inside & bit(first > 0)
    later_x, later_g = load(x, D, 0, STEPS, STEPS, some, True), load(g_s, D, 0, STEPS, STEPS, some, True)
    later_v = tl.load(kept, mask=some, other=0.0)
    for _ in range(stretches):
        x_S, g_S, v = next_x, next_g, next_v
        next_x, next_g, next_v = later_x, later_g, later_v
        x, g_s, kept = x - STEPS * D, g_s - STEPS * D, kept - D
        some = inside & bit(first > STEPS)  # all stretches but the last are whole
        later_x, later_g = load(x, D, 0, STEPS, STEPS, some, True), load(g_s, D, 0, STEPS, STEPS, some, True)
        later_v = tl.load(kept, mask=some, other=0.0)
        states = ()
        for i in tl.static_range(STEPS):
            h, drive, _, v = _step(x_S[i].to(v.dtype), v, tau, theta, INVERSE, REST, HARD, DECAY, STRICT, TERNARY)
            states += ((h, drive),)
        for i in tl.static_range(STEPS - 1, -1, -1):
            live = before(first + i, T, WHOLE)
            h, drive = states[i]
            g = carried
            if ALL_V:
                g += tl.load(g_v + i * D, mask=inside & live, other=0.0)
            up, down = _fired(h, theta, STRICT, TERNARY)
            of_spike, at_up = g_S[i].to(g.dtype), _slope(h - theta, SURROGATE, FIRST, SECOND)
            by_spike, by_fired = at_up, at_up  # slopes of s, and of whether a unit fires
            if TERNARY:
                at_down = _slope(-h - theta, SURROGATE, FIRST, SECOND)
                by_spike, by_fired = at_up + at_down, at_up - at_down
            # of_h is linear in g, which is waited for: all else is known before
            stays, back = 1 - (up + down) if HARD else 1.0, h - REST if HARD else theta
            if THROUGH:
                stays -= back * (by_fired if HARD else by_spike)
            of_h = stays * g + of_spike * by_spike
            if WITH_H:
                of_h += tl.load(g_h + i * D, mask=inside & live, other=0.0).to(g.dtype)
            of_drive = of_h * inverse
            tl.store(g_x + i * D, of_drive if DECAY else of_h, mask=inside & live)
            carried = tl.where(live, of_h * (1 - inverse), carried)
            if LEARNS:
                of_tau -= tl.where(live, of_drive * drive * inverse, 0.0)
                of_reset = -g * back if THROUGH else tl.zeros_like(g)
                if HARD:
                    of_over = of_spike * by_fired + of_reset * by_spike
                else:
                    of_over = (of_spike + of_reset) * by_fired + g * (up - down)
                of_theta -= tl.where(live, of_over, 0.0)
        first -= STEPS
        g_v, g_h, g_x = g_v - STEPS * D, g_h - STEPS * D, g_x - STEPS * D
    tl.store(g_v0 + b * D + d, carried, mask=inside)
    if LEARNS:
        tl.store(g_tau + b * D + d, of_tau, mask=inside)
        tl.store(g_theta + b * D + d, of_theta, mask=inside)


def _launch(kernel, tensors: list[Tensor | None], numbers: Sequence[float], hard: bool, **options) -> None:
    """tensors: x first, tau and theta as None where they are numbers."""
    tau, theta, v_reset = numbers[:3]
    batch, steps, units = tensors[0].shape
    options |= {"TAU": tau, "INVERSE": 1 / tau if math.frexp(tau)[0] == 0.5 else None, "THETA": theta}
    options |= {"REST": v_reset, "HARD": hard, "WHOLE": steps % STEPS == 0, "STEPS": STEPS, "BLOCK": BLOCK}
    if programs := batch * triton.cdiv(units, BLOCK):
        with torch.cuda.device_of(tensors[0]):
            kernel[(programs,)](*tensors, steps, units, **options, **OPTIONS, enable_fp_fusion=False)


@torch.library.custom_op("rheobase::lif_triton", mutates_args=())
def _lif(
    x_BTD: Tensor, v0_BD: Tensor, tau_D: Tensor | None, theta_D: Tensor | None, numbers: Sequence[float],
    rules: Sequence[bool], surrogate: str, shown: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """A call of an operator costs the host time by the square of the number of arguments, so they are few.

    numbers  tau and theta (0 where they are tensors), v_reset, and the surrogate's two
    rules    hard, decay_input, strict, ternary, detach_reset
    shown    whole, with_h, keep
    """
    hard, decay_input, strict, ternary, _ = rules
    whole, with_h, keep = shown
    outputs = _outputs(x_BTD, v0_BD, shown)
    flags = {"DECAY": decay_input, "STRICT": strict, "TERNARY": ternary, "ALL_V": whole, "WITH_H": with_h, "KEEP": keep}
    _launch(_forward, [x_BTD.contiguous(), v0_BD.contiguous(), tau_D, theta_D, *outputs], numbers, hard, **flags)
    return outputs


@_lif.register_fake
def _outputs(x_BTD, v0_BD, *settings):
    """s, v and h where they are wanted, the last membrane, and the membranes to keep, not yet written."""
    batch, steps, units = x_BTD.shape
    whole, with_h, keep = settings[-1]
    v = v0_BD.new_empty(x_BTD.shape if whole else 0)
    h = x_BTD.new_empty(x_BTD.shape if with_h else 0)
    kept = v0_BD.new_empty(batch, -(-steps // STEPS) if keep else 0, units)
    return x_BTD.new_empty(x_BTD.shape), v, h, v0_BD.new_empty(batch, units), kept


@torch.library.custom_op("rheobase::lif_triton_backward", mutates_args=())
def _lif_backward(
    x_BTD: Tensor, tau_D: Tensor | None, theta_D: Tensor | None, kept_BSD: Tensor, g_s_BTD: Tensor,
    g_v_BTD: Tensor | None, g_h_BTD: Tensor | None, g_last_BD: Tensor, numbers: Sequence[float], rules: Sequence[bool],
    surrogate: str, learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    hard, decay_input, strict, ternary, detach_reset = rules
    seen = [g_s_BTD if g is None else g for g in (g_v_BTD, g_h_BTD)]  # in a place that the kernel does not look at
    inputs = [x_BTD, tau_D, theta_D, kept_BSD, g_s_BTD, *seen, g_last_BD]
    inputs = [t if t is None else t.contiguous() for t in inputs]
    gradients = _gradients(*inputs, learns)
    flags = {"DECAY": decay_input, "STRICT": strict, "TERNARY": ternary, "THROUGH": not detach_reset}
    flags |= {"SURROGATE": surrogate, "FIRST": numbers[3], "SECOND": numbers[4], "LEARNS": learns}
    flags |= {"ALL_V": g_v_BTD is not None, "WITH_H": g_h_BTD is not None}
    _launch(_backward, [*inputs, *gradients], numbers, hard, **flags)
    return gradients


@_lif_backward.register_fake
def _gradients(x_BTD, tau_D, theta_D, kept_BSD, g_s_BTD, g_v_BTD, g_h_BTD, g_last_BD, *settings):
    """Gradients of x, of the first membrane, and where they are learnt of tau and theta [B, D], not yet written."""
    shape = g_last_BD.shape if settings[-1] else 0
    return x_BTD.new_empty(x_BTD.shape), *(g_last_BD.new_empty(size) for size in (g_last_BD.shape, shape, shape))


def _keep(ctx, inputs, output):
    x, _, tau, theta, *ctx.settings, (ctx.whole, ctx.with_h, _) = inputs
    ctx.save_for_backward(x, tau, theta, output[4])
    ctx.learns = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
    ctx.set_materialize_grads(False)


def _differentiate(ctx, g_s, g_v, g_h, g_last, _):
    x, tau, theta, kept = ctx.saved_tensors
    g_s = torch.zeros_like(x) if g_s is None else g_s
    g_v, g_h = g_v if ctx.whole else None, g_h if ctx.with_h else None
    g_last = kept.new_zeros(x.shape[0], x.shape[2]) if g_last is None else g_last
    g_x, g_v0, *shared = _lif_backward(x, tau, theta, kept, g_s, g_v, g_h, g_last, *ctx.settings, ctx.learns)
    shared = [g.sum(0) if wanted else None for g, wanted in zip(shared, ctx.needs_input_grad[2:4], strict=True)]
    return g_x, g_v0, *shared, None, None, None, None


_lif.register_autograd(_differentiate, setup_context=_keep)


def lif(x_BTD, v, *, tau, theta, v_reset, decay_input, fire, detach_reset, surrogate, ternary, with_h, whole):
    """`ops.lif` in Triton, for tensors on one device, v float32 or wider; it can be differentiated once."""
    tensors, numbers = [x_BTD, v], []
    for p in (tau, theta):  # a number is part of the program: none is copied to the device
        apart = isinstance(p, Tensor)
        tensors.append(p.to(v.dtype).expand(v.shape[1:]).contiguous() if apart else None)
        numbers.append(0.0 if apart else float(p))
    shape = (float(getattr(surrogate, field.name)) for field in dataclasses.fields(surrogate))
    numbers += [v_reset or 0.0, *(*shape, 0.0, 0.0)[:2]]
    rules = [v_reset is not None, decay_input, fire == ">", ternary, detach_reset]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    s, v, h, last, _ = _lif(*tensors, numbers, rules, type(surrogate).__name__, [whole, with_h, keep])
    return s, v if whole else last, h
