"""A level's constants out of a board's power logs: least squares over windows, with 95 % intervals.

    watts_i = chip + elements x asleep + cycle x r_i + lag x (r_i-1 - r_i) + lead x (r_i+1 - r_i)

with r_i the cycles a second in window i. A log whose clock or meter is late or early by a part of a window shows a part
of the window before or after: lag and lead take that, so that `cycle` has all the energy that comes with a cycle. They
are fitted and not kept.

With one number of elements chip and asleep cannot be told apart: their sum is `idle`, for that number alone.

What a window leaves over is like what its neighbours do (warmth, supply, the meter's filter), so that windows are not
independent, and no interval is taken from them. The fit is repeated without a block of time at a time, or without a
recording where there are several, and

    variance = (G - 1) / G x sum over the G fits of (constant without one - constant of all)^2

Student's t of G - 1 degrees of freedom makes it an interval: the jackknife over clusters, CV3 of MacKinnon, Nielsen and
Webb, arXiv 2205.03288. It allows for whatever lasts shorter than a block. A block must see idle and running both, so
that a slower drift falls on both. A recording's own offset, such as of the day, shows among several recordings alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rheobase.backends.counting.target import Quantity
from rheobase.backends.exporters.spinnaker2.estimate import MEASURED, Level
from rheobase.backends.exporters.spinnaker2.power import Recording, read_recording
from rheobase.spiking.errors import FormatError

FEWEST, MOST = 6, 10
"""blocks, or recordings at least: with more blocks, noise would outlast them sooner"""
WINDOWS_A_BLOCK = 5
FARTHEST = 100
"""windows by which a log is moved to find a clock that is late, or a tenth of the recording"""
MUCH_LESS = 0.8
"""of what is left over: by chance, other windows leave a little less"""
SMALLEST = 1e-6
"""of the largest singular value: what is below it is not determined"""
T_95 = (2.571, 2.447, 2.365, 2.306, 2.262)
"""0.975 quantiles of Student's t, 5 to 9 degrees of freedom; for more recordings the last is taken, which is wider"""
UNITS = {"chip": ("mW", 1e3), "asleep": ("mW", 1e3), "idle": ("mW", 1e3), "cycle": ("pJ", 1e12)}


@dataclass(frozen=True)
class Calibration:
    """A level as published and as measured, and what the fit stood on."""

    before: Level
    after: Level
    recordings: int
    windows: int
    window_s: float
    clusters: str

    def __str__(self):
        lines = [
            f"{self.after.name}: {self.recordings} recording(s), {self.windows} windows of {self.window_s:.3g} s, "
            f"95 % intervals from {self.clusters}",
            f"  {'':<8}{'published':>14}   {MEASURED}",
        ]
        for name, quantity in self.after.constants.items():
            lines.append(f"  {name:<8}{self.published(name):>14}   {quantity.each}, {quantity.span}: {quantity.scope}")
        if n := self.after.elements:
            lines.append(f"chip and elements asleep cannot be told apart with {n} elements throughout: idle is both")
        return "\n".join(lines)

    def published(self, name: str) -> str:
        """The constant that is replaced, with its unit."""
        if name != "idle":
            return self.before.constants[name].each
        return f"{self.before.chip.central + self.after.elements * self.before.asleep.central:g} mW"


def calibrate(pairs: Sequence[tuple[str | Path, str | Path]]) -> Calibration:
    """Measured constants of a level.

    pairs   (power log, trace) of each recording: one, in which idle and running take turns; or six and more, which
            may differ in the number of elements
    raises  FormatError as `read_recording`, and: levels that differ, a log that fits the trace better at another time,
            too few windows or turns, constants that the recordings do not fix or whose interval is wider than they are
    """
    recordings = [read_recording(*pair) for pair in pairs]
    first = recordings[0]
    for other in recordings:
        if other.level != first.level:
            raise FormatError(other.where, first.level.name, other.level.name, "calibrate one level at a time")
        check_clocks(other)
    if len({r.source for r in recordings}) < len(recordings):
        raise FormatError(first.where, "recordings that differ", "one given twice", "give each once")
    several = len({r.elements for r in recordings}) > 1
    names = ["chip", "asleep", "cycle"] if several else ["idle", "cycle"]
    values, halves, clusters = fit(recordings)
    source = "; ".join(r.source for r in recordings)
    found = {}
    for name, value, half in zip(names, values, halves, strict=True):
        unit, scale = UNITS[name]
        low, central, high = (float(f"{scale * x:.6g}") for x in (value - half, value, value + half))
        if high - low > central:
            got = f"{name} {central:.3g} {unit}, {low:.3g} to {high:.3g}"
            raise FormatError(first.where, "intervals narrower than their values", got, "record longer, in more turns")
        found[name] = Quantity(low, central, high, unit, source, MEASURED, "22 nm FDSOI", "any", _scope(name, first))
    old = first.level
    chip, elements = (found["chip"], None) if several else (found["idle"], first.elements)
    new = Level(old.name, old.mhz, found.get("asleep"), found["cycle"], chip, elements)
    return Calibration(old, new, len(recordings), sum(len(r.rate) for r in recordings), first.window_s, clusters)


