"""The table of docs/understanding.md: sentences classified by a fine-tuned language model, from nothing, by words.

    OMP_NUM_THREADS=1 python benchmarks/understanding.py DATA --out runs/understanding [--sets sst2 sst5 mr subj]

DATA holds enwik8, wikitext-2 and sentences. One spiking language model is trained on Wikipedia's sentences and on
those of the sets, without labels and without any dev sentence (`understanding_text`). Then, for each set: the same
network is fine-tuned from it and trained from nothing, its learning rate taken from one grid by the part held out of
training, with seed 0; at that rate it is then trained anew with each seed on all training sentences, the part held
out too, and the last step is kept. The dev part is judged once, at the end. Finished runs are kept, so that the
command goes on where it was stopped; one of other settings is refused.
"""

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from _runs import train
from understanding_text import write_text

from rheobase.cli import run as command
from rheobase.models.training.run import Run
from rheobase.models.training.sentence_sets import SETS

MODEL = {
    "name": "spikegpt",
    "placement": "spike_fed",
    "embedding": 128,
    "depth": 2,
    "binary_embedding": False,
    "embedding_range": 0.05,
    "l2wrap": False,
    "tau": 1.0,
    "graded": True,
}
LANGUAGE = {
    "steps": 5000,
    "batch": 32,
    "context": 48,
    "learning_rate": 4e-3,
    "warmup": 250,
    "weight_decay": 0.05,
    "evaluate_every": 500,
    "checkpoint_every": 500,
    "threads": 1,
}
AGAIN = {**LANGUAGE, "steps": 3500, "warmup": 100, "seed": 1}
"""a second training of the language model, from the weights of the first"""
CLASSIFY = {
    "steps": 500,
    "batch": 32,
    "context": 256,
    "warmup": 50,
    "evaluate_every": 50,
    "checkpoint_every": 200,
    "threads": 1,
}
COUNTED = 60_000
"""words and pairs of words that speak for a class by their counts too: nearly all that SST-2's sentences have"""
KINDS = ("fine-tuned", "from nothing")
RATES = (2e-3, 4e-3)
SEEDS = (0, 1, 2)


def language_model(out: Path) -> Run:
    """The run that fine-tuning starts from."""
    text = {name: str(out / "text" / name) for name in ("text", "valid_text")}
    data = {**text, "tokenizer": "words", "order": "crops"}
    first = train(out / "language", {"model": MODEL, "data": data, "train": LANGUAGE})
    data["tokenizer"], start = str(first.tokenizer_path), {"start": str(first.folder)}
    return train(out / "language-2", {"model": MODEL, "data": data, "train": AGAIN, "teacher": start})


def classifiers(out: Path, name: str, kind: str, language: Run) -> list[Run]:
    """The runs of a set, one a seed, all with the rate that did best with the first."""

    def one(rate: float, seed: int, fit_all: bool) -> Run:
        files = {part: str(out / "text" / f"{name}.{part}") for part in ("train", "dev")}
        table = {
            "model": {**MODEL, "dropout": 0.1},
            "data": {"tokenizer": str(language.tokenizer_path)},
            "sentences": {
                **files,
                "classes": SETS[name].classes,
                "dropout": 0.3,
                "language": 0.2,
                "counted": COUNTED,
                "fit_all": fit_all,
            },
            "train": {**CLASSIFY, "learning_rate": rate, "seed": seed},
        }
        if kind == "fine-tuned":
            table["teacher"] = {"start": str(language.folder)}
        return train(out / name / f"{kind.replace(' ', '-')}-{rate:g}-{seed}{'-all' * fit_all}", table)

    def held_out(run: Run) -> float:
        return run.metrics()["valid"]["accuracy"]

    chosen = max((one(rate, SEEDS[0], False) for rate in RATES), key=held_out)
    print(f"{name}, {kind}: {100 * held_out(chosen):.1f} % on the part held out with {chosen.folder.name}")
    return [one(chosen.config.train.learning_rate, seed, True) for seed in SEEDS]


@torch.no_grad()
def together(runs: list[Run]) -> float:
    """Accuracy on dev of the mean over the runs of ln p(label)."""
    dev = runs[0].corpus().dev
    models = [run.model() for run in runs]
    right = 0
    for i in range(len(dev)):
        tokens, lengths, label = dev.batch(np.array([i]))
        right += int(sum(model(tokens, lengths).log_softmax(-1) for model in models).argmax() == label)
    return right / len(dev)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with enwik8, wikitext-2 and sentences")
    parser.add_argument("--out", type=Path, required=True, help="the folder of runs")
    parser.add_argument("--sets", nargs="+", default=["sst2"], choices=list(SETS))
    args = parser.parse_args()
    if not (args.out / "text").exists():
        (args.out / "text").mkdir(parents=True)
        print(write_text(args.data, args.out / "text"))
    language = language_model(args.out)
    for name in args.sets:
        found = {kind: classifiers(args.out, name, kind, language) for kind in KINDS}
        first, *rest = (run for runs in found.values() for run in runs)
        command(["eval", str(first.folder), *(part for run in rest for part in ("--beside", str(run.folder)))])
        for kind, runs in found.items():
            seconds = mean(run.metrics()["train_seconds"] for run in runs)
            for part, figure in (("", "accuracy"), (", the networks alone", "network_alone")):
                right = [100 * run.metrics()["test"][figure] for run in runs]
                each = ", ".join(f"{r:.1f}" for r in right)
                print(f"{name}, {kind}{part}: {mean(right):.1f} % ({each}), {seconds:.0f} s a run")
            print(f"{name}, {kind}, all three together: {100 * together(runs):.1f} %")
        print(f"{name}, the counted words alone: {100 * first.metrics()['test']['counts_alone']:.1f} %")
        print(f"{name}, a bag of words: {100 * first.metrics()['bag_of_words']:.1f} %")


if __name__ == "__main__":
    main()
