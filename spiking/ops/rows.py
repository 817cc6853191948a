"""Rows of a sequence in kernels for Triton: stretches of steps, held in registers."""

import triton
import triton.language as tl


@triton.jit
def load(at, stride, first, end, STEPS: tl.constexpr, inside):
    """Rows first to first + STEPS, where `at` points to the first; 0 from row `end` on."""
    rows = ()
    for i in tl.static_range(STEPS):
        rows += (tl.load(at + i * stride, mask=inside & (first + i < end), other=0.0),)
    return rows


@triton.jit
def store(at, stride, rows, inside):
    """Rows to where `at` points and on."""
    for i in tl.static_range(len(rows)):
        tl.store(at + i * stride, rows[i], mask=inside)
