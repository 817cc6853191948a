"""Weights as int8 with one power-of-two exponent a target, and the proof that their products fit int32."""

import numpy as np

from rheobase.spiking.errors import UnsupportedError

CLIPPINGS = 3
MAX_EXPONENT = 20


def best_exponents(weight_DO: np.ndarray, power_D: np.ndarray, clip: bool) -> np.ndarray:
    """One exponent a target, such that w 2^e fits int8.

    With `clip`, exponents up to 2 larger are tried, that clip the largest weights but round the others more
    finely, and the one with the smallest mean squared error of the product is taken.

    power_D  mean square of each source over the calibration data
    """
    largest = np.abs(weight_DO).max(0)
    with np.errstate(divide="ignore"):
        base = np.floor(np.log2(127 / largest))
    base = np.minimum(np.where(np.isfinite(base), base, MAX_EXPONENT), MAX_EXPONENT).astype(np.int64)
    if not clip:
        return base
    tried = base + np.arange(CLIPPINGS)[:, None]
    errors = [(power_D[:, None] * (weight_DO - round_weights(weight_DO, e) * 2.0**-e) ** 2).sum(0) for e in tried]
    return tried[np.argmin(errors, 0), np.arange(len(base))]


def round_weights(weight_DO: np.ndarray, exponent_O: np.ndarray) -> np.ndarray:
    """Weights as integers of int8."""
    return np.clip(np.floor(weight_DO * 2.0**exponent_O + 0.5), -127, 127)


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
