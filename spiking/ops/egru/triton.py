"""EGRU over a sequence for GPUs: a step is a product by torch and one Triton kernel for all that is elementwise.

B batch, T steps, I inputs, H units, G = 3H gates in the order z, r, g. The equations of the backward pass are those of
`ops/native/egru.c`.

The product with the input, and after the last step backward each gradient of a weight, is one product over all steps.
Nothing waits for the host, so that a CUDA graph can hold a whole call. Products are dense: skipping silent units saves
a GPU no time at the batches it is trained with. What goes into products, and the gates, are of the type of x; outputs,
state and thresholds may be of a wider one, as under autocast.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from rheobase.spiking.ops.egru.reference import TRACE_DECAY, EGRUState, EGRUTrajectory
from rheobase.spiking.ops.rows import bit
from rheobase.spiking.surrogates import Triangle

BLOCK, WARPS = 128, 4
"""Units of a program, one a thread: 64 x 1350 units are 704 programs, five on each of an H100's 132 multiprocessors."""
ROW = 16
"""Bytes of which a row is made of whole ones: 4 numbers of float32, 8 of bfloat16"""


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _carried(first, later, t, H, at_first, at, inside, TYPE: tl.constexpr):
    """What the step before step t left: of `first` [B, H] where t is 0, else of `later` [B, T, H]."""
    begun = tl.load(first + at_first, mask=inside & bit(t == 0), other=0.0)
    return (begun + tl.load(later + at - H, mask=inside & bit(t > 0), other=0.0)).to(TYPE)


