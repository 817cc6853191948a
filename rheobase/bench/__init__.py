"""Speed beside named baselines: `rheobase bench`.

The runs of a case take turns in one process, so that what disturbs the machine disturbs all of them; medians are
shown with their spread, the ratio to our own, and, where a case is limited by memory, the fraction of the limit that a
copy of 256 MiB sets in the same rounds.
"""

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from textwrap import shorten

import numpy as np
import torch

from rheobase.spiking.errors import ConfigError

COPY = "copy of 256 MiB"
COPY_BYTES = 1 << 28
HEAD_START = 20_000_000
"""cycles that a GPU pauses before it is timed, some 10 ms: the host launches ahead meanwhile, as it does where steps
follow one another, and short kernels are not timed at the pace of Python"""


@dataclass(frozen=True)
class Case:
    """One thing that is timed in several ways.

    runs    name -> one run of it; the first is ours
    absent  name -> why a way is not here
    notes   name -> what else is to be known, such as the memory that it took
    bytes   least memory traffic of a run, read and written, or 0 where memory is not the limit
    tokens  tokens of a run, or 0
    peak_ms  what a run's products would take at the peak that the device's maker gives, or 0 where none is known
    extra   further figures, such as the measured activity
    """

    name: str
    size: str
    runs: Mapping[str, Callable[[], object]]
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0
    tokens: int = 0
    peak_ms: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """Where and how often: device "cpu" or "cuda", rounds, whether torch.compile's forms are timed, small sizes."""

    device: str = "cpu"
    rounds: int = 9
    compile: bool = False
    small: bool = False


def parts(device: str = "cpu") -> dict[str, Callable[[Setting], Iterable[Case]]]:
    """Name -> the cases of a part. Generation is a CPU's."""
    from rheobase.bench import decode, ops, simulate, training

    known = {"lif": ops.lif, "wkv": ops.wkv, "egru": ops.egru, "training": training.steps, "simulate": simulate.graphs}
    return known | ({"decode": decode.stacks} if device == "cpu" else {})


def tried(ways: Mapping[str, Callable[[], object]]) -> tuple[dict, dict[str, str]]:
    """Call each -> name -> what it gives, and name -> why it raised: a library that is absent, or a call it refuses."""
    given, absent = {}, {}
    for name, way in ways.items():
        try:
            given[name] = way()
        except Exception as error:
            absent[name] = _brief(error)
    return given, absent


def _brief(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")


def measure(case: Case, setting: Setting, say: Callable[[str], None] = lambda _: None) -> dict:
    """Time a case's runs in turn -> a record for JSON; milliseconds, and the seconds of each way's first run.

    On one CPU thread the process's own time is taken, which others on the machine disturb little; on several, the
    clock; on a GPU, its events, behind a pause (`HEAD_START`). A way that raises at its first run is listed as absent,
    unless it is ours.
    """

    def first(name):
        say(f"{case.name}, first run: {name}")
        began = time.perf_counter()
        _time(case.runs[name], setting.device)
        return time.perf_counter() - began

    ours, *others = case.runs
    first_s = {ours: first(ours)}
    more, refused = tried({name: partial(first, name) for name in others})
    first_s |= more
    runs = {name: case.runs[name] for name in first_s}
    if case.bytes:
        source, target = torch.ones(2, COPY_BYTES, dtype=torch.uint8, device=setting.device)
        runs[COPY] = lambda: target.copy_(source)
    times = np.empty((setting.rounds, len(runs)))
    for number, row in enumerate(times, 1):
        say(f"{case.name}, round {number} of {setting.rounds}")
        for i, run in enumerate(runs.values()):
            run()  # so that nobody pays for the memory and the caches that the way before has left
            row[i] = _time(run, setting.device)
    rows = {
        name: {"ms": float(np.median(t)), "from": float(np.quantile(t, 0.25)), "to": float(np.quantile(t, 0.75))}
        for name, t in zip(runs, 1e3 * times.T, strict=True)
    }
    record = {"case": case.name, "size": case.size, "rounds": setting.rounds, **case.extra}
    if case.bytes:
        record["gb_per_s"] = 2 * COPY_BYTES / rows.pop(COPY)["ms"] / 1e6
        record["limit_ms"] = case.bytes / record["gb_per_s"] / 1e6
    for name, row in rows.items():
        row["ratio"] = row["ms"] / rows[ours]["ms"]
        row["first_s"] = first_s[name]
        if case.bytes:
            row["times_the_limit"] = row["ms"] / record["limit_ms"]
        if case.tokens:
            row["tokens_per_s"] = 1e3 * case.tokens / row["ms"]
        if case.peak_ms:
            row["utilisation"] = case.peak_ms / row["ms"]
        if name in case.notes:
            row["note"] = case.notes[name]
    return {**record, "rows": rows, "absent": {**case.absent, **refused}}


def _time(run: Callable[[], object], device: str) -> float:
    """Seconds of one run."""
    if device == "cuda":
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START)
        began.record()
        run()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    run()
    return clock() - began


