"""The firmware of a processing element, in C99: compiled for the Cortex-M4F and run in QEMU, an element a process.

The same sources make the host's library (`host`). QEMU executes the instructions, not the chip: it shows that this
code computes these integers on that processor, and how many instructions it takes.
"""

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rheobase.backends.exporters.spinnaker2.image import LOG, key
from rheobase.spiking.errors import FormatError, UnsupportedError

FOLDER = Path(__file__).parent
KERNELS = ("pe", "product", "egru", "head", "embedding", "program")
COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
PACKAGES = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
FLAGS = [
    *("-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-ffreestanding", "-fno-tree-loop-distribute-patterns"),
    *("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-nostdlib"),
]
IMAGE_AT = 0x8000
HASH, CYCLES, STRAYS, REFUSED, GUARD, PASSED, FAILED = range(7)
RECORD = np.dtype([("key", "<u4"), ("payload", "<i4")])
TICK = np.array([(key(LOG, 0), 0)], RECORD)


@functools.cache
def _finds_headers(compiler: str) -> bool:
    argv = [compiler, "-ffreestanding", "-fsyntax-only", "-x", "c", "-"]
    return subprocess.run(argv, input=b"#include <stdint.h>\n", stderr=subprocess.DEVNULL).returncode == 0


def missing_to_compile() -> str | None:
    """The compiler, or its headers, which lie in a package of their own, if not installed."""
    path = shutil.which(COMPILER)
    if path is None:
        return COMPILER
    return None if _finds_headers(path) else f"stdint.h of {COMPILER}"


def missing() -> str | None:
    """What is not installed of the tools to compile and to emulate, or None."""
    return missing_to_compile() or (EMULATOR if shutil.which(EMULATOR) is None else None)


def compile_elf(out: Path, *, machine: str = "qemu", program: str = "main", options: Sequence[str] = ()) -> Path:
    """Compile the program of a processing element to `out`; raises UnsupportedError without a compiler's files."""
    if lacking := missing_to_compile():
        raise UnsupportedError("firmware", f"{lacking}, to compile it", "none", PACKAGES)
    sources = [str(FOLDER / f"{name}.c") for name in (*KERNELS, program, machine)]
    subprocess.run(
        [COMPILER, *FLAGS, *options, f"-Wl,-T,{FOLDER / 'pe.ld'}", "-o", str(out), *sources, "-lgcc"], check=True
    )
    return out


@dataclass(frozen=True, eq=False)
class Emulated:
    """What an emulated element did: events [E] (key, payload), and a value a tick of hash, instructions, events."""

    events: np.ndarray
    hashes: np.ndarray
    instructions: np.ndarray
    ends: np.ndarray


def emulate(elf: Path, image: bytes, records: np.ndarray, *, where: str = "pe", timeout: float = 300.0) -> Emulated:
    """Run one element in QEMU on what it hears: events and TICKs, [N] of RECORD.

    raises  UnsupportedError: no QEMU;  FormatError: the firmware refused the image, lost an event or its memory
    """
    return parse(*execute(elf, image, records, where=where, timeout=timeout), where)


def execute(
    elf: Path, image: bytes, records: np.ndarray, *, where: str = "pe", timeout: float = 300.0
) -> tuple[np.ndarray, int]:
    """What `emulate` runs: the records that come out, events and logs, and the exit status."""
    if shutil.which(EMULATOR) is None:
        raise UnsupportedError("firmware", f"the emulator {EMULATOR}", "none", PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "image").write_bytes(image)
        (Path(folder) / "in").write_bytes(records.tobytes())
        try:
            done = subprocess.run(command(elf), cwd=folder, timeout=timeout, capture_output=True)
        except subprocess.TimeoutExpired:
            raise FormatError(where, f"an end within {timeout:g} s", "none", "run fewer tokens") from None
        return np.frombuffer((Path(folder) / "out").read_bytes(), RECORD), done.returncode


def command(elf: Path) -> list[str]:
    """The command that runs an element in a folder with its files image and in."""
    quiet = ["-nographic", "-monitor", "none", "-serial", "none"]
    semihosting = ["-semihosting-config", "enable=on,target=native"]
    image = ["-device", f"loader,file=image,addr={IMAGE_AT:#x},force-raw=on"]
    return [EMULATOR, "-machine", "mps2-an386", *quiet, *semihosting, "-icount", "shift=0", "-kernel", str(elf), *image]


def parse(sent: np.ndarray, code: int, where: str) -> Emulated:
    """An element's output, and its exit status."""
    logged = (sent["key"] & 0xFF000000) == key(LOG, 0)
    values = {what: sent["payload"][sent["key"] == key(LOG, 0, what)] for what in range(5)}
    for what, wanted in ((REFUSED, "an image it takes"), (STRAYS, "events it listens to"), (GUARD, "memory intact")):
        if len(values[what]):
            raise FormatError(where, wanted, f"its report {values[what][0]}", "see pe.h")
    if code:
        raise FormatError(where, "status 0 of the emulator", str(code), "see its output")
    ticks = np.flatnonzero(sent["key"] == key(LOG, 0, HASH))
    ends = np.cumsum(~logged)[ticks] if len(ticks) else np.zeros(0, np.int64)
    return Emulated(sent[~logged], values[HASH].astype(np.uint32), values[CYCLES].astype(np.uint32), ends)


def records_of(events: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Events as records."""
    keys, payloads = (np.concatenate(column) for column in zip(*events, strict=True))
    records = np.empty(len(keys), RECORD)
    records["key"], records["payload"] = keys, payloads
    return records
