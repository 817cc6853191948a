"""Triton's kernels: in its interpreter, in a process of its own, and compiled for GPUs that need not be here.

Each op's tests for the interpreter are `tests/laws/triton_*.py`: TRITON_INTERPRET counts when a kernel is defined.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

LAWS = sorted((Path(__file__).parent / "laws").glob("triton_*.py"))


def test_there_are_laws():
    assert "triton_wkv" in [law.stem for law in LAWS]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.stem)
def test_in_the_interpreter(law):
    env = {k: v for k, v in os.environ.items() if k != "RHEOBASE_KERNELS"} | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(law)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def compile_for(kernel, capability: int, types: dict[str, str], constants: dict):
    """The kernel's machine code for an NVIDIA GPU. types: of the arguments, "*fp32" where they are not named."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1}).asm["cubin"]


@pytest.mark.parametrize("io", ["*fp32", "*bf16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_wkv_compiles(capability, io, tmp_path, monkeypatch):
    from rheobase.spiking.ops.wkv import triton as wkv

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"T": "i32", **dict.fromkeys(("k", "v", "gate", "y", "g_y", "g_k", "g_v", "g_gate"), io)}
    constants = {"D": 768, "GATED": True, "STEPS": 4, "BLOCK": wkv.BLOCK}
    assert compile_for(wkv._forward, capability, types, constants | {"KEEP": True})
    assert compile_for(wkv._backward, capability, types, constants)
