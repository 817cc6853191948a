"""The C library that is compiled at install, and matrix products of events on the CPU by it, else by NumPy."""

import ctypes
import functools
import importlib.util
import logging

import numpy as np

SUFFIXES = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
UNITS, EVERY = 64, 16
"""Units of a block of LIF and WKV, and steps from one state that they keep to the next: as in `native.h`"""


def compiled(module: str) -> ctypes.CDLL | None:
    """A library that was compiled at install, or None where no compiler was at hand or, which is logged, where this
    machine cannot load it: its name is the same on all, so that a folder that two machines share holds one's alone."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    try:
        return ctypes.CDLL(spec.origin)
    except OSError as error:
        logging.getLogger("rheobase").warning("rheobase: this machine cannot load its C library (%s); reinstall", error)
        return None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None."""
    lib = compiled("rheobase.spiking.ops.native._native")
    if lib is None:
        return None
    for suffix in SUFFIXES.values():
        gather, egru = getattr(lib, f"gather_{suffix}"), getattr(lib, f"egru_{suffix}")
        gather.argtypes, gather.restype = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3, ctypes.c_int64
        egru.argtypes = [ctypes.c_void_p] * 9 + [ctypes.c_double] * 2 + [ctypes.c_int64] * 3
        egru.restype = None
    return lib


@functools.cache
def function(name: str, *argument_types) -> ctypes._CFuncPtr | None:
    """A function of the library that returns nothing, or None where there is no library or it has no such function."""
    if not hasattr(library(), name):
        return None
    found = library()[name]  # a new object: who asks with no types, or at the same time, leaves those of others alone
    found.argtypes, found.restype = argument_types, None
    return found


class Gather:
    """x weight + bias, reading only the weight rows of the non-zero elements of x.

    weight_DO  float32 or float64 [D, O]; kept row-major, so that a row is contiguous
    bias_O     of the same type [O], or None
    native     False: NumPy, even where the library is there
    """

    def __init__(self, weight_DO: np.ndarray, bias_O: np.ndarray | None = None, *, native: bool = True):
        self.weight = np.ascontiguousarray(weight_DO)
        self.bias = None if bias_O is None else np.ascontiguousarray(bias_O, self.weight.dtype)
        self.dtype = self.weight.dtype
        self.function = None
        if native and self.dtype in SUFFIXES and library() is not None:
            self.function = getattr(library(), f"gather_{SUFFIXES[self.dtype]}")
            self.pointers = self.weight.ctypes.data, None if self.bias is None else self.bias.ctypes.data

    def __call__(self, x_ND: np.ndarray) -> tuple[np.ndarray, int]:
        """x [N, D], mostly zero -> (out [N, O], the number of rows read)."""
        n_items, n_out = len(x_ND), self.weight.shape[1]
        if self.function is not None:
            x = np.ascontiguousarray(x_ND, self.dtype)
            out = np.empty((n_items, n_out), self.dtype)
            rows = self.function(x.ctypes.data, *self.pointers, out.ctypes.data, n_items, x.shape[1], n_out)
            return out, rows
        out = np.zeros((n_items, n_out), np.result_type(x_ND, self.weight))
        if self.bias is not None:
            out += self.bias
        for x, row in zip(x_ND, out, strict=True):
            (unit,) = np.nonzero(x)
            row += x[unit] @ self.weight[unit]
        return out, int(np.count_nonzero(x_ND))

    def dense(self, x_ND: np.ndarray) -> np.ndarray:
        """The same reading every row: [N, O]. An item's result is the same whatever stands beside it, as of no BLAS."""
        pointers, sizes = [ctypes.c_void_p] * 4, [ctypes.c_int64] * 3
        run = self.function and function(f"dense_{SUFFIXES[self.dtype]}", *pointers, *sizes)
        if run is None:
            out = np.einsum("nd,do->no", x_ND, self.weight)
            return out if self.bias is None else out + self.bias
        from rheobase.spiking.ops.native.threads import spread

        x, out = np.ascontiguousarray(x_ND, self.dtype), np.empty((len(x_ND), self.weight.shape[1]), self.dtype)

        def part(first: int, end: int) -> None:
            run(x[first:].ctypes.data, *self.pointers, out[first:].ctypes.data, end - first, x.shape[1], out.shape[1])

        spread(part, len(x), x.size * out.shape[1] // 32)  # 32 products take about the time of an element
        return out
