"""Which kernels an op takes: one rule for all of them."""

import os

import torch
from torch import Tensor

from rheobase.spiking import tally
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.ops.native import function

KERNELS = ("auto", "reference", "native")
VARIABLE = "RHEOBASE_KERNELS"
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
"""type -> how the names of the library's functions for it end"""


def wanted(kernels: str = "auto") -> str:
    """The choice in force: the environment variable RHEOBASE_KERNELS where it is set, else `kernels`."""
    choice = os.environ.get(VARIABLE) or kernels
    if choice not in KERNELS:
        raise ConfigError(
            VARIABLE if choice != kernels else "kernels", " or ".join(KERNELS), choice, "name one of them"
        )
    return choice


def takes_native(op: str, kernels: str, tensors: list[Tensor], obstacle: tuple[str, str, str] | None = None) -> bool:
    """Whether a call of an op runs in C ("native") rather than by its reference in torch.

    "auto" takes C wherever it can: plain tensors on a CPU, all float32 or all float64, and a compiled library.
    While a counter listens that watches operators the reference runs, whatever is wanted.

    tensors   every tensor of the call
    obstacle  what else keeps this call from C: (expected, got, remedy)
    raises    UnsupportedError: "native" is wanted and this call cannot have it;  ConfigError: no such kernels
    """
    choice = wanted(kernels)
    if choice == "reference" or tally.watches():
        return False
    obstacle = obstacle or _obstacle(op, tensors)
    if obstacle and choice == "native":
        raise UnsupportedError(f"{op} kernels", *obstacle)
    return not obstacle


def taken(op: str) -> str:
    """The kernels that plain float32 tensors on this machine's CPU get."""
    return "native" if takes_native(op, "auto", [torch.empty(0)]) else "reference"


def _obstacle(op: str, tensors: list[Tensor]) -> tuple[str, str, str] | None:
    other = 'use kernels="auto"'
    if function(f"{op}_forward_f32") is None:
        return "the C library", "none", "install a C compiler and reinstall"
    if not all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors):
        kinds = sorted({f"{type(t).__name__} on {t.device}" for t in tensors})
        return "plain tensors on a CPU", ", ".join(kinds), other
    types = {t.dtype for t in tensors}
    if len(types) > 1 or not types <= SUFFIXES.keys():
        return "all float32 or all float64", ", ".join(sorted(map(str, types))), other
    if torch.compiler.is_compiling():
        return "eager execution", "a compiler's trace", other
    return None
