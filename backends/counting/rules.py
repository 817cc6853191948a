"""What each aten operator with a rule of its own costs; those of products and look-ups are in `_products.py`."""

import math

import torch
from torch import Tensor

from rheobase.backends.counting import _products
from rheobase.backends.counting.operators import aten, n_bytes, packets, tensors
from rheobase.spiking.tally import DENSE, EVENT_KINDS, GRADED


def _put(mode, args, outputs):
    """A move, or a sum where it accumulates: a value for each place, however few are given."""
    with mode.paused():
        n = args[0][tuple(slice(None) if index is None else index for index in args[1])].numel()
    accumulates = len(args) > 3 and args[3]
    mode.add(adds=n if accumulates else 0, activation_bytes=2 * n * outputs[0].element_size())


def _scatter(mode, args, outputs, reduce=None):
    """A move, of as many values as there are places."""
    if reduce is not None:
        mode.uncounted.add("aten.scatter that reduces")
    mode.add(activation_bytes=2 * args[2].numel() * outputs[0].element_size())


def _pad(mode, args, outputs):
    if len(args) > 2 and args[2] != 0:
        return DENSE
    with mode.paused():
        inner = mode.padded[args[0]] if args[0] in mode.padded else torch.ones_like(args[0])
        mode.padded[outputs[0]] = aten.constant_pad_nd(inner, args[1])
    return mode.kinds.get(args[0], DENSE)


def _max_pool(mode, args, outputs):
    """What is pooled of events is sent on as events."""
    if len(args) > 4 and set(args[4]) != {1}:
        mode.uncounted.add("aten.max_pool2d_with_indices, dilated")
    else:
        read = _pooled(mode, args[0], *args[1:4], *args[5:6])
        mode.add(comparisons=read - outputs[0].numel(), activation_bytes=n_bytes([args[0], outputs[0]]))
    kind = mode.kinds.get(args[0], DENSE)
    if kind in EVENT_KINDS:
        mode.mark(outputs[0], kind, sent=True)
    return kind


def _softmax(mode, args, outputs):
    """Of each row: the largest, e to the difference from it, their sum, and a division each."""
    n, rows = _rows(args, outputs)
    work = {"exp": n, "division": n}
    mode.add(adds=2 * n - rows, comparisons=n - rows, transcendentals=work, activation_bytes=2 * n_bytes(outputs))


def _log_softmax(mode, args, outputs):
    """As softmax, but for the logarithm of the sum, taken away from each."""
    n, rows = _rows(args, outputs)
    work = {"exp": n, "log": rows}
    mode.add(adds=3 * n - rows, comparisons=n - rows, transcendentals=work, activation_bytes=2 * n_bytes(outputs))


def _rows(args, outputs) -> tuple[int, int]:
    """Elements of an output, and rows along the axis of a call."""
    n, row = outputs[0].numel(), args[0].shape[args[1]] if args[0].dim() else 1
    return n, n // row if row else 0


def _layer_norm(mode, args, outputs):
    """Two means of a row, the centred row, its scale, and the learnt weight and bias."""
    _norm(mode, args[0], outputs[0], math.prod(args[1]), args[2], args[3])


