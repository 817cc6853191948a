"""N-MNIST from 1,000 recordings: each fifth judged by a network that was trained on the other four.

    OMP_NUM_THREADS=1 python benchmarks/nmnist.py ARCHIVE --out runs/nmnist [--model lif egru]

ARCHIVE holds the recordings and train1K.txt, their labels. The folds are fixed (`event_corpus.load_events`). Settings
and numbers of steps are those below, the same for all, found before (docs/event_cameras.md says on what); no fold
chooses anything, and the last step is kept. Finished runs are kept, so that the
command goes on where it was stopped; one of other settings is refused. The network without convolutions is also judged
in SpiNNaker 2's integers, by the firmware's C on the host, and that of the last fold exported and verified. A ridge
regression on the events of each pixel, its one number chosen within the four fifths, stands beside them.
"""

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from _runs import train

from rheobase.backends import count, export, simulate, verify
from rheobase.backends.exporters.spinnaker2.frames import as_tokens
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.models.training.event_corpus import EventCorpus, load_events
from rheobase.models.training.event_sets import EventsConfig
from rheobase.models.training.event_task import as_pixels, judge_frames
from rheobase.models.training.run import config_path
from rheobase.spiking.config import read_toml

FOLDS = 5
COUNTED = 20
"""recordings of each fold that are counted"""
EVENTS = {"labels": "train1K.txt", "size": [34, 34], "steps": 10, "shift": 3, "folds": FOLDS, "fit_all": True}
TRAIN = {"batch": 32, "learning_rate": 5e-3, "warmup": 30, "threads": 1}
MODELS = {
    "lif": read_toml(config_path("nmnist"))["model"],
    "egru": {
        "name": "egru_frames",
        "frames": "BINARY",
        "layers": [256],
        "readout": "y",
        "thr_mean": 0.03,
        "dropout": 0.3,
        "rate_target": 0.1,
        "rate_weight": 5.0,
    },
}
STEPS = {"lif": 2000, "egru": 1600}
PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)


def ridge(corpus: EventCorpus) -> float:
    """Accuracy on the test part of a ridge regression on how many events each pixel had of each polarity."""

    def solve(x, labels, penalty):
        x, y = np.pad(x, [(0, 0), (0, 1)], constant_values=1), np.eye(10)[labels] - 0.1
        return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)

    def accuracy(weight, x, labels):
        return float(((x @ weight[:-1] + weight[-1]).argmax(1) == labels).mean())

    counts = [part.frames.sum(1, dtype=np.float64).reshape(len(part), -1) for part in _parts(corpus)]
    (train, own), (held, chosen), (test, judged) = zip(counts, (p.labels for p in _parts(corpus)), strict=True)
    best = max(PENALTIES, key=lambda penalty: accuracy(solve(train, own, penalty), held, chosen))
    whole = np.concatenate([train, held]), np.concatenate([own, chosen])
    return accuracy(solve(*whole, best), test, judged)


def in_integers(model, frames: np.ndarray, calibration: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of a model's integers on frames."""
    graph, (before, tokens) = as_tokens(model.lower(), calibration, frames)
    integer, _ = quantise(graph, before)
    (logits,) = simulate(integer, tokens, on="firmware").outputs.values()
    return float((logits.mean(1).argmax(1) == labels).mean())


def image(model, calibration: np.ndarray, folder: Path) -> None:
    """Export a model, or keep the image that is there, and verify it."""
    if not folder.exists():
        export(model, "spinnaker2", folder, calibration=calibration)
    report = verify(folder)
    if not report.ok:
        raise SystemExit(f"{folder}: not verified: {report.problem}")
    print(f"{folder}: verified, {report.compared:,} integers compared, {report.mismatches} differ")
    print("\n".join(report.notes))


def _parts(corpus: EventCorpus):
    return corpus.train, corpus.held_out, corpus.test


def folds(archive: str, out: Path, name: str) -> None:
    """Train, judge and count the five networks of a model."""
    found, integers, seconds, tallies = [], [], 0.0, []
    for fold in range(FOLDS):
        steps = STEPS[name]
        table = {
            "model": MODELS[name],
            "events": EVENTS | {"set": archive, "fold": fold},
            "train": TRAIN | {"steps": steps, "evaluate_every": steps, "checkpoint_every": steps},
        }
        run = train(out / f"{name}-{fold}", table)
        model, corpus, events = run.model(), run.corpus(), run.config.events
        verdict = judge_frames(model, corpus.test, events, 50)
        run.add_metrics(test=verdict)
        found.append(verdict.accuracy)
        pixels = as_pixels(corpus.test[:COUNTED].frames, model.config, events)
        tallies.append(count(model, pixels, strict=True))
        seconds += run.metrics()["train_seconds"]
        active = ", ".join(f"{100 * rate:.0f}" for rate in verdict.rates)
        line = f"{name} fold {fold}: {100 * verdict.accuracy:.1f} % of {verdict.recordings}; layers {active} % active"
        if name == "egru":
            given, held = (
                as_pixels(p.frames, model.config, events).numpy() for p in (corpus.test, corpus.held_out[:8])
            )
            integers.append(in_integers(model, given, held, corpus.test.labels))
            line += f"; {100 * integers[-1]:.1f} % in integers"
        print(line, flush=True)
    tally = sum(tallies[1:], tallies[0])
    per = tally.tokens / events.steps
    print(f"{name}: mean {100 * mean(found):.2f} %, {model.n_parameters:,} parameters, trained in {seconds:.0f} s")
    if integers:
        print(f"{name}: mean {100 * mean(integers):.2f} % in integers")
        image(model, held, out / "spinnaker2")
    total = tally.total
    done = f"{total.macs / per:,.0f} multiply-accumulates and {total.acs / per:,.0f} accumulates"
    dense = f"{total.dense_macs / per:,.0f} dense products"
    print(f"{name}: a recording takes {done} of {dense}, and sends {total.events / per:,.0f} events")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.model:
        folds(args.archive, args.out, name)
    floors = []
    for fold in range(FOLDS):
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in EVENTS.items()}
        floors.append(ridge(load_events(EventsConfig(set=args.archive, fold=fold, **settings))))
    print(f"ridge regression on counts: {', '.join(f'{100 * f:.1f}' for f in floors)}; mean {100 * mean(floors):.2f} %")


if __name__ == "__main__":
    main()
