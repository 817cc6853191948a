"""What the sections of docs/claims.md share: a text, ways to write figures, and the ratio of two tallies' energies."""

import itertools
import re
import textwrap
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor

from rheobase.backends.counting import Interval, load_target
from rheobase.backends.counting.bill import counted, figure
from rheobase.backends.counting.target import TERMS
from rheobase.spiking.tally import Tally

ROOT = Path(__file__).parent.parent
WHOLE = {"break_on_hyphens": False, "break_long_words": False}


def sample(n_tokens: int) -> Tensor:
    """The first characters of the definitions in the LICENSE, blanks run together: their codes, [1, n_tokens]."""
    text = " ".join((ROOT / "LICENSE").read_text().split())
    text = text[text.index('"License" shall mean') :]
    return torch.tensor([[ord(letter) for letter in text[:n_tokens]]])


def table(head: Collection[str], rows: Iterable[Collection[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def power(x: float) -> str:
    """Three digits and a power of ten, such as 8.71e10."""
    mantissa, exponent = f"{x:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def span(interval: Interval | None, factor: float = 1.0) -> str:
    """Central figure and interval, scaled by a factor."""
    if interval is None:
        return "unknown"
    low, central, high = (figure(x * factor) for x in (interval.low, interval.central, interval.high))
    return f"{central} ({low} to {high})" if low != high else central


def times(interval: Interval | None) -> str:
    """A ratio and its interval, to two places."""
    if interval is None:
        return "unknown"
    low, central, high = (f"{x:.2f}" for x in (interval.low, interval.central, interval.high))
    return f"{central} ({low} to {high})" if low != high else central


def words(terms: Iterable[str]) -> str:
    """Terms of a bill by the names that bills give them."""
    return ", ".join(TERMS.get(term, term) for term in terms)


def ratio(a: Tally, b: Tally, target: str, terms: Collection[str] | None = None) -> Interval | None:
    """Energy of a over that of b, by these terms (all that are priced, if not given), a price being the same in both.

    The interval is exact over all prices within theirs: a quotient of sums is extreme where each is at an end.

    returns  None where a product of either has no price, and is asked for
    """
    prices = load_target(target).terms
    one, other = counted(a.total), counted(b.total)
    used = [t for t in one | other if (one.get(t, 0) or other.get(t, 0)) and (terms is None or t in terms)]
    if any(t in ("macs", "acs") and t not in prices for t in used):
        return None
    used = [t for t in used if t in prices]

    def quotient(each: Iterable[float]) -> float:
        joules = list(zip(used, each, strict=True))
        return sum(p * one.get(t, 0) for t, p in joules) / sum(p * other.get(t, 0) for t, p in joules)

    intervals = [prices[t].interval for t in used]
    found = [quotient(corner) for corner in itertools.product(*({i.low, i.high} for i in intervals))]
    return Interval(min(found), quotient(i.central for i in intervals), max(found))


def flow(text: str) -> str:
    """Paragraphs and bullets filled to 120 columns; tables, headings and commands as they are."""
    blocks = []
    for block in text.strip().split("\n\n"):
        if block[0] not in "|#`":
            parts = re.split(r"\n(?=- )", block)
            block = "\n".join(
                textwrap.fill(" ".join(p.split()), 120, subsequent_indent="  " * p.startswith("- "), **WHOLE)
                for p in parts
            )
        blocks.append(block)
    return "\n\n".join(blocks) + "\n"
