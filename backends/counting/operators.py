"""What each aten operator costs: the table that the dispatch counter reads.

Three kinds of operators: those that only move, create or rename values; those that do the same to each element of
their output; and those with a rule of their own. An operator in none of the tables is listed as uncounted.
Selecting (`where`) and changing a sign are moves.
"""

import math

import torch
from torch import Tensor

from rheobase.spiking.tally import BINARY, DENSE, EVENT_KINDS, GRADED, TERNARY

aten = torch.ops.aten

ARRIVALS = "ARRIVALS"
"""the counter's own kind: sums of what events brought and of nothing else, all 0 where no event came"""


def _packets(names: str) -> set:
    """The operators of these names, those of them that this torch has."""
    return {getattr(aten, name) for name in names.split() if hasattr(aten, name)}


VIEWS = _packets(
    "view _unsafe_view reshape t transpose transpose_ permute select slice unbind split unsafe_split split_with_sizes "
    "unsqueeze squeeze expand stack cat clone detach alias _to_copy unsafe_chunk copy_ as_strided flip "
    "lift_fresh resolve_conj unfold contiguous repeat roll abs neg squeeze_ unsqueeze_ diagonal "
    "_reshape_alias view_as_real native_dropout to_dense narrow"
)
"""what comes out is of the kind of what went in"""

FREE = _packets(
    "zeros zeros_like ones ones_like empty empty_like empty_strided new_zeros new_empty new_full new_ones "
    "new_empty_strided full full_like fill_ zero_ arange linspace scalar_tensor where masked_fill masked_fill_ set_ "
    "item _local_scalar_dense is_nonzero eye tril triu tril_ triu_ resize_ "
    "lift lift_fresh_copy _assert_async is_same_size equal sym_size nonzero _sparse_coo_tensor_with_dims_and_tensors "
    "_coalesce _coalesced_ _indices _values to_sparse _to_sparse is_coalesced _pack_padded_sequence"
)
"""moves, creations and questions: no arithmetic"""


def _each(names: str, **counts) -> dict:
    return {packet: counts for packet in _packets(names)}


ELEMENTWISE = {
    **_each("add add_ sub sub_ rsub", adds=1),
    **_each("mul mul_ square square_", products=1),
    **_each("div div_ reciprocal reciprocal_ true_divide", division=1),
    **_each("lerp lerp_", products=1, adds=2),
    **_each("addcmul addcmul_", products=1, adds=1),
    **_each("addcdiv addcdiv_", division=1, adds=1),
    **_each("gt ge lt le eq ne gt_ ge_ lt_ le_ isnan isinf isfinite relu relu_ maximum", comparisons=1),
    **_each(
        "minimum clamp_min clamp_max clamp_min_ clamp_max_ heaviside sign sgn floor ceil round trunc", comparisons=1
    ),
    **_each("bitwise_not logical_not bitwise_and logical_and bitwise_or logical_or logical_xor", comparisons=1),
    **_each("leaky_relu leaky_relu_", comparisons=1, products=1),
    **_each("hardtanh hardtanh_", comparisons=2),
    **_each("sigmoid sigmoid_", sigmoid=1),
    **_each("tanh tanh_", tanh=1),
    **_each("exp exp_ exp2 expm1", exp=1),
    **_each("log log_ log2 log10 log1p", log=1),
    **_each("sqrt sqrt_", sqrt=1),
    **_each("rsqrt rsqrt_", rsqrt=1),
    **_each("atan", atan=1),
    **_each("sin sin_", sin=1),
    **_each("cos cos_", cos=1),
    **_each("erf erf_", erf=1),
    **_each("silu silu_", sigmoid=1, products=1),
    **_each("log_sigmoid_forward", exp=1, log=1, adds=1),
}
"""operator -> what it does for each element of its output"""

