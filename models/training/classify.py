"""Sentences as a training sees them: token rows, batches of like lengths, and how many are classified rightly.

N sentences, B of them in a batch, T tokens of the longest.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rheobase.models._moving import moved
from rheobase.models.classifier import real_tokens
from rheobase.models.training.evaluate import Firing
from rheobase.models.training.sentence_sets import SentenceParts
from rheobase.models.training.sentences import Sentences, pad
from rheobase.models.training.tokenizers import Tokenizer, named_tokenizer
from rheobase.spiking.errors import ShapeError

GROUP = 16
"""batches whose sentences are sorted by length together: little padding, and yet another order each epoch"""


@dataclass(frozen=True)
class Rows:
    """Sentences as token ids, and their labels [N]."""

    tokens: list[np.ndarray]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(self.tokens + other.tokens, np.concatenate([self.labels, other.labels]))

    def batch(self, which: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens [B, T], lengths [B], labels [B]) of some sentences."""
        return *pad([self.tokens[i] for i in which]), torch.from_numpy(self.labels[which])


@dataclass(frozen=True)
class LabelledCorpus:
    """The three parts of labelled sentences as rows, the tokenizer that made them, and a SHA-256 of their text."""

    train: Rows
    held_out: Rows
    dev: Rows
    tokenizer: Tokenizer
    digest: str


def encode_parts(parts: SentenceParts, longest: int, tokenizer: Tokenizer | str, **options) -> LabelledCorpus:
    """Encode labelled sentences, each by itself.

    longest    most tokens of a sentence
    tokenizer  a tokenizer, or as in [data]: a JSON file, or a kind whose vocabulary is made from the train part
    options    of a kind's `from_text`, such as unknown=" "
    raises     ShapeError: a sentence of more tokens
    """
    kind = named_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    if isinstance(kind, type):
        kind = kind.from_text((f"{text}\n".encode() for text in parts.train.texts), **options)
    digest = hashlib.sha256()

    def rows(sentences: Sentences) -> Rows:
        tokens = [kind.encode(text.encode(), where="sentence").astype(np.int64) for text in sentences.texts]
        for text, row in zip(sentences.texts, tokens, strict=True):
            if not 0 < len(row) <= longest:
                where = f"the sentence {text[:40]!r}"
                raise ShapeError(where, f"1 to {longest} {kind.unit}s", f"{len(row)}", "raise train.context")
        for text, label in zip(sentences.texts, sentences.labels, strict=True):
            digest.update(f"{label} {text}\n".encode())
        return Rows(tokens, sentences.labels)

    return LabelledCorpus(rows(parts.train), rows(parts.held_out), rows(parts.dev), kind, digest.hexdigest())


class SentenceBatches:
    """Batches of sentences, each once an epoch, a pure function of the step, so that a run can resume at any step."""

    def __init__(self, rows: Rows, batch: int, seed: int):
        self.rows, self.size, self.seed = rows, min(batch, len(rows)), seed
        self.lengths = np.array([len(row) for row in rows.tokens])
        self.epoch = -1

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens [B, T], lengths [B], labels [B]); the sentences left over in an epoch are left out of it."""
        epoch, index = divmod(step, len(self.rows) // self.size)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._order(epoch)
        return self.rows.batch(self.order[index])

    def _order(self, epoch: int) -> np.ndarray:
        """Which sentences each batch of an epoch holds, [batches, B]."""
        rng = np.random.default_rng((self.seed, epoch))
        shuffled = rng.permutation(len(self.rows))[: len(self.rows) // self.size * self.size]
        groups = [shuffled[i : i + GROUP * self.size] for i in range(0, len(shuffled), GROUP * self.size)]
        like = [group[np.argsort(self.lengths[group], kind="stable")] for group in groups]
        return rng.permutation(np.concatenate(like).reshape(-1, self.size))


@dataclass(frozen=True)
class Verdict:
    """One pass over labelled sentences.

    accuracy       fraction whose likeliest class is the label
    cross_entropy  mean of -ln p(label), nats
    sentences      their number
    rates          mean firing of each event-based layer at the sentences' own tokens
    dead           units that never fired, a layer
    saturated      units that fired at more than 99 % of the tokens, a layer
    """

    accuracy: float
    cross_entropy: float
    sentences: int
    rates: tuple[float, ...] = ()
    dead: tuple[int, ...] = ()
    saturated: tuple[int, ...] = ()


@torch.no_grad()
def judge(model, rows: Rows, batch: int) -> Verdict:
    """Classify every sentence, `batch` of like length at a time."""
    was_training = model.training
    model.eval()
    right, nats, firing = 0, 0.0, Firing()
    try:
        for tokens, lengths, labels in _in_order(model, rows, batch):
            logits, runs = model.run(tokens, lengths)
            right += int((logits.argmax(1) == labels).sum())
            nats += F.cross_entropy(logits.double(), labels, reduction="sum").item()
            firing.add(model.rates(runs), int(lengths.sum()))
    finally:
        model.train(was_training)
    return Verdict(
        accuracy=right / len(rows),
        cross_entropy=nats / len(rows),
        sentences=len(rows),
        **firing.figures(),
    )


@torch.no_grad()
def judge_apart(model, rows: Rows, batch: int) -> tuple[float, float]:
    """Accuracies of the two parts of a classifier with counted words: (its network's, that of the counts alone).

    The model is left in evaluation mode.
    """
    network = counts = 0
    model.eval()
    for tokens, lengths, labels in _in_order(model, rows, batch):
        network += int((model.read(tokens, lengths)[0].argmax(1) == labels).sum())
        mask = moved(real_tokens(tokens, lengths), tokens.device)
        counts += int((model.counted(tokens, mask).argmax(1) == labels).sum())
    return network / len(rows), counts / len(rows)


def _in_order(model, rows: Rows, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All sentences, `batch` of like length at a time; tokens and labels on the model's device."""
    device = next(model.parameters()).device
    order = np.argsort([len(row) for row in rows.tokens], kind="stable")
    for start in range(0, len(order), batch):
        tokens, lengths, labels = rows.batch(order[start : start + batch])
        yield moved(tokens, device), lengths, moved(labels, device)
