"""The table of docs/understanding.md: sentences classified by a fine-tuned language model, from nothing, by words.

    OMP_NUM_THREADS=1 python benchmarks/understanding.py DATA --out runs/understanding [--sets sst2 sst5 mr subj]
        [--tenths]

DATA holds enwik8, wikitext-2 and sentences. One spiking language model is trained on Wikipedia's sentences and on
those of the sets, without labels and without any dev sentence (`understanding_text`). Then, for each set: the same
network is fine-tuned from it and trained from nothing, its learning rate taken from one grid by the part held out of
training, with seed 0; at that rate it is then trained anew with each seed on all training sentences, the part held
out too, and the last step is kept. The dev part is judged once, at the end. With --tenths both kinds are also trained
without each tenth of the training sentences in turn, and judged on it. Finished runs are kept, so that the
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
from rheobase.models.training.sentences import read_sentences
from rheobase.spiking.files import write_atomic

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
"""words and pairs of words that speak for a class by their counts too: most of those that SST-2's sentences have"""
KINDS = ("fine-tuned", "from nothing")
RATES = (2e-3, 4e-3)
SEEDS = (0, 1, 2)
PARTS = {
    "accuracy": "network and counts",
    "network_alone": "network alone",
    "counts_alone": "counted words alone",
    "bag_of_words": "a bag of words",
}


def language_model(out: Path) -> Run:
    """The run that fine-tuning starts from."""
    text = {name: str(out / "text" / name) for name in ("text", "valid_text")}
    data = {**text, "tokenizer": "words", "order": "crops"}
    first = train(out / "language", {"model": MODEL, "data": data, "train": LANGUAGE})
    data["tokenizer"], start = str(first.tokenizer_path), {"start": str(first.folder)}
    return train(out / "language-2", {"model": MODEL, "data": data, "train": AGAIN, "teacher": start})


def classifier(
    folder: Path, files: tuple[Path, Path], name: str, kind: str, language: Run, *, fit_all: bool = True, **settings
) -> Run:
    """A run on these files of a set, (train, dev), with these settings of [train]."""
    table = {
        "model": {**MODEL, "dropout": 0.1},
        "data": {"tokenizer": str(language.tokenizer_path)},
        "sentences": {
            "train": str(files[0]),
            "dev": str(files[1]),
            "classes": SETS[name].classes,
            "dropout": 0.3,
            "language": 0.2,
            "counted": COUNTED,
            "fit_all": fit_all,
        },
        "train": {**CLASSIFY, **settings},
    }
    if kind == "fine-tuned":
        table["teacher"] = {"start": str(language.folder)}
    return train(folder, table)


def parts(out: Path, name: str) -> tuple[Path, Path]:
    """A set's files (train, dev)."""
    return out / "text" / f"{name}.train", out / "text" / f"{name}.dev"


def classifiers(out: Path, name: str, kind: str, language: Run) -> list[Run]:
    """The runs of a set, one a seed, all with the rate that did best with the first."""

    def one(rate: float, seed: int, fit_all: bool) -> Run:
        folder = out / name / f"{kind.replace(' ', '-')}-{rate:g}-{seed}{'-all' * fit_all}"
        settings = {"learning_rate": rate, "seed": seed, "fit_all": fit_all}
        return classifier(folder, parts(out, name), name, kind, language, **settings)

    def held_out(run: Run) -> float:
        return run.metrics()["valid"]["accuracy"]

    chosen = max((one(rate, SEEDS[0], False) for rate in RATES), key=held_out)
    print(f"{name}, {kind}: {100 * held_out(chosen):.1f} % on the part held out with {chosen.folder.name}")
    return [one(chosen.config.train.learning_rate, seed, True) for seed in SEEDS]


def tenths(out: Path, name: str, kind: str, language: Run, rate: float) -> list[Run]:
    """Runs that each leave out another tenth of the training sentences, which is judged instead of dev."""
    sentences = read_sentences(parts(out, name)[0], SETS[name].classes)
    order = np.random.default_rng(0).permutation(len(sentences))
    runs = []
    for i, left in enumerate(np.array_split(order, 10)):
        files = tuple(out / "text" / f"{name}-{i}.{part}" for part in ("train", "dev"))
        for path, which in zip(files, (np.setdiff1d(order, left), left), strict=True):
            if not path.exists():
                some = sentences[which]
                write_atomic(path, "".join(f"{y} {t}\n" for y, t in zip(some.labels, some.texts, strict=True)).encode())
        folder = out / f"{name}-tenths" / f"{kind.replace(' ', '-')}-{i}"
        runs.append(classifier(folder, files, name, kind, language, learning_rate=rate, seed=SEEDS[0]))
    return runs


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


def say(what: str, runs: list[Run]) -> None:
    """Print the mean and each of the accuracies that `eval` gave all of these runs."""
    judged = [run.metrics()["test"] | run.metrics() for run in runs]
    for key, part in PARTS.items():
        if all(key in each for each in judged):
            right = [100 * each[key] for each in judged]
            print(f"{what}, {part}: {mean(right):.1f} % ({', '.join(f'{r:.1f}' for r in right)})")
    print(f"{what}: {mean(each['train_seconds'] for each in judged):.0f} s a run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with enwik8, wikitext-2 and sentences")
    parser.add_argument("--out", type=Path, required=True, help="the folder of runs")
    parser.add_argument("--sets", nargs="+", default=["sst2"], choices=list(SETS))
    parser.add_argument("--tenths", action="store_true", help="also leave out each tenth of the training sentences")
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
            say(f"{name}, {kind}", runs)
            print(f"{name}, {kind}, all three together: {100 * together(runs):.1f} %")
        print(f"{name}, a bag of words: {100 * first.metrics()['bag_of_words']:.1f} %")
        if args.tenths:
            for kind, runs in found.items():
                left = tenths(args.out, name, kind, language, runs[0].config.train.learning_rate)
                for run in left:
                    command(["eval", str(run.folder)])
                say(f"{name}, {kind}, each tenth left out", left)


if __name__ == "__main__":
    main()
