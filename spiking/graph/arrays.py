"""Tensors of a model as the arrays of a graph."""

from torch import Tensor, nn

from rheobase.spiking.errors import UnsupportedError


def array_of(tensor: Tensor, where: str = "weights"):
    """A copy in NumPy.

    raises  UnsupportedError: of a type that NumPy lacks, such as bfloat16
    """
    try:
        return tensor.detach().cpu().numpy().copy()
    except TypeError:
        remedy = "call .float() on the model first: float32 holds the same numbers"
        raise UnsupportedError(where, "a type that NumPy has", str(tensor.dtype), remedy) from None


def arrays_of(module: nn.Module) -> dict:
    """All that `state_dict()` holds, by its names; errors as of `array_of`."""
    return {name: array_of(tensor, name) for name, tensor in module.state_dict().items()}
