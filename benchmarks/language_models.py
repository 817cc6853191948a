"""The table of docs/results.md: forms of SpikeGPT beside RWKV-4, LSTM and EGRU, on one text, trained alike.

    OMP_NUM_THREADS=1 python benchmarks/language_models.py TEXT --out runs/table [--jobs 2] [--logs FILE.jsonl.xz]

TEXT is enwik8, or its first 95,000,000 bytes. Every model has about the same number of parameters, sees the same bytes
in the same order, and takes its learning rate from one grid, by the validation part and seed 0; the other seeds then
use that rate. The held-out part is used for nothing but the table. A budget of operations is trained from the weights
of the RWKV-4 twin and with its word, at the rate of the spike-fed form. Finished runs are kept, so that the command
goes on where it was stopped; one of other settings is refused. All figures come from the run folders.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median

import torch
from _runs import train, write_logs

from rheobase.backends import count
from rheobase.models.training.evaluate import evaluate
from rheobase.models.training.run import Run
from rheobase.spiking.errors import ConfigError

TRAIN, VALID, TEST = 90_000_000, 100_000, 200_000
"""bytes: the usual training part; then, of the usual validation part, the first that chooses and the last held out"""
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
SEEDS = (0, 1, 2)
COUNTED = 1000
SPIKEGPT = {"name": "spikegpt", "embedding": 128, "depth": 4, "dropout": 0.0}
FED = {**SPIKEGPT, "placement": "spike_fed"}
FORMS = {
    "SpikeGPT, reference": SPIKEGPT,
    "SpikeGPT, spike-fed": FED,
    "spike-fed, without norms": {**FED, "norm": "static"},
    "spike-fed, ternary": {**FED, "ternary": True},
    "spike-fed, without memory": {**FED, "tau": 1.0},
    "spike-fed, without memory, graded": {**FED, "tau": 1.0, "graded": True},
    "without memory, real embedding": {**FED, "tau": 1.0, "binary_embedding": False},
    "without memory, graded, real embedding": {**FED, "tau": 1.0, "graded": True, "binary_embedding": False},
    "RWKV-4": {"name": "rwkv4", "embedding": 128, "depth": 4, "dropout": 0.0},
    "LSTM": {"name": "lstm_lm", "embedding": 324, "layers": [324], "embedding_range": 0.5},
    "EGRU": {
        "name": "egru_lm",
        **{"embedding": 371, "layers": [371], "embedding_range": 0.5, "thr_mean": 0.3, "gamma": 1.5, "eps": 1.5},
    },
}
TWIN = "RWKV-4"
BUDGETED = {
    "budget": (
        {**FED, "learn": ["theta", "tau"]},
        {ops: SEEDS[:1] for ops in (160_000, 110_000, 85_000, 60_000)},
    ),
    "graded budget": (
        {**FED, "tau": 1.0, "graded": True, "head": "spiking", "binary_embedding": False, "learn": ["theta"]},
        {82_000: SEEDS, 32_000: SEEDS[:1], 60_000: SEEDS[:1], 110_000: SEEDS[:1], 160_000: SEEDS[:1]},
    ),
}
"""curve -> a form, and the seeds for each number of operations a token"""


def slug(name: str) -> str:
    """A folder's name."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def cut(text: Path, out: Path) -> dict[str, str]:
    """The three parts of the text as files; the [data] of every run. Raises ConfigError: another text's are there."""
    names = {"text": (0, TRAIN), "valid_text": (TRAIN, VALID), "test_text": (TRAIN + 5_000_000 - TEST, TEST)}
    table = {"encoding": "bytes", "order": "streams"}
    out.mkdir(parents=True, exist_ok=True)
    with open(text, "rb") as file:
        for name, (start, length) in names.items():
            path = out / f"{name}.bin"
            file.seek(start)
            part = file.read(length)
            if not path.exists():
                path.write_bytes(part)
            elif path.read_bytes() != part:
                raise ConfigError(path, f"a part of {text}", "another text", "delete --out or choose another")
            table[name] = str(path)
    return table


def measure(folder: Path, table: dict) -> Run:
    """Train a run, or keep it; its evaluation on the held-out part and what it counts go into metrics.json."""
    run = train(folder, table)
    if "test" not in run.metrics():
        t = run.config.train
        look = evaluate(run.model(), run.splits().test, batch=t.evaluate_batch, context=t.context)
        tally = count(run.model(), torch.from_numpy(run.splits().test[:COUNTED].astype("int64")[None]))
        run.add_metrics(test=look, tally=tally.to_table())
        print(f"{folder.name}: {look.bits_per_byte:.4f} bits a byte", flush=True)
    return run