def _group_norm(mode, args, outputs):
    x, weight, bias, _, _, _, groups = args[:7]
    _norm(mode, x, outputs[0], math.prod(x.shape[1:]) // groups, weight, bias)


def _norm(mode, x, out, row, weight, bias):
    n, rows, size = out.numel(), out.numel() // row if row else 0, out.element_size()
    mode.add(
        mode.operator_of(weight) if weight is not None else None,
        products=2 * n + 2 * rows + (n if weight is not None else 0),
        adds=3 * n - rows + (n if bias is not None else 0),
        transcendentals={"rsqrt": rows},
        weight_bytes=((weight is not None) + (bias is not None)) * n * size,
        activation_bytes=n_bytes([x, out]),
    )


def _batch_norm(mode, args, outputs):
    """Evaluation: a factor and an offset a channel, which fold ahead of time. Where the statistics are the batch's own
    they are a norm's, a channel a row."""
    x, weight, bias = args[:3]
    if args[5] is True:
        return _norm(mode, x, outputs[0], x.numel() // max(x.shape[1], 1), weight, bias)
    n = outputs[0].numel()
    mode.add(products=n, adds=n, weight_bytes=2 * n_bytes(outputs[:1]), activation_bytes=2 * n_bytes(outputs[:1]))


def _gelu(mode, args, outputs, approximate="none"):
    """x / 2 (1 + erf(x / sqrt 2)), or with tanh(c (x + d x^3)) in place of erf."""
    n, tanh = outputs[0].numel(), approximate == "tanh"
    mode.add(
        products=(6 if tanh else 3) * n,
        adds=(2 if tanh else 1) * n,
        transcendentals={"tanh" if tanh else "erf": n},
        activation_bytes=2 * n_bytes(outputs),
    )


def _elu(mode, args, outputs):
    """scale x, or scale alpha (e^(input_scale x) - 1) below 0; a factor of 1 is none."""
    n = outputs[0].numel()
    work = {"products": n * sum(factor != 1 for factor in args[1:]), "transcendentals": {"exp": n}}
    mode.add(adds=n, comparisons=n, activation_bytes=2 * n_bytes(outputs), **work)


def _softplus(mode, args, outputs):
    """log(1 + e^(beta x)) / beta."""
    n, scaled = outputs[0].numel(), len(args) > 1 and args[1] != 1
    kinds = {"exp": n, "log": n} | ({"division": n} if scaled else {})
    work = {"products": n * scaled, "transcendentals": kinds}
    mode.add(adds=n, comparisons=n, activation_bytes=2 * n_bytes(outputs), **work)


def _pow(mode, args, outputs):
    exponent, n = args[1], outputs[0].numel()
    if isinstance(exponent, Tensor):
        if isinstance(args[0], Tensor):
            mode.uncounted.add("aten.pow of two tensors")
        else:
            mode.add(products=n, transcendentals={"exp": n}, activation_bytes=2 * n_bytes(outputs))
    elif exponent == 2:
        mode.add(products=n, activation_bytes=2 * n_bytes(outputs))
    elif exponent == 3:
        mode.add(products=2 * n, activation_bytes=2 * n_bytes(outputs))
    elif exponent in (0.5, -0.5):
        mode.add(transcendentals={"sqrt" if exponent > 0 else "rsqrt": n}, activation_bytes=2 * n_bytes(outputs))
    else:
        mode.uncounted.add(f"aten.pow to {exponent}")


def _clamp(mode, args, outputs):
    bounds = sum(bound is not None for bound in args[1:3])
    mode.add(comparisons=bounds * outputs[0].numel(), activation_bytes=n_bytes([*tensors(args), *outputs]))


def _sum(mode, args, outputs):
    """n numbers take n - 1 additions; of events, it is 0 where none is."""
    mode.add(adds=max(args[0].numel() - outputs[0].numel(), 0), activation_bytes=n_bytes([args[0], *outputs]))
    return _graded(mode, args[0])


def _graded(mode, x) -> str:
    return GRADED if mode.kinds.get(x) in EVENT_KINDS else DENSE


def _mean(mode, args, outputs):
    mode.add(products=outputs[0].numel())
    return _sum(mode, args, outputs)


def _var(mode, args, outputs):
    """Mean, centred squares and their mean."""
    n, rows = args[0].numel(), outputs[0].numel()
    mode.add(products=n + 2 * rows, adds=max(3 * n - 2 * rows, 0), activation_bytes=n_bytes([args[0], *outputs]))


def _largest(mode, args, outputs):
    mode.add(comparisons=max(args[0].numel() - outputs[0].numel(), 0), activation_bytes=n_bytes([args[0], outputs[0]]))


def _cumsum(mode, args, outputs):
    n, rows = _rows(args, outputs)
    mode.add(adds=n - rows, activation_bytes=n_bytes([args[0], *outputs]))


def _average_pool(mode, args, outputs):
    n = outputs[0].numel()
    mode.add(adds=_pooled(mode, *args[:5]) - n, products=n, activation_bytes=n_bytes([args[0], *outputs]))
    kind = _graded(mode, args[0])
    if kind == GRADED:
        mode.mark(outputs[0], kind, sent=True)
    return kind


def _pooled(mode, x, *geometry) -> int:
    """Elements of all windows, those of padding left out: kernel, stride, padding, and whether sizes round up."""
    with mode.paused():
        ones = torch.ones_like(x, dtype=torch.float64)
        return round(aten.avg_pool2d(ones, *geometry, divisor_override=1).sum().item())


def _scatter_add(mode, args, outputs):
    """A sum a place, of which there may be fewer than values."""
    n = args[2].numel()
    mode.add(adds=n, activation_bytes=2 * n * outputs[0].element_size())


def _index_add(mode, args, outputs):
    mode.add(adds=args[3].numel(), activation_bytes=2 * n_bytes([args[3]]))


RULES = {
    packet: rule
    for names, rule in (
        ("mm addmm _int_mm _sparse_mm _sparse_addmm", _products.mm),
        ("mv addmv", _products.mv),
        ("dot vdot", _products.dot),
        ("bmm baddbmm", _products.bmm),
        ("embedding", _products.embedding),
        ("index index_select", _products.gather),
        ("gather", _products.gather_elements),
        ("index_put index_put_", _put),
        ("scatter scatter_", _scatter),
        ("constant_pad_nd", _pad),
        ("max_pool2d_with_indices", _max_pool),
        ("gelu", _gelu),
        ("elu", _elu),
        ("softplus", _softplus),
        ("convolution convolution_overrideable", _products.convolution),
        ("mkldnn_rnn_layer", _products.mkldnn_rnn),
        ("_softmax _safe_softmax", _softmax),
        ("_log_softmax", _log_softmax),
        ("_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention", _products.attention),
        ("native_layer_norm", _layer_norm),
        ("native_group_norm", _group_norm),
        ("native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm", _batch_norm),
        ("pow pow_", _pow),
        ("clamp clamp_", _clamp),
        ("sum", _sum),
        ("mean", _mean),
        ("var", _var),
        ("max min amax amin argmax argmin", _largest),
        ("cumsum", _cumsum),
        ("avg_pool2d", _average_pool),
        ("scatter_add scatter_add_", _scatter_add),
        ("index_add index_add_", _index_add),
    )
    for packet in packets(names)
}
"""operator -> its rule, `rule(mode, args, outputs)`, which gives the output's kind where that is not DENSE"""
