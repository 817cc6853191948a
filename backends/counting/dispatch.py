"""Counts what any torch module does, by watching the operators that it dispatches.

It never looks at the model's graph. What an operand is (events or dense) is what made it (`spiking.tally.mark`, or an
operator that can make nothing else: `operators.kind_of`). What is computed from parameters alone is the same for every
token, is prepared ahead, and is not counted, unless it changes a parameter.
"""

import contextlib
import math
import threading

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from rheobase.backends.counting.libraries import is_snntorch_neuron, neuron_state
from rheobase.backends.counting.operators import (
    ARRIVALS,
    COPIES,
    CREATIONS,
    ELEMENTWISE,
    FACTORS,
    FREE,
    INDEX_SUMS,
    JOINS,
    LITERALS,
    MAGNITUDES,
    MATRIX_PRODUCTS,
    SPARSE_PRODUCTS,
    VIEWS,
    ZEROS,
    kind_of,
    n_bytes,
    size_of,
    tensors,
)
from rheobase.backends.counting.rules import RULES
from rheobase.spiking.errors import ConfigError, ShapeError, UnsupportedError
from rheobase.spiking.neurons import Cell
from rheobase.spiking.ops.choice import wanted
from rheobase.spiking.tally import (
    BINARY,
    DENSE,
    EVENT_KINDS,
    GRADED,
    KINDS,
    TERNARY,
    TRANSCENDENTALS,
    Counts,
    Tally,
    listening,
)

INDEX = (torch.int64, torch.bool)
"""types of ids, places and masks, whose arithmetic is addressing and is not counted"""