def time_parts(
    names: list[str], setting: Setting, say: Callable[[str], None] = lambda _: None, trained=None, stop: bool = False
) -> dict:
    """Measure some parts, all if none is named -> a record for JSON, with the machine it ran on. A part whose own way
    raises is named in "failed", and the others are measured.

    trained  (an EGRU language model, tokens [1, T]): the part decode runs it, and not one of random weights
    stop     raise what a part raises
    raises   ConfigError: no such part or device, or a trained model without the part decode
    """
    from rheobase.bench import decode

    if setting.device not in ("cpu", "cuda") or (setting.device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError("bench --device", "a device of this machine", setting.device, "use --device cpu")
    known = parts(setting.device)
    names = names or list(known)
    if wrong := [name for name in names if name not in known]:
        raise ConfigError("bench", f"parts of {', '.join(known)}", ", ".join(wrong), "name others")
    if trained and "decode" not in names:
        raise ConfigError("bench --run", "the part decode", ", ".join(names), "name it too")
    if trained:
        known["decode"] = lambda setting: decode.trained(*trained)
    records, failed = [], {}
    for name in names:
        try:
            for case in known[name](setting):
                records.append(measure(case, setting, say))
        except Exception as error:
            if stop:
                raise
            failed[name] = _brief(error)
    machine = torch.cuda.get_device_name() if setting.device == "cuda" else processor()
    where = {"machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
    return {**where, "device": setting.device, "cases": records, "failed": failed}


def processor() -> str:
    """This machine's processor by name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def show(record: dict) -> str:
    """A record of `bench` as a table a case."""
    lines = [f"{record['machine']}, {record['threads']} thread(s), torch {record['torch']}"]
    for case in record["cases"]:
        lines += ["", f"{case['case']}: {case['size']}, median of {case['rounds']}"]
        if "limit_ms" in case:
            lines.append(f"  limit {case['limit_ms']:.3g} ms: its bytes at {case['gb_per_s']:.1f} GB/s, {COPY}")
        if "active" in case:
            lines.append(f"  {100 * case['active']:.1f} % of the units fire at a token")
        width = max(map(len, (*case["rows"], *case["absent"])))
        for name, row in case["rows"].items():
            line = (
                f"  {name:<{width}}  {row['ms']:9.3f} ms ({row['from']:.3f} to {row['to']:.3f})  x {row['ratio']:.2f}"
            )
            if "times_the_limit" in row:
                line += f"  {row['times_the_limit']:.2f} limits"
            if "tokens_per_s" in row:
                line += f"  {row['tokens_per_s']:,.0f} tokens/s"
            if "utilisation" in row:
                line += f"  {100 * row['utilisation']:.1f} % of the peak"
            if row["first_s"] > max(1, row["ms"] / 100):
                line += f"  first run {row['first_s']:.0f} s"
            lines.append(line + (f"  {row['note']}" if "note" in row else ""))
        lines += [f"  {name:<{width}}  not here: {why}" for name, why in case["absent"].items()]
    lines += [f"\n{name}: failed: {why}" for name, why in record["failed"].items()]
    return "\n".join(lines)
