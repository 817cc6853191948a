"""The proof that products of int8 weights fit int32, and exponents lowered until they do."""

import numpy as np

from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.quantisation import round_weights


def fit_exponents(weight_DO, exponent_O, bias_O, in_frac: int, largest_x: int) -> np.ndarray:
    """Exponents lowered where an accumulator could reach 3/4 of int32, which leaves the rest to its rounding."""
    exponent_O = exponent_O.copy()
    while True:
        bound = np.abs(round_weights(weight_DO, exponent_O)).sum(0) * largest_x
        over = bound + np.abs(bias_O) * 2.0 ** (exponent_O + in_frac) >= 3 << 29
        if not over.any():
            return exponent_O
        exponent_O[over] -= 1


def prove_bound(name: str, weight_DO, bias_O, shift_O, largest_x: int, bits: int) -> None:
    """Refuse a product whose accumulator could leave int32 for any input within its format, or its shift.

    bits  of the result: a shift to the left is held within int16, where the result is, before it
    """
    up, half = np.maximum(-shift_O, 0), np.int64(1) << np.maximum(shift_O, 0) >> 1
    bound = np.abs(weight_DO.astype(np.int64)).sum(0) * largest_x + np.abs(bias_O) + half
    bound = bound * 2.0**up if bits == 32 else bound
    unit = int(bound.argmax())
    if not bound[unit] < 1 << 31:
        raise UnsupportedError(
            f"{name} unit {unit}",
            "an accumulator below 2^31",
            f"{bound[unit]:.0f}",
            "shrink its weights or its bias, or train with weight decay",
        )
