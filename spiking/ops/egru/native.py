"""EGRU over a sequence on a CPU, its cell in C: the reference's events and gradients to rounding.

B batch, T steps, I inputs, H units, G = 3H gates in the order z, r, g; N = BT. The source, with the equations of the
backward pass, is `ops/native/egru.c`.

A matrix product with events reads only what they reach where few units fire, and is dense elsewhere: over all steps
as `ops/native/product.py` says; of a step's events where they are no more than those of 3 + B/5 full rows, as a dense
product is slow for a small batch. More threads speed up dense products alone, so this number is divided by theirs. On
one thread of an AMD EPYC (Zen 4) both then take about the same time.
"""

import ctypes

import torch
from torch import Tensor

from rheobase.spiking.ops.choice import SUFFIXES
from rheobase.spiking.ops.egru.reference import TRACE_DECAY, EGRUState, EGRUTrajectory
from rheobase.spiking.ops.native import function
from rheobase.spiking.ops.native.once import once, saved
from rheobase.spiking.ops.native.opaque import opaque
from rheobase.spiking.ops.native.product import few, product
from rheobase.spiking.surrogates import Triangle


class _Run(ctypes.Structure):
    """`egru_run` of `egru.c`, which says what each field is; it keeps alive the tensors that it points to."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in "batch steps units t few events".split()),
        *((name, ctypes.c_double) for name in "zoneout decay gamma eps".split()),
        *((name, ctypes.c_void_p) for name in "gates q_g q y c o trace y_0 c_0 trace_0 weight bias thr kept".split()),
        *((name, ctypes.c_void_p) for name in "slope g_y g_c g_o g_trace none".split()),
        *((name, ctypes.c_void_p) for name in "of_a of_q of_y of_c of_trace of_thr".split()),
    ]

    def __init__(self, *, y: Tensor, **fields):
        fields |= {"y": y, "decay": TRACE_DECAY, **dict(zip(("batch", "steps", "units"), y.shape, strict=True))}
        super().__init__(**{name: f.data_ptr() if isinstance(f, Tensor) else f for name, f in fields.items()})
        self.kept_alive = fields


@opaque(lambda x_NI, g_NG: x_NI.new_empty(x_NI.shape[1], g_NG.shape[1]))
def egru_weight_gradient(x_NI: Tensor, g_NG: Tensor) -> Tensor:
    """x^T g."""
    if not few(int(torch.count_nonzero(x_NI)), x_NI):
        return x_NI.t() @ g_NG
    x_NI = x_NI.contiguous()  # the outputs before each of one step are strided
    out_IG = x_NI.new_zeros(x_NI.shape[1], g_NG.shape[1])
    scatter = function(f"scatter_{SUFFIXES[x_NI.dtype]}", *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 3)
    scatter(x_NI.data_ptr(), g_NG.data_ptr(), out_IG.data_ptr(), *x_NI.shape, g_NG.shape[1])
    return out_IG


def _outputs(x_BTI, kernel, recurrent, *_):
    """y, c, o, trace, the gates and the part of q for g, not yet written."""
    batch, steps, units = *x_BTI.shape[:2], recurrent.shape[0]
    return tuple(x_BTI.new_empty(batch, steps, width) for width in (*[units] * 4, 3 * units, units))


@opaque(_outputs)
def egru_forward(
    x_BTI: Tensor, kernel: Tensor | None, recurrent: Tensor, bias: Tensor | None, recurrent_bias: Tensor, thr: Tensor,
    y_0: Tensor, c_0: Tensor, trace_0: Tensor, kept: Tensor | None, zoneout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (batch, steps, _), units = x_BTI.shape, len(thr)
    if kernel is None:
        gates = x_BTI.clone()
    else:
        gates = product(x_BTI.flatten(0, 1), kernel, bias, int(torch.count_nonzero(x_BTI)))
        gates = gates.view(batch, steps, 3 * units)
    y, c, o, trace, q_g = (x_BTI.new_empty(batch, steps, units) for _ in range(5))
    q = x_BTI.new_empty(batch, 3 * units)
    run = _Run(
        few=int(units * (3 + batch / 5) / torch.get_num_threads()),
        events=int(torch.count_nonzero(y_0)),
        zoneout=zoneout,
        gates=gates,
        q_g=q_g,
        q=q,
        y=y,
        c=c,
        o=o,
        trace=trace,
        y_0=y_0,
        c_0=c_0,
        trace_0=trace_0,
        weight=recurrent,
        bias=recurrent_bias,
        thr=thr,
        kept=kept,
    )
    forward = function(f"egru_forward_{SUFFIXES[x_BTI.dtype]}", ctypes.c_void_p, ctypes.c_int64)
    at = ctypes.addressof(run)
    forward(at, False)
    while run.t < steps:
        torch.addmm(recurrent_bias, y[:, run.t - 1] if run.t else y_0, recurrent, out=q)
        forward(at, True)
    return y, c, o, trace, gates, q_g


def _gradients(recurrent, thr, c_0, kept, gates, *_):
    """Gradients of a and q [B, T, 3H], not yet written; of the first y, c and trace, and of thr [B, H], begun at 0."""
    return *(torch.empty_like(gates) for _ in range(2)), *(torch.zeros_like(c_0) for _ in range(4))


@opaque(_gradients)
def egru_backward(
    recurrent: Tensor, thr: Tensor, c_0: Tensor, kept: Tensor | None, gates: Tensor, q_g: Tensor, y: Tensor, c: Tensor,
    o: Tensor, slope: Tensor | None, g_y: Tensor | None, g_c: Tensor | None, g_o: Tensor | None,
    g_trace: Tensor | None, zoneout: float, gamma: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    of_a, of_q, of_y, of_c, of_trace, of_thr = gradients = _gradients(recurrent, thr, c_0, kept, gates)
    g_y, g_c, g_o, g_trace = (None if g is None else g.contiguous() for g in (g_y, g_c, g_o, g_trace))
    run = _Run(
        zoneout=zoneout,
        gamma=gamma,
        eps=eps,
        gates=gates,
        q_g=q_g,
        y=y,
        c=c,
        o=o,
        c_0=c_0,
        thr=thr,
        kept=kept,
        slope=slope,
        g_y=g_y,
        g_c=g_c,
        g_o=g_o,
        g_trace=g_trace,
        none=torch.zeros_like(thr),
        of_a=of_a,
        of_q=of_q,
        of_y=of_y,
        of_c=of_c,
        of_trace=of_trace,
        of_thr=of_thr,
    )
    backward = function(f"egru_backward_{SUFFIXES[y.dtype]}", ctypes.c_void_p)
    at, back = ctypes.addressof(run), recurrent.t()
    for t in reversed(range(run.steps)):
        run.t = t
        backward(at)
        torch.mm(of_q[:, t], back, out=of_y)
    return gradients


class _EGRU(torch.autograd.Function):
    """Keeps the gates and the recurrent part of the candidate for the backward pass: 4H numbers a step beside the
    outputs."""

    @staticmethod
    def forward(ctx, x, kernel, recurrent, bias, recurrent_bias, thr, y_0, c_0, trace_0, kept, zoneout, surrogate):
        y, c, o, trace, gates, q_g = egru_forward(
            x, kernel, recurrent, bias, recurrent_bias, thr, y_0, c_0, trace_0, kept, zoneout
        )
        ctx.save_for_backward(x, kernel, recurrent, thr, y_0, c_0, kept, gates, q_g, y, c, o)
        ctx.zoneout, ctx.surrogate = zoneout, surrogate
        ctx.set_materialize_grads(False)
        return y, c, o, trace

    @staticmethod
    @once
    def backward(ctx, *outer):
        x, kernel, recurrent, thr, y_0, c_0, kept, gates, q_g, y, c, o = saved(ctx)
        if type(ctx.surrogate) is Triangle and ctx.surrogate.of_numbers():
            slope, triangle = None, (ctx.surrogate.gamma, ctx.surrogate.eps)
        else:
            slope, triangle = ctx.surrogate.slopes(torch.where(o > 0, c, c - thr)), (0.0, 0.0)
        of_a, of_q, of_y, of_c, of_trace, of_thr = egru_backward(
            recurrent, thr, c_0, kept, gates, q_g, y, c, o, slope, *outer, ctx.zoneout, *triangle
        )
        before = torch.cat([y_0[:, None], y], 1)[:, :-1].flatten(0, 1)
        x_NI, of_a, of_q = (part.flatten(0, 1) for part in (x, of_a, of_q))
        wanted = ctx.needs_input_grad
        return (
            (of_a if kernel is None else torch.mm(of_a, kernel.t())).view(x.shape) if wanted[0] else None,
            egru_weight_gradient(x_NI, of_a) if wanted[1] else None,
            egru_weight_gradient(before, of_q) if wanted[2] else None,
            of_a.sum(0) if wanted[3] else None,
            of_q.sum(0),
            of_thr.sum(0),
            *(of_y, of_c, of_trace, None, None, None),
        )


def egru(
    x, kernel, recurrent_kernel, bias, recurrent_bias, thr, state, *, surrogate, zoneout, kept
) -> tuple[EGRUTrajectory, EGRUState]:
    """`ops.egru` with its cell in C, for tensors of one type, float32 or float64, on a CPU; it can be differentiated
    once.

    kept  zoneout in training, True where the update is kept [B, T, H], or None
    """
    tensors = (x, kernel, recurrent_kernel, bias, recurrent_bias, thr, *state)
    tensors = (t if t is None else t.contiguous() for t in tensors)
    y, c, o, trace = _EGRU.apply(*tensors, kept, zoneout, surrogate)
    # views, so that a hook on an output does not see what reaches it through the state
    run = EGRUTrajectory(*(part.view_as(part) for part in (y, c, o, trace)))
    return run, EGRUState(*(part[:, -1].clone() for part in (y, c, trace))) if x.shape[1] else state
