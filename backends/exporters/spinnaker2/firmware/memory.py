"""How much of an element's memory the compiled program takes: code, data, and the stack at its deepest.

The depth is that of the call graph that GCC writes with each frame's size (-fcallgraph-info=su): the deepest path from
`reset`, then an exception's frame and the deepest path from the fault handler. It is that of the program for QEMU; a
board's own calls take the place of those in qemu.c.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rheobase.backends.exporters.spinnaker2.firmware import COMPILER, FLAGS, FOLDER, KERNELS, compile_elf
from rheobase.spiking.errors import FormatError

CODE, DATA, STACK = 0x8000, 0x400, 0x1000
"""bytes that pe.ld gives to instructions, to the firmware's own data, and to the stack"""
EXCEPTION_FRAME = 108
"""26 words with the registers of the floating-point unit, and one to align: ARMv7-M manual, B1.5.6 and B1.5.7"""
GUARD = 4
INDIRECT, CALLBACK = "__indirect_call", "main.c:send"
"""the one call by pointer is `send_t`, and the program passes one function"""
NODE = re.compile(r'node: \{ title: "([^"]+)" label: "[^"]*\\n(\d+) bytes \((\S+)\)')
EDGE = re.compile(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')


@dataclass(frozen=True)
class Footprint:
    """Bytes of code (with the first values of data), of data and of the deepest stack, and the calls of that."""

    code: int
    data: int
    stack: int
    deepest: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"firmware: {self.code:,} of {CODE:,} bytes of code, {self.data:,} of {DATA:,} of data, stack at most "
            f"{self.stack:,} of {STACK:,}: {' > '.join(self.deepest)}"
        )


def footprint() -> Footprint:
    """Compile the program and measure it.

    raises  UnsupportedError: no compiler;  FormatError: a frame without a bound, recursion, or a call that is not known
    """
    frames: dict[str, int] = {}
    calls: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        elf = compile_elf(folder / "pe.elf")
        table = subprocess.run(
            [COMPILER.replace("gcc", "size"), "-A", "-d", elf], check=True, capture_output=True, text=True
        )
        for source in (*KERNELS, "main", "qemu"):
            made = ["-fcallgraph-info=su", "-c", str(FOLDER / f"{source}.c"), "-o", str(folder / f"{source}.o")]
            subprocess.run([COMPILER, *FLAGS, *made], check=True)
            read(Path(folder / f"{source}.ci").read_text(), frames, calls)
    size = {row[0]: int(row[1]) for row in map(str.split, table.stdout.splitlines()) if row and row[0].startswith(".")}
    main, handler = (depth(root, frames, calls) for root in ("reset", "qemu.c:fault"))
    return Footprint(
        code=size[".text"] + size[".data"],
        data=size[".data"] + size[".bss"] + GUARD,
        stack=main[0] + EXCEPTION_FRAME + handler[0],
        deepest=(*main[1], "exception", *handler[1]),
    )


def read(graph: str, frames: dict[str, int], calls: dict[str, set[str]]) -> None:
    """Add the functions of a call graph: bytes of each frame, and what each calls."""

    def named(title: str) -> str:
        return title.rpartition("/")[2]

    for title, size, how in NODE.findall(graph):
        if how != "static":
            raise FormatError(f"firmware: {named(title)}", "a frame of a fixed size", how, "use no variable arrays")
        frames[named(title)] = int(size)
    for source, target in EDGE.findall(graph):
        calls.setdefault(named(source), set()).add(CALLBACK if target == INDIRECT else named(target))


def depth(
    root: str, frames: dict[str, int], calls: dict[str, set[str]], above: tuple[str, ...] = ()
) -> tuple[int, tuple[str, ...]]:
    """Bytes of the deepest stack below a function, its own included, and its path."""
    path = (*above, root)
    if root in above or root not in frames:
        found = "recursion" if root in above else "a function that is not ours"
        raise FormatError(f"firmware: {' > '.join(path)}", "calls whose depth is known", found, "rewrite the last call")
    deepest = max((depth(c, frames, calls, path) for c in sorted(calls.get(root, ()))), default=(0, ()))
    return frames[root] + deepest[0], (root.rpartition(":")[2], *deepest[1])
