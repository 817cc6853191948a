"""Prices a tally on a target: a line a term, an interval each, its source, and what is unknown shown as unknown."""

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rheobase.backends.counting.target import TERMS, ZERO, Interval, Quantity, Target, load_target
from rheobase.spiking.tally import Counts, Tally

WIDTH = 96


@dataclass(frozen=True)
class Line:
    """One term of a bill; quantity and joules are None where the target has no citable figure."""

    term: str
    count: int
    quantity: Quantity | None
    joules: Interval | None


@dataclass(frozen=True)
class Bill:
    """What a tally costs on a target. No number of it stands for the whole: read the lines.

    lines            one a term with a count above 0
    priced_joules    sum of the lines that have a price, None where none has
    unpriced         terms without one
    formula_joules   the papers' own formula: macs and acs only
    dense_joules     the same formula with every operand dense: every executed product a multiply-accumulate;
                     both are None where the target has no price for them, or no product that ran is counted
    traffic_bytes    logical bytes of weights, state and activations
    uncounted        operators that ran and that no rule counts: their cost is unknown

    A sum of intervals takes every constant at its low, at its central or at its high figure at once.
    """

    target: Target
    tokens: int
    lines: tuple[Line, ...]
    formula_joules: Interval | None
    dense_joules: Interval | None
    traffic_bytes: int
    uncounted: tuple[str, ...] = ()

    @property
    def priced_joules(self) -> Interval | None:
        """Sum of the lines that have a price, None where none has."""
        priced = [line.joules for line in self.lines if line.joules is not None]
        return sum(priced, ZERO) if priced else None

    @property
    def unpriced(self) -> tuple[str, ...]:
        return tuple(line.term for line in self.lines if line.joules is None)

    def to_table(self) -> dict:
        """A plain table, for JSON."""
        names = ("tokens", "unpriced", "traffic_bytes", "uncounted")
        sums = {name: getattr(self, name) for name in ("priced_joules", "formula_joules", "dense_joules")}
        return {
            "target": self.target.name,
            "note": self.target.note,
            "lines": [dataclasses.asdict(line) for line in self.lines],
            "idle_watts": self.target.idle_watts and dataclasses.asdict(self.target.idle_watts),
            **{name: joules and dataclasses.asdict(joules) for name, joules in sums.items()},
            **{name: getattr(self, name) for name in names},
        }

    def __str__(self) -> str:
        per = max(self.tokens, 1)
        sources: dict[str, int] = {}

        def cite(quantity: Quantity) -> str:
            return f"[{sources.setdefault(quantity.citation, len(sources) + 1)}]"

        def row(name, count, each, joules, mark=""):
            cost = nanojoules(joules, per)
            left = f"  {name:<28} {count:>11} {each:>8}"  # a long price takes of the place of the joules
            return f"{left} {cost[0]:>{63 - len(left)}} {cost[1]:>26} {mark}".rstrip()

        rows = [f"{self.target.title}; a token", f"{'nJ':>64}{'low to high':>27}"]
        for line in self.lines:
            each, mark = (line.quantity.each, cite(line.quantity)) if line.quantity else ("", "")
            rows.append(row(TERMS.get(line.term, line.term), figure(line.count / per), each, line.joules, mark))
        rows.append(row("sum of what is priced", "", "", self.priced_joules))
        rows.append(row("products alone, as papers do", "", "", self.formula_joules))
        rows.append(row("the same, all operands dense", "", "", self.dense_joules))
        rows.append(f"  {'memory traffic':<28}{figure(self.traffic_bytes / per):>12} bytes")
        notes = []
        if self.unpriced:
            notes.append(f"  unknown here: {', '.join(TERMS.get(t, t) for t in self.unpriced)}")
        if self.uncounted:
            notes.append(f"  not counted: {', '.join(self.uncounted)}")
        idle = self.target.idle_watts
        if idle:
            notes.append(
                f"  idle power {idle.each}, {idle.span} {cite(idle)}: joules a token depend on how long a token takes"
            )
        notes += [f"  [{number}] {citation}" for citation, number in sources.items()]
        rows += [textwrap.fill(note, WIDTH, subsequent_indent="      ", break_on_hyphens=False) for note in notes]
        return "\n".join(rows)


def price(tally: Tally, target: Target | str) -> Bill:
    """The bill of a tally on a target, in joules for all its tokens, not for one; on a target that skips no zeros its
    products are all dense.

    raises  ConfigError: no such target;  FormatError: a target with a constant that has no source
    """
    if not isinstance(target, Target):
        target = load_target(target)
    total = tally.total
    lines, ran = [], counted(total)
    if target.dense:
        ran |= {"macs": total.dense_macs, "acs": 0}
    for term, number in ran.items():
        if number:
            quantity = target.terms.get(term)
            lines.append(Line(term, number, quantity, quantity.interval * number if quantity else None))
    formula = [line.joules for line in lines if line.term in ("macs", "acs")]
    mac = target.terms.get("macs")
    blind = bool(tally.uncounted) and not total.dense_macs
    return Bill(
        target=target,
        tokens=tally.tokens,
        lines=tuple(lines),
        formula_joules=None if blind or None in formula else sum(formula, ZERO),
        dense_joules=mac.interval * total.dense_macs if mac and not blind else None,
        traffic_bytes=total.weight_bytes + total.state_bytes + total.activation_bytes,
        uncounted=tally.uncounted,
    )


def counted(total: Counts) -> dict[str, int]:
    """Every term that a target may price, and how often it happened."""
    fields = {term: getattr(total, term) for term in TERMS if term in Counts.__dataclass_fields__}
    return fields | dict(total.transcendentals)


def overview(bills: Sequence[Bill]) -> str:
    """One tally on several targets: the sums side by side where its products have a price, and what is unknown."""
    rows = [f"{'nJ a token':<18}{'products alone':>37}{'all that is priced':>37} unknown"]
    for bill in bills:
        if bill.formula_joules is not None:
            sums = (nanojoules(joules, max(bill.tokens, 1)) for joules in (bill.formula_joules, bill.priced_joules))
            cells = "".join(f" {central:>11} {span:>24}" for central, span in sums)
            rows.append(f"{bill.target.name:<18}{cells} {len(bill.unpriced)} of {len(bill.lines)}")
    lacking = [bill for bill in bills if bill.formula_joules is None]
    unpriced = [bill.target.name for bill in lacking if not {"macs", "acs"}.isdisjoint(bill.unpriced)]
    unseen = [bill.target.name for bill in lacking if bill.target.name not in unpriced]
    uncounted = dict.fromkeys(name for bill in bills for name in bill.uncounted)
    rest = {"no price for its products": unpriced, "no product counted": unseen, "not counted": uncounted}
    for said, names in rest.items():
        if names:
            rows.append(textwrap.fill(f"{said}: {', '.join(names)}", WIDTH, subsequent_indent="  "))
    return "\n".join(rows)


def nanojoules(joules: Interval | None, tokens: int) -> tuple[str, str]:
    """The central figure a token, and its interval."""
    if joules is None:
        return "unknown", ""
    scaled = joules * (1e9 / tokens)
    span = f"{figure(scaled.low)} to {figure(scaled.high)}" if joules.low < joules.high else "one figure"
    return figure(scaled.central), span


def figure(x: float) -> str:
    """A number to three digits, or all those before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