def _is_composite(operator) -> bool:
    """Whether torch itself takes an operator apart into others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")


def _strange(packet, values: list[Tensor]) -> str:
    """What no rule for this operator counts, although there is a rule; "" if it is nothing."""
    if any(t.is_complex() for t in values):
        return "" if packet in (VIEWS | FREE) - MAGNITUDES else "complex numbers"
    if packet in VIEWS or packet in FREE:
        return ""
    layouts = {t.layout for t in values} - {torch.strided}
    return "" if packet in SPARSE_PRODUCTS else ", ".join(sorted(map(str, layouts)))


class CountingMode(TorchDispatchMode):
    """Counts every operator dispatched while it is active; `tally(tokens)` gives the result."""

    supports_higher_order_operators = True

    def __init__(self, module: nn.Module, watches: bool):
        super().__init__()
        self.watches, self.thread, self.others = watches, threading.get_ident(), set(threading.enumerate())
        self.kinds = WeakIdKeyDictionary()
        self.sizes = WeakIdKeyDictionary()  # what an event of a BINARY or TERNARY tensor is, 1 unless it is here
        self.constants, self.zeros, self.data = (WeakIdKeyDictionary() for _ in range(3))
        self.padded = WeakIdKeyDictionary()  # a tensor with zeros put around it -> 0 there, 1 elsewhere
        named = ((name, p) for name, p in module.named_parameters() if p.layout == torch.strided and p.numel())
        self.parameters = {p.data_ptr(): name for name, p in named}
        kept = tensors(value for m in module.modules() for value in vars(m).values())  # buffers among them
        for constant in (*module.parameters(), *(t for t in kept if t.dim() == 0)):
            self.constants[constant] = True
        self.stack = [""]
        self.operators: dict[str, Counts] = {}
        self.uncounted: set[str] = set()

    def tally(self, tokens: int) -> Tally:
        return Tally(tokens, dict(self.operators), tuple(sorted(self.uncounted)))

    def paused(self):
        """A block whose operators are not counted: the counter's own."""
        return _disable_current_modes()

    def add(self, _name: str | None = None, **numbers) -> None:
        name = (self.stack[-1] if _name is None else _name) or "(module)"
        self.operators[name] = self.operators.get(name, Counts()) + Counts(**numbers)

    def mark(self, tensor: Tensor, kind: str, sent: bool) -> None:
        if kind not in KINDS and kind != ARRIVALS:
            raise ConfigError("mark", f"one of {', '.join(KINDS)}", repr(kind), "declare what it carries")
        self.kinds[tensor] = kind
        with self.paused():
            self.sizes[tensor] = _require_kind(kind, tensor, "mark")
            if sent and kind in EVENT_KINDS:
                self.add(events=int(torch.count_nonzero(tensor)))

    def add_state_updates(self, tensor: Tensor, cause: Tensor | None, parts: int) -> None:
        n = parts * tensor.numel()
        with self.paused():
            arrivals = cause is not None and self.kinds.get(cause) == ARRIVALS
            touched = parts * int((cause != 0).any(-1).sum()) * cause.shape[-1] if arrivals else n
        self.add(state_updates=n, event_updates=touched, state_bytes=2 * n * tensor.element_size())

    def add_product(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        """x weight + bias, as `addmm` is counted."""
        name, n_out = self.operator_of(weight), x.shape[:-1].numel() * len(bias)
        self.add(name, adds=n_out, weight_bytes=n_out * bias.element_size())
        self.product(x, weight, name)

    def enter(self, path: str) -> None:
        """The begin of a module's call: in this thread, in one that the model began, or in somebody else's."""
        if threading.get_ident() == self.thread:
            self.stack.append(path)
        elif threading.current_thread() not in self.others:
            self.uncounted.add(f"{path or '(module)'} in another thread")

    def leave(self, module: nn.Module, output, ours: bool) -> None:
        """The end of a module's call; `ours`: a neuron around it tells of its state."""
        if threading.get_ident() != self.thread:
            return
        found = None if ours else neuron_state(module, output)
        if found:
            spikes, parts = found
            if not parts:
                self.uncounted.add(f"state of {type(module).__name__}")
            self.add_state_updates(spikes, None, parts)
            if self.kinds.get(spikes) in EVENT_KINDS:
                self.mark(spikes, self.kinds[spikes], sent=True)
        self.stack.pop()

    def operator_of(self, *weights: Tensor) -> str | None:
        """A product is named by its weight where that is the running module's own, else by the module."""
        for weight in weights:
            name = self.parameters.get(weight.data_ptr()) if weight.layout == torch.strided else None
            if name is not None and name.rpartition(".")[0] == self.stack[-1]:
                return name.removesuffix(".weight")
        return None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # whose parts are functions
            self.uncounted.add(func.name())
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if _is_composite(func):
            with self:  # which under inference mode nobody else takes apart
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        inputs = tensors([*args, *kwargs.values()])
        outputs = tensors(out if isinstance(out, list | tuple) else [out])
        literal = packet in LITERALS and inputs[0].dim() == 0  # as torch.tensor(2.0) makes it
        ahead = all(t in self.constants for t in inputs) and not (func._schema.is_mutable and self.owns(outputs))
        if literal or (inputs and ahead and packet not in CREATIONS):
            for t in outputs:
                self.constants[t] = True
            return out
        kind = DENSE
        strange = _strange(packet, [*inputs, *outputs])
        addressing = packet not in MATRIX_PRODUCTS and all(t.dtype in INDEX for t in (*inputs, *outputs))
        if strange:
            self.uncounted.add(f"{packet} of {strange}")
        elif packet in VIEWS:
            joined = [t for t in inputs if t not in self.zeros] if packet in JOINS else inputs
            joined = joined[-1:] if packet in COPIES else joined
            kinds = {self.kinds.get(t, DENSE) for t in joined or inputs}
            kind = kinds.pop() if len(kinds) == 1 else DENSE
        elif addressing:
            kind = BINARY if outputs and all(t.dtype == torch.bool for t in outputs) else DENSE
        elif packet in RULES:
            added = args if kwargs.get("beta", 1) else args[1:]  # beta = 0: what would be added is not read
            own = {name: value for name, value in kwargs.items() if name in ("approximate", "attn_mask", "reduce")}
            kind = RULES[packet](self, added, outputs, **own) or DENSE
        elif packet in ELEMENTWISE:
            with self.paused():
                found = [self.kinds.get(t, DENSE) for t in tensors(args[:2])]
                kind = kind_of(packet, args, kwargs, found, self.constants)
            self.elementwise(ELEMENTWISE[packet], inputs, outputs)
        elif packet not in FREE:
            self.uncounted.add(str(packet))
        factors = sum(kwargs.get(name, 1) not in (-1, 0, 1) for name in FACTORS)
        if factors and not (strange or addressing or packet in FREE):
            self.add(products=factors * (args[3] if packet in INDEX_SUMS else outputs[0]).numel())
        size = None
        if kind in (BINARY, TERNARY):
            with self.paused():
                size = size_of(packet, args, kind, self.kinds, self.sizes)
            kind = GRADED if size is None else kind
        record = self.record(outputs, kind, size) if packet in COPIES else None
        silent = packet in ZEROS or (packet in VIEWS and bool(inputs) and all(t in self.zeros for t in inputs))
        if func._schema.is_mutable:
            self.forget(outputs or inputs)  # a list's operators give nothing back
        if any(t in self.data for t in inputs):
            written = [t._base for t in outputs if t._base is not None] if func._schema.is_mutable else []
            for t in (*outputs, *written):
                self.data[t] = True
        for t in outputs:
            for known in (self.kinds, self.sizes, self.constants, self.zeros):
                known.pop(t, None)
            if silent:
                self.zeros[t] = True
        for t in outputs if record is None else (*outputs, record):
            if kind != DENSE:
                self.kinds[t], self.sizes[t] = kind, size
        return out

    def owns(self, written: list[Tensor]) -> bool:
        """Whether one of them lies where a parameter does."""
        return any(t.layout == torch.strided and t.data_ptr() in self.parameters for t in written)

    def record(self, written: list[Tensor], kind: str, size: float | None) -> Tensor | None:
        """What events are written into a part of, where the rest are such events too, or zeros."""
        whole = written[0]._base
        if whole is None or kind not in EVENT_KINDS:
            return None
        same = self.kinds.get(whole) == kind and self.sizes.get(whole) == size
        return whole if same or whole in self.zeros else None

    def forget(self, written: list[Tensor]) -> None:
        """What is written in place is no longer what it was, under whatever other name it goes."""
        places = {t.untyped_storage().data_ptr() for t in written if t.layout == torch.strided}
        for known in (self.kinds, self.sizes, self.constants, self.zeros, self.padded):
            for t in list(known):
                if t.layout == torch.strided and t.untyped_storage().data_ptr() in places:
                    known.pop(t, None)

    def elementwise(self, each: dict[str, int], inputs: list[Tensor], outputs: list[Tensor]) -> None:
        n = outputs[0].numel()
        weights = [t for t in inputs if t in self.constants and t.numel() > 1]
        read = n_bytes({id(t): t for t in inputs if t not in self.constants}.values())  # x * x reads x once
        plain = {name: n * times for name, times in each.items() if name not in TRANSCENDENTALS}
        kinds = {name: n * times for name, times in each.items() if name in TRANSCENDENTALS}
        self.add(
            **plain,
            transcendentals=kinds,
            weight_bytes=n * sum(t.element_size() for t in weights),
            activation_bytes=read + n_bytes(outputs),
        )

    def product(self, x: Tensor, y: Tensor, operator: str | None, kinds: tuple[str, str] | None = None) -> str:
        """x [.., N, K] times y [.., K, M], or vectors: every pair of an element of x and one of y that meet, none of
        them an event operand's zero. It adds where an operand is BINARY or TERNARY, else it multiplies too. Where both
        follow from the input, as in attention, no weights are read."""
        of_x, of_y = kinds or (self.kinds.get(x, DENSE), self.kinds.get(y, DENSE))
        of_data = x in self.data and y in self.data
        weights_left = not of_data and (y in self.data or (x in self.constants and y not in self.constants))
        with self.paused():
            x, y = x if x.dim() > 1 else x[None], y if y.dim() > 1 else y[:, None]
            rows = int(torch.count_nonzero(x)) if of_x in EVENT_KINDS else x.numel()
            columns = int(torch.count_nonzero(y)) if of_y in EVENT_KINDS else y.numel()
            if of_y not in EVENT_KINDS:
                done = rows * y.shape[-1]
            elif of_x not in EVENT_KINDS:
                done = columns * x.shape[-2]
            else:
                done = int(((x != 0).sum(-2) * (y != 0).sum(-1)).sum())
        read = columns if weights_left else rows
        delivered = sum(n for n, kind in ((rows, of_x), (columns, of_y)) if kind in EVENT_KINDS)
        weight, acts = (x, y) if weights_left else (y, x)
        n_out = math.prod(x.shape[:-1]) * y.shape[-1]
        read_once = weight.numel() if of_data else 0
        self.add(
            operator,
            dense_macs=math.prod(x.shape) * y.shape[-1],
            rows=read,
            deliveries=delivered,
            weight_bytes=0 if of_data else done * weight.element_size(),
            activation_bytes=(acts.numel() + read_once + n_out) * acts.element_size(),
            **{"acs" if {of_x, of_y} & {BINARY, TERNARY} else "macs": done},
        )
        return ARRIVALS if of_x in EVENT_KINDS else DENSE


def _require_kind(kind: str, x: Tensor, where: str) -> float | None:
    """Refuse values that are no events of the kind, else what an event is: a factor that all share is folded into the
    weights that read it."""
    if kind not in (BINARY, TERNARY):
        return None
    if x.is_meta:
        return 1.0
    values = x.coalesce() if x.layout == torch.sparse_coo else x
    values = values if values.layout == torch.strided else values.values()
    sent = values[values != 0]
    sizes = sent.abs() if kind == TERNARY and sent.dtype != torch.bool else sent
    if (sizes != sizes[:1]).any():
        expected = f"{kind} values, 0 and one number" + (" and its opposite" if kind == TERNARY else "")
        raise ShapeError(where, expected, "others", "declare another kind")
    return float(sizes[0]) if len(sizes) else 1.0


@torch.no_grad()
def count(
    model: nn.Module, tokens: Tensor, state=None, *, kind: str = DENSE, strict: bool = False, kernels: str = "auto"
) -> Tally:
    """What one evaluation pass of a torch module costs, counted on the operators that it runs.

    model    any module; ours mark their events, in others what a test or a sign makes is known for what it is
    tokens   its input: integers [B, T], or values [B, D], [B, T, D], [B, C, H, W] or [B, T, C, H, W]
    state    what an earlier call of the model returned, as its second argument; none if not given
    kind     what the input's values are: "BINARY", "TERNARY" or "GRADED" events, or "DENSE"
    strict   True: an operator without a rule is an error
    kernels  "auto": our ops in C, where they can be, tell what they did;  "reference": all is counted as torch's
             operators. The two agree but for bytes, which are those of one fused op or of each operator
    returns  a Tally whose `tokens` is B x T (B where there is no T), by operator: a parameter's or a module's path;
             operators without a rule are named in `uncounted`
    raises   UnsupportedError: an operator without a rule, where strict, a module of torch.jit, or no module
             ConfigError: no such kind;  ShapeError: several inputs, where it takes one tensor, or values that are none
             of the kind

    Padding that a convolution adds, or a layer of zeros right before it, is no operand. What torch.compile made runs
    as it was before; modules that run in threads which the model begins are named in `uncounted`.

    Not seen, and so not named either: what leaves torch's operators (NumPy, kernels of one's own), the events and the
    state of neurons written by hand, what runs in threads that were there before or outside of modules, and what is
    done on int64 and bool alone, but for matrix products and convolutions: it is taken for addressing.
    """
    if kind not in KINDS:
        raise ConfigError("count kind", f"one of {', '.join(KINDS)}", repr(kind), "name what the input is")
    if not isinstance(model, nn.Module):
        remedy = "give the model that was lowered, or take the tally of simulate(graph, tokens)"
        raise UnsupportedError("count", "a torch module", type(model).__name__, remedy)
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # in which no neuron says what its tensors are
            where, got = f"count {path}".rstrip(), "one of torch.jit"
            raise UnsupportedError(where, "modules that run in Python", got, "count it as it was before")
        if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # which raises
            where = f"count {path}".rstrip()
            raise UnsupportedError(
                where, "modules that can be put to eval()", "one of torch.export", "count its source"
            )
    try:
        tokens = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError):
        remedy = "wrap a module of several inputs in one that takes them out of one tensor"
        raise ShapeError("count tokens", "one tensor", type(tokens).__name__, remedy) from None
    if tokens.is_nested:
        raise ShapeError("count tokens", "one tensor", "a nested one", "pad it, or count its parts and add the tallies")
    if kernels not in ("auto", "reference"):
        raise ConfigError("count kernels", "auto or reference", repr(kernels), "name one of them")
    size = _require_kind(kind, tokens, "count")
    mode = CountingMode(model, wanted(kernels) == "reference")
    if kind != DENSE:
        mode.kinds[tokens], mode.sizes[tokens] = kind, size
    for given in tensors([tokens, state]):
        mode.data[given] = True
    modes = {module: module.training for module in model.modules()}
    model.eval()
    cells = [path for path, module in model.named_modules() if isinstance(module, Cell) or is_snntorch_neuron(module)]
    with contextlib.ExitStack() as stack:
        for module, training in modes.items():
            stack.callback(setattr, module, "training", training)
        for path, module in model.named_modules():
            before = module.register_forward_pre_hook(lambda *_, path=path: mode.enter(path))
            ours = any(path.startswith(f"{cell}.") for cell in cells if cell) or (bool(path) and "" in cells)
            after = module.register_forward_hook(
                lambda m, _, out, ours=ours: mode.leave(m, out, ours), always_call=True
            )
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)  # one operator for the whole of an nn.MultiheadAttention
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled region as it was before
        stack.enter_context(listening(mode))
        stack.enter_context(mode)
        model(tokens) if state is None else model(tokens, state)
    if strict and mode.uncounted:
        got = ", ".join(sorted(mode.uncounted))
        raise UnsupportedError("count", "operators with a rule alone", got, "count without strict")
    if tokens.dim() <= 2 and not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool):
        return mode.tally(tokens.numel())
    return mode.tally(math.prod(tokens.shape[: 2 if tokens.dim() in (3, 5) else 1]))