def figures(runs: list[Run]) -> dict:
    """The row of a form: means over its seeds."""
    metrics = [run.metrics() for run in runs]
    bits = [m["test"]["bits_per_byte"] for m in metrics]
    totals = [m["tally"]["total"] for m in metrics]
    rates = [mean(m["test"]["rates"]) for m in metrics if m["test"]["rates"]]
    speeds = [r["tokens_per_s"] for run in runs for r in run.log() if "tokens_per_s" in r]
    return {
        "parameters": metrics[0]["parameters"],
        "learning_rate": runs[0].config.train.learning_rate,
        "bits": bits,
        "rate": mean(rates) if rates else None,
        "dense_macs": totals[0]["dense_macs"] / COUNTED,
        "macs": mean(t["macs"] for t in totals) / COUNTED,
        "acs": mean(t["acs"] for t in totals) / COUNTED,
        "tokens_per_s": median(speeds),
        "uncounted": metrics[0]["tally"]["uncounted"],
    }


def line(name: str, row: dict, twin: dict) -> str:
    """A row of the table in Markdown."""
    bits, spent = mean(row["bits"]), row["macs"] + row["acs"]
    spread = (max(row["bits"]) - min(row["bits"])) / 2
    cells = [
        name,
        f"{row['parameters']:,}",
        f"{row['learning_rate']:g}",
        f"{bits:.4f} ± {spread:.4f}" if len(row["bits"]) > 1 else f"{bits:.4f}",
        f"{100 * (bits / mean(twin['bits']) - 1):+.1f} %",
        "" if row["rate"] is None else f"{100 * row['rate']:.1f} %",
        f"{row['macs']:,.0f}",
        f"{row['acs']:,.0f}",
        f"{(twin['macs'] + twin['acs']) / spent:.2f}x",
        f"{row['tokens_per_s']:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| form | parameters | learning rate | bits a byte, held out | against RWKV-4 | mean rate | MACs a token "
    "| ACs a token | fewer operations than RWKV-4 | training bytes/s |\n|" + "---|" * 10
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, of one thread each")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--logs", type=Path, help="a .jsonl.xz file for what all runs logged")
    options = parser.parse_args()
    data = cut(options.text, options.out / "text")
    every = {"evaluate_every": max(1, options.steps // 2), "checkpoint_every": max(1, options.steps // 4)}
    common = {"steps": options.steps, "batch": options.batch, "context": options.context, "threads": 1, **every}
    common |= {"warmup": options.steps // 20, "evaluate_batch": 64}

    def table(model: dict, rate: float, seed: int, **sections) -> dict:
        return {"model": model, "data": data, "train": {**common, "learning_rate": rate, "seed": seed}, **sections}

    with ThreadPoolExecutor(options.jobs) as pool:

        def start(name: str, *arguments, **sections):
            model, rate, seed = arguments
            return pool.submit(measure, options.out / f"{slug(name)}-{rate:g}-{seed}", table(*arguments, **sections))

        grid = {name: [start(name, model, rate, SEEDS[0]) for rate in RATES] for name, model in FORMS.items()}
        more = {}
        for name, tried in grid.items():
            best = min((f.result() for f in tried), key=lambda run: run.metrics()["valid"]["bits_per_byte"])
            rate = best.config.train.learning_rate
            more[name] = [best, *(start(name, FORMS[name], rate, seed) for seed in SEEDS[1:])]
        runs = {name: [first, *(f.result() for f in rest)] for name, (first, *rest) in more.items()}
        rows = {name: figures(found) for name, found in runs.items()}
        twins = dict(zip(SEEDS, (str(run.folder) for run in runs[TWIN]), strict=True))
        rate = runs["SpikeGPT, spike-fed"][0].config.train.learning_rate
        helped = {}
        for curve, (form, budgets) in BUDGETED.items():
            for ops, seeds in budgets.items():
                name, budget = f"{curve} {ops:,}", {"ops_per_token": float(ops)}
                helped[name] = [
                    start(name, form, rate, seed, budget=budget, teacher={"start": twins[seed], "model": twins[seed]})
                    for seed in seeds
                ]
        helped = {name: [run.result() for run in runs] for name, runs in helped.items()}
        rows |= {name: figures(runs) for name, runs in helped.items()}
    (options.out / "table.json").write_text(json.dumps(rows, indent=2))
    if options.logs:
        every = [f.result() for tried in grid.values() for f in tried]
        every += [run for found in (*runs.values(), *helped.values()) for run in found if run not in every]
        write_logs(every, options.logs, options.out)
    print("\n".join([HEAD, *(line(name, row, rows[TWIN]) for name, row in rows.items())]))


if __name__ == "__main__":
    main()