@triton.jit(do_not_specialize=["t"])
def _forward(
    gates, q, bias, q_g, events, y, c, o, trace, c_0, trace_0, thr, kept, t, T, H,
    ZEROS: tl.constexpr, ZONEOUT: tl.constexpr, DECAY: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step t: gates is a on entry and z, r, g on return, q the bare product, events what the next one reads [B, H]. All
    numbers are of a TYPE within. The last ZEROS units fill a row up: what products make of them is not read, since that
    is not a number where an infinite one meets a weight of 0."""
    b, j = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at, at_first = j < H, (b * T + t) * H + j, b * H + j
    real = j < H - ZEROS
    gates += 3 * (b * T + t) * H + j
    q += 3 * b * H + j
    bias += j
    q_z = tl.load(q, mask=real, other=0.0).to(TYPE) + tl.load(bias, mask=inside).to(TYPE)
    q_r = tl.load(q + H, mask=real, other=0.0).to(TYPE) + tl.load(bias + H, mask=inside).to(TYPE)
    q_of_g = tl.load(q + 2 * H, mask=real, other=0.0).to(TYPE) + tl.load(bias + 2 * H, mask=inside).to(TYPE)
    z = _sigmoid(tl.load(gates, mask=real, other=0.0).to(TYPE) + q_z)
    r = _sigmoid(tl.load(gates + H, mask=real, other=0.0).to(TYPE) + q_r)
    g = 2 * _sigmoid(2 * (tl.load(gates + 2 * H, mask=real, other=0.0).to(TYPE) + r * q_of_g)) - 1
    before = _carried(c_0, c, t, H, at_first, at, inside, TYPE)
    p = z * before + (1 - z) * g
    if kept is not None:
        p = tl.where(tl.load(kept + at, mask=inside, other=0) != 0, p, before)
    elif ZONEOUT != 0:
        p = ZONEOUT * before + (1 - ZONEOUT) * p
    threshold = tl.load(thr + j, mask=real, other=0.0).to(TYPE)
    over = p - threshold
    fired = (over > 0).to(TYPE)
    sent = fired * p
    left = DECAY * _carried(trace_0, trace, t, H, at_first, at, inside, TYPE) + (1 - DECAY) * sent
    tl.store(gates, z, mask=inside)
    tl.store(gates + H, r, mask=inside)
    tl.store(gates + 2 * H, g, mask=inside)
    tl.store(q_g + at, q_of_g, mask=inside)
    tl.store(events + at_first, sent, mask=inside)
    tl.store(y + at, sent, mask=inside)
    tl.store(c + at, tl.where(over > 0, over, p), mask=inside)
    tl.store(o + at, fired, mask=inside)
    tl.store(trace + at, left, mask=inside)


@triton.jit
def _given(gradient, at, inside, TYPE: tl.constexpr):
    """The gradient of an output, 0 where there is none."""
    if gradient is not None:
        return tl.load(gradient + at, mask=inside, other=0.0).to(TYPE)
    else:
        return 0.0


@triton.jit(do_not_specialize=["t"])
def _backward(
    gates, q_g, y, c, c_0, thr, kept, g_y, g_c, g_o, g_trace, of_a, of_q, of_y, of_c, of_trace, of_thr, t, T, H,
    ZEROS: tl.constexpr, ZONEOUT: tl.constexpr, DECAY: tl.constexpr, GAMMA: tl.constexpr, EPS: tl.constexpr,
    TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step t: of_a and of_q, and what is carried to the step before, but for of_y; of_trace None is 0 at every step.

    o is not read: a unit that fired has y = p > thr, and where that is 0, c = -thr > thr; one that did not has y = 0
    and c <= thr. (Where outputs are float16 and thr is near 0, a unit that fired at a p too small for that type, below
    3e-8, passes for silent.)
    """
    b, j = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at, at_first = j < H, (b * T + t) * H + j, b * H + j
    gates += 3 * (b * T + t) * H + j
    z, r = tl.load(gates, mask=inside).to(TYPE), tl.load(gates + H, mask=inside).to(TYPE)
    g, q_of_g = tl.load(gates + 2 * H, mask=inside).to(TYPE), tl.load(q_g + at, mask=inside).to(TYPE)
    sent, left = tl.load(y + at, mask=inside).to(TYPE), tl.load(c + at, mask=inside).to(TYPE)
    threshold = tl.load(thr + j, mask=j < H - ZEROS, other=0.0).to(TYPE)
    fires = (sent != 0) | (left > threshold)
    fired = fires.to(TYPE)
    by_trace = _given(g_trace, at, inside, TYPE) + _given(of_trace, at_first, inside, TYPE)
    by_c = _given(g_c, at, inside, TYPE) + tl.load(of_c + at_first, mask=inside)
    by_y = _given(g_y, at, inside, TYPE) + tl.load(of_y + at_first, mask=inside).to(TYPE) + (1 - DECAY) * by_trace
    u, p = tl.where(fires, left, left - threshold), tl.where(fires, sent, left)
    near = 1 - EPS * tl.abs(u)
    s = GAMMA * tl.where(near < 0, 0.0, near) * (_given(g_o, at, inside, TYPE) + p * by_y - threshold * by_c)
    by_p = fired * by_y + by_c + s
    past = tl.zeros_like(by_p)
    if kept is not None:
        keeps = tl.load(kept + at, mask=inside, other=0) != 0
        past, by_p = tl.where(keeps, 0.0, by_p), tl.where(keeps, by_p, 0.0)
    elif ZONEOUT != 0:
        past, by_p = ZONEOUT * by_p, (1 - ZONEOUT) * by_p
    by_g = (1 - z) * by_p * (1 - g * g)
    by_z = (_carried(c_0, c, t, H, at_first, at, inside, TYPE) - g) * by_p * z * (1 - z)
    by_r = by_g * q_of_g * r * (1 - r)
    of_a += 3 * (b * T + t) * H + j
    of_q += 3 * (b * T + t) * H + j
    tl.store(of_a, by_z, mask=inside)
    tl.store(of_a + H, by_r, mask=inside)
    tl.store(of_a + 2 * H, by_g, mask=inside)
    tl.store(of_q, by_z, mask=inside)
    tl.store(of_q + H, by_r, mask=inside)
    tl.store(of_q + 2 * H, r * by_g, mask=inside)
    tl.store(of_c + at_first, z * by_p + past, mask=inside)
    if of_trace is not None:
        tl.store(of_trace + at_first, DECAY * by_trace, mask=inside)
    tl.store(of_thr + at_first, tl.load(of_thr + at_first, mask=inside) - s - fired * by_c, mask=inside)


def _launcher(kernel, tensors: list[Tensor | None], y_BTH: Tensor, **options) -> Callable[[int], None]:
    """t -> the kernel is launched for step t.

    The first step goes Triton's usual way, which looks at every argument and compiles; the others call what it gave,
    with addresses, since nothing but t changes. (Its interpreter gives nothing, and goes that way at every step.)
    """
    batch, steps, units = y_BTH.shape
    grid, sizes = (batch, triton.cdiv(units, BLOCK), 1), (steps, units)
    options = {"DECAY": TRACE_DECAY, "TYPE": _wide(y_BTH.dtype)[1], "BLOCK": BLOCK, **options}
    constants = [options[name] for name in kernel.arg_names if name in options]
    addresses = [t if t is None else t.data_ptr() for t in tensors]
    again = None

    def launch(t: int) -> None:
        nonlocal again
        if again:
            again(*addresses, t, *sizes, *constants)
        elif y_BTH.numel():
            compiled = kernel[grid](*tensors, t, *sizes, **options, num_warps=WARPS, enable_fp_fusion=True)
            again = compiled and compiled[grid]

    return launch


def _wide(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """The type that a cell computes in: torch's name of it, and Triton's."""
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


@torch.library.custom_op("rheobase::egru_triton", mutates_args=())
def _egru(
    x: Tensor, kernel: Tensor | None, recurrent: Tensor, bias: Tensor | None, recurrent_bias: Tensor, thr: Tensor,
    y_0: Tensor, c_0: Tensor, trace_0: Tensor, kept: Tensor | None, zoneout: float, gamma: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    y, c, o, trace, *last, gates, q_g = outputs = _outputs(x, kernel, recurrent, bias, recurrent_bias, thr)
    if kernel is None:
        gates.copy_(x)
    else:
        torch.addmm(bias, x.flatten(0, 1), kernel, out=gates.flatten(0, 1))
    q, events = gates.new_empty(gates.shape[0], gates.shape[2]), y_0.to(x.dtype, copy=True).contiguous()
    given = [part.contiguous() for part in (c_0, trace_0, thr)]
    tensors = [gates, q, recurrent_bias.contiguous(), q_g, events, y, c, o, trace, *given, kept]
    launch = _launcher(_forward, tensors, y, ZEROS=y.shape[2] - thr.shape[0], ZONEOUT=zoneout)
    with torch.cuda.device_of(x):
        for t in range(x.shape[1]):
            torch.mm(events, recurrent, out=q)  # the kernel adds the bias: addmm costs the host more
            launch(t)
    for part, run, first in zip(last, (y, c, trace), (y_0, c_0, trace_0), strict=True):
        part.copy_(run[:, -1] if x.shape[1] else first)
    return outputs


@_egru.register_fake
def _outputs(x, kernel, recurrent, bias, recurrent_bias, thr, *_):
    """y, c, o, trace, the last y, c, trace, the gates and the part of q for g, not yet written."""
    batch, steps, units = *x.shape[:2], recurrent.shape[0]
    shown = (thr.new_empty(batch, steps, units) for _ in range(4))
    last = (thr.new_empty(batch, units) for _ in range(3))
    return *shown, *last, x.new_empty(batch, steps, 3 * units), x.new_empty(batch, steps, units)


@torch.library.custom_op("rheobase::egru_triton_backward", mutates_args=())
def _egru_backward(
    recurrent: Tensor, thr: Tensor, c_0: Tensor, kept: Tensor | None, gates: Tensor, q_g: Tensor, y: Tensor, c: Tensor,
    g_y: Tensor | None, g_c: Tensor | None, g_o: Tensor | None, g_trace: Tensor | None, last_y: Tensor | None,
    last_c: Tensor | None, last_trace: Tensor | None, zoneout: float, gamma: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    of_a, of_q, *carried, of_thr = gradients = _gradients(recurrent, thr, c_0, kept, gates)
    for part, last in zip((*carried, of_thr), (last_y, last_c, last_trace, None), strict=True):
        part.zero_() if last is None else part.copy_(last)
    incoming = [None if g is None else g.contiguous() for g in (g_y, g_c, g_o, g_trace)]
    if g_trace is None and last_trace is None:
        carried[2] = None  # it stays 0
    given = [part.contiguous() for part in (gates, q_g, y, c, c_0, thr)]
    tensors = [*given, kept, *incoming, of_a, of_q, *carried, of_thr]
    rules = {"ZEROS": y.shape[2] - thr.shape[0], "ZONEOUT": zoneout, "GAMMA": gamma, "EPS": eps}
    launch = _launcher(_backward, tensors, y, **rules)
    back, of_y, rows = recurrent.t(), carried[0], of_q.unbind(1)
    with torch.cuda.device_of(y):
        for t in reversed(range(len(rows))):
            launch(t)
            torch.mm(rows[t], back, out=of_y)
    return gradients


@_egru_backward.register_fake
def _gradients(recurrent, thr, c_0, kept, gates, *_):
    """Gradients of a and q [B, T, 3H] and of the first y [B, H], and, in the type that a cell computes in, of the first
    c and trace and of thr [B, H], not yet written."""
    carried = (c_0.new_empty(c_0.shape, dtype=_wide(c_0.dtype)[0]) for _ in range(3))
    return gates.new_empty(gates.shape), gates.new_empty(gates.shape), gates.new_empty(c_0.shape), *carried


def _keep(ctx, inputs, output):
    x, kernel, recurrent, _, _, thr, y_0, c_0, _, kept, *ctx.numbers = inputs
    y, c, *_, gates, q_g = output
    ctx.save_for_backward(x, kernel, recurrent, thr, y_0, c_0, kept, gates, q_g, y, c)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, *incoming):
    x, kernel, recurrent, thr, y_0, c_0, kept, gates, q_g, y, c = ctx.saved_tensors
    of_a, of_q, of_y, of_c, of_trace, of_thr = _egru_backward(
        recurrent, thr, c_0, kept, gates, q_g, y, c, *incoming[:7], *ctx.numbers
    )
    steps, shared = y.shape[1], 2 * y.shape[2]  # the parts for z and r of of_a and of_q are the same numbers
    before = torch.cat([y_0[:, None], y[:, :-1]], 1)[:, :steps].flatten(0, 1).to(x.dtype)
    x_NI, of_a, of_q = x.flatten(0, 1), of_a.flatten(0, 1), of_q.flatten(0, 1)
    of_bias, wanted = of_a.sum(0), ctx.needs_input_grad
    return (
        (of_a if kernel is None else torch.mm(of_a, kernel.t())).view(x.shape) if wanted[0] else None,
        torch.mm(x_NI.t(), of_a) if wanted[1] else None,
        torch.mm(before.t(), of_q) if wanted[2] else None,
        of_bias if wanted[3] else None,
        torch.cat([of_bias[:shared], of_q[:, shared:].sum(0)]),
        of_thr[:, : thr.shape[0]].sum(0).to(thr.dtype),
        *(part.to(c.dtype) for part in (of_y, of_c, of_trace)),
        *(None, None, None, None),
    )


_egru.register_autograd(_differentiate, setup_context=_keep)


def _in_whole_rows(x, kernel, recurrent, bias, recurrent_bias, thr, y, c, trace, kept):
    """The same but for thr with units and inputs more, all of zeros, so that a row is whole 16 bytes, as quick products
    want it; a unit of zeros stays at 0, sends nothing and has no gradient."""
    row = ROW // x.element_size()
    units = -thr.shape[0] % row
    inputs = 0 if kernel is None else -x.shape[-1] % row

    def wider(t: Tensor | None, gates: int, more: int, rows: int = 0) -> Tensor | None:
        if t is None or not more + rows:
            return t
        parts = t.unflatten(-1, (gates, t.shape[-1] // gates))
        return F.pad(parts, (0, more, 0, 0, 0, rows) if rows else (0, more)).flatten(-2)

    x = wider(x, 3, units) if kernel is None else wider(x, 1, inputs)
    kernel, recurrent = wider(kernel, 3, units, inputs), wider(recurrent, 3, units, units)
    products = x, kernel, recurrent, wider(bias, 3, units), wider(recurrent_bias, 3, units)
    return products, (thr, *(wider(t, 1, units) for t in (y, c, trace))), wider(kept, 1, units)


def egru(
    x, kernel, recurrent_kernel, bias, recurrent_bias, thr, state, *, surrogate: Triangle, zoneout, kept
) -> tuple[EGRUTrajectory, EGRUState]:
    """`ops.egru` in Triton, for tensors on one device, of one type or under autocast, whose type the products have; it
    can be differentiated once.

    kept  zoneout in training, True where the update is kept [B, T, H], or None
    """
    products, others, units = (x, kernel, recurrent_kernel, bias, recurrent_bias), (thr, *state), thr.shape[0]
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        wide = functools.reduce(torch.promote_types, (t.dtype for t in others))
        narrow = torch.get_autocast_dtype(x.device.type)
        products = (t if t is None else t.to(narrow) for t in products)
        others = (t.to(wide) for t in others)
    products, others, kept = _in_whole_rows(*products, *others, kept)
    outputs = _egru(*products, *others, kept, zoneout, surrogate.gamma, surrogate.eps)
    outputs = [part[..., :units] for part in outputs[:7]] if outputs[0].shape[-1] > units else outputs
    return EGRUTrajectory(*outputs[:4]), EGRUState(*outputs[4:7])
