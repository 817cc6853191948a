"""Counts what any torch module does, by watching the operators that it dispatches.

It never looks at the model's graph. What an operand is (events or dense) is what the op that made it said
(`spiking.tally.mark`); views, copies and concatenations keep it, everything else makes a DENSE tensor.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from rheobase.spiking.tally import BINARY, DENSE, EVENT_KINDS, TERNARY, Counts, Tally, listening

aten = torch.ops.aten

_KEEP_KIND = {
    *(
        aten.view,
        aten._unsafe_view,
        aten.reshape,
        aten.t,
        aten.transpose,
        aten.transpose_,
        aten.permute,
        aten.select,
        aten.slice,
    ),
    *(
        aten.unbind,
        aten.split,
        aten.unsafe_split,
        aten.split_with_sizes,
        aten.unsqueeze,
        aten.squeeze,
        aten.expand,
    ),
    *(
        aten.stack,
        aten.cat,
        aten.clone,
        aten.detach,
        aten.alias,
        aten._to_copy,
        aten.unsafe_chunk,
        aten.copy_,
    ),
    *(aten.as_strided, aten.flip, aten.index_select, aten.lift_fresh, aten.resolve_conj, aten.unfold),
}
_FREE = {
    *(aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub, aten.neg, aten.zeros, aten.zeros_like, aten.ones),
    *(aten.ones_like, aten.empty, aten.empty_like, aten.new_zeros, aten.new_empty, aten.new_full, aten.full),
    *(
        aten.full_like,
        aten.fill_,
        aten.zero_,
        aten.arange,
        aten.scalar_tensor,
        aten.where,
        aten.sum,
        aten.mean,
    ),
    *(aten._local_scalar_dense, aten.new_ones, aten.set_, aten.item, aten.bernoulli_, aten.abs),
}
_PRODUCTS = {aten.mul, aten.mul_, aten.addcmul, aten.addcmul_, aten.lerp}
_COMPARISONS = {
    *(
        aten.gt,
        aten.ge,
        aten.lt,
        aten.le,
        aten.eq,
        aten.ne,
        aten.relu,
        aten.relu_,
        aten.maximum,
        aten.minimum,
    ),
    *(aten.clamp, aten.clamp_, aten.clamp_min, aten.heaviside, aten.sign, aten.bitwise_not, aten.logical_not),
}
_TRANSCENDENTALS = {
    aten.sigmoid: "sigmoid",
    aten.sigmoid_: "sigmoid",
    aten.tanh: "tanh",
    aten.tanh_: "tanh",
    aten.exp: "exp",
    aten.log: "log",
    aten.sqrt: "sqrt",
    aten.rsqrt: "rsqrt",
    aten.div: "division",
    aten.div_: "division",
    aten.reciprocal: "division",
    aten.atan: "atan",
}


def _tensors(values) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _bytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class CountingMode(TorchDispatchMode):
    """Counts every operator dispatched while it is active; `tally(tokens)` gives the result."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.kinds = WeakIdKeyDictionary()
        self.parameters = {p.data_ptr(): name for name, p in module.named_parameters() if p.numel()}
        self.stack = [""]
        self.operators: dict[str, Counts] = {}
        self.uncounted: set[str] = set()

    def tally(self, tokens: int) -> Tally:
        return Tally(tokens, dict(self.operators), tuple(sorted(self.uncounted)))

    def add(self, _name: str | None = None, **numbers) -> None:
        name = (self.stack[-1] if _name is None else _name) or "(module)"
        self.operators[name] = self.operators.get(name, Counts()) + Counts(**numbers)

    def mark(self, tensor: Tensor, kind: str, sent: bool) -> None:
        self.kinds[tensor] = kind
        if sent:
            with torch.utils._python_dispatch._disable_current_modes():
                self.add(events=int(torch.count_nonzero(tensor)))

    def add_state_updates(self, tensor: Tensor) -> None:
        self.add(state_updates=tensor.numel(), state_bytes=2 * tensor.numel() * tensor.element_size())

    def operator_of(self, weight: Tensor) -> str | None:
        """A product is named by its weight where that is the running module's own, else by the module."""
        name = self.parameters.get(weight.data_ptr())
        if name is None or name.rpartition(".")[0] != self.stack[-1]:
            return None
        return name.removesuffix(".weight")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        outputs = _tensors(out if isinstance(out, list | tuple) else [out])
        rule = _RULES.get(packet)
        if rule is not None:
            rule(self, args, outputs)
        elif packet in _KEEP_KIND:
            kinds = {self.kinds.get(t, DENSE) for t in _tensors(args)}
            if len(kinds) == 1 and (kind := kinds.pop()) != DENSE:
                for t in outputs:
                    self.kinds[t] = kind
        elif packet in _PRODUCTS:
            self.add(products=outputs[0].numel(), activation_bytes=_bytes(_tensors(args)) + _bytes(outputs))
        elif packet in _COMPARISONS:
            self.add(comparisons=outputs[0].numel(), activation_bytes=_bytes(_tensors(args)) + _bytes(outputs))
        elif packet in _TRANSCENDENTALS:
            counts = {_TRANSCENDENTALS[packet]: outputs[0].numel()}
            self.add(transcendentals=counts, activation_bytes=_bytes(_tensors(args)) + _bytes(outputs))
        elif packet not in _FREE:
            self.uncounted.add(str(packet))
        if packet not in _KEEP_KIND:
            for t in outputs:  # written in place: what it was before no longer holds
                self.kinds.pop(t, None)
        return out

    def product(self, x: Tensor, weight: Tensor, n_out: int, n_items: int, operator: str | None) -> None:
        """x [.., in] times a matrix of n_out columns."""
        kind = self.kinds.get(x, DENSE)
        n_in = x.numel() // n_items if n_items else 0
        rows = int(torch.count_nonzero(x)) if kind in EVENT_KINDS else x.numel()
        self.add(
            operator,
            dense_macs=n_items * n_in * n_out,
            rows=rows,
            weight_bytes=rows * n_out * weight.element_size(),
            activation_bytes=(x.numel() + n_items * n_out) * x.element_size(),
            **{"acs" if kind in (BINARY, TERNARY) else "macs": rows * n_out},
        )


