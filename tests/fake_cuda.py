"""A GPU that is not there: tensors without numbers that say they are on one, and what would make the host wait.

torch's FakeTensorMode runs each operator's rule for shapes, types and devices, and our custom operators' own. What it
cannot show: whether a kernel compiles, what it computes, how long it takes.
"""

import contextlib
from collections import Counter
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64, torch.bool: np.bool_}
VIEWS = {"alias", "detach", "lift_fresh", "unbind", "split", "split_with_sizes", "_unsafe_view", "_reshape_alias"}
COPIES = {"_to_copy", "copy_", "device_put"}
NUMBERS = {True: 1.0, False: 1}
"""what is read off a tensor"""
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


class Watch(TorchDispatchMode):
    """What is sent to the GPU while it is active.

    kernels  operator -> launches of it, of those that launch anything
    bytes    of the tensors that they read and write, each once
    waits    what makes the host wait for the GPU, or a copy from memory that is not pinned
    """

    def __init__(self):
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.kernels, self.bytes, self.waits = Counter(), 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if name == "_local_scalar_dense":
            self.waits += ["a number is read"] * given[0].is_cuda
            return NUMBERS[given[0].dtype.is_floating_point]
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        places = {t.device.type for t in (*given, *made)}
        if {"cpu", "cuda"} <= places and name in COPIES:
            # what is not contiguous goes by way of a copy that is not pinned
            if not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])) or (
                given[-1].device.type == "cpu" and not given[-1].is_contiguous()
            ):
                self.waits.append(f"{tuple(made[0].shape)} from {given[-1].device.type} to {made[0].device.type}")
        view = func.is_view or name in VIEWS or name in EMPTY
        if "cuda" in places and not view and any(t.numel() for t in made):
            self.kernels[name] += 1
            self.bytes += sum(t.numel() * t.element_size() for t in (*given, *made))
        return out

    @property
    def launches(self) -> int:
        return sum(self.kernels.values())


@torch.no_grad()
def gradients(loss: torch.Tensor, of_loss: torch.Tensor | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(Leaf, gradient) of each: torch's own engine asks the driver for streams, so each node is called from here."""
    waiting, nodes = Counter(), [loss.grad_fn]
    for node in nodes:
        for after in {after for after, _ in node.next_functions if after is not None}:
            if after not in waiting:
                nodes.append(after)
            waiting[after] += 1
    found, ready = [], [loss.grad_fn]
    held = {loss.grad_fn: {loss.output_nr: torch.ones_like(loss) if of_loss is None else of_loss}}
    while ready:
        node = ready.pop()
        given = held.pop(node, {})
        if hasattr(node, "variable"):
            if given:
                found.append((node.variable, given[0]))
            continue
        given = [given.get(i) for i in range(len(node._input_metadata))]
        ours = isinstance(node, torch.autograd.function.BackwardCFunction)
        back = (node.apply if ours else node)(*given)
        back, edges = back if isinstance(back, tuple) else (back,), node.next_functions
        if ours:  # a gradient for each argument, tensor or not
            back = [gradient for gradient, wanted in zip(back, node.needs_input_grad, strict=True) if wanted]
            edges = [edge for edge in edges if edge[0] is not None]
        for (after, place), gradient in zip(edges, back, strict=True):
            if after is not None and gradient is not None:
                wanted, own = after._input_metadata[place], held.setdefault(after, {})
                gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
                own[place] = own[place] + gradient if place in own else gradient
        for after in {after for after, _ in node.next_functions if after is not None}:
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)
    return found


def backward(loss: torch.Tensor) -> None:
    """`Tensor.backward`."""
    for leaf, gradient in gradients(loss):
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def grad(output: torch.Tensor, leaves, of_output: torch.Tensor) -> list[torch.Tensor]:
    """`torch.autograd.grad`."""
    found = gradients(output, of_output)
    return [next(gradient for leaf, gradient in found if leaf is wanted) for wanted in leaves]


def apply(self: nn.Module, function, recurse: bool = True) -> nn.Module:
    """`Module._apply`, which would swap the contents of fake parameters in place, and cannot."""
    for child in self.children() if recurse else ():
        child._apply(function)
    for name, p in self._parameters.items():
        if p is not None and not p.is_cuda:
            self._parameters[name] = nn.Parameter(function(p.detach()), p.requires_grad)
    self._buffers |= {name: b if b is None else function(b) for name, b in self._buffers.items()}
    return self


@contextlib.contextmanager
def fake_cuda():
    """Inside, device "cuda" is at hand, every new tensor is fake, and a number asked of one raises. Yields a Watch."""
    yes = {"is_available": True, "is_bf16_supported": True, "current_device": 0, "device_count": 1}
    yes |= {"is_initialized": False, "is_current_stream_capturing": False}
    yes |= dict.fromkeys(("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"), 0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(fake_tensor.FakeTensorMode(allow_non_fake_inputs=True))
        for name, value in yes.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value, **__: value))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda *_: None))
        stack.enter_context(mock.patch.object(fake_tensor.FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", apply))
        stack.enter_context(mock.patch.object(nn.RNNBase, "flatten_parameters", lambda self: None))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda self: self))
        stack.enter_context(
            mock.patch.object(torch.Tensor, "numpy", lambda self: np.ones(self.shape, TYPES[self.dtype]))
        )
        stack.enter_context(
            mock.patch.object(fake_tensor.FakeTensor, "tolist", lambda self: self.cpu().numpy().tolist())
        )
        stack.enter_context(mock.patch.object(torch.Tensor, "backward", backward))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", grad))
        watch = Watch()
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", lambda *_: watch.waits.append("synchronize")))
        yield stack.enter_context(watch)
