"""Calls of the C library inside what torch compiles."""

import functools
from collections.abc import Callable

import torch


def opaque(fake: Callable) -> Callable:
    """Decorator: a function of tensors that a compiler calls as it is, without looking inside.

    While a compiler traces, the call is the operator `rheobase::NAME` of torch, by the function's name; else it is the
    function's own, which is quicker. The function's annotations are the operator's schema; it writes to none of its
    arguments and returns new tensors. An autograd.Function around it differentiates both.

    fake  the same arguments -> tensors of the results' shapes and types
    """

    def wrap(run):
        operator = torch.library.custom_op(f"rheobase::{run.__name__}", run, mutates_args=())
        operator.register_fake(fake)

        @functools.wraps(run)
        def call(*args):
            return operator(*args) if torch.compiler.is_compiling() else run(*args)

        call.operator = operator
        return call

    return wrap
