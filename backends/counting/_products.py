"""What an aten operator that reads weights costs, or one that multiplies matrices: rules of `rules.py`."""

import math

import torch

from rheobase.backends.counting.operators import ARRIVALS, aten, n_bytes
from rheobase.spiking.tally import BINARY, DENSE, EVENT_KINDS, TERNARY


def mm(mode, args, outputs):
    x, y = args[-2:] if len(args) < 4 else args[1:3]
    name = mode.operator_of(y, x)
    if len(args) > 2:
        _added(mode, args[0], outputs, name)
    if x.layout != torch.strided or y.layout != torch.strided:
        return _sparse(mode, x, y, name)
    kind = mode.product(x, y, name)
    return kind if len(args) == 2 else DENSE


def _added(mode, added, outputs, name=None):
    """What is added to a product: a bias, or a value that follows from the input."""
    size = n_bytes(outputs)
    mode.add(name, adds=outputs[0].numel(), **{"activation_bytes" if added in mode.data else "weight_bytes": size})


def mv(mode, args, outputs):
    matrix, x = args[-2:]
    if len(args) > 2:
        _added(mode, args[0], outputs, mode.operator_of(matrix))
    mode.product(matrix, x, mode.operator_of(matrix))


def dot(mode, args, outputs):
    x, y = args[:2]
    mode.product(x, y, mode.operator_of(y, x))


def bmm(mode, args, outputs):
    x, y = args[-2:] if len(args) < 4 else args[1:3]
    if len(args) > 2:
        _added(mode, args[0], outputs, mode.operator_of(y, x))
    kind = mode.product(x, y, mode.operator_of(y, x))
    return kind if len(args) == 2 else DENSE


def _sparse(mode, x, y, name):
    """A sparse matrix times a dense one, or the other way round: each stored value meets a row, or the events of it."""
    sparse, other = (x, y) if x.layout != torch.strided else (y, x)
    if other.layout != torch.strided:
        mode.uncounted.add("aten.mm of two sparse matrices")
        return DENSE
    kinds = mode.kinds.get(sparse, DENSE), mode.kinds.get(other, DENSE)
    inner, across = (1, 1) if sparse is x else (0, 0)
    with mode.paused():
        stored = sparse._values().numel() if sparse.layout == torch.sparse_coo else sparse.values().numel()
        done, events = stored * other.shape[across], 0
        if kinds[1] in EVENT_KINDS:
            places = (sparse if sparse.layout == torch.sparse_coo else sparse.to_sparse_coo())._indices()[inner]
            met = (other != 0).sum(across)
            done, events = int(met[places].sum()), int(met.sum())
    mode.add(
        name,
        dense_macs=x.shape[0] * x.shape[1] * y.shape[1],
        rows=stored,
        deliveries=events + (stored if kinds[0] in EVENT_KINDS else 0),
        weight_bytes=done * other.element_size(),
        activation_bytes=stored * sparse.element_size(),
        **{"acs" if {*kinds} & {BINARY, TERNARY} else "macs": done},
    )
    return DENSE


def embedding(mode, args, outputs):
    table, ids = args[:2]
    size = n_bytes(outputs)
    mode.add(mode.operator_of(table), rows=ids.numel(), weight_bytes=size, activation_bytes=size)


def gather(mode, args, outputs):
    """Values by their places: weights where they are a parameter's, whole rows where the first axis is indexed; else
    a copy of what they hold."""
    source, out = args[0], outputs[0]
    if source not in mode.constants:
        mode.add(activation_bytes=2 * n_bytes(outputs))
        return mode.kinds.get(source, DENSE)
    if isinstance(args[1], list | tuple):  # else by `index_select`'s axis
        index = args[1][0] if len(args[1]) == 1 else None
        by_rows = index is not None and (index.dtype not in (torch.bool, torch.uint8) or index.dim() == 1)
    else:
        by_rows = args[1] == 0
    rows = out.numel() // max(math.prod(source.shape[1:]), 1) if by_rows else 0
    mode.add(mode.operator_of(source), rows=rows, weight_bytes=n_bytes(outputs), activation_bytes=n_bytes(outputs))
    return DENSE


def gather_elements(mode, args, outputs):
    """A value of each place, along an axis."""
    size = n_bytes(outputs)
    constant = args[0] in mode.constants
    mode.add(weight_bytes=size if constant else 0, activation_bytes=size if constant else 2 * size)
    return DENSE if constant else mode.kinds.get(args[0], DENSE)


