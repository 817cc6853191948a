"""Event-driven matrix products on the CPU: in C where the library was compiled at install, else in NumPy."""

import ctypes
import functools
import importlib.util

import numpy as np

_REAL = {np.dtype(np.float32): "gather_f32", np.dtype(np.float64): "gather_f64"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where no compiler was at hand at install."""
    spec = importlib.util.find_spec("rheobase.spiking.ops.native._native")
    if spec is None or spec.origin is None:
        return None
    lib = ctypes.CDLL(spec.origin)
    for name in _REAL.values():
        getattr(lib, name).argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 2
        getattr(lib, name).restype = None
    return lib


def gather(x_ND: np.ndarray, weight_DO: np.ndarray, bias_O: np.ndarray | None) -> tuple[np.ndarray, int]:
    """x weight + bias, reading only the weight rows of the non-zero elements of x.

    x_ND       items, float32 or float64, mostly zero   [N, D]
    weight_DO  of the same type, contiguous              [D, O]
    returns    (out [N, O], the number of rows read)
    """
    item, unit = np.nonzero(x_ND)
    value, unit = x_ND[item, unit], np.ascontiguousarray(unit)
    n_items, n_out = len(x_ND), weight_DO.shape[1]
    first = np.zeros(n_items + 1, np.int64)
    np.cumsum(np.bincount(item, minlength=n_items), out=first[1:])
    lib = library()
    if lib is None or weight_DO.dtype not in _REAL or not weight_DO.flags.c_contiguous:
        return _gather_numpy(first, unit, value, weight_DO, bias_O), len(unit)
    out = np.empty((n_items, n_out), weight_DO.dtype)
    value = np.ascontiguousarray(value, weight_DO.dtype)
    bias = None if bias_O is None else np.ascontiguousarray(bias_O, weight_DO.dtype)
    getattr(lib, _REAL[weight_DO.dtype])(
        first.ctypes.data,
        unit.ctypes.data,
        value.ctypes.data,
        weight_DO.ctypes.data,
        None if bias is None else bias.ctypes.data,
        out.ctypes.data,
        n_items,
        n_out,
    )
    return out, len(unit)


def _gather_numpy(first, unit, value, weight, bias):
    out = np.zeros((len(first) - 1, weight.shape[1]), np.result_type(value, weight))
    if bias is not None:
        out += bias
    for n in range(len(out)):
        k = slice(first[n], first[n + 1])
        out[n] += value[k] @ weight[unit[k]]
    return out
