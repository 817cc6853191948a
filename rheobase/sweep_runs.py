"""The command that trains a sweep: each run in a process of its own, kept where it is finished.

As a program it is such a process: it reads a run's configuration from its first line of input, and ends with its
parent, whose end closes that input. So no training outlives a sweep that was killed, and none is written to by two.
"""

import csv
import io
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean

import torch

from rheobase import sweeping
from rheobase.answer import Answer
from rheobase.backends import count
from rheobase.models.training import loop
from rheobase.models.training.classify import judge
from rheobase.models.training.event_task import judge_frames
from rheobase.models.training.run import Run, RunConfig
from rheobase.pareto import draw
from rheobase.quickstart import calibration, test
from rheobase.spiking.errors import ConfigError, FormatError, RheobaseError
from rheobase.spiking.files import read_bytes, write_atomic
from rheobase.sweeping import Point, Row


def sweep(args) -> Answer:
    points, out = sweeping.read_sweep(args.sweep), Path(args.out)
    _claim(out, {point.name: point.table for point in points}, args)
    failed = {}
    pool = ThreadPoolExecutor(args.jobs)
    try:
        waiting = {pool.submit(_child, out / point.name, point.table, args.test): point.name for point in points}
        for done, future in enumerate(as_completed(waiting), 1):
            name, problem = waiting[future], future.result()
            if problem:
                failed[name] = problem
            if not args.json:
                print(f"{done} of {len(points)}: {name}{': failed: ' + problem if problem else ''}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    measure, higher = _measure(out, points, failed)
    rows = sweeping.ranked(_rows(out, points, failed, measure, args.test), higher)
    record = {"plan": {point.name: point.table for point in points}, "measure": measure}
    best = sweeping.front(rows, higher)
    record["rows"] = [vars(row) | {"front": row in best} for row in rows]
    write_atomic(out / "sweep.json", json.dumps(record, indent=2).encode())
    write_atomic(out / "sweep.csv", _csv(out, points, failed, measure).encode())
    lines = [sweeping.show(rows, _words(measure), higher)]
    lines += [f"failed: {name}: {problem}" for name, problem in failed.items()]
    if best:
        draw(rows, _words(measure), higher, out / "pareto.png")
        lines.append(f"{out}: sweep.json, sweep.csv, pareto.png; * no other is as good with as few operations")
    else:
        lines.append(f"{out}: sweep.json, sweep.csv; no picture, since no operations were counted")
    return Answer(
        {k: v for k, v in record.items() if k != "plan"} | {"failed": failed}, "\n".join(lines), ok=not failed
    )


def _claim(out: Path, plan: dict[str, dict], args) -> None:
    """Write the plan before any run; raises FormatError or ConfigError where the folder holds another."""
    path = out / "sweep.json"
    if not path.exists():
        if args.resume:
            raise FormatError(out, "a sweep to go on with", "none", "leave --resume out")
        if out.exists() and any(out.iterdir()):
            raise FormatError(out, "a folder that is empty or not there", "another", "choose another --out")
        write_atomic(path, json.dumps({"plan": plan}, indent=2).encode())
        return
    if not args.resume:
        raise FormatError(out, "a folder without a sweep", "a sweep", "go on with --resume or choose another --out")
    try:
        saved = json.loads(read_bytes(path, "a sweep"))["plan"]
    except (ValueError, KeyError, TypeError):
        raise FormatError(path, "a sweep's plan", "something else", "choose another --out") from None
    wanted = json.loads(json.dumps(plan))
    if saved != wanted:
        first = next(name for name in [*wanted, *saved] if saved.get(name) != wanted.get(name))
        wished = f"the sweep that {out} was begun with"
        raise ConfigError(args.sweep, wished, f"another {first}", "put it back or choose another --out")


def _child(folder: Path, table: dict, tested: bool) -> str | None:
    """Train, or go on with, and measure one run in a process of its own; returns why it failed, or None."""
    command = [sys.executable, "-m", "rheobase.sweep_runs", str(folder), *(["--test"] if tested else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, errors="replace", **pipes) as process:
        try:
            process.stdin.write(json.dumps(table) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended before it read; what it said is below
        said = process.stderr.read().strip().splitlines()
    if process.returncode == 0:
        return None
    return said[-1] if said and process.returncode > 0 else f"it ended with status {process.returncode}"


def _measure(out: Path, points: list[Point], failed: dict[str, str]) -> tuple[str, bool]:
    """The figure by which runs are compared, bits a byte where every run knows them; and whether more is better."""
    looks = [Run(out / point.name).metrics()["valid"] for point in points if point.name not in failed]
    if looks and all("accuracy" in look for look in looks):
        return "accuracy", True
    if any("accuracy" in look for look in looks):
        raise ConfigError(out, "classifiers or language models", "both", "sweep them apart")
    return ("bits_per_token" if any(look["bits_per_byte"] is None for look in looks) else "bits_per_byte"), False


def _words(measure: str) -> str:
    return measure.replace("_per_", " a ")


def _figures(run: Run, measure: str) -> dict:
    """The numbers of a finished run."""
    m = run.metrics()
    tally = m.get("tally")
    spent = (tally["total"]["macs"] + tally["total"]["acs"]) / tally["tokens"] if tally else None
    rates = m["valid"]["rates"]
    found = {"validation": m["valid"][measure], "test": m["test"][measure] if "test" in m else None}
    found |= {"operations_per_token": spent, "rate": mean(rates) if rates else None, "parameters": m["parameters"]}
    return found | {"best_step": m["best_step"], "train_seconds": m["train_seconds"]}


def _rows(out: Path, points: list[Point], failed: dict[str, str], measure: str, tested: bool) -> list[Row]:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.label, []).append(point)
    rows = []
    for label, group in groups.items():
        found = [_figures(Run(out / point.name), measure) for point in group if point.name not in failed]
        rates = [f["rate"] for f in found if f["rate"] is not None]
        row = Row(
            label=label,
            settings=group[0].settings,
            figures=[f["validation"] for f in found],
            tests=[f["test"] for f in found] if tested else [],
            operations=[f["operations_per_token"] for f in found if f["operations_per_token"] is not None],
            parameters=found[0]["parameters"] if found else 0,
            rate=mean(rates) if rates else None,
            seconds=mean(f["train_seconds"] for f in found) if found else 0.0,
            failed={point.name: failed[point.name] for point in group if point.name in failed},
        )
        rows.append(row)
    return rows


def _csv(out: Path, points: list[Point], failed: dict[str, str], measure: str) -> str:
    """A line a run: its settings, its seed and its figures, or why it failed."""
    keys = list(dict.fromkeys(key for point in points for key in point.settings))
    lines = []
    for point in points:
        figures = {} if point.name in failed else _figures(Run(out / point.name), measure)
        settings = {key: json.dumps(point.settings[key]) for key in point.settings}
        lines.append({"run": point.name, **settings, "seed": point.seed, **figures, "failed": failed.get(point.name)})
    heads = ["run", *keys, "seed", *dict.fromkeys(k for line in lines for k in line if k not in ("run", "seed", *keys))]
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def train_and_measure(folder: Path, table: dict, tested: bool) -> None:
    """Begin a run, go on with it or keep it; then its operations on the validation part, and its test if asked for."""
    run = Run(folder)
    if not run.config_path.exists():
        loop.start(folder, RunConfig.from_table(table), quiet=True)
    elif "valid" not in run.metrics():
        loop.resume(folder, quiet=True)
    config = run.config
    if "tally" not in run.metrics() and not config.classifies:
        run.add_metrics(tally=count(run.model(), torch.from_numpy(calibration(run))).to_table())
    if tested and "test" not in run.metrics():
        batch = config.train.evaluate_batch
        if config.classifies:
            run.add_metrics(test=judge(run.model(), run.corpus().dev, batch))
        elif config.sees:
            run.add_metrics(test=judge_frames(run.model(), run.corpus().test, config.events, batch))
        else:
            run.add_metrics(test=test(run))


def _main() -> int:
    table = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(1)
    try:
        train_and_measure(Path(sys.argv[1]), table, "--test" in sys.argv[2:])
    except (RheobaseError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = _main()
    sys.stderr.flush()
    os._exit(status)  # the thread that waits for the parent holds the input