def convolution(mode, args, outputs):
    """Every input element meets the kernels of its group at the places where they reach it. What would meet padding
    is no product, in the dense form neither."""
    x, weight, bias, *geometry = args[:9]
    name, kind = mode.operator_of(weight), mode.kinds.get(x, DENSE)
    transposed, groups = geometry[3], geometry[5]
    kinds = kind, mode.kinds.get(weight, DENSE)
    with mode.paused():

        def reached(elements, kernels):
            kernels = kernels.double()  # those of a group's output channels as one
            kernels = kernels.sum(1, keepdim=True) if transposed else kernels.unflatten(0, (groups, -1)).sum(1)
            return round(aten.convolution(elements.double(), kernels, None, *geometry).sum().item())

        whole = [mode.padded[x] if x in mode.padded else torch.ones_like(x), torch.ones_like(weight)]
        dense = reached(*whole)
        met = [t != 0 if of_t in EVENT_KINDS else ones for t, of_t, ones in zip((x, weight), kinds, whole, strict=True)]
        done = reached(*met) if set(kinds) & set(EVENT_KINDS) else dense
        rows, kernels = (int(torch.count_nonzero(t)) for t in met)
    if bias is not None:
        mode.add(name, adds=outputs[0].numel(), weight_bytes=n_bytes(outputs))
    mode.add(
        name,
        dense_macs=dense,
        rows=rows,
        deliveries=sum(n for n, of_t in zip((rows, kernels), kinds, strict=True) if of_t in EVENT_KINDS),
        weight_bytes=done * weight.element_size(),
        activation_bytes=rows * x.element_size() + n_bytes(outputs),
        **{"acs" if {*kinds} & {BINARY, TERNARY} else "macs": done},
    )
    return ARRIVALS if kind in EVENT_KINDS and bias is None else DENSE


def mkldnn_rnn(mode, args, outputs):
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


def attention(mode, args, outputs, attn_mask=None, scale=None):
    """softmax(q k^T scale) v, fused; a causal mask leaves out what it hides."""
    q, k, v = args[:3]
    causal = len(args) > 4 and bool(args[4])
    *outer, queries, width = q.shape
    keys, heads = k.shape[-2], math.prod(outer)
    pairs = sum(min(i + 1, keys) for i in range(queries)) if causal else queries * keys
    pairs, rows = heads * pairs, heads * queries
    kinds = [mode.kinds.get(t, DENSE) for t in (q, k, v)]
    met = (width * pairs, v.shape[-1] * pairs), q.numel(), 0
    if {*kinds} & {*EVENT_KINDS}:
        with mode.paused():
            met = _attended(q, k, v, kinds, causal)
    products, read, deliveries = met
    done = {"macs": 0, "acs": 0}
    for n, operands in zip(products, (kinds[:2], kinds[2:]), strict=True):
        done["acs" if {*operands} & {BINARY, TERNARY} else "macs"] += n
    mode.add(
        dense_macs=heads * queries * keys * (width + v.shape[-1]),
        **done,
        rows=read + pairs,
        deliveries=deliveries,
        products=pairs,
        adds=(2 if attn_mask is None else 3) * pairs - rows,
        comparisons=pairs - rows,
        transcendentals={"exp": pairs, "division": pairs},
        activation_bytes=n_bytes([q, k, v, outputs[0]]),
    )


def _attended(q, k, v, kinds, causal) -> tuple[tuple[int, int], int, int]:
    """Where some are events: executed products with k and with v, queries' elements read, and events read."""
    met = []
    for t, kind in zip((q, k, v), kinds, strict=True):
        met.append(_operands(t, kind).double().repeat_interleave(q.shape[1] // t.shape[1], 1))
    q, k, v = met
    seen = q.new_ones(q.shape[-2], k.shape[-2])
    seen = seen.tril() if causal else seen
    products = int((q @ k.mT * seen).sum()), int((seen.sum(0)[:, None] * v).sum())
    deliveries = sum(int(t.sum()) for t, kind in zip(met, kinds, strict=True) if kind in EVENT_KINDS)
    return products, int(q.sum()), deliveries


def _operands(x, kind):
    """1 where an element is an operand of a product: all but the zeros of events."""
    return x != 0 if kind in EVENT_KINDS else torch.ones_like(x)