def _mm(mode, args, outputs):
    x, weight = args[-2:] if len(args) < 4 else args[1:3]
    if len(args) > 2:
        mode.add(mode.operator_of(weight), weight_bytes=_bytes(outputs))
    if mode.parameters.get(x.data_ptr()) and not mode.parameters.get(weight.data_ptr()):
        x, weight = weight.t(), x.t()
    mode.product(x, weight, weight.shape[1], x.shape[0], mode.operator_of(weight))


def _mv(mode, args, outputs):
    weight, x = args[-2:]
    mode.product(x, weight, weight.shape[0], 1, mode.operator_of(weight))


def _bmm(mode, args, outputs):
    x, y = args[-2:]
    mode.product(x, y, y.shape[2], x.shape[0] * x.shape[1], mode.operator_of(y))


def _embedding(mode, args, outputs):
    mode.add(
        mode.operator_of(args[0]),
        rows=args[1].numel(),
        weight_bytes=_bytes(outputs),
        activation_bytes=_bytes(outputs),
    )


def _convolution(mode, args, outputs):
    x, weight, transposed = args[0], args[1], args[6]
    positions = (x if transposed else outputs[0]).numel() // (weight.shape[0])
    dense = positions * weight.numel()
    if mode.kinds.get(x, DENSE) in EVENT_KINDS:
        mode.uncounted.add("aten.convolution on events")
    operator = mode.operator_of(weight)
    mode.add(
        operator,
        dense_macs=dense,
        macs=dense,
        weight_bytes=_bytes([weight]),
        activation_bytes=_bytes([x, *outputs]),
    )


def _mkldnn_rnn(mode, args, outputs):
    x, w_in, w_rec, n_units = args[0], args[1], args[2], args[10]
    gates = {2: 4, 3: 3}.get(args[9])
    if gates is None:
        mode.uncounted.add(f"aten.mkldnn_rnn_layer of mode {args[9]}")
        return
    n_items = math.prod(x.shape[:-1])
    mode.product(x, w_in, gates * n_units, n_items, mode.operator_of(w_in))
    h = x.new_ones(n_items, n_units)
    mode.product(h, w_rec, gates * n_units, n_items, mode.operator_of(w_rec))
    n = n_items * n_units
    for weight in (w_in, w_rec):
        mode.add(mode.operator_of(weight), weight_bytes=gates * n * x.element_size())
    transcendentals = {"sigmoid": (gates - 1) * n, "tanh": (gates - 2) * n}
    mode.add(products=(gates - 1) * n, transcendentals=transcendentals, activation_bytes=2 * n * x.element_size())


def _softmax(mode, args, outputs):
    n = outputs[0].numel()
    mode.add(transcendentals={"exp": n, "division": n}, activation_bytes=_bytes([args[0], *outputs]))


def _layer_norm(mode, args, outputs):
    x = outputs[0]
    counts = {"rsqrt": x.numel() // math.prod(args[1])}
    mode.add(products=3 * x.numel(), transcendentals=counts, activation_bytes=_bytes([args[0], x]))


def _pow(mode, args, outputs):
    if args[1] == 2:
        mode.add(products=outputs[0].numel(), activation_bytes=2 * _bytes(outputs))
    else:
        mode.uncounted.add(f"aten.pow to {args[1]}")


_RULES = {
    aten.mm: _mm,
    aten.addmm: _mm,
    aten.mv: _mv,
    aten.bmm: _bmm,
    aten.embedding: _embedding,
    aten.convolution: _convolution,
    aten.mkldnn_rnn_layer: _mkldnn_rnn,
    aten._softmax: _softmax,
    aten.native_layer_norm: _layer_norm,
    aten.pow: _pow,
}


@torch.no_grad()
def count(model: nn.Module, tokens: Tensor) -> Tally:
    """What one evaluation pass of a torch module costs, counted on the operators that it runs.

    model    any module; ours mark their events, in others every operand is DENSE unless it calls `mark`
    tokens   its input: integers [B, T], or values [B, T, D] or [B, D]
    returns  a Tally whose `tokens` is B x T (or B), by operator: a parameter's or a module's path; operators
             without a rule are named in `uncounted`
    """
    tokens = torch.as_tensor(tokens)
    mode = CountingMode(model)
    hooks = []
    for path, module in model.named_modules():
        if path:
            hooks.append(module.register_forward_pre_hook(lambda *_, path=path: mode.stack.append(path)))
            hooks.append(module.register_forward_hook(lambda *_: mode.stack.pop() and None, always_call=True))
    training = model.training
    model.eval()
    try:
        with listening(mode), mode:
            model(tokens)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    whole = not tokens.is_floating_point() or tokens.dim() < 3
    return mode.tally(
        tokens.numel() if not tokens.is_floating_point() else math.prod(tokens.shape[: 1 if whole else 2])
    )
