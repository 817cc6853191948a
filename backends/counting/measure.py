"""Joules that a processor or a GPU says it used while a function ran, or why there is no such figure.

Readings are those of the whole device: whatever else ran on it, and its idle power, are in them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rheobase.spiking.errors import ConfigError, UnsupportedError

POWERCAP = Path("/sys/class/powercap")
PACKAGE_WATTS = 500
"""No package draws more for long: what tells that a counter can have wrapped at most once."""


@dataclass(frozen=True)
class Measured:
    """What a run took on the device that it ran on.

    joules             used by the whole device from begin to end; None where nothing could be read, never 0 for that
    seconds            of the clock
    counter            what was read, None where nothing could be
    above_idle_joules  joules less idle watts x seconds; None unless an idle baseline was asked for
    why                the reason where joules is None, else ""
    """

    joules: float | None
    seconds: float
    counter: str | None = None
    above_idle_joules: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Counter:
    """Cumulative energy counters of one device.

    read   their values, in joules
    wraps  where each begins again at 0, in joules; inf: nowhere
    """

    name: str
    read: Callable[[], tuple[float, ...]]
    wraps: tuple[float, ...] = (math.inf,)

    def used(self, before: tuple[float, ...], after: tuple[float, ...], seconds: float) -> float:
        """Joules between two readings; raises UnsupportedError where they do not tell."""
        if min(self.wraps) < PACKAGE_WATTS * seconds:
            got = f"{seconds:.0f} s with one that begins again at {min(self.wraps):,.0f} J"
            raise UnsupportedError(self.name, "a counter that wraps at most once", got, "measure a shorter run")
        each = [(b - a) % wrap for a, b, wrap in zip(before, after, self.wraps, strict=True)]
        if any(b < a and part > PACKAGE_WATTS * (seconds + 1) for a, b, part in zip(before, after, each, strict=True)):
            raise UnsupportedError(self.name, "a counter that grows", "one that was set back", "measure again")
        joules = sum(each)
        if joules == 0:
            raise UnsupportedError(self.name, "a counter that moves", "the same reading twice", "measure a longer run")
        return joules


def measure(
    function: Callable[[], object], device: str = "cpu", *, idle_s: float = 0.0, powercap: Path = POWERCAP
) -> Measured:
    """Run the function once, and say what its device used meanwhile.

    device   "cpu": RAPL, all packages of the machine, as Linux's powercap shows them (Intel and AMD); without memory
             on modules of its own.  "cuda": the current NVIDIA GPU's total-energy counter, through NVML
    idle_s   seconds to rest first, to know the idle power; 0: no second figure
    returns  Measured. RAPL moves every millisecond or so, NVML's counter several times a second: a run of some
             seconds has a figure, a short one may have none
    raises   whatever the function raises;  ConfigError: another device

    Source: Linux, Documentation/power/powercap/powercap.rst; NVML, nvmlDeviceGetTotalEnergyConsumption (Volta on).
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError("measure device", "cpu or cuda", device, "measure what has an energy counter")
    try:
        counter, why = rapl(powercap) if device.startswith("cpu") else nvml(), ""
    except UnsupportedError as error:
        counter, why = None, str(error)
    if counter is None:
        _idle(device)
        began = time.perf_counter()
        function()
        _idle(device)  # as a GPU's counter does before it is read
        return Measured(None, time.perf_counter() - began, why=why)
    rested = counter.read()
    rest_began = time.perf_counter()
    time.sleep(idle_s)
    before, began = counter.read(), time.perf_counter()
    function()
    after, ended = counter.read(), time.perf_counter()
    seconds = ended - began
    try:
        joules = counter.used(before, after, seconds)
        idle = counter.used(rested, before, began - rest_began) / (began - rest_began) if idle_s else None
    except UnsupportedError as error:
        return Measured(None, seconds, counter.name, why=str(error))
    return Measured(joules, seconds, counter.name, None if idle is None else joules - idle * seconds)


def _idle(device: str) -> None:
    """Wait until the device has done what it was asked for."""
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


def rapl(powercap: Path = POWERCAP) -> Counter:
    """The packages of the machine; their cores, graphics and memory are within them and are not read again.

    raises  UnsupportedError: no package, or one whose counter is not readable
    """
    packages = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                int((zone / "energy_uj").read_text())
                packages.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()) / 1e6))
        except (OSError, ValueError) as error:
            remedy = "run as root, or make its energy_uj readable"
            raise UnsupportedError(zone, "a readable energy counter", str(error), remedy) from None
    if not packages:
        remedy = "measure on the bare machine, with Linux's intel_rapl driver"
        raise UnsupportedError(powercap, "RAPL's packages", "none", remedy)
    files, wraps = zip(*packages, strict=True)
    name = f"RAPL, {len(files)} package{'s' * (len(files) > 1)}"
    return Counter(name, lambda: tuple(int(file.read_text()) / 1e6 for file in files), wraps)


def nvml() -> Counter:
    """The current CUDA device.

    raises  UnsupportedError: no CUDA, no NVML bindings, or a GPU without the counter
    """
    import torch

    if not torch.cuda.is_available():
        raise UnsupportedError("measure cuda", "an NVIDIA GPU", "none that torch can use", "measure on the CPU")
    try:
        import pynvml
    except ImportError:
        remedy = "pip install nvidia-ml-py; nvidia-smi shows power alone, not the energy counter"
        raise UnsupportedError("measure cuda", "NVML's bindings", "no pynvml", remedy) from None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        got = str(error)
        raise UnsupportedError(f"NVML, {properties.name}", "an energy counter", got, "measure on the CPU") from None

    def read() -> tuple[float]:
        torch.cuda.synchronize()
        return (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,)

    return Counter(f"NVML, {properties.name}", read)
