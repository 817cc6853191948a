"""What adapters share: how they come by their library, and the sizes that libraries would let pass."""

import importlib
import warnings
from types import ModuleType

import torch
from torch import Tensor

from rheobase.spiking.errors import ShapeError, UnsupportedError


def load(module: str, requirement: str) -> ModuleType:
    """Import a module of an optional library; raises UnsupportedError with the pip command where it is not there."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is deprecated")  # Norse uses it on import
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name != library:
            raise
        raise UnsupportedError(library, "the library", "none installed", f'pip install "{requirement}"') from None


def require_sizes(name: str, units: int, x_BD: Tensor, state: tuple) -> None:
    """Raise ShapeError unless x and each part of the state are [B, units]: libraries broadcast, or start anew."""
    if x_BD.shape[1:] != (units,) or any(part.shape != x_BD.shape for part in state):
        got = f"x {tuple(x_BD.shape)}, state {[tuple(part.shape) for part in state]}"
        raise ShapeError(name, f"x and state of [B, {units}]", got, "start a new state")


def alike(name: str, value) -> float:
    """The one number that a setting of a library's module has for all units; raises UnsupportedError else."""
    numbers = torch.as_tensor(value).detach().flatten()
    if numbers.numel() == 0 or not (numbers == numbers[0]).all():
        got = f"{numbers.numel()} values" if numbers.numel() != 1 else str(numbers.item())
        raise UnsupportedError(name, "one value for all units", got, "split the layer, or mend it")
    return numbers[0].item()
