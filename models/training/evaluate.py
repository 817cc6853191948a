"""How good a model is: every token once, in bits and perplexity, and how often its units fire."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rheobase.models._moving import moved
from rheobase.models.classifier import keep, places
from rheobase.models.training.corpus import Splits
from rheobase.models.training.data import each_once
from rheobase.models.training.shards import Shards

DEAD, SATURATED = 0.0, 0.99


@dataclass(frozen=True)
class Evaluation:
    """One pass over a text.

    bits_per_byte   bits_per_token x tokens of the text / its bytes (Gao et al., "The Pile", arXiv 2101.00027, section
                    3.1), so that the first token counts like the mean of those predicted; None if the bytes are not
                    known. It flatters a tokenizer to which parts of the text are unknown: their spelling is not
                    predicted
    bits_per_token  the mean over tokens: the same for bytes, bits a character for characters
    perplexity      2 ** bits_per_token
    tokens          number of predictions
    rates           mean firing of each event-based layer
    dead            units that never fired, a layer
    saturated       units that fired at more than 99 % of the steps, a layer
    """

    bits_per_byte: float | None
    bits_per_token: float
    perplexity: float
    tokens: int
    rates: tuple[float, ...] = ()
    dead: tuple[int, ...] = ()
    saturated: tuple[int, ...] = ()

    @property
    def rate(self) -> float | None:
        """Mean over the layers, or None where no layer sends events."""
        return sum(self.rates) / len(self.rates) if self.rates else None


class Firing:
    """How the units of each event-based layer fire, gathered over batches."""

    def __init__(self):
        self.n, self.sums = 0, None

    def add(self, rates: list[Tensor], n: int) -> None:
        """The mean firing of each layer's units [H] over n steps, or over n recordings of one length."""
        weighed = [rate * n for rate in rates]
        self.sums = weighed if self.sums is None else [a + b for a, b in zip(self.sums, weighed, strict=True)]
        self.n += n

    def figures(self) -> dict[str, tuple]:
        """Of each layer the mean rate, and how many units are dead and saturated."""
        units = [s / self.n for s in self.sums]
        return {
            "rates": tuple(float(u.mean()) for u in units),
            "dead": tuple(int((u <= DEAD).sum()) for u in units),
            "saturated": tuple(int((u > SATURATED).sum()) for u in units),
        }


@torch.no_grad()
def evaluate(
    model,
    data: np.ndarray | Shards,
    *,
    batch: int,
    context: int,
    restart: bool = False,
    n_bytes: int | None = None,
    progress=None,
) -> Evaluation:
    """Predict every token but the first exactly once, in `batch` contiguous streams that carry their state.

    restart   zero c at every cut of `context` steps, as the reference does
    n_bytes   bytes of the text, 0 if not known; as many as its tokens if None
    progress  called with the number of predictions after each cut
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nats, tokens, state, firing = 0.0, 0, None, Firing()
    try:
        for x, target in each_once(data, batch, context):
            logits, state, runs = model.run(moved(x, device), state)
            if restart:
                state = model.restart(state)
            real, right = target >= 0, moved(target, device).flatten()
            nats = nats + F.cross_entropy(logits.flatten(0, 1).double(), right, reduction="sum")
            if not real.all():  # the streams that have ended
                runs = keep(runs, moved(places(real), device))
            n = int(real.sum())
            firing.add(model.rates(runs), n)
            tokens += n
            if progress:
                progress(n)
    finally:
        model.train(was_training)
    bits = float(nats) / tokens / math.log(2)
    perplexity = 2**bits if bits < 1000 else math.inf
    n_bytes = len(data) if n_bytes is None else n_bytes
    return Evaluation(
        bits_per_byte=bits * (len(data) / n_bytes) if n_bytes else None,
        bits_per_token=bits,
        perplexity=perplexity,
        tokens=tokens,
        **firing.figures(),
    )


def evaluate_part(model, splits: Splits, name: str, train) -> Evaluation:
    """`evaluate` on the part "valid" or "test" with the settings of a TrainConfig."""
    options = {"batch": train.evaluate_batch, "context": train.context, "restart": train.restart}
    return evaluate(model, getattr(splits, name), n_bytes=splits.n_bytes.get(name, 0), **options)


def bits_per_token(logits_TV: np.ndarray, targets_T: np.ndarray) -> float:
    """Mean of -log2 softmax(logits)[target], in float64."""
    x = logits_TV.astype(np.float64)
    x = x - x.max(1, keepdims=True)
    nats = np.log(np.exp(x).sum(1)) - x[np.arange(len(x)), targets_T]
    return float(nats.mean() / math.log(2))