def _scope(name: str, recording: Recording) -> str:
    return {
        "chip": "all that the meter covers, elements off",
        "asleep": "an element asleep",
        "idle": f"all that the meter covers, {recording.elements} elements asleep",
        "cycle": "an active cycle of an element, with memory, network and supply as the meter covers them",
    }[name]


def fit(recordings: Sequence[Recording]) -> tuple[np.ndarray, np.ndarray, str]:
    """(idle, cycle) or, where elements differ, (chip, asleep, cycle), in W and J; half of each interval; and of what
    clusters it is. Raises FormatError as `calibrate`."""
    where, several = recordings[0].where, len(recordings) > 1
    cut = 1 if several else blocks(recordings[0])
    if several and len(recordings) < FEWEST:
        raise FormatError(where, f"one recording, or {FEWEST} and more", str(len(recordings)), "record more")
    for r in recordings if several else ():
        if len(r.rate) < WINDOWS_A_BLOCK:
            need = f"{WINDOWS_A_BLOCK} windows of {r.window_s:.3g} s in common with the trace"
            raise FormatError(r.where, need, str(len(r.rate)), "record longer")
    differ = len({r.elements for r in recordings}) > 1
    groups = [part for r in recordings for part in np.array_split(_rows(r, differ), cut)]
    values = _solve(groups, where)
    without = np.array([_solve(groups[:g] + groups[g + 1 :], where) for g in range(len(groups))])
    freedom = len(groups) - 1
    spread = np.sqrt(freedom / len(groups) * ((without - values) ** 2).sum(0))
    half = T_95[min(freedom - FEWEST + 1, len(T_95) - 1)] * spread
    return values, half, f"{len(groups)} {'recordings' if several else 'blocks'}"


def blocks(recording: Recording) -> int:
    """Into how many blocks of time a recording can be cut, each of which sees idle and running: the most up to 10."""
    rate, where = recording.rate[1:-1], recording.where
    if len(rate) < FEWEST * WINDOWS_A_BLOCK:
        need = f"{FEWEST * WINDOWS_A_BLOCK + 2} windows of {recording.window_s:.3g} s"
        raise FormatError(where, f"{need} in common with the trace", str(len(recording.rate)), "record longer")
    for cut in range(min(MOST, len(rate) // WINDOWS_A_BLOCK), FEWEST - 1, -1):
        if min(np.std(block) for block in np.array_split(rate, cut)) > max(np.std(rate) / 2, 1e-3 * np.mean(rate)):
            return cut
    got = f"{rate.min() / 1e6:.4g} to {rate.max() / 1e6:.4g} M cycles a second, in fewer"
    raise FormatError(where, f"{FEWEST} blocks of time that see idle and running both", got, "let them take turns")


def check_clocks(recording: Recording) -> None:
    """Raise FormatError where the log, moved by two windows or more against the trace, leaves much less over: the two
    clocks differ, and the energy of a cycle would come out too small."""
    n = len(recording.rate)
    most = min(n // 10, FARTHEST)
    y, left = recording.watts[most : n - most], {}
    for shift in range(-most, most + 1) if most > 1 else ():
        (xx, xy), (_, yy) = np.cov(recording.rate[most - shift : n - most - shift], y)
        left[shift] = yy - xy * xy / xx if xx > 0 else yy
    # turns that come at equal times fit at many shifts about as well: the nearest is named
    best = min((s for s in left if left[s] <= 1.5 * min(left.values())), key=abs, default=0)
    if abs(best) > 1 and left[best] < MUCH_LESS * left[0]:
        got = f"a log that fits the trace better if it is {best * recording.window_s:+.3g} s late"
        raise FormatError(recording.where, "one clock", got, "set the clocks, and record it anew")


def _rows(recording: Recording, differ: bool) -> np.ndarray:
    """Per window: 1, elements if they differ, cycles a second, its two differences, watts. The first and last are left
    out, since they lack a neighbour."""
    before, own, after = recording.rate[:-2], recording.rate[1:-1], recording.rate[2:]
    one = np.ones(len(own))
    elements = [recording.elements * one] if differ else []
    return np.column_stack([one, *elements, own, before - own, after - own, recording.watts[1:-1]])


def _solve(groups: Sequence[np.ndarray], where: str) -> np.ndarray:
    """The constants, without the two weights of neighbours; raises FormatError where they are not determined."""
    rows = np.concatenate(groups)
    x, y, count = rows[:, :-1], rows[:, -1], rows.shape[1] - 3
    scale = np.maximum(np.abs(x).max(0), np.finfo(float).tiny)
    scale[count:] = scale[count - 1]
    x = x / scale
    # the weights of neighbours need not be determined, where no window differs from the next
    rank = np.linalg.matrix_rank(x, rtol=SMALLEST) - np.linalg.matrix_rank(x[:, count:], rtol=SMALLEST)
    if rank < count:
        got = f"{rank} that the recordings fix, or fix without one of them"
        remedy = "let cycles a second, and the number of elements if it does, differ more often"
        raise FormatError(where, f"{count} constants", got, remedy)
    return np.linalg.lstsq(x, y, rcond=SMALLEST)[0][:count] / scale[:count]
