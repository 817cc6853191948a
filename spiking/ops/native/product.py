"""Matrix products with events on a CPU: only what they reach is read where they are few, else dense.

N items, I inputs, O outputs. More threads speed up dense products alone, so that few means fewer. On one thread of an
AMD EPYC (Zen 4) both ways take about the same time at a share of 0.3.
"""

import torch
from torch import Tensor

from rheobase.spiking.ops.choice import SUFFIXES
from rheobase.spiking.ops.native import library


def few(n_events: int, x_NI: Tensor) -> bool:
    """Whether a product with x that holds so many non-zero elements is quicker by events."""
    return n_events * torch.get_num_threads() < 0.3 * x_NI.numel()


def product(x_NI: Tensor, weight_IO: Tensor, bias_O: Tensor | None, n_events: int) -> Tensor:
    """x weight + bias, with n_events elements of x not zero; all of one type, float32 or float64, on a CPU."""
    if not few(n_events, x_NI) or library() is None:
        return x_NI @ weight_IO if bias_O is None else torch.addmm(bias_O, x_NI, weight_IO)
    x_NI, weight_IO = x_NI.contiguous(), weight_IO.contiguous()
    bias_O = bias_O if bias_O is None else bias_O.contiguous()
    out_NO = x_NI.new_empty(len(x_NI), weight_IO.shape[1])
    pointers = (None if t is None else t.data_ptr() for t in (x_NI, weight_IO, bias_O, out_NO))
    getattr(library(), f"gather_{SUFFIXES[x_NI.dtype]}")(*pointers, *x_NI.shape, weight_IO.shape[1])
    return out_NO
