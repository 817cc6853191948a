"""A module's forward and backward pass as CUDA graphs: the host launches each as one thing, whatever its kernels."""

import contextlib
import warnings
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rheobase.spiking.errors import ConfigError, ShapeError, UnsupportedError
from rheobase.spiking.neurons import Cell
from rheobase.spiking.tally import listens

WHERE = "cuda_graphed"


def cuda_graphed(module: nn.Module, x: Tensor, state=None) -> "CudaGraphed":
    """`module(x, state)` for inputs of these shapes, replayed from CUDA graphs that are captured here.

    For recurrent layers, or modules made of them, whose many small kernels keep the host busier than the GPU.

        run = cuda_graphed(layer, x)
        y, state = run(x)                                        # from `layer.initial_state`
        y, state = run(x, EGRUState(*(part.detach() for part in state)))
        y.sum().backward()

    module  called as module(x, state), where both hold tensors of one CUDA device; it stays as it is, and its
            parameters may go on changing
    x       an example [B, T, ...]: of the shape and type of all later ones, requiring a gradient if they will
    state   an example of a state, likewise. If not given it is `module.initial_state(B)`, and calls without one start
            from that
    returns a callable of (x, state) with the results and gradients of the module. A forward pass has at most one
            backward pass, before the next forward pass: the graphs keep what it needs in one place. While a counter
            listens, the module itself runs
    raises  UnsupportedError: tensors that are not on one CUDA device, or work that a graph cannot hold;  ConfigError:
            a state of other things than tensors. The callable: ShapeError: another shape, type or device;
            ConfigError: another mode (training, autocast), or a gradient that the example did not ask for;
            UnsupportedError: a backward pass whose forward pass is no longer the last, or a second one

    Training, autocast and TF32 are as they are at this call, which runs the module some times and so draws random
    numbers. By `torch.cuda.make_graphed_callables`, which has no gradient of a gradient.
    """
    if x.device.type != "cuda":
        raise UnsupportedError(WHERE, "x on a CUDA device", f"x on {x.device}", "call the module itself")
    return CudaGraphed(module, x, state)


