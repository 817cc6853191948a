"""Power, time and energy a token of an image, from what its elements do at a tick.

    joules = seconds x (chip + elements x asleep) + cycles x cycle        seconds = ticks x tick

A cycle is an instruction in QEMU, so cycles are a lower bound. What has no published figure is in UNKNOWN, and no term
of the sum stands for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rheobase.backends.counting.target import Quantity

SOURCE = "arXiv 2607.24396, chip power at both levels"
UNKNOWN = (
    "events over the network on chip: joules a hop are not published",
    "DRAM, where embedding and head lie there: joules a bit are not published",
    "the link to the host, and the management core",
)


def _quantity(value: float, unit: str, source: str, scope: str) -> Quantity:
    confidence = "second-hand figures" if "/" not in source else "derived from second-hand figures"
    return Quantity(value, value, value, unit, source, confidence, "22 nm FDSOI", "any", scope)


CHIP = _quantity(75.2, "mW", f"{SOURCE}: elements off", "whole chip, all elements switched off")


@dataclass(frozen=True)
class Level:
    """A level of voltage and frequency: watts of an element asleep, joules of an active cycle beyond that."""

    name: str
    mhz: int
    asleep: Quantity
    cycle: Quantity


LEVELS = (
    Level(
        "0.5 V, 150 MHz",
        150,
        _quantity(1.05, "mW", f"{SOURCE}: (235.4 - 75.2) mW / 152", "an element asleep"),
        _quantity(
            8.3, "pJ", f"{SOURCE}: CoreMark, (424.6 - 235.4) mW / 152 / 150 MHz", "an active cycle of an element"
        ),
    ),
    Level(
        "0.8 V, 300 MHz",
        300,
        _quantity(3.22, "mW", f"{SOURCE}: (564.7 - 75.2) mW / 152", "an element asleep"),
        _quantity(
            15.0, "pJ", f"{SOURCE}: CoreMark, (1247.9 - 564.7) mW / 152 / 300 MHz", "an active cycle of an element"
        ),
    ),
)


@dataclass(frozen=True)
class Estimate:
    """A token at one level and tick: seconds, and joules of the chip, the elements asleep, and their cycles."""

    level: Level
    tick_us: float
    seconds: float
    chip: float
    asleep: float
    cycles: float

    @property
    def joules(self) -> float:
        """Of all that has a figure."""
        return self.chip + self.asleep + self.cycles

    @property
    def watts(self) -> float:
        """Their mean power."""
        return self.joules / self.seconds


def estimate(level: Level, *, elements: int, cycles: float, tick_us: float, ticks: int) -> Estimate:
    """A token's estimate.

    elements  that are switched on, the others being off
    cycles    of all elements for a token
    ticks     that a token takes: those of the plan, when generated or prefilled
    """
    seconds = 1e-6 * tick_us * ticks
    asleep = level.asleep.interval.central * elements * seconds
    active = level.cycle.interval.central * cycles
    return Estimate(level, tick_us, seconds, CHIP.interval.central * seconds, asleep, active)


def show(estimates: Sequence[Estimate]) -> str:
    """A line each."""
    rows = [f"{'':<17}{'tick':>10}{'a token':>11}{'power':>10}{'energy':>11}   chip, elements asleep, cycles"]
    for e in estimates:
        parts = ", ".join(f"{100 * part / e.joules:.0f} %" for part in (e.chip, e.asleep, e.cycles))
        rows.append(
            f"{e.level.name:<17}{e.tick_us / 1e3:>7.3f} ms{1e3 * e.seconds:>8.3f} ms{e.watts:>8.3f} W"
            f"{1e3 * e.joules:>8.3f} mJ   {parts}"
        )
    return "\n".join(rows)
