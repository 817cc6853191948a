"""EGRU over a sequence on a CPU, its cell in C: the reference's events and gradients to rounding.

B batch, T steps, I inputs, H units, G = 3H gates in the order z, r, g; N = BT. The source, with the equations of the
backward pass, is `ops/native/egru.c`.

A matrix product with events reads only what they reach where few units fire, and is dense elsewhere: of a step's
events where they are no more than those of 3 + B/5 full rows, as a dense product is slow for a small batch; over all
steps where less than 0.3 of the elements are events. More threads speed up dense products alone, so both shares are
divided by their number. On one thread of an AMD EPYC (Zen 4) both then take about the same time.
"""

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rheobase.spiking.ops.choice import SUFFIXES
from rheobase.spiking.ops.egru.reference import TRACE_DECAY, EGRUState, EGRUTrajectory
from rheobase.spiking.ops.native import function, library
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


def _few_events(x_NI: Tensor) -> bool:
    return int(torch.count_nonzero(x_NI)) * torch.get_num_threads() < 0.3 * x_NI.numel()


def _product(x_NI: Tensor, weight_IG: Tensor, bias_G: Tensor) -> Tensor:
    """x weight + bias."""
    if not _few_events(x_NI):
        return torch.addmm(bias_G, x_NI, weight_IG)
    out_NG = x_NI.new_empty(len(x_NI), len(bias_G))
    tensors = (x_NI.contiguous(), weight_IG.contiguous(), bias_G.contiguous(), out_NG)
    getattr(library(), f"gather_{SUFFIXES[x_NI.dtype]}")(*(t.data_ptr() for t in tensors), *x_NI.shape, len(bias_G))
    return out_NG


def _weight_gradient(x_NI: Tensor, g_NG: Tensor) -> Tensor:
    """x^T g."""
    if not _few_events(x_NI):
        return x_NI.t() @ g_NG
    out_IG = x_NI.new_zeros(x_NI.shape[1], g_NG.shape[1])
    scatter = function(f"scatter_{SUFFIXES[x_NI.dtype]}", *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 3)
    scatter(x_NI.data_ptr(), g_NG.data_ptr(), out_IG.data_ptr(), *x_NI.shape, g_NG.shape[1])
    return out_IG


class _EGRU(torch.autograd.Function):
    """Keeps the gates and the recurrent part of the candidate for the backward pass: 4H numbers a step beside the
    outputs."""

    @staticmethod
    def forward(ctx, x, kernel, recurrent, bias, recurrent_bias, thr, y_0, c_0, trace_0, kept, zoneout, surrogate):
        (batch, steps, _), units = x.shape, len(thr)
        gates = _product(x.flatten(0, 1), kernel, bias)
        y, c, o, trace, q_g = (x.new_empty(batch, steps, units) for _ in range(5))
        q = x.new_empty(batch, 3 * units)
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
        forward = function(f"egru_forward_{SUFFIXES[x.dtype]}", ctypes.c_void_p, ctypes.c_int64)
        at = ctypes.addressof(run)
        forward(at, False)
        while run.t < steps:
            torch.addmm(recurrent_bias, y[:, run.t - 1] if run.t else y_0, recurrent, out=q)
            forward(at, True)
        ctx.save_for_backward(x, kernel, recurrent, thr, y_0, c_0, kept, gates, q_g, y, c, o)
        ctx.zoneout, ctx.surrogate = zoneout, surrogate
        ctx.set_materialize_grads(False)
        return y, c, o, trace

    @staticmethod
    @once_differentiable
    def backward(ctx, *outer):
        x, kernel, recurrent, thr, y_0, c_0, kept, gates, q_g, y, c, o = ctx.saved_tensors
        of_a, of_q = (x.new_empty(*y.shape[:2], 3 * len(thr)) for _ in range(2))
        of_y, of_c, of_trace, of_thr = (torch.zeros_like(c_0) for _ in range(4))
        slope = None
        if type(ctx.surrogate) is not Triangle:
            slope = ctx.surrogate.slope(torch.where(o > 0, c, c - thr)).contiguous()
        g_y, g_c, g_o, g_trace = (None if g is None else g.contiguous() for g in outer)
        run = _Run(
            zoneout=ctx.zoneout,
            gamma=getattr(ctx.surrogate, "gamma", 0.0),
            eps=getattr(ctx.surrogate, "eps", 0.0),
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
        backward = function(f"egru_backward_{SUFFIXES[x.dtype]}", ctypes.c_void_p)
        at, back = ctypes.addressof(run), recurrent.t()
        for t in reversed(range(run.steps)):
            run.t = t
            backward(at)
            torch.mm(of_q[:, t], back, out=of_y)
        before = torch.cat([y_0[:, None], y], 1)[:, :-1]
        x_NI, before, of_a, of_q = (part.flatten(0, 1) for part in (x, before, of_a, of_q))
        wanted = ctx.needs_input_grad
        return (
            torch.mm(of_a, kernel.t()).view_as(x) if wanted[0] else None,
            _weight_gradient(x_NI, of_a) if wanted[1] else None,
            _weight_gradient(before, of_q) if wanted[2] else None,
            of_a.sum(0),
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
    run = EGRUTrajectory(*_EGRU.apply(*(t.contiguous() for t in tensors), kept, zoneout, surrogate))
    return run, EGRUState(*(part[:, -1].clone() for part in (run.y, run.c, run.trace))) if x.shape[1] else state
