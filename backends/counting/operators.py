"""What each aten operator is: the tables that the dispatch counter reads.

Three kinds of operators: those that only move, create or rename values; those that do the same to each element of
their output; and those with a rule of their own (`rules.py`). An operator in none of the tables is listed as uncounted.
Selecting (`where`) and changing a sign are moves.
"""

import math

import torch
from torch import Tensor

from rheobase.spiking.tally import BINARY, DENSE, EVENT_KINDS, GRADED, TERNARY

aten = torch.ops.aten

ARRIVALS = "ARRIVALS"
"""the counter's own kind: sums of what events brought and of nothing else, all 0 where no event came"""


def packets(names: str) -> set:
    """The operators of these names, those of them that this torch has."""
    return {getattr(aten, name) for name in names.split() if hasattr(aten, name)}


VIEWS = packets(
    "view _unsafe_view reshape t transpose transpose_ permute select slice unbind split unsafe_split split_with_sizes "
    "unsqueeze squeeze expand stack cat clone detach alias _to_copy unsafe_chunk copy_ as_strided flip "
    "lift_fresh resolve_conj unfold contiguous repeat roll abs neg squeeze_ unsqueeze_ diagonal "
    "_reshape_alias view_as_real native_dropout to_dense to_sparse _to_sparse narrow"
)
"""what comes out is of the kind of what went in"""

MAGNITUDES = packets("abs")
"""moves, but for complex numbers"""

FREE = packets(
    "zeros zeros_like ones ones_like empty empty_like empty_strided new_zeros new_empty new_full new_ones "
    "new_empty_strided full full_like fill_ zero_ arange linspace scalar_tensor where masked_fill masked_fill_ set_ "
    "item _local_scalar_dense is_nonzero eye tril triu tril_ triu_ resize_ "
    "lift lift_fresh_copy _assert_async is_same_size equal sym_size nonzero _sparse_coo_tensor_with_dims_and_tensors "
    "_coalesce _coalesced_ _indices _values is_coalesced _pack_padded_sequence"
)
"""moves, creations and questions: no arithmetic"""


def _each(names: str, **counts) -> dict:
    return {packet: counts for packet in packets(names)}


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

TESTS = packets("gt ge lt le eq ne logical_not logical_and logical_or isnan isinf isfinite")
"""their outputs are 0 or 1"""
SIGNS = packets("sign sgn")
PRODUCTS, QUOTIENTS, NEGATIONS = packets("mul mul_"), packets("div div_"), packets("neg neg_")
SUMS, DIFFERENCES = packets("add add_ sub sub_"), packets("sub sub_")
SPARSE_PRODUCTS = packets("mm addmm _sparse_mm _sparse_addmm")
MATRIX_PRODUCTS = SPARSE_PRODUCTS | packets("_int_mm bmm baddbmm mv addmv dot vdot convolution")
ZEROS, JOINS = packets("zeros zeros_like new_zeros"), packets("cat stack")
"""zeros put before or after events are silence, as those of a padding are"""
LITERALS = packets("lift_fresh")
"""what torch.tensor makes of numbers"""
COPIES = packets("copy_")
"""what comes out is their last operand's"""
FACTORS = ("alpha", "beta", "value")
"""keyword arguments that multiply an operand, at the cost of a product an element"""
INDEX_SUMS = packets("index_add index_add_")
"""whose operand may have fewer or more elements than their output"""
CREATIONS = packets(
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


def size_of(packet, args, kind: str, kinds, sizes) -> float | None:
    """What an event of an output that is BINARY or TERNARY (up to its sign) is: 1, or the number that events are
    multiplied by. None where the operands' events are of several sizes, so that their difference, or what they are
    joined to, is neither."""
    if packet in TESTS or packet in SIGNS or packet is aten.heaviside:
        return 1.0
    operands = args[1:2] if packet in COPIES else args[:2]
    events = [t for t in tensors(operands) if kinds.get(t) in EVENT_KINDS]
    found = [sizes.get(t, 1.0) for t in events]
    if packet in PRODUCTS | QUOTIENTS:
        numbers = [_number(x) for x in args[:2] if not any(x is t for t in events)]
        if packet in QUOTIENTS:
            numbers = [1 / x if x else math.inf for x in numbers]
        size = math.prod([*found, *numbers])
    elif len(set(found)) > 1:
        return None
    else:
        size = (found or [1.0])[0]
        size = -size if packet in NEGATIONS else size
    return abs(size) if kind == TERNARY or packet in MAGNITUDES else size


def _is_number(value, constants) -> bool:
    return not isinstance(value, Tensor) or (value.numel() == 1 and value in constants)


def _number(x) -> float:
    """What has no value, on the device meta, is of no known size."""
    return math.nan if isinstance(x, Tensor) and x.is_meta else float(x)


def tensors(values) -> list[Tensor]:
    """Every tensor among arguments, lists and dictionaries of them looked into."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors(value)
        elif isinstance(value, dict):
            found += tensors(value.values())
    return found


def n_bytes(values) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in values)
