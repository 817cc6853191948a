"""What a training will take: a few of its steps, measured in a process of their own, and what follows from them.

As a program it is that process: it reads what to measure as JSON, and writes what it found as JSON.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from rheobase.answer import Answer
from rheobase.backends.exporters.spinnaker2 import PES, elements
from rheobase.models.training import loop
from rheobase.models.training.classify import LabelledCorpus
from rheobase.models.training.corpus import Corpus
from rheobase.models.training.record import peak_memory
from rheobase.models.training.run import Run, RunConfig
from rheobase.quickstart import calibration
from rheobase.spiking.errors import RheobaseError

FIRST = 12
"""updates of the first training, whose memory is taken; its multiples keep evaluations and checkpoints apart"""
MOST = 25 * FIRST
SECONDS = 15.0
"""about how long the second training takes, whose time is taken"""
WARM = 3
"""gaps between updates that are left out at the start"""
CUTS = 16
"""cuts of the validation part that are evaluated"""
FAR = 4
"""a gap of more medians than this is the machine's, and left out"""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a process found; seconds are wall clock."""

    parameters: int
    peak_bytes: int
    """of resident memory, after a training of FIRST updates with its evaluations and checkpoints"""
    gpu_bytes: int | None
    tokens: float
    """an update"""
    start_s: float
    """from the start of the process to the first update"""
    update_s: float
    evaluation_s: float
    """of the whole validation part"""
    evaluated: float
    """the part of it that was timed"""
    checkpoint_s: float
    updates: int
    """whose time is in `update_s`"""
    elements: int | str
    """processing elements of SpiNNaker 2, or why there is no export"""


class Short(RunConfig):
    """A configuration whose text has a short validation part."""

    def corpus(self, tokenizer=None):
        corpus = super().corpus(tokenizer)
        if not isinstance(corpus, Corpus):
            return corpus
        parts = corpus.splits.parts
        short = parts["valid"][: CUTS * self.train.evaluate_batch * self.train.context + 1]
        return dataclasses.replace(corpus, splits=dataclasses.replace(corpus.splits, parts={**parts, "valid": short}))


def measure(table: dict, began: float, clock: str) -> Measured:
    """Train a configuration for a few updates in a folder that is then gone.

    began  when the process was started, by the function of `time` that `clock` names
    """
    now = getattr(time, clock)
    config = Short.from_table(table)
    cuda = config.train.device.startswith("cuda")
    ends: list[float] = []

    def ended(*_):
        if cuda:
            torch.cuda.synchronize(config.train.device)
        ends.append(now())

    hook = register_optimizer_step_post_hook(ended)
    with tempfile.TemporaryDirectory() as folder:
        run = _train(config, FIRST, Path(folder) / "first")
        peak, gpu = peak_memory(torch.device("cpu")), peak_memory(torch.device(config.train.device)) if cuda else None
        first, found = ends[0], _gaps(ends, FIRST)
        blocks = min(MOST, int(SECONDS / found["update_s"])) // FIRST
        if blocks > 1:
            ends.clear()
            _train(config, blocks * FIRST, Path(folder) / "second")
            found = _gaps(ends, blocks * FIRST)
        hook.remove()
        full = RunConfig.corpus(config, None if config.sees else run.tokenizer())
        share = _evaluated(config, full)
        found["evaluation_s"] /= share
        return Measured(
            parameters=run.metrics()["parameters"],
            peak_bytes=peak,
            gpu_bytes=gpu,
            tokens=_tokens(config, full),
            start_s=first - began - found["update_s"],
            evaluated=share,
            elements=_elements(run),
            **found,
        )


