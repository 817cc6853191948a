"""What this machine has, and which form each op takes here, tried once on a few numbers."""

import platform
import sys
from importlib import metadata

import torch

from rheobase import __version__
from rheobase.answer import Answer
from rheobase.backends.exporters.spinnaker2.firmware import missing as missing_tool
from rheobase.backends.exporters.spinnaker2.host import library as host_library
from rheobase.spiking.errors import RheobaseError
from rheobase.spiking.ops.choice import explain
from rheobase.spiking.ops.egru import egru
from rheobase.spiking.ops.lif import lif
from rheobase.spiking.ops.native import library
from rheobase.spiking.ops.wkv import wkv
from rheobase.spiking.surrogates import Triangle

PACKAGES = "torch numpy h5py safetensors triton snntorch norse nir lz4 tonic tokenizers pooch tensorboard".split()
WORDS = {True: "yes", False: "no: NumPy and torch are used; install a C compiler and reinstall", None: "not here"}


def _few(op: str, device: str):
    """Run an op on zeros: two steps of four units."""
    x, unit = torch.zeros(1, 2, 4, device=device), torch.zeros(4, device=device)
    if op == "lif":
        return lif(x)
    if op == "wkv":
        return wkv(unit, unit, x, x)
    gates = torch.zeros(12, device=device)
    return egru(x, gates.expand(4, 12), gates.expand(4, 12), gates, gates, unit, surrogate=Triangle())


def _kernels(op: str, device: str) -> str:
    """The form that an op takes on a device, or what is wrong with it there: Triton compiles when it is first called,
    and wants a C compiler and Python's headers then."""
    try:
        form = explain(op, device)
    except RheobaseError as error:
        return str(error)
    try:
        _few(op, device)
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        why = (str(error).strip().splitlines() or [""])[0]
        return f"{form}, which FAILS here: {type(error).__name__}: {why}"
    return form


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def doctor(args) -> Answer:
    cuda, ops = torch.cuda.is_available(), ("lif", "wkv", "egru")
    table = {
        "rheobase": __version__,
        "python": sys.version.split()[0],
        "machine": f"{platform.machine()} {platform.system()}",
        "threads": torch.get_num_threads(),
        "c_library": library() is not None,
        "firmware_on_host": host_library() is not None,
        "firmware_in_qemu": f"no: {tool} is not installed" if (tool := missing_tool()) else True,
        **{f"{op}_kernels": _kernels(op, "cpu") for op in ops},
        "cuda": torch.cuda.get_device_name(0) if cuda else None,
        **{f"{op}_kernels_cuda": _kernels(op, "cuda") if cuda else None for op in ops},
        **{name: _version(name) for name in PACKAGES},
    }
    lines = [f"{k:<18}{v if type(v) is int else WORDS.get(v, v)}" for k, v in table.items()]
    return Answer(table, "\n".join(lines))
