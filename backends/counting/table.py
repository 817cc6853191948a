"""A tally for a terminal: operations and bytes a token, by operator."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

from rheobase.backends.counting.bill import figure
from rheobase.spiking.tally import Counts, Tally

WIDTH, NAME = 120, 30
"""Columns of the terminal, and those that an operator's name has at least."""

UNITS = {1: "", 10**3: ", thousands", 10**6: ", millions", 10**9: ", billions"}

Kinds = Mapping[str, Callable[[Counts], int]]
WORK: Kinds = {
    "MACs": lambda c: c.macs,
    "ACs": lambda c: c.acs,
    "products": lambda c: c.products,
    "additions": lambda c: c.adds,
    "comparisons": lambda c: c.comparisons,
    "transcendentals": lambda c: sum(c.transcendentals.values()),
}
"""Operations that ran, each in one kind alone."""

BYTES: Kinds = {
    "weights": lambda c: c.weight_bytes,
    "state": lambda c: c.state_bytes,
    "activations": lambda c: c.activation_bytes,
}
OPERATIONS: Kinds = {"dense MACs": lambda c: c.dense_macs, **WORK, "events": lambda c: c.events}
TRAFFIC: Kinds = {**BYTES, "all bytes": lambda c: sum(read(c) for read in BYTES.values())}


def show(tally: Tally) -> str:
    """Operations a token by operator, then bytes, values of state, what was not counted; at most 120 columns wide."""
    per = max(tally.tokens, 1)
    total = tally.total
    lines = [*_columns("operations a token", OPERATIONS, tally), "", *_columns("bytes a token", TRAFFIC, tally), ""]
    written, reached = figure(total.state_updates / per), figure(total.event_updates / per)
    lines.append(f"state values a token: {written} written, {reached} in steps that an input reached")
    if total.transcendentals:
        kinds = ", ".join(f"{kind} {figure(n / per)}" for kind, n in total.transcendentals.items() if n)
        lines += textwrap.wrap(f"transcendentals a token: {kinds}", WIDTH, subsequent_indent="  ")
    if tally.uncounted:
        names = f"not counted: {', '.join(tally.uncounted)}"
        lines += textwrap.wrap(names, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def _columns(title: str, columns: Kinds, tally: Tally) -> list[str]:
    """A heading, a row an operator that has any of it, and a total; in thousands or more where that is too wide."""
    numbers = {name: [read(c) for read in columns.values()] for name, c in tally.operators.items()}
    numbers = {name: row for name, row in numbers.items() if any(row)}
    numbers["total"] = [read(tally.total) for read in columns.values()]
    for unit, word in UNITS.items():
        per = max(tally.tokens, 1) * unit
        rows = [
            (title + word, list(columns)),
            *((name, [figure(n / per) for n in row]) for name, row in numbers.items()),
        ]
        widths = [2 + max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
        if WIDTH - sum(widths) >= NAME:
            break
    room = min(max(len(name) for name, _ in rows), WIDTH - sum(widths))
    return [f"{_short(name, room):<{room}}{_cells(cells, widths)}" for name, cells in rows]


def _cells(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _short(name: str, room: int) -> str:
    """A name too long for its column loses its middle."""
    return name if len(name) <= room else f"{name[: (room - 1) // 2]}…{name[len(name) - room // 2 :]}"
