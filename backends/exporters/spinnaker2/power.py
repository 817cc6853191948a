"""What the owner of a board brings to a calibration: a power log, and the trace of the same run with its ticks' times.

log    CSV, first line `seconds,watts`: a sample a line, when it was taken and the mean power since the one before
trace  HDF5 as in `rheobase.backends.trace`, and in it
           tick_seconds [n]        when the host had the log of each tick
           cycles [n, elements]    what HAL_CYCLES said then, for every element that was switched on: its active cycles
                                   since the line before; integers
           level                   an attribute, such as "0.8 V, 300 MHz"

Both in Unix seconds, of one clock. Between two lines of the trace nothing else runs. The first line's cycles are not
used: since when they count is not known.
"""

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rheobase.backends.exporters.spinnaker2.estimate import Level, level_named
from rheobase.backends.trace import open_trace
from rheobase.spiking.errors import FormatError
from rheobase.spiking.files import read_bytes, sha256

HEADER = "seconds,watts"
EPOCH = datetime(2017, 1, 1, tzinfo=UTC).timestamp(), datetime(2100, 1, 1, tzinfo=UTC).timestamp()
"""Times outside of it are of another clock than Unix's, or in another unit."""
STEPS_A_WINDOW = 10
LONGEST_STEP = 5
"""median steps between two samples of a log without a gap"""
OVER_CLOCK = 1.05
"""An element's cycles a second in units of the clock: the host's times jitter a little."""


@dataclass(frozen=True, eq=False)
class Recording:
    """A run of some elements at one level, in windows: mean watts [windows], cycles a second of all elements [windows].

    window_s  as long as 10 samples or 10 ticks, whichever is longer
    source    both files with their hashes, and the day, for what is made of them
    """

    where: str
    level: Level
    elements: int
    window_s: float
    watts: np.ndarray
    rate: np.ndarray
    source: str


def read_recording(log: str | Path, trace: str | Path) -> Recording:
    """Read both files and cut what they share into windows.

    raises  FormatError: not in the formats above; times that do not rise or are not Unix seconds; a sample or count
            that is no number or below 0; a gap in the log; a counter that reads 0 throughout or counts faster than
            the clock; no time in common
    """
    log_s, watts = read_log(log)
    with open_trace(trace) as file:
        for name in ("tick_seconds", "cycles"):
            if name not in file.items:
                raise FormatError(trace, f"the dataset {name}", "none", "add what the board logged")
        said = file.items[""].attributes
        if "level" not in said:
            raise FormatError(trace, "the attribute level", "none", 'set it, such as to "0.8 V, 300 MHz"')
        level, simulator = level_named(str(said["level"]), trace), said["simulator"]
        tick_s, cycles = file.read("tick_seconds"), file.read("cycles")
    _check_ticks(trace, tick_s, cycles)
    begin, end = max(log_s[0], tick_s[0]), min(log_s[-1], tick_s[-1])
    if begin >= end:
        spans = (f"{name} {t[0]:.3f} to {t[-1]:.3f}" for name, t in (("log", log_s), ("trace", tick_s)))
        raise FormatError(log, f"a time in common with {trace}", ", ".join(spans), "set both clocks to Unix seconds")
    _check_gaps(log, log_s, begin, end)
    window_s = STEPS_A_WINDOW * float(max(np.median(np.diff(log_s)), np.median(np.diff(tick_s))))
    edges = begin + window_s * np.arange(int((end - begin) / window_s) + 1)
    joules = np.append(0.0, np.cumsum(np.diff(log_s) * watts[1:]))
    rate = np.zeros(len(edges) - 1)
    for element, column in enumerate(cycles[1:].T):
        own = _active(edges, tick_s, column, 1e6 * level.mhz)
        if own.max(initial=0) > OVER_CLOCK * 1e6 * level.mhz:
            got = f"{own.max() / 1e6:.3g} M"
            raise FormatError(f"{trace} cycles[:, {element}]", f"{level.mhz} M a second at most", got, "mend the times")
        rate += own
    day = datetime.fromtimestamp(begin, UTC).date()
    files = (f"{Path(p).name} (sha256 {sha256(read_bytes(p, 'a file'))[:16]})" for p in (log, trace))
    source = f"{' with '.join(files)} of {simulator}, recorded {day}"
    return Recording(str(log), level, cycles.shape[1], window_s, _means(edges, log_s, joules), rate, source)


