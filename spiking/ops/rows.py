"""Rows of a sequence in kernels for Triton: stretches of steps, held in registers."""

import contextlib
import functools
import threading

import torch
import triton
import triton.language as tl
from triton._C import libtriton

OPTIONS = {"num_warps": 1} | ({} if torch.version.hip else {"maxnreg": 255})
"""Of a launch: one unit a thread, which may have all the registers there are. Left to itself the compiler of Triton 3.6
spares them, at half as much time again for a step, or spills."""


_thread = threading.local()


def _skip_where_told(passes) -> None:
    """Of a Triton that names its passes otherwise, nothing is skipped: the code is the same, and takes longer."""
    if add := getattr(passes, "add_coalesce", None):
        passes.add_coalesce = lambda manager: None if getattr(_thread, "one_layout", False) else add(manager)


_skip_where_told(getattr(libtriton.passes, "ttgpuir", None))


@contextlib.contextmanager
def one_layout():
    """Within, this thread compiles without Triton's pass that chooses which thread reads what of memory. Where a
    program is a warp with a unit a thread there is one way, and the pass takes time by the cube of a stretch's steps,
    most of a kernel's compilation."""
    before, _thread.one_layout = getattr(_thread, "one_layout", False), True
    try:
        yield
    finally:
        _thread.one_layout = before


def quick(kernel):
    """Decorator: a kernel with a unit a thread, compiled within `one_layout`. (The interpreter compiles nothing.)"""
    compiles = getattr(kernel, "_do_compile", None)
    if compiles and not torch.version.hip:

        @functools.wraps(compiles)
        def compiled(*args, **options):
            with one_layout():
                return compiles(*args, **options)

        kernel._do_compile = compiled
    return kernel


@triton.jit
def place(D: tl.constexpr, BLOCK: tl.constexpr):
    """The sequence and the units of a program; blocks of a sequence lie side by side. All are on one axis, since a GPU
    takes no more than 65,535 programs on another."""
    at, blocks = tl.program_id(0), tl.cdiv(D, BLOCK)
    return (at // blocks).to(tl.int64), at % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def within(d, D: tl.constexpr, BLOCK: tl.constexpr):
    """Which units of a block there are: all, said so that no load has to ask, where blocks fill D."""
    if D % BLOCK == 0:
        return tl.full([BLOCK], 1, tl.int1)
    else:
        return d < D


@triton.jit
def bit(condition):
    """A condition on a whole block, to be joined to one on its units by `&`. (To the interpreter of Triton 3.9 what a
    comparison gives is as wide as what was compared, and a mask made of it is refused.)"""
    return tl.full([], 1, tl.int1) & condition


@triton.jit
def before(t, end, WHOLE: tl.constexpr):
    """Whether step t is one of the sequence's: all are where stretches fill it."""
    if WHOLE:
        return tl.full([], 1, tl.int1)
    else:
        return bit(t < end)


@triton.jit
def load(at, stride, first, end, STEPS: tl.constexpr, inside, WHOLE: tl.constexpr = False):
    """Rows first to first + STEPS, where `at` points to the first; 0 from row `end` on.

    WHOLE  a stretch lies before `end` or behind it, so that one question does for all of its rows
    """
    rows = ()
    for i in tl.static_range(STEPS):
        rows += (tl.load(at + i * stride, mask=inside & bit(first + (0 if WHOLE else i) < end), other=0.0),)
    return rows


@triton.jit
def store(at, stride, rows, inside):
    """Rows to where `at` points and on."""
    for i in tl.static_range(len(rows)):
        tl.store(at + i * stride, rows[i], mask=inside)
