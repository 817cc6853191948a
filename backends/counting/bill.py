"""Prices a tally on a target: one line a term, each constant with its source, and what is unknown shown as unknown."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.registry import nearest
from rheobase.spiking.tally import Tally

FOLDER = Path(__file__).parent.parent / "targets"
SCALE = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9, "pJ": 1e-12, "fJ": 1e-15}
TERMS = {
    "macs": "multiply-accumulates",
    "acs": "accumulates",
    "products": "elementwise products",
    "state_updates": "state updates",
    "comparisons": "comparisons",
    "events": "events sent",
    "weight_bytes": "bytes of weights",
    "state_bytes": "bytes of state",
    "activation_bytes": "bytes of activations",
}

TRANSCENDENTALS = ("sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "division", "atan")


@dataclass(frozen=True)
class Quantity:
    """An energy an operation (or a byte), with where it comes from and how far to trust it."""

    value: float
    unit: str
    source: str
    confidence: str

    @property
    def joules(self) -> float:
        return self.value * SCALE[self.unit]


@dataclass(frozen=True)
class Target:
    """A machine: its name, what its figures cover, and a Quantity for every term that has a citable one."""

    name: str
    title: str
    note: str
    terms: Mapping[str, Quantity]


@dataclass(frozen=True)
class Line:
    """One term of a bill; quantity and joules are None where the target has no citable figure."""

    term: str
    count: int
    quantity: Quantity | None
    joules: float | None


@dataclass(frozen=True)
class Bill:
    """What a tally costs on a target. No number of it stands for the whole: read the lines.

    lines            one a term with a count above 0
    priced_joules    sum of the lines that have a price
    unpriced         terms without one
    formula_joules   the papers' own formula: macs and acs only
    dense_joules     the same formula with every operand dense: every executed product a multiply-accumulate;
                     both are None where the target has no price for them
    traffic_bytes    logical bytes of weights, state and activations
    uncounted        operators that ran and that no rule counts: their cost is unknown
    """

    target: Target
    tokens: int
    lines: tuple[Line, ...]
    formula_joules: float | None
    dense_joules: float | None
    traffic_bytes: int
    uncounted: tuple[str, ...] = ()

    @property
    def priced_joules(self) -> float:
        return math.fsum(line.joules for line in self.lines if line.joules is not None)

    @property
    def unpriced(self) -> tuple[str, ...]:
        return tuple(line.term for line in self.lines if line.joules is None)

    def to_table(self) -> dict:
        """A plain table, for JSON."""
        lines = [
            {"term": ln.term, "count": ln.count, "joules": ln.joules}
            | (
                {"each": f"{ln.quantity.value:g} {ln.quantity.unit}", "source": ln.quantity.source}
                if ln.quantity
                else {}
            )
            for ln in self.lines
        ]
        names = (
            "tokens",
            "priced_joules",
            "unpriced",
            "formula_joules",
            "dense_joules",
            "traffic_bytes",
            "uncounted",
        )
        return {"target": self.target.name, "lines": lines} | {n: getattr(self, n) for n in names}

    def __str__(self) -> str:
        per = max(self.tokens, 1)

        def row(name, count, each, joules, mark=""):
            cost = f"{joules / per * 1e9:14,.2f} nJ" if joules is not None else f"{'unknown':>17}"
            return f"  {name:<30}{count:>12}{each:>10}{cost} {mark}".rstrip()

        sources: dict[str, int] = {}
        rows = [f"{self.target.title}; a token"]
        for line in self.lines:
            each = mark = ""
            if line.quantity:
                each = f"{line.quantity.value:g} {line.quantity.unit}"
                mark = f"[{sources.setdefault(line.quantity.source, len(sources) + 1)}]"
            rows.append(row(TERMS.get(line.term, line.term), f"{line.count / per:,.1f}", each, line.joules, mark))
        rows.append(row("sum of what is priced", "", "", self.priced_joules))
        rows.append(row("products alone, as papers do", "", "", self.formula_joules))
        rows.append(row("the same, all operands dense", "", "", self.dense_joules))
        rows.append(f"  {'memory traffic':<30}{self.traffic_bytes / per:>12,.0f} bytes")
        if self.unpriced:
            rows.append(f"  unknown here: {', '.join(TERMS.get(t, t) for t in self.unpriced)}")
        if self.uncounted:
            rows.append(f"  not counted: {', '.join(self.uncounted)}")
        rows += [f"  [{number}] {source}" for source, number in sources.items()]
        return "\n".join(rows)


def target_names() -> list[str]:
    """The targets: one TOML file each."""
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def load_target(name_or_path: str | Path) -> Target:
    """Read a target by its name, or a TOML file of one's own.

    raises  ConfigError: no such target;  FormatError: a constant without value, unit, source or confidence
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in target_names():
            raise ConfigError(
                "target",
                "a known target",
                repr(str(name_or_path)),
                nearest(str(name_or_path), target_names()),
            )
        path = FOLDER / f"{name_or_path}.toml"
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FormatError(path, "a target in TOML", str(error), "mend the file") from None
    terms = {}
    entries = table.get("terms")
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise FormatError(path, "a table [terms.NAME] for each constant", "none", "write a target's file")
    for term, entry in entries.items():
        if term not in (*TERMS, *TRANSCENDENTALS):
            raise FormatError(path, "known terms", repr(term), nearest(term, (*TERMS, *TRANSCENDENTALS)))
        for key in ("value", "unit", "source", "confidence"):
            if not entry.get(key):
                raise FormatError(f"{path} terms.{term}", f"a {key}", "none", "cite where the constant comes from")
        if type(entry["value"]) not in (int, float) or not 0 < entry["value"] < math.inf:
            raise FormatError(f"{path} terms.{term}", "a value above 0", repr(entry["value"]), "mend the value")
        if entry["unit"] not in SCALE:
            raise FormatError(f"{path} terms.{term}", f"a unit among {', '.join(SCALE)}", entry["unit"], "convert it")
        terms[term] = Quantity(float(entry["value"]), entry["unit"], entry["source"], entry["confidence"])
    return Target(path.stem, table.get("title", path.stem), table.get("note", ""), terms)


def price(tally: Tally, target: Target | str) -> Bill:
    """The bill of a tally on a target, for all its tokens.

    raises  ConfigError: no such target;  FormatError: a target with a constant that has no source
    """
    if not isinstance(target, Target):
        target = load_target(target)
    total = tally.total
    counts = {term: getattr(total, term) for term in TERMS} | dict(total.transcendentals)
    lines = []
    for term, number in counts.items():
        if number:
            quantity = target.terms.get(term)
            lines.append(Line(term, number, quantity, number * quantity.joules if quantity else None))
    priced = {line.term: line.joules for line in lines}
    formula = [priced[t] for t in ("macs", "acs") if t in priced]
    mac = target.terms.get("macs")
    return Bill(
        target=target,
        tokens=tally.tokens,
        lines=tuple(lines),
        formula_joules=None if None in formula else math.fsum(formula),
        dense_joules=total.dense_macs * mac.joules if mac else None,
        traffic_bytes=total.weight_bytes + total.state_bytes + total.activation_bytes,
        uncounted=tally.uncounted,
    )
