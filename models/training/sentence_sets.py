"""Sets of labelled sentences by name, and what of them trains, chooses and judges."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from rheobase.models.training.sentences import Sentences, part, read_sentences
from rheobase.spiking.errors import ConfigError

DEV = 0.1
"""fraction of a file that has no dev file beside it"""


@dataclass(frozen=True)
class SentenceSet:
    """A public set: its files, which lie in `NAME` or `NAME.xz`, the number of labels and the encoding."""

    train: str
    dev: str | None
    classes: int
    encoding: str = "utf-8"


SETS = {
    "sst2": SentenceSet("stsa.binary.train", "stsa.binary.dev", 2),
    "sst5": SentenceSet("stsa.fine.train", "stsa.fine.dev", 5),
    "mr": SentenceSet("rt-polarity.dev", None, 2, "latin-1"),
    "subj": SentenceSet("subj.dev90", None, 2, "latin-1"),
}
"""Stanford sentiment (Socher et al., EMNLP 2013), movie reviews (Pang and Lee, ACL 2005) and subjectivity (Pang and
Lee, ACL 2004), in the files of the CNN sentence classifiers; MR and Subj without the part kept for blind tests"""


@dataclass(frozen=True, kw_only=True)
class SentencesConfig:
    """Labelled sentences to learn to classify; without them a run is a language model's."""

    train: str | None = None
    """a set of `SETS`, or a file with a label and a sentence a line (also .xz)"""
    dev: str | None = None
    """a file that is judged once, at the end; without it, and in a set without, a fixed part of `train` is taken"""
    folder: str | None = None
    """where the sets' files lie; if not given, `sentences` in $RHEOBASE_DATA"""
    classes: int = 2
    """number of labels of a file; a set has its own"""
    encoding: str = "utf-8"
    """of the files; a set has its own"""
    held_out: float = 0.1
    """fraction of the training sentences that chooses settings and the step to keep"""
    dropout: float = 0.0
    """of the mean features, in training"""
    counted: int = 0
    """how many of their words and pairs of words speak for a class by their counts too; 0 for none"""
    language: float = 0.0
    """weight of the language model's own loss on the training sentences beside that of their labels"""
    fit_all: bool = False
    """train on the part held out too and keep the last step: for settings that other runs have chosen"""

    @property
    def labels(self) -> int:
        """Number of labels."""
        return SETS[self.train].classes if self.train in SETS else self.classes

    def resolved(self) -> "SentencesConfig":
        """The same with a set's name replaced by its files; raises ConfigError for a set without a folder."""
        known = SETS.get(self.train)
        if known is None:
            return self
        base = os.environ.get("RHEOBASE_DATA")
        if self.folder is None and base is None:
            remedy = "set it to the folder with the set's files, or $RHEOBASE_DATA to the one above"
            raise ConfigError("sentences.folder", f"where {known.train}[.xz] lies", "none", remedy)
        folder = Path(self.folder or Path(base) / "sentences")

        def find(name: str) -> str:
            packed = folder / f"{name}.xz"
            return str(packed if packed.is_file() else folder / name)

        dev = self.dev or (known.dev and find(known.dev))
        return replace(self, train=find(known.train), dev=dev, classes=self.labels, encoding=known.encoding)


@dataclass(frozen=True)
class SentenceParts:
    """What is learnt from, what chooses, and what is judged at the end; they do not overlap."""

    train: Sentences
    held_out: Sentences
    dev: Sentences


def read_files(config: SentencesConfig) -> tuple[Sentences, Sentences]:
    """(Training sentences, dev sentences) of a configuration; a dev part that is taken out is always the same.

    raises  ConfigError: no folder, or no file;  FormatError: a file that is not what it should be
    """
    config = config.resolved()
    train = read_sentences(config.train, config.classes, config.encoding)
    if config.dev is None:
        return part(train, DEV)
    return train, read_sentences(config.dev, config.classes, config.encoding)


def read_parts(config: SentencesConfig) -> SentenceParts:
    """`read_files` with a part held out of training, which depends on the file alone, never on a run's seed."""
    train, dev = read_files(config)
    return SentenceParts(*part(train, config.held_out), dev)
