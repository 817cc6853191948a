"""Machines that can be priced: for each term of a tally an interval of energy, with its source and what it covers."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.registry import nearest
from rheobase.spiking.tally import TRANSCENDENTALS

FOLDER = Path(__file__).parent.parent / "targets"
ENERGIES = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9, "pJ": 1e-12, "fJ": 1e-15}
POWERS = {"W": 1.0, "mW": 1e-3, "uW": 1e-6}
TERMS = {
    "macs": "multiply-accumulates",
    "acs": "accumulates",
    "products": "elementwise products",
    "adds": "elementwise additions",
    "state_updates": "state updates",
    "comparisons": "comparisons",
    "events": "events sent",
    "deliveries": "events delivered",
    "weight_bytes": "bytes of weights",
    "state_bytes": "bytes of state",
    "activation_bytes": "bytes of activations",
}
"""What a target may price, by field of `Counts`, and how it is called; a field that `Counts` lacks is passed over."""

KEYS = ("title", "note", "twin", "dense", "terms", "idle_watts")
TEXTS = ("unit", "source", "confidence", "node", "precision", "scope")


@dataclass(frozen=True)
class Interval:
    """A quantity known to lie between two values, low <= central <= high."""

    low: float
    central: float
    high: float

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(self.low + other.low, self.central + other.central, self.high + other.high)

    def __mul__(self, factor: float) -> "Interval":
        """Scaled by a factor that is not negative."""
        return Interval(self.low * factor, self.central * factor, self.high * factor)


ZERO = Interval(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Quantity:
    """A published energy an operation or a byte (or an idle power), and how far to trust it.

    low, central, high  in `unit`; all equal where the source gives one figure
    source              who published it; each of them where published figures disagree
    confidence          measured, simulated or derived, at first or second hand, and what it assumes
    node, precision     of the silicon, such as "45 nm" and "fp32"
    scope               what the figure covers, such as "arithmetic only"
    """

    low: float
    central: float
    high: float
    unit: str
    source: str
    confidence: str
    node: str
    precision: str
    scope: str

    @property
    def value(self) -> float:
        """The central figure, in `unit`."""
        return self.central

    @property
    def interval(self) -> Interval:
        """In joules, or watts."""
        return Interval(self.low, self.central, self.high) * (ENERGIES | POWERS)[self.unit]

    @property
    def each(self) -> str:
        """The central figure with its unit."""
        return f"{self.central:g} {self.unit}"

    @property
    def span(self) -> str:
        """The interval with its unit, or that there is none."""
        return f"{self.low:g} to {self.high:g} {self.unit}" if self.low < self.high else "one figure"

    @property
    def citation(self) -> str:
        """The source and all that qualifies it, in one line."""
        return f"{self.source} ({self.node}, {self.precision}; {self.scope}; {self.confidence})"


@dataclass(frozen=True)
class Target:
    """A machine: what its figures leave out, and a Quantity for every term that has a citable one.

    idle_watts  its power when nothing runs, None where no citable figure was found
    twin        the target where a dense counterpart of an event-driven run would run, None: the same
    dense       whether it skips no zeros, so that every executed product is a multiply-accumulate there
    """

    name: str
    title: str
    note: str
    terms: Mapping[str, Quantity]
    idle_watts: Quantity | None = None
    twin: str | None = None
    dense: bool = False


def target_names() -> list[str]:
    """The targets: one TOML file each."""
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def load_target(name_or_path: str | Path) -> Target:
    """Read a target by its name, or a TOML file of one's own: title, note, twin, dense, [terms.NAME], [idle_watts].

    Each constant has `value` (the central figure), `unit`, `source`, `confidence`, `node`, `precision` and `scope`,
    and `low` and `high` unless its source gives one figure alone.

    raises  ConfigError: no such target;  FormatError: a constant that lacks one of these, or low <= value <= high
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in target_names():
            remedy = nearest(str(name_or_path), target_names())
            raise ConfigError("target", "a known target", repr(str(name_or_path)), remedy)
        path = FOLDER / f"{name_or_path}.toml"
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(path, "a target in TOML", str(error), "mend the file") from None
    entries = table.get("terms")
    if not isinstance(entries, dict):
        raise FormatError(path, "a table [terms.NAME] for each constant", "none", "write a target's file")
    for key in table:
        if key not in KEYS:
            raise FormatError(path, "known keys", repr(key), nearest(key, KEYS))
    for key in ("title", "note"):
        if not isinstance(table.get(key, ""), str):
            raise FormatError(f"{path} {key}", "a text", repr(table[key]), "put it in quotes")
    terms = {}
    for term, entry in entries.items():
        if term not in (*TERMS, *TRANSCENDENTALS):
            raise FormatError(path, "known terms", repr(term), nearest(term, (*TERMS, *TRANSCENDENTALS)))
        terms[term] = read_quantity(f"{path} terms.{term}", entry, ENERGIES)
    idle, twin = table.get("idle_watts"), table.get("twin")
    if twin is not None and twin not in target_names():
        raise FormatError(f"{path} twin", "a known target", repr(twin), nearest(str(twin), target_names()))
    dense = table.get("dense", False)
    if not isinstance(dense, bool):
        raise FormatError(f"{path} dense", "true or false", repr(dense), "say whether it skips no zeros")
    return Target(
        name=path.stem,
        title=table.get("title", path.stem),
        note=table.get("note", ""),
        terms=terms,
        idle_watts=None if idle is None else read_quantity(f"{path} idle_watts", idle, POWERS),
        twin=twin,
        dense=dense,
    )


def read_quantity(where: str, entry: object, units: Mapping[str, float]) -> Quantity:
    """A constant from its table, in one of `units`; raises FormatError as `load_target`."""
    if not isinstance(entry, dict):
        raise FormatError(where, "a table with value, unit and source", repr(entry), "write one")
    for key in entry:
        if key not in ("low", "value", "high", *TEXTS):
            raise FormatError(where, "known keys", repr(key), nearest(key, ("low", "value", "high", *TEXTS)))
    for key in TEXTS:
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise FormatError(where, f"a {key}", repr(entry.get(key)), "cite where the constant comes from")
    if entry["unit"] not in units:
        raise FormatError(where, f"a unit among {', '.join(units)}", entry["unit"], "convert it")
    if ("low" in entry) != ("high" in entry):
        raise FormatError(where, "low and high together", "one of them", "give both or neither")
    value = entry.get("value")
    bounds = (entry.get("low", value), value, entry.get("high", value))
    if any(type(x) not in (int, float) or not 1e-300 < x < 1e300 for x in bounds):
        raise FormatError(where, "a value, and low and high if any, above 0", repr(bounds), "mend the figures")
    if not bounds[0] <= bounds[1] <= bounds[2]:
        raise FormatError(where, "low <= value <= high", repr(bounds), "mend the figures")
    return Quantity(*(float(x) for x in bounds), **{key: entry[key] for key in TEXTS})
