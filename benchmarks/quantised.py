"""Held-out bits a token in float32 and in integers, pruned and not, with and without rounding in training.

    OMP_NUM_THREADS=1 python benchmarks/quantised.py egru --out runs/quantised

The model is trained at each sparsity twice, on the same text with the same settings: as it is, to be rounded
afterwards, and with [quantise]. Each is judged on the same stretch of the test part, by the float32 graph and by the
integer graph that `rheobase export` writes. "change" is from the float32 of the model of the same sparsity and seed
that was trained without rounding; "own" is from the line's own float32: with [quantise], where these weights are the
integers', it is what int16 states and events, biases and tables do. Figures are means over the seeds, ± half their
range. Last, for the first seed without pruning, what rounding one matrix alone adds to the float32's bits. Finished
runs are kept, so that the command goes on where it was stopped; one of other settings is refused.
"""

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
from _runs import train

from rheobase.backends import simulate
from rheobase.backends.exporters.spinnaker2.arithmetic import LOGIT_FRAC
from rheobase.backends.exporters.spinnaker2.quantise import quantise, sensitivity
from rheobase.models.training.evaluate import bits_per_token
from rheobase.models.training.run import Run, config_path
from rheobase.quickstart import calibration
from rheobase.spiking.config import read_toml

EGRU = read_toml(config_path("quickstart_egru"))
SPIKEGPT = {
    "name": "spikegpt",
    "placement": "spike_fed",
    "norm": "static",
    "embedding": 128,
    "depth": 2,
    "binary_embedding": False,
    "tau": 1.0,
    "graded": True,
}
MODELS = {
    "egru": EGRU,
    "spikegpt": {
        "model": SPIKEGPT,
        "train": {**EGRU["train"], "learning_rate": 8e-3},
        "prune": {"scope": "layer"},
    },
}
SPARSITIES = (0.0, 0.8, 0.95)
STREAMS, LENGTH = 20, 1000


def streams(run: Run) -> np.ndarray:
    """Streams of the test part, with what comes after each."""
    return run.splits().test[: STREAMS * (LENGTH + 1)].astype(np.int64).reshape(STREAMS, LENGTH + 1)


def judge(run: Run) -> tuple[float, float]:
    """Bits a token of a model in float32 and in integers, over streams of the test part."""
    tokens, graph = streams(run), run.model().lower()
    floats = simulate(graph, tokens[:, :-1], on="torch").outputs["logits"]
    integer, _ = quantise(graph, calibration(run), allow_lossy=True)
    whole = simulate(integer, tokens[:, :-1], on="integer").outputs["logits"] / 2.0**LOGIT_FRAC
    targets = tokens[:, 1:].ravel()
    return tuple(bits_per_token(logits.reshape(len(targets), -1), targets) for logits in (floats, whole))


def by_matrix(run: Run) -> str:
    """What rounding each matrix alone costs, the most first."""
    tokens, graph = streams(run), run.model().lower()
    targets = tokens[:, 1:].ravel()

    def bits(logits):
        return bits_per_token(logits.reshape(len(targets), -1), targets)

    added, whole = sensitivity(graph, tokens[:, :-1], bits), judge(run)[0]
    worst = sorted(added.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * more / whole:+.3f} %" for name, more in worst)


def shown(figures: list[float], form: str) -> str:
    """A mean, and half the range where there are several."""
    half = (max(figures) - min(figures)) / 2
    return f"{mean(figures):{form}}" + (f" ± {half:{form.lstrip('+')}}" if len(figures) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--out", type=Path, required=True, help="the folder of runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    print("| pruned | rounded | active | float32 | integers | change | own |\n|---|---|---|---|---|---|---|")
    for sparsity in SPARSITIES:
        plain: list[float] = []
        for bits, when in ((0, "after training"), (8, "in training")):
            runs = [one(args.model, args.out, sparsity, bits, seed) for seed in args.seeds]
            floats, integers = zip(*(judge(run) for run in runs), strict=True)
            plain = plain or list(floats)
            active = [100 * mean(run.metrics()["valid"]["rates"]) for run in runs]
            change, own = ([100 * (i / f - 1) for i, f in zip(integers, base, strict=True)] for base in (plain, floats))
            print(
                f"| {100 * sparsity:.0f} % | {when} | {shown(active, '.1f')} % | {shown(floats, '.4f')} "
                f"| {shown(integers, '.4f')} | {shown(change, '+.2f')} % | {shown(own, '+.2f')} % |",
                flush=True,
            )
    print("\nint8 in one matrix alone: " + by_matrix(one(args.model, args.out, 0.0, 0, args.seeds[0])))


def one(model: str, out: Path, sparsity: float, bits: int, seed: int) -> Run:
    """The run of a line."""
    base = MODELS[model]
    table = {
        **base,
        "train": {**base["train"], "seed": seed},
        "prune": {**base.get("prune", {}), "sparsity": sparsity},
        "quantise": {"weights": bits},
    }
    return train(out / f"{model}-{sparsity:g}-{bits}-{seed}", table)


if __name__ == "__main__":
    main()