TRANSCENDENTAL = ("sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "division", "atan", "sin", "cos", "erf")

TESTS = _packets("gt ge lt le eq ne logical_not logical_and logical_or isnan isinf isfinite")
"""their outputs are 0 or 1"""
SIGNS = _packets("sign sgn")
PRODUCTS, QUOTIENTS = _packets("mul mul_"), _packets("div div_")
SUMS, DIFFERENCES = _packets("add add_ sub sub_"), _packets("sub sub_")
SPARSE_PRODUCTS = _packets("mm addmm _sparse_mm _sparse_addmm")
MATRIX_PRODUCTS = SPARSE_PRODUCTS | _packets("_int_mm bmm baddbmm mv addmv dot vdot convolution")
ZEROS, JOINS = _packets("zeros zeros_like new_zeros"), _packets("cat stack")
"""zeros put before or after events are silence, as those of a padding are"""
FACTORS = ("alpha", "beta", "value")
"""keyword arguments that multiply an operand, at the cost of a product an element"""
CREATIONS = _packets(
    "zeros_like ones_like empty_like full_like new_zeros new_empty new_full new_ones new_empty_strided rand_like "
    "randn_like randint_like bernoulli bernoulli_ normal_ uniform_ random_ multinomial"
)
"""what they make follows from the shape of what they are given, or from chance"""


def kind_of(packet, args, kwargs, kinds: list[str], constants) -> str:
    """The kind of an elementwise operator's output, proven by what the operator is and its operands' kinds.

    A test gives BINARY, a sign TERNARY. An event times a number is an event of the same kind, whose factor folds into
    the weights that it reads; an event times anything else, and a sum of events, is zero where no event is: GRADED.
    """
    if packet in TESTS:
        return BINARY
    if packet in SIGNS:
        return TERNARY
    if packet is aten.heaviside and isinstance(args[1], Tensor) and bool(((args[1] == 0) | (args[1] == 1)).all()):
        return BINARY
    if packet in (*PRODUCTS, *QUOTIENTS) and kinds[0] in EVENT_KINDS and _is_number(args[1], constants):
        return kinds[0]
    if packet in PRODUCTS and kinds[-1] in EVENT_KINDS and _is_number(args[0], constants):
        return kinds[-1]
    if packet in PRODUCTS and any(kind in EVENT_KINDS for kind in kinds):
        return BINARY if kinds == [BINARY, BINARY] else GRADED
    if packet in QUOTIENTS and kinds[0] in EVENT_KINDS:
        return GRADED
    if packet in SUMS and len(kinds) == 2 and all(kind in EVENT_KINDS for kind in kinds):
        difference = packet in DIFFERENCES and kwargs.get("alpha", 1) == 1
        return TERNARY if kinds == [BINARY, BINARY] and difference else GRADED
    return DENSE


def _is_number(value, constants) -> bool:
    return not isinstance(value, Tensor) or (value.numel() == 1 and value in constants)


def tensors(values) -> list[Tensor]:
    """Every tensor among arguments, lists of them looked into."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors(value)
    return found


def n_bytes(values) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in values)


def _mm(mode, args, outputs):
    x, y = args[-2:] if len(args) < 4 else args[1:3]
    name = mode.operator_of(y, x)
    if len(args) > 2:
        mode.add(name, adds=outputs[0].numel(), weight_bytes=n_bytes(outputs))
    if x.layout != torch.strided or y.layout != torch.strided:
        return _sparse(mode, x, y, name)
    kind = mode.product(x, y, name)
    return kind if len(args) == 2 else DENSE


def _mv(mode, args, outputs):
    matrix, x = args[-2:]
    if len(args) > 2:
        mode.add(adds=outputs[0].numel())
    mode.product(matrix, x, mode.operator_of(matrix))


def _dot(mode, args, outputs):
    x, y = args[:2]
    mode.product(x, y, mode.operator_of(y, x))


def _bmm(mode, args, outputs):
    x, y = args[-2:] if len(args) < 4 else args[1:3]
    if len(args) > 2:
        mode.add(adds=outputs[0].numel())
    kind = mode.product(x, y, mode.operator_of(y, x))
    return kind if len(args) == 2 else DENSE


def _sparse(mode, x, y, name):
    """A sparse matrix times a dense one, or the other way round: each stored value meets one row."""
    sparse, other = (x, y) if x.layout != torch.strided else (y, x)
    if other.layout != torch.strided:
        mode.uncounted.add("aten.mm of two sparse matrices")
        return DENSE
    across = other.shape[1] if sparse is x else other.shape[0]
    stored = sparse._nnz()
    mode.add(
        name,
        dense_macs=x.shape[0] * x.shape[1] * y.shape[1],
        macs=stored * across,
        rows=stored,
        weight_bytes=stored * across * other.element_size(),
        activation_bytes=stored * sparse.element_size(),
    )
    return DENSE


def _embedding(mode, args, outputs):
    table, ids = args[:2]
    size = n_bytes(outputs)
    mode.add(mode.operator_of(table), rows=ids.numel(), weight_bytes=size, activation_bytes=size)


def _gather(mode, args, outputs):
    """Values by their places: weights where they are a parameter's, whole rows where the first axis is indexed; else
    a copy of what they hold."""
    source, out = args[0], outputs[0]
    if source not in mode.constants:
        mode.add(activation_bytes=2 * n_bytes(outputs))
        return mode.kinds.get(source, DENSE)
    by_index = isinstance(args[1], list | tuple)  # else by `index_select`'s axis
    by_rows = len(args[1]) == 1 and args[1][0] is not None if by_index else args[1] == 0
    rows = out.numel() // max(source[0].numel(), 1) if by_rows else 0
    mode.add(mode.operator_of(source), rows=rows, weight_bytes=n_bytes(outputs), activation_bytes=n_bytes(outputs))
    return DENSE


def _gather_elements(mode, args, outputs):
    """A value of each place, along an axis."""
    size = n_bytes(outputs)
    constant = args[0] in mode.constants
    mode.add(weight_bytes=size if constant else 0, activation_bytes=size if constant else 2 * size)
    return DENSE if constant else mode.kinds.get(args[0], DENSE)


def _put(mode, args, outputs, reduce=None):
    """A move, or a sum where it accumulates."""
    accumulates = len(args) > 3 and args[3] is True
    if reduce is not None:
        mode.uncounted.add("aten.scatter that reduces")
    mode.add(adds=args[2].numel() if accumulates else 0, activation_bytes=2 * n_bytes(tensors(args[2:3])))
    return DENSE


def _pad(mode, args, outputs):
    return mode.kinds.get(args[0], DENSE) if len(args) < 3 or args[2] == 0 else DENSE


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


def _convolution(mode, args, outputs):
    """Every input element meets the kernels of its group at the places where they reach it. What would meet padding
    is no product, in the dense form neither."""
    x, weight, bias, *geometry = args[:9]
    name, kind = mode.operator_of(weight), mode.kinds.get(x, DENSE)
    transposed, groups = geometry[3], geometry[5]
    with mode.paused():
        one = weight[:, :1] if transposed else weight[:groups]  # an output channel a group: each has as many products
        reach, times = torch.ones_like(one, dtype=torch.float64), weight.numel() // one.numel()

        def reached(elements):
            return times * round(aten.convolution(elements.double(), reach, None, *geometry).sum().item())

        dense = reached(torch.ones_like(x))
        done = reached(x != 0) if kind in EVENT_KINDS else dense
        rows = int(torch.count_nonzero(x)) if kind in EVENT_KINDS else x.numel()
    if bias is not None:
        mode.add(name, adds=outputs[0].numel(), weight_bytes=n_bytes(outputs))
    mode.add(
        name,
        dense_macs=dense,
        rows=rows,
        deliveries=rows if kind in EVENT_KINDS else 0,
        weight_bytes=done * weight.element_size(),
        activation_bytes=rows * x.element_size() + n_bytes(outputs),
        **{"acs" if kind in (BINARY, TERNARY) else "macs": done},
    )
    return ARRIVALS if kind in EVENT_KINDS and bias is None else DENSE


def _mkldnn_rnn(mode, args, outputs):
    x, w_in, w_rec, n_units = args[0], args[1], args[2], args[10]
    gates = {2: 4, 3: 3}.get(args[9])
    if gates is None:
        mode.uncounted.add(f"aten.mkldnn_rnn_layer of mode {args[9]}")
        return
    n_items = math.prod(x.shape[:-1])
    n, size = n_items * n_units, x.element_size()
    kind = mode.kinds.get(x, DENSE)
    with mode.paused():
        operands = x.reshape(n_items, -1), x.new_ones(n_items, n_units)
    for operand, weight, kinds in zip(operands, (w_in, w_rec), ((kind, DENSE), (DENSE, DENSE)), strict=True):
        name = mode.operator_of(weight)
        mode.product(operand, weight.t(), name, kinds)
        if args[12]:
            mode.add(name, adds=gates * n, weight_bytes=gates * n * size)
    mode.add(
        products=(gates - 1) * n,
        adds=5 * n,
        transcendentals={"sigmoid": (gates - 1) * n, "tanh": (gates - 2) * n},
        activation_bytes=(2 * gates + 1) * n * size,  # both products' results are read, an output is written
    )


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


def _attention(mode, args, outputs, attn_mask=None, scale=None):
    """softmax(q k^T scale) v, fused; a causal mask leaves out what it hides."""
    q, k, v = args[:3]
    causal = len(args) > 4 and bool(args[4])
    *outer, queries, width = q.shape
    keys, heads = k.shape[-2], math.prod(outer)
    pairs = sum(min(i + 1, keys) for i in range(queries)) if causal else queries * keys
    pairs, rows = heads * pairs, heads * queries
    products = pairs * (width + v.shape[-1])
    mode.add(
        dense_macs=heads * queries * keys * (width + v.shape[-1]),
        macs=products,
        rows=q.numel() + pairs,
        products=pairs,
        adds=(2 if attn_mask is None else 3) * pairs - rows,
        comparisons=pairs - rows,
        transcendentals={"exp": pairs, "division": pairs},
        activation_bytes=n_bytes([q, k, v, outputs[0]]),
    )


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
    """n numbers take n - 1 additions."""
    mode.add(adds=max(args[0].numel() - outputs[0].numel(), 0), activation_bytes=n_bytes([args[0], *outputs]))


def _mean(mode, args, outputs):
    _sum(mode, args, outputs)
    mode.add(products=outputs[0].numel())


def _var(mode, args, outputs):
    """Mean, centred squares and their mean."""
    n, rows = args[0].numel(), outputs[0].numel()
    mode.add(products=n + 2 * rows, adds=3 * n - 2 * rows, activation_bytes=n_bytes([args[0], *outputs]))


def _largest(mode, args, outputs):
    mode.add(comparisons=max(args[0].numel() - outputs[0].numel(), 0), activation_bytes=n_bytes([args[0], outputs[0]]))


def _cumsum(mode, args, outputs):
    n, rows = _rows(args, outputs)
    mode.add(adds=n - rows, activation_bytes=n_bytes([args[0], *outputs]))


def _average_pool(mode, args, outputs):
    n = outputs[0].numel()
    mode.add(adds=_pooled(mode, *args[:5]) - n, products=n, activation_bytes=n_bytes([args[0], *outputs]))


def _pooled(mode, x, *geometry) -> int:
    """Elements of all windows, those of padding left out: kernel, stride, padding, and whether sizes round up."""
    with mode.paused():
        ones = torch.ones_like(x, dtype=torch.float64)
        return round(aten.avg_pool2d(ones, *geometry, divisor_override=1).sum().item())


def _scatter_add(mode, args, outputs):
    source = args[3]
    mode.add(adds=source.numel(), activation_bytes=n_bytes([source]) * 2)


RULES = {
    packet: rule
    for names, rule in (
        ("mm addmm _int_mm _sparse_mm _sparse_addmm", _mm),
        ("mv addmv", _mv),
        ("dot vdot", _dot),
        ("bmm baddbmm", _bmm),
        ("embedding", _embedding),
        ("index index_select", _gather),
        ("gather", _gather_elements),
        ("index_put index_put_ scatter scatter_", _put),
        ("constant_pad_nd", _pad),
        ("max_pool2d_with_indices", _max_pool),
        ("gelu", _gelu),
        ("elu", _elu),
        ("softplus", _softplus),
        ("convolution convolution_overrideable", _convolution),
        ("mkldnn_rnn_layer", _mkldnn_rnn),
        ("_softmax _safe_softmax", _softmax),
        ("_log_softmax", _log_softmax),
        ("_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention", _attention),
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
        ("index_add index_add_ scatter_add scatter_add_", _scatter_add),
    )
    for packet in _packets(names)
}
"""operator -> its rule, `rule(mode, args, outputs)`, which gives the output's kind where that is not DENSE"""
