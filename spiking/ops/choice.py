"""Which form an op runs in: one rule for all of them.

A form is a module of the op's folder: `reference` in torch, `native` in C, `triton` for GPUs.
"""

import functools
import importlib
import importlib.util
import logging
import os

import torch
from torch import Tensor

from rheobase.spiking import tally
from rheobase.spiking.errors import ConfigError, UnsupportedError
from rheobase.spiking.ops.native import function

KERNELS = ("auto", "reference", "native", "triton")
VARIABLE = "RHEOBASE_KERNELS"
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
"""type -> how the names of the library's functions for it end"""
BY_DEVICE = {"cpu": "native", "cuda": "triton"}
"""type of device -> what "auto" takes there where it can"""
OTHER = 'use kernels="auto"'


def wanted(kernels: str = "auto") -> str:
    """The choice in force: the environment variable RHEOBASE_KERNELS where it is set, else `kernels`."""
    choice = os.environ.get(VARIABLE) or kernels
    if choice not in KERNELS:
        raise ConfigError(
            VARIABLE if choice != kernels else "kernels", " or ".join(KERNELS), choice, "name one of them"
        )
    return choice


def takes(
    op: str, kernels: str, tensors: list[Tensor], obstacles: dict[str, tuple[str, str, str]] | None = None
) -> str:
    """The form that a call of an op runs in: "reference", "native" or "triton".

    "auto" takes C for plain tensors on a CPU, all float32 or all float64, where there is a compiled library, Triton for
    floating-point tensors on one CUDA device where Triton imports, and the reference for all others and within
    torch.func's transforms, forward-mode differentiation, torch.jit.trace and, on a CPU, a TorchDispatchMode such as
    selective checkpointing's, which see torch's own operators alone; where it is the machine that lacks something, that
    is logged once. While a counter listens that watches operators the reference runs, whatever is wanted.

    tensors    every tensor of the call
    obstacles  form -> what else keeps this call from it: (expected, got, remedy)
    raises     UnsupportedError: a form is wanted by name and this call cannot have it;  ConfigError: no such kernels
    """
    choice = wanted(kernels)
    form = BY_DEVICE.get(tensors[0].device.type, "reference") if choice == "auto" else choice
    if form == "reference" or tally.watches():
        return "reference"
    obstacle = _inside() or _obstacle(op, form, tensors) or (obstacles or {}).get(form)
    if obstacle and choice != "auto":
        raise _refused(op, obstacle)
    if obstacle and not torch.compiler.is_compiling() and (lacking := missing(op, form, tensors[0].device.type)):
        _say_once(form, lacking)
    return "reference" if obstacle else form


def _refused(op: str, obstacle: tuple[str, str, str]) -> UnsupportedError:
    expected, got, remedy = obstacle
    if os.environ.get(VARIABLE):  # which goes before the argument
        remedy = remedy.replace(OTHER, f"unset {VARIABLE}")
    return UnsupportedError(f"{op} kernels", expected, got, remedy)


@functools.cache
def _say_once(form: str, lacking: tuple[str, str, str]) -> None:
    expected, got, remedy = lacking
    text = 'rheobase: "auto" takes the slower reference: %s needs %s, got %s; %s'
    logging.getLogger("rheobase").warning(text, form, expected, got, remedy)


def taken(op: str, device: str = "cpu") -> str:
    """The form that plain float32 tensors on this machine's devices of a type get; errors as of `takes`."""
    choice = wanted()
    form = BY_DEVICE[device] if choice == "auto" else choice
    lacking = missing(op, form, device) if form != "reference" else None
    if lacking and choice != "auto":
        raise _refused(op, lacking)
    return "reference" if lacking else form


def explain(op: str, device: str = "cpu") -> str:
    """What is `taken`, and where "auto" falls back on the reference, why."""
    form = taken(op, device)
    if wanted() != "auto" or form != "reference":
        return form
    expected, got, remedy = missing(op, BY_DEVICE[device], device)
    return f"{form}: {BY_DEVICE[device]} needs {expected}, got {got}; {remedy}"


def missing(op: str, form: str, device: str) -> tuple[str, str, str] | None:
    """What this machine lacks for a form on devices of a type: (expected, got, remedy), None where it lacks nothing."""
    if form == "native":
        if function(f"{op}_forward_f32") is None:
            return "the C library", "none", "install a C compiler and reinstall"
        return None if device == "cpu" else ("tensors on a CPU", f"tensors on {device}", OTHER)
    if lacking := lacking_triton(op):
        return lacking
    interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device != "cuda" and not interpreted:
        remedy = f"{OTHER}, or set TRITON_INTERPRET=1 to run Triton's interpreter on a CPU, as tests do"
        return "tensors on a CUDA device", f"tensors on {device}", remedy
    return None


missing._dynamo_marked_constant = True  # as `torch.compiler.assume_constant_result` does, which takes 2 s to import


@functools.cache
def lacking_triton(op: str) -> tuple[str, str, str] | None:
    """What keeps Triton from running an op on any device; as of `missing`."""
    if importlib.util.find_spec(f"rheobase.spiking.ops.{op}.triton") is None:
        return "a form in Triton", "none", OTHER
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return "Triton", f"none ({error})", f"pip install triton, or {OTHER}"
    return None


def _inside() -> tuple[str, str, str] | None:
    """What looks into a call and finds no operator of torch in C or Triton; as of `missing`."""
    if torch.jit.is_tracing():
        return "a call outside torch.jit.trace", "one inside", OTHER
    if torch._C._are_functorch_transforms_active():
        return "a call outside torch.func's transforms", "one inside", OTHER
    if torch.autograd.forward_ad._current_level >= 0:
        return "a call outside torch.autograd.forward_ad", "one inside", OTHER
    return None


def _obstacle(op: str, form: str, tensors: list[Tensor]) -> tuple[str, str, str] | None:
    device = tensors[0].device
    lacking = missing(op, form, device.type)
    if lacking:
        return lacking
    if any(t.device != device for t in tensors):
        return "tensors on one device", _names(t.device for t in tensors), "move them to one"
    compiles = torch.compiler.is_compiling()
    if not compiles and any(t.layout is not torch.strided or t.is_neg() for t in tensors):
        return "dense tensors as they are", "a sparse one, or one to be negated when it is read", OTHER
    types = {t.dtype for t in tensors}
    if form == "triton":
        all_float = all(dtype.is_floating_point for dtype in types)
        return None if all_float else ("floating-point tensors", _names(types), OTHER)
    kinds = {type(t) for t in tensors} - {Tensor, torch.nn.Parameter}
    if kinds:
        return "plain tensors", _names(kind.__name__ for kind in kinds), OTHER
    if len(types) > 1 or tensors[0].dtype not in SUFFIXES:
        return "all float32 or all float64", _names(types), OTHER
    if not compiles and torch._C._len_torch_dispatch_stack() and not tally.listens():
        return "no mode that watches torch's operators", "a TorchDispatchMode", OTHER
    return None


def _names(things) -> str:
    return ", ".join(sorted({str(thing) for thing in things}))
