"""The rounding of weights to int8 with a power of two a target: one rule, for training and for what is exported.

D sources, O targets. Every function takes arrays of NumPy and tensors of torch alike, and gives back their kind.
"""

import numpy as np
import torch

LARGEST = 127
CLIPPINGS = 3
MAX_EXPONENT = 20


def best_exponents(weight_DO, power_D, clip: bool):
    """One exponent a target, at most 20, such that w 2^e fits int8.

    With `clip`, exponents up to 2 larger are tried, that clip the largest weights but round the others more
    finely, and the one with the smallest mean squared error of the product is taken.

    power_D  mean square of each source over the calibration data

    A target without weights takes the 6 of one whose largest is 1: a bias in its format, which needs room, is all that
    is left of it. Weights that are int8 with some exponents already are rounded to themselves, whatever the power.
    """
    xp = torch if isinstance(weight_DO, torch.Tensor) else np
    largest = xp.amax(xp.abs(weight_DO), 0)
    largest = xp.clip(xp.where(largest == 0, 1.0, largest), LARGEST * 2.0**-MAX_EXPONENT, None)
    best = xp.frexp(LARGEST / largest)[1] - 1
    if not clip:
        return best

    def error(exponent_O):
        return (power_D[:, None] * (weight_DO - rounded(weight_DO, exponent_O)) ** 2).sum(0)

    least = error(best)
    for tried in [xp.clip(best + more, None, MAX_EXPONENT) for more in range(1, CLIPPINGS)]:
        now = error(tried)
        best, least = xp.where(now < least, tried, best), xp.where(now < least, now, least)
    return best


def scaled(weight_DO, exponent_O):
    """w 2^e, exactly, in the weights' own type, or float32 if that is wider: a GPU's own power of 2 may be rounded."""
    if not isinstance(weight_DO, torch.Tensor):
        return weight_DO * 2.0**exponent_O
    power = (exponent_O.to(torch.int64) + 1023 << 52).view(torch.float64)  # as its exponent's bits
    return weight_DO * power.to(torch.promote_types(weight_DO.dtype, torch.float32))


def round_weights(weight_DO, exponent_O):
    """Weights as integers of int8, in their own type."""
    xp = torch if isinstance(weight_DO, torch.Tensor) else np
    return xp.clip(xp.floor(scaled(weight_DO, exponent_O) + 0.5), -LARGEST, LARGEST)


def rounded(weight_DO, exponent_O):
    """Weights after the rounding: integers of int8 over 2^exponent."""
    return scaled(round_weights(weight_DO, exponent_O), -exponent_O)