def _train(config: RunConfig, steps: int, folder: Path) -> Run:
    every = {"evaluate_every": steps // 4, "checkpoint_every": steps // 3, "tensorboard": False}
    train = dataclasses.replace(config.train, steps=steps, **every)
    return loop.start(folder, dataclasses.replace(config, train=train), quiet=True)


def _gaps(ends: list[float], steps: int) -> dict:
    """Seconds of an update, of an evaluation and of a checkpoint, from the ends of updates."""
    gaps = {step: after - before for step, (before, after) in enumerate(zip(ends, ends[1:], strict=False), 1)}
    looks, saves = ({s for s in gaps if s % (steps // part) == 0} for part in (4, 3))
    plain = [gap for step, gap in gaps.items() if step not in looks | saves and step >= min(WARM, steps // 4)]
    near = [gap for gap in plain if gap <= FAR * median(plain)]
    found = {"update_s": mean(near), "updates": len(near)}
    for name, steps_of in (("evaluation_s", looks), ("checkpoint_s", saves)):
        found[name] = max(0.0, median(gaps[step] for step in steps_of) - found["update_s"])
    return found


def _length(n: int, batch: int) -> int:
    """Steps of an evaluation of n tokens in so many streams."""
    return -(-(n - 1) // min(batch, n - 1))


def _evaluated(config: RunConfig, corpus) -> float:
    """The part of an evaluation's steps that `Short` leaves."""
    if not isinstance(corpus, Corpus):
        return 1.0
    batch, n = config.train.evaluate_batch, len(corpus.splits.valid)
    return min(1.0, CUTS * config.train.context / _length(n, batch))


def _tokens(config: RunConfig, corpus) -> float:
    """Tokens an update, of sentences their mean, of recordings frames."""
    t = config.train
    if isinstance(corpus, Corpus):
        return t.batch * t.context
    if isinstance(corpus, LabelledCorpus):
        return min(t.batch, len(corpus.train)) * mean(map(len, corpus.train.tokens))
    return min(t.batch, len(corpus.train)) * config.events.steps


def _elements(run: Run) -> int | str:
    """Of the model after its short training, whose pruning has run its course."""
    if run.config.classifies:
        return "a classifier of sentences has no graph"
    try:
        return elements(run.model().lower(), calibration(run)[:1])
    except RheobaseError as error:
        return str(error)


class Said(RheobaseError):
    """The line of a failure in the process that measures."""

    def __init__(self, line: str):
        Exception.__init__(self, line)


def dry_run(config: RunConfig, clock: str = "time") -> Answer:
    """What `measure` finds in a process of its own, and the hours of the whole training that follow.

    clock   "process_time" takes CPU seconds for time, to compare runs of one thread on a machine that others use
    raises  RheobaseError: what the training would, or that the process came to an end
    """
    given = {"table": config.to_table(), "began": time.time() if clock == "time" else 0.0, "clock": clock}
    command = [sys.executable, "-m", "rheobase.dry_run"]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        remedy = "lower train.batch or the model's sizes if memory ran out"
        raise RheobaseError("train --dry-run", "a few updates", f"a process that ended: {last}", remedy)
    found = json.loads(done.stdout.splitlines()[-1])
    if "problem" in found:
        raise Said(found["problem"])
    m, t = Measured(**found), config.train
    evaluations, checkpoints = (-(-t.steps // every) for every in (t.evaluate_every, t.checkpoint_every))
    parts = {
        "start": m.start_s,
        f"{t.steps:,} updates": t.steps * m.update_s,
        f"{evaluations + 1:,} evaluations": (evaluations + 1) * m.evaluation_s,
        f"{checkpoints:,} checkpoints": checkpoints * m.checkpoint_s,
    }
    seconds, speed = sum(parts.values()), m.tokens / m.update_s
    unit = "frames" if config.sees else "tokens"
    spent = ", ".join(f"{name} {_duration(s)}" for name, s in parts.items())
    gpu = "" if m.gpu_bytes is None else f", and {m.gpu_bytes / 2**20:,.0f} MiB on the GPU"
    placed = f"{m.elements} processing elements of {PES} on a chip; computed, with the model of those updates"
    lines = [
        f"parameters  {m.parameters:,}",
        f"memory      {m.peak_bytes / 2**20:,.0f} MiB at its peak{gpu}; measured in {FIRST} updates with evaluations "
        "and checkpoints",
        f"speed       {speed:,.0f} {unit} a second in updates; measured, the mean of {m.updates}",
        f"time        {_duration(seconds)}, {seconds / 3600:.3g} hours; computed from parts that were measured:",
        f"            {spent}",
        f"            an evaluation from {100 * m.evaluated:.0f} % of the part held out",
        f"spinnaker2  {placed if isinstance(m.elements, int) else 'not exported: ' + m.elements}",
        "no run was written",
    ]
    return Answer({**found, "tokens_per_s": speed, "hours": seconds / 3600, "seconds": parts}, "\n".join(lines))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


if __name__ == "__main__":
    import rheobase.commands  # noqa: F401 - so that as much is loaded as in `rheobase train`

    try:
        print(json.dumps(dataclasses.asdict(measure(**json.loads(sys.stdin.read())))))
    except (RheobaseError, OSError) as error:
        print(json.dumps({"problem": str(error)}))
