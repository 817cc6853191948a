"""What `rheobase train --dry-run` foretells beside what the training then takes: speed, memory and time.

    OMP_NUM_THREADS=1 python benchmarks/dry_run.py [--rounds 3] [--cpu]

Each round foretells and then trains each configuration, in processes of their own. The training's speed is the median
of its log; its memory, the kernel's mark of the highest (VmHWM, so this runs on Linux), and its time are those until
metrics.json is there: unloading torch's libraries then takes another second and some 120 MiB of file pages.
With --cpu, CPU seconds stand for time, foretold and taken: on a machine that others use, the wall clock of two runs
differs by what the others do, and CPU seconds by little.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rheobase.dry_run import dry_run
from rheobase.models.training.run import Run, RunConfig
from rheobase.spiking.config import to_toml

TRAIN = {
    "batch": 32,
    "context": 64,
    "learning_rate": 1e-2,
    "threads": 1,
    "evaluate_every": 100,
    "checkpoint_every": 100,
}
MODELS = {
    "EGRU": {"name": "egru_lm", "embedding": 224, "layers": [224], "embedding_range": 0.5, "gamma": 1.5, "eps": 1.5},
    "SpikeGPT": {"name": "spikegpt", "embedding": 96, "depth": 2, "dropout": 0.0},
    "LSTM": {"name": "lstm_lm", "embedding": 192, "layers": [192], "embedding_range": 0.5},
}


def train(table: dict, folder: Path, cpu: bool) -> dict[str, float]:
    """What a training takes, by the operating system and the run's log."""
    config = folder / "config.toml"
    config.write_text(to_toml(table))
    command = [sys.executable, "-m", "rheobase", "train", str(config), "--out", str(folder / "run")]
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    proc = Path(f"/proc/{process.pid}")
    while process.poll() is None:
        if not (folder / "run" / "metrics.json").exists():
            seconds = time.monotonic() - began
            lines = (proc / "status").read_text().splitlines()
            peak = max([peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
            ticks = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]
            used = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{table['model']['name']}: the training ended with status {process.returncode}")
    speed = median(r["tokens_per_s"] for r in Run.open(folder / "run").log() if "tokens_per_s" in r)
    figures = {"memory, MiB": peak / 2**20, "time, s": used if cpu else seconds}
    return figures if cpu else figures | {"tokens a second": speed}  # the log has no CPU seconds


def foretell(table: dict, cpu: bool) -> dict[str, float]:
    """The same by a dry run."""
    found = dry_run(RunConfig.from_table(table), "process_time" if cpu else "time").table
    figures = {"memory, MiB": found["peak_bytes"] / 2**20, "time, s": 3600 * found["hours"]}
    return figures if cpu else figures | {"tokens a second": found["tokens_per_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1, help="of which medians are shown (default 1)")
    parser.add_argument("--steps", type=int, default=200, help="of each training (default 200)")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds in place of the wall clock")
    options = parser.parse_args()
    print("| model | figure | foretold | taken | off by |\n|---|---|---|---|---|")
    for name, model in MODELS.items():
        table = {"model": model, "train": {**TRAIN, "steps": options.steps}}
        pairs = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                pairs.append((foretell(table, options.cpu), train(table, Path(folder), options.cpu)))
        for figure in pairs[0][0]:
            foretold, taken = (median(pair[side][figure] for pair in pairs) for side in (0, 1))
            off = 100 * (foretold / taken - 1)
            print(f"| {name} | {figure} | {foretold:,.1f} | {taken:,.1f} | {off:+.1f} % |", flush=True)


if __name__ == "__main__":
    main()