def read_log(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Times and watts of a power log, [samples] each; raises FormatError as `read_recording`."""
    try:
        head, _, rest = read_bytes(path, "a power log").decode("utf-8-sig").partition("\n")
        if head.strip() != HEADER or not rest.strip():
            raise FormatError(path, f"the line {HEADER}, and samples", repr(head[:40]), "write it so")
        table = np.loadtxt(io.StringIO(rest), delimiter=",", ndmin=2, comments=None)
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(path, "two numbers a line", str(error), "mend the log") from None
    if table.shape[1] != 2 or len(table) < 2:
        raise FormatError(path, "two numbers a line, and two lines", f"{table.shape[::-1]}", "mend the log")
    seconds, watts = table.T
    _check_times(path, seconds)
    if wrong := np.flatnonzero(~(watts >= 0) | np.isinf(watts)).tolist():
        raise FormatError(f"{path} sample {wrong[0]}", "watts of 0 or more", f"{watts[wrong[0]]}", "mend the log")
    return seconds, watts


def _means(edges: np.ndarray, seconds: np.ndarray, summed: np.ndarray) -> np.ndarray:
    """What comes a second in each window, of a quantity summed up to each of `seconds`."""
    # times from the first edge: Unix seconds leave a float too few digits for a product of two
    at = np.interp(edges - edges[0], seconds - edges[0], summed)
    return np.diff(at) / np.diff(edges - edges[0])


def _active(edges: np.ndarray, tick_s: np.ndarray, cycles: np.ndarray, hertz: float) -> np.ndarray:
    """An element's cycles a second in each window, of its cycles at each tick but the first."""
    # it is active at the clock until it logs: after a long sleep its cycles are not of all that time
    begins = np.maximum(tick_s[:-1], tick_s[1:] - cycles / hertz)
    counted = np.repeat(np.cumsum(np.append(0.0, cycles)), 2)[1:-1]
    return _means(edges, np.column_stack([begins, tick_s[1:]]).ravel(), counted)


def _check_gaps(where: object, seconds: np.ndarray, begin: float, end: float) -> None:
    steps = np.diff(seconds)
    inside, usual = (seconds[1:] > begin) & (seconds[:-1] < end), np.median(steps)
    longest = np.argmax(np.where(inside, steps, 0))
    if steps[longest] > LONGEST_STEP * usual:
        got = f"{steps[longest]:.3g} s without one after {seconds[longest]:.3f}"
        raise FormatError(where, f"a sample every {usual:.3g} s or so", got, "record without a gap")


def _check_times(where: object, seconds: np.ndarray) -> None:
    wrong = np.flatnonzero(~((seconds > EPOCH[0]) & (seconds < EPOCH[1]))).tolist()
    if wrong:
        raise FormatError(f"{where} time {wrong[0]}", "Unix seconds", f"{seconds[wrong[0]]}", "convert the times")
    if falls := np.flatnonzero(np.diff(seconds) <= 0).tolist():
        pair = f"{seconds[falls[0]]:.6f}, {seconds[falls[0] + 1]:.6f}"
        raise FormatError(f"{where} time {falls[0] + 1}", "times that rise", pair, "write them with all digits")


def _check_ticks(where: object, seconds: np.ndarray, cycles: np.ndarray) -> None:
    if np.ndim(seconds) != 1 or seconds.dtype.kind != "f" or len(seconds) < 2:
        got = f"{np.asarray(seconds).dtype} {np.shape(seconds)}"
        raise FormatError(f"{where} tick_seconds", "floats [n], two at least", got, "mend it")
    _check_times(f"{where} tick_seconds", seconds)
    if np.ndim(cycles) != 2 or len(cycles) != len(seconds) or cycles.dtype.kind not in "iu" or not cycles.size:
        got = f"{np.asarray(cycles).dtype} {np.shape(cycles)}"
        raise FormatError(f"{where} cycles", f"integers [{len(seconds)}, elements]", got, "mend it")
    if cycles.min() < 0:
        raise FormatError(f"{where} cycles", "counts of 0 or more", str(cycles.min()), "log what HAL_CYCLES says")
    if silent := np.flatnonzero(~cycles[1:].any(0)).tolist():
        remedy = "enable the counter that hal_cycles reads"
        raise FormatError(f"{where} cycles[:, {silent[0]}]", "a counter that counts", "0 throughout", remedy)
