"""What the compiler makes of the kernels of LIF and WKV for an NVIDIA GPU, without one: registers, spilled bytes,
instructions of the machine a step, the cycles that a warp takes for them by the waits that the compiler wrote into the
code, where all else is at hand, and how far into the loop over stretches half of the loads of the next one have been
issued; of D=768 and stretches of steps that fill the sequence.

    python benchmarks/gpu_code.py [--capability 90]
"""

import argparse
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rheobase.spiking.ops.lif import triton as lif
from rheobase.spiking.ops.rows import OPTIONS, one_layout
from rheobase.spiking.ops.wkv import triton as wkv

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
LIF = {"tau": None, "theta": None, "TAU": 2.0, "INVERSE": 0.5, "THETA": 1.0, "REST": 0.0, "HARD": True, "DECAY": True,
       "STRICT": False, "TERNARY": False, "ALL_V": False, "WITH_H": False}  # fmt: skip
"""SpikeGPT's"""
WAYS = {
    "LIF forward": (lif, lif._forward, LIF | {"KEEP": True}),
    "LIF forward, tau 3": (lif, lif._forward, LIF | {"KEEP": True, "TAU": 3.0, "INVERSE": None}),
    "LIF backward": (lif, lif._backward, LIF | {"SURROGATE": "ATan", "FIRST": 2.0, "SECOND": 0.0, "THROUGH": True,
                                                "LEARNS": False}),
    "WKV forward": (wkv, wkv._forward, {"state": None, "FIRST": -1e38, "GATED": False, "KEEP": True}),
    "WKV backward": (wkv, wkv._backward, {"state": None, "FIRST": -1e38, "GATED": False}),
    "WKV forward, gated": (wkv, wkv._forward, {"FIRST": -1e38, "GATED": True, "KEEP": True}),
    "WKV backward, gated": (wkv, wkv._backward, {"FIRST": -1e38, "GATED": True}),
}  # fmt: skip
NARROW = {"x", "s", "h", "g_s", "g_h", "g_x", "k", "v", "gate", "y", "g_y", "g_k", "g_v", "g_gate"}
"""arguments of the input's type"""


def compiled(op, kernel, constants: dict, io: str, capability: int) -> bytes:
    """The machine's code; pointers are multiples of 16 bytes, as torch's are."""
    constants = constants | {"D": 768, "WHOLE": True, "STEPS": op.STEPS, "BLOCK": op.BLOCK}
    types = {name: "*" + (io if name in NARROW and (op is wkv or name != "v") else "fp32") for name in kernel.arg_names}
    signature = types | {"T": "i32"} | dict.fromkeys(constants, "constexpr")
    places = enumerate(kernel.arg_names)
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in places if signature[name].startswith("*")}
    options = OPTIONS | ({"enable_fp_fusion": False} if op is lif else {})
    source = ASTSource(kernel, signature, constants, aligned)
    with one_layout():
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]


def described(cubin: bytes, steps: int) -> tuple[int, int, float, float, float]:
    """Registers, bytes of stack, and of the longest loop instructions and cycles a step, and where its median load is,
    0 to 1."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        show = [subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True, check=True).stdout
                for flag in ("-res-usage", "-sass")]  # fmt: skip
    registers, stack = (int(re.search(rf"{name}:(\d+)", show[0])[1]) for name in ("REG", "STACK"))
    line = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9]*)([^;]*);.*\n\s+/\* 0x([0-9a-f]{16}) \*/"
    code = re.findall(line, show[1])
    code = [(int(place, 16), name, rest, int(upper, 16) >> 41 & 15) for place, name, rest, upper in code]
    jumps = ((at, re.search(r"0x([0-9a-f]+)", to)) for at, name, to, _ in code if name == "BRA")
    loops = [(int(to[1], 16), at) for at, to in jumps if to and int(to[1], 16) < at]
    loop = max(([part[1::2] for part in code if low <= part[0] <= high] for low, high in loops), key=len)
    loads = [i for i, (name, _) in enumerate(loop) if name == "LDG"]
    cycles = sum(max(wait, 1) for _, wait in loop)
    return registers, stack, len(loop) / steps, cycles / steps, statistics.median(loads) / len(loop)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--capability", type=int, default=90)
    capability = parser.parse_args().capability
    print(f"Triton {triton.__version__}, sm_{capability}\n")
    print("| | type | registers | stack | instructions a step | cycles | half of the loads after |")
    print(7 * "|---" + "|")
    for name, (op, kernel, constants) in WAYS.items():
        for io in ("fp32", "bf16"):
            code = compiled(op, kernel, constants, io, capability)
            registers, stack, a_step, cycles, loads = described(code, op.STEPS)
            print(f"| {name} | {io} | {registers} | {stack} | {a_step:.0f} | {cycles:.0f} | {loads:.0%} |", flush=True)


if __name__ == "__main__":
    main()