class CudaGraphed:
    """What `cuda_graphed` returns."""

    def __init__(self, module: nn.Module, x: Tensor, state=None):
        self.module, self.mode = module, _mode(module)
        self.rest = _rest(module, x) if state is None else None
        state = self.rest if state is None else state
        self.names = [name for name, _ in module.named_parameters()]
        given, self.inputs = pytree.tree_flatten((x, state))
        if wrong := [type(part).__name__ for part in given if not isinstance(part, Tensor)]:
            raise ConfigError(f"{WHERE} state", "tensors", ", ".join(wrong), "give a state of tensors alone")
        given += module.parameters()
        if wrong := {str(part.device) for part in given} - {str(x.device)}:
            raise UnsupportedError(WHERE, f"all tensors on {x.device}", ", ".join(sorted(wrong)), "move them there")
        self.like = [_look(part) for part in given]
        samples = tuple(part.detach().clone() for part in given[: -len(self.names) or None])
        samples += tuple(p.detach() for p in module.parameters())  # where the parameters are: nothing is copied
        for sample, part in zip(samples, given, strict=True):
            sample.requires_grad_(part.requires_grad)
        try:
            with _capturing(x), torch.autocast("cuda", enabled=False):  # `_run` has it, and backward is outside of it
                self.replay = torch.cuda.make_graphed_callables(self._run, samples, allow_unused_input=True)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UnsupportedError(WHERE, "work that a CUDA graph holds", reason, "call the module itself") from error
        self.turn = 0

    def _run(self, *parts: Tensor) -> tuple[Tensor, ...]:
        cut = len(parts) - len(self.names)
        parameters = dict(zip(self.names, parts[cut:], strict=True))
        x, state = pytree.tree_unflatten(list(parts[:cut]), self.inputs)
        _, narrow = self.mode
        with torch.autocast("cuda", narrow, enabled=narrow is not None, cache_enabled=False):
            outputs = torch.func.functional_call(self.module, parameters, (x, state))
        outputs, self.outputs = pytree.tree_flatten(outputs)
        self.differentiable = [part.requires_grad for part in outputs]
        return tuple(outputs)

    def __call__(self, x: Tensor, state=None):
        """(y, state) of the module."""
        if state is None and self.rest is None:
            raise ConfigError(f"{WHERE} state", "one, as the example", "none", "give one")
        state = self.rest if state is None else state
        if listens():
            return self.module(x, state)
        parts = self._fitting(x, state)
        self.turn += 1
        outputs = self.replay(*(_own(part) for part in parts))
        node = next((part.grad_fn for part in outputs if part.requires_grad), None)
        if node is not None:
            node.register_prehook(partial(self._claim, self.turn))
        # copies, since the next replay writes over what it gives
        outputs = [
            part.clone() if d else part.detach().clone() for part, d in zip(outputs, self.differentiable, strict=True)
        ]
        return pytree.tree_unflatten(outputs, self.outputs)

    def _fitting(self, x: Tensor, state) -> list[Tensor]:
        """x, the state's tensors and the parameters, all as the examples were."""
        if (mode := _mode(self.module)) != self.mode:
            named = "training {}, autocast {}".format
            raise ConfigError(WHERE, named(*self.mode), named(*mode), "capture another for it")
        given, tree = pytree.tree_flatten((x, state))
        if tree != self.inputs:
            raise ShapeError(f"{WHERE} state", "a state of the example's parts", f"{type(state).__name__}", "give such")
        given += self.module.parameters()
        if len(given) != len(self.like):
            raise ConfigError(WHERE, "the module's parameters as captured", "others", "capture it again")
        for i, (part, like) in enumerate(zip(given, self.like, strict=True)):
            at, look = f"{WHERE} {'x' if i == 0 else 'state or parameter'}", _look(part)
            if look[:3] != like[:3]:
                expected, got = ("{} {} on {}".format(tuple(shape), *others) for shape, *others, _ in (like, look))
                raise ShapeError(at, expected, got, "capture another for it")
            if look[3] and not like[3] and torch.is_grad_enabled():
                raise ConfigError(at, "a tensor that needs no gradient, as the example", "one that does", "detach it")
        return given

    def _claim(self, turn: int, _) -> None:
        """Before the backward pass of a forward pass: what that has kept must still be there."""
        if turn != self.turn:
            remedy = "call backward once after each call, or the module itself"
            raise UnsupportedError(WHERE, "the backward pass of the last call, once", "another", remedy)
        self.turn += 1


@contextlib.contextmanager
def _capturing(x: Tensor):
    """Inside, x's device is the current one, where torch warms up, and captures: on a stream that torch 2.11 keeps from
    the first capture of all, on whichever device, so that another's kernels would run and not be captured."""
    graph = torch.cuda.graph
    kept, graph.default_capture_stream = getattr(graph, "default_capture_stream", None), None
    try:
        with torch.cuda.device_of(x), warnings.catch_warnings():
            # there the warm-up is on another stream than the capture, which waits for it
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
            yield
    finally:
        graph.default_capture_stream = kept


def _own(part: Tensor) -> Tensor:
    """The same, whose gradient is copied out of the graph's memory."""
    if not (part.requires_grad and torch.is_grad_enabled()):
        return part
    part = part.view_as(part)
    part.register_hook(torch.clone)
    return part


def _rest(module: nn.Module, x: Tensor):
    if not hasattr(module, "initial_state"):
        raise ConfigError(f"{WHERE} state", "an example", "none", "give one: the module has no initial_state")
    like = {"dtype": x.dtype, "device": x.device} if isinstance(module, Cell) else {}
    rest = pytree.tree_map(lambda part: part.to(x.device), module.initial_state(x.shape[0], **like))
    with torch.no_grad():
        _, after = module(x, rest)
    # of the types that it leaves, wider than x under autocast: what comes back is what is fed next
    return pytree.tree_map(lambda part, left: part.to(left.dtype), rest, after)


def _look(part: Tensor) -> tuple:
    return part.shape, part.dtype, part.device, part.requires_grad


def _mode(module: nn.Module) -> tuple:
    """Training or not, and the type of autocast, None outside of it."""
    return module.training, torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
