"""Weights of products as int8 with one power of two a target, and back to the same bits.

`name` [2-d, int8] and `name.exponent` [O, 1] or [1, O, int8] stand for the weight name / 2^exponent in float32. Other
tensors are float16 where that loses nothing, else float32.
"""

import torch
from torch import Tensor

from rheobase.spiking.errors import FormatError
from rheobase.spiking.quantisation import best_exponents, round_weights

EXPONENT = ".exponent"
LIMIT = 126
"""exponents up to this make normal float32 powers"""


def pack(tensors: dict[str, Tensor], products: dict[str, bool]) -> dict[str, Tensor]:
    """The tensors of a model whose products were rounded in training, in a quarter of the room.

    products  names of the weights of products, and of each whether it is stored [out, in]
    raises    FormatError: a tensor is not float32, or such a weight is not int8 with a power of two a target
    """
    packed = {}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise FormatError(name, "float32", str(tensor.dtype), "turn the model with .float()")
        if name not in products:
            half = tensor.half()
            packed[name] = half if _same(half.float(), tensor) else tensor
            continue
        axis = 1 if products[name] else 0
        columns = tensor.T if axis else tensor
        exponent = best_exponents(columns, columns.new_ones(len(columns)), clip=False).unsqueeze(axis)
        whole = round_weights(tensor, exponent)
        parts = whole.to(torch.int8), exponent.clamp(-LIMIT, LIMIT).to(torch.int8)
        if not _same(_weight(*parts), tensor):
            wanted, remedy = "int8 with a power of two a target", "train with [quantise] weights = 8"
            raise FormatError(name, wanted, "other weights", remedy)
        packed[name], packed[name + EXPONENT] = parts
    return packed


def unpack(tensors: dict[str, Tensor], where: object) -> dict[str, Tensor]:
    """What `pack` was given; raises FormatError where exponents and weights do not fit each other."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(EXPONENT) and name.removesuffix(EXPONENT) in tensors:
            continue
        exponent = tensors.get(name + EXPONENT)
        if (exponent is None) != (tensor.dtype != torch.int8):
            raise FormatError(f"{where}: {name}", "int8 beside its exponents", str(tensor.dtype), "fetch it anew")
        if exponent is None:
            if tensor.dtype not in (torch.float16, torch.float32):
                raise FormatError(f"{where}: {name}", "float16 or float32", str(tensor.dtype), "fetch it anew")
            found[name] = tensor.float()
            continue
        shapes = [(len(tensor), 1), (1, tensor.shape[-1])] if tensor.dim() == 2 else []
        if exponent.dtype != torch.int8 or exponent.shape not in shapes or (exponent.int().abs() > LIMIT).any():
            got = f"{exponent.dtype} {tuple(exponent.shape)}"
            raise FormatError(f"{where}: {name}", "an int8 exponent a target, 126 at most", got, "fetch it anew")
        found[name] = _weight(tensor, exponent)
    return found


def _weight(whole: Tensor, exponent: Tensor) -> Tensor:
    """whole / 2^exponent, the powers made of bits, so that they are exact on every machine."""
    return whole.float() * ((127 - exponent.int()) << 23).view(torch.float32)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))
