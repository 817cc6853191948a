"""Power, time and energy a token of an image, from what its elements do at a tick.

    joules = seconds x (chips x chip + elements x asleep) + cycles x cycle        seconds = ticks x tick

A cycle is an instruction in QEMU, so cycles are a lower bound. What has no published figure is in UNKNOWN, and no term
of the sum stands for it. `calibrate` replaces the constants of a level by measured ones.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rheobase.backends.counting.target import ENERGIES, POWERS, ZERO, Interval, Quantity, read_quantity
from rheobase.spiking.config import read_toml, to_toml
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.registry import nearest

SOURCE = "arXiv 2607.24396, chip power at both levels"
MEASURED = "measured"
UNKNOWN = (
    "events over the network on chip: joules a hop are not published",
    "DRAM, where embedding and head lie there: joules a bit are not published",
    "the link to the host, and the management core",
)


SECOND_HAND = "second-hand figures"


def _quantity(value: float, unit: str, source: str, scope: str, confidence=f"derived from {SECOND_HAND}") -> Quantity:
    return Quantity(value, value, value, unit, source, confidence, "22 nm FDSOI", "any", scope)


CHIP = _quantity(75.2, "mW", f"{SOURCE}: elements off", "whole chip, all elements switched off", SECOND_HAND)


@dataclass(frozen=True)
class Level:
    """A level of voltage and frequency: watts of an element asleep, joules of an active cycle beyond that, and watts
    of the chip with its elements off.

    elements  None; or how many elements were on when `chip` was measured with them asleep: `asleep` is None then
    """

    name: str
    mhz: int
    asleep: Quantity | None
    cycle: Quantity
    chip: Quantity = CHIP
    elements: int | None = None

    @property
    def measured(self) -> bool:
        """Whether a power log gave its constants."""
        return self.cycle.confidence == MEASURED

    @property
    def constants(self) -> dict[str, Quantity]:
        """By their names in TOML: chip, asleep and cycle, or idle for the first two together."""
        power = {"chip": self.chip, "asleep": self.asleep} if self.asleep else {"idle": self.chip}
        return power | {"cycle": self.cycle}


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


def level_named(name: str, where: object) -> Level:
    """The published level of this name; raises FormatError, at `where`."""
    known = {level.name: level for level in LEVELS}
    if name not in known:
        raise FormatError(f"{where} level", "a level of the chip", repr(name), nearest(name, known))
    return known[name]


def level_toml(level: Level) -> bytes:
    """A level as the TOML that `read_levels` reads, each constant with the keys of a target's."""
    table = {"title": f"SpiNNaker 2, {level.name}, {MEASURED}", "level": level.name}
    if level.elements is not None:
        table["elements"] = level.elements
    for name, quantity in level.constants.items():
        entry = asdict(quantity)
        table[name] = {"low": entry.pop("low"), "value": entry.pop("central"), **entry}
    return to_toml(table).encode()


def read_levels(path: str | Path) -> tuple[Level, ...]:
    """LEVELS, with the one that a file of `level_toml` holds in its place; raises FormatError."""
    table = read_toml(path)
    power = ("idle",) if "idle" in table else ("chip", "asleep")
    wanted = {"title", "level", *power, "cycle"} | ({"elements"} if "idle" in table else set())
    if set(table) != wanted:
        remedy = "write it by rheobase targets calibrate"
        raise FormatError(path, f"the keys {', '.join(sorted(wanted))}", ", ".join(sorted(table)), remedy)
    old, elements = level_named(str(table["level"]), path), table.get("elements")
    if "idle" in table and (type(elements) is not int or elements < 1):
        raise FormatError(f"{path} elements", "a number above 0", repr(elements), "mend it")
    chip, *asleep = (read_quantity(f"{path} {name}", table[name], POWERS) for name in power)
    cycle = read_quantity(f"{path} cycle", table["cycle"], ENERGIES)
    new = Level(old.name, old.mhz, asleep[0] if asleep else None, cycle, chip, elements)
    return tuple(new if level is old else level for level in LEVELS)


@dataclass(frozen=True)
class Estimate:
    """A token at one level and tick: seconds, and joules of the chip, the elements asleep, and their cycles.

    span  of the joules: all constants at their low, central or high figure at once
    """

    level: Level
    tick_us: float
    seconds: float
    chip: float
    asleep: float
    cycles: float
    span: Interval

    @property
    def joules(self) -> float:
        """Of all that has a figure."""
        return self.span.central

    @property
    def watts(self) -> float:
        """Their mean power."""
        return self.joules / self.seconds


def estimate(level: Level, *, elements: int, cycles: float, tick_us: float, ticks: int, chips: int = 1) -> Estimate:
    """A token's estimate.

    elements  that are switched on, the others being off
    cycles    of all elements for a token
    ticks     that a token takes: those of the plan, when generated or prefilled
    chips     that are on; all that was measured is one
    raises    ConfigError: a level measured with another number of elements alone
    """
    if level.elements not in (None, elements):
        expected, got = f"an image of {level.elements} elements, as it was measured with", f"{elements}"
        raise ConfigError(f"{level.name}, {MEASURED}", expected, got, "calibrate with recordings of several numbers")
    seconds = 1e-6 * tick_us * ticks
    chip, active = level.chip.interval * (chips * seconds), level.cycle.interval * cycles
    asleep = level.asleep.interval * (elements * seconds) if level.asleep else ZERO
    parts = (part.central for part in (chip, asleep, active))
    return Estimate(level, tick_us, seconds, *parts, chip + asleep + active)


def show(estimates: Sequence[Estimate]) -> str:
    """A line each, and one for the constants of each measured level."""
    rows = [f"{'':<17}{'tick':>10}{'a token':>11}{'power':>10}{'energy':>11}   chip, elements asleep, cycles"]
    for e in estimates:
        shares = (e.chip, e.asleep, e.cycles) if e.level.asleep else (e.chip, e.cycles)
        parts = ", ".join(f"{100 * part / e.joules:.0f} %" for part in shares)
        together = "" if e.level.asleep else " (the first two together)"
        span = f"; {MEASURED}, {1e3 * e.span.low:.3f} to {1e3 * e.span.high:.3f} mJ" if e.level.measured else ""
        rows.append(
            f"{e.level.name:<17}{e.tick_us / 1e3:>7.3f} ms{1e3 * e.seconds:>8.3f} ms{e.watts:>8.3f} W"
            f"{1e3 * e.joules:>8.3f} mJ   {parts}{together}{span}"
        )
    for level in dict.fromkeys(e.level for e in estimates if e.level.measured):
        constants = ", ".join(f"{name} {q.each} ({q.span})" for name, q in level.constants.items())
        rows.append(f"{level.name}, {MEASURED}: {constants}; {level.cycle.source}")
    return "\n".join(rows)
