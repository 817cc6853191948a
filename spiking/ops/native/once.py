"""Backward passes in C: one derivative, no second."""

import functools
from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable

from rheobase.spiking.errors import UnsupportedError

BATCHED = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor


def once(backward: Callable) -> Callable:
    """Decorator of an autograd.Function's `backward` that can itself not be differentiated.

    torch's `once_differentiable` alone refuses a second derivative through the gradients that come in, and loses that
    through the tensors that were kept without a word.

    raises  UnsupportedError: it runs for `create_graph=True`, or for several gradients at once (`is_grads_batched`)
    """
    only = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx, *gradients):
        if not torch.compiler.is_compiling():
            remedy = "set the environment variable RHEOBASE_KERNELS=reference"
            if torch.is_grad_enabled():
                raise UnsupportedError("kernels in C", "one derivative", "create_graph=True", remedy)
            if any(batched(g) for g in gradients if g is not None for batched in BATCHED):
                raise UnsupportedError("kernels in C", "one gradient of the outputs", "a batch by vmap", remedy)
        return only(ctx, *gradients)

    return run


def saved(ctx) -> list[torch.Tensor | None]:
    """The tensors that were kept, as C reads them: a hook that keeps them elsewhere may bring them back strided."""
    return [t if t is None else t.contiguous() for t in ctx.saved_tensors]
