"""An image on emulated processing elements: the firmware for the Cortex-M4F under QEMU against the NumPy machine.

`alone` runs one element after the other and feeds it what the others send in the NumPy machine; `together` runs a
process an element, and carries events from one to the others as the network would.
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rheobase.backends.exporters.spinnaker2 import firmware
from rheobase.backends.exporters.spinnaker2.firmware import RECORD, TICK, records_of
from rheobase.backends.exporters.spinnaker2.image import KEY_MASK, LOG, key
from rheobase.backends.exporters.spinnaker2.machine import Machine
from rheobase.spiking.errors import FormatError


@dataclass
class Comparison:
    """What an emulation showed.

    ticks         ticks of elements compared: the hash of every state, pre-activation and event, and the events sent
    different     how many of them differ;  first: where and when, in one line;  place: the same by name
    instructions  element -> instructions of each of its ticks, its events included
    """

    ticks: int = 0
    different: int = 0
    first: str | None = None
    place: dict | None = None
    instructions: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, where: str, token: int, same: bool) -> None:
        """Count one tick."""
        self.ticks += 1
        if not same:
            self.different += 1
            self.place = self.place or {"where": where, "step": token}
            self.first = (
                self.first or f"token {token}, {where}: expected the NumPy machine's hash and events, got others"
            )


def alone(machine: Machine, tokens, progress=iter) -> Comparison:
    """Each element by itself; `progress` wraps the iteration over the elements. The machine must record."""
    hashes, sent = [], []
    for token in np.reshape(tokens, -1):
        machine.step(int(token))
        hashes.append(machine.hashes())
        sent.append([records_of([out]) for out in machine.sent()])
    found = Comparison()
    pairs = zip(machine.elements, machine.stages, strict=True)
    jobs = [(pe, image) for pes, group in pairs for pe, (_, image) in zip(pes, group, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        elf = firmware.compile_elf(Path(folder) / "pe.elf")
        for number, (pe, image) in enumerate(progress(jobs)):
            if pe.where == "dram.bin":
                continue
            heard = np.concatenate([TICK if events is None else records_of([events]) for events in pe.heard])
            run = firmware.emulate(elf, image.pack(), heard, where=pe.where)
            found.instructions[pe.where] = run.instructions
            if len(run.hashes) != len(hashes):
                raise FormatError(pe.where, f"{len(hashes)} ticks", f"{len(run.hashes)}", "see the emulator's output")
            for token, events in enumerate(np.split(run.events, run.ends[:-1])):
                same = run.hashes[token] == hashes[token][number] and np.array_equal(events, sent[token][number])
                found.add(pe.where, token, same)
    return found


class _Process:
    """One running element with its two pipes."""

    def __init__(self, elf: Path, folder: Path, image: bytes, where: str):
        folder.mkdir()
        (folder / "image").write_bytes(image)
        for name in ("in", "out"):
            os.mkfifo(folder / name)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self.where, self.process = where, subprocess.Popen(firmware.command(elf), cwd=folder, **quiet)
        self.to, self.of = open(folder / "in", "wb", buffering=0), open(folder / "out", "rb")

    def hear(self, records: np.ndarray) -> None:
        """Send records to the element."""
        self.to.write(records.tobytes())

    def tick(self) -> tuple[np.ndarray, int, int]:
        """Its events, hash and instructions of the tick that it was told of."""
        self.hear(TICK)
        rows = []
        while not rows or rows[-1]["key"] != key(LOG, 0, firmware.CYCLES):
            data = self.of.read(RECORD.itemsize)
            if len(data) < RECORD.itemsize:
                raise FormatError(self.where, "an answer to a tick", "an end", "see its image with rheobase verify")
            rows.append(np.frombuffer(data, RECORD)[0])
        *events, hash_, cycles = rows
        sent = np.array(events, RECORD) if events else np.zeros(0, RECORD)
        return sent, int(hash_["payload"]) & 0xFFFFFFFF, int(cycles["payload"])

    def close(self) -> None:
        """End the process."""
        self.to.close()
        self.of.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def _processes(jobs: Iterable[list[tuple[str, bytes]]]) -> Iterator[list[list[_Process]]]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        elf = firmware.compile_elf(Path(folder) / "pe.elf")
        stages = []
        for s, group in enumerate(jobs):
            stages.append([])
            for i, (where, image) in enumerate(group):
                process = _Process(elf, Path(folder) / f"{s}-{i}", image, where)
                stack.callback(process.close)
                stages[-1].append(process)
        yield stages


def together(machine: Machine, tokens, progress=iter) -> Comparison:
    """All elements at once, a process each, that hear each other; what lies in DRAM is computed by the host.

    progress  wraps the iteration over the tokens
    """
    found = Comparison()
    jobs = [[(where, image.pack()) for where, image in group if where != "dram.bin"] for group in machine.stages]
    counts: dict[str, list[int]] = {where: [] for group in jobs for where, _ in group}
    with _processes(jobs) as stages:
        listeners: dict[int, list[_Process]] = {}
        for pe, process in zip(
            (pe for pes in machine.elements for pe in pes), (p for group in stages for p in group), strict=False
        ):
            for base in dict.fromkeys(pe.bases()):
                listeners.setdefault(base, []).append(process)

        def deliver(events):
            bases = events["key"] & np.uint32(KEY_MASK)
            for base in np.unique(bases).tolist():
                for process in listeners.get(base, ()):
                    process.hear(events[bases == base])

        for token, ident in enumerate(progress(np.reshape(tokens, -1).tolist())):
            machine.step(ident)
            hashes, sent = iter(machine.hashes()), iter(machine.sent())
            deliver(records_of([machine.first_events(ident)]))
            for group in stages:
                out = []
                for process in group:
                    own, hash_, instructions = process.tick()
                    counts[process.where].append(instructions)
                    same = hash_ == next(hashes) and np.array_equal(own, records_of([next(sent)]))
                    found.add(process.where, token, same)
                    out.append(own)
                for own in out:
                    deliver(own)
    found.instructions = {where: np.array(values) for where, values in counts.items()}
    return found
