"""The task of a classifier of event cameras' recordings: to find each recording's label.

B recordings, T frames, C channels, H and W the height and width of a frame.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rheobase.models._moving import moved
from rheobase.models.training.data import DataConfig
from rheobase.models.training.distributed import Ranks
from rheobase.models.training.evaluate import Firing
from rheobase.models.training.event_corpus import EventCorpus, Frames
from rheobase.models.training.event_sets import EventsConfig
from rheobase.models.training.objective import BudgetConfig, TeacherConfig
from rheobase.models.training.task import Loss, Task
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.tally import BINARY, TERNARY


class EventTask(Task):
    """Batches of labelled recordings, and the cross-entropy of the mean of their logits over time.

    The step that is kept has the highest accuracy on the part held out, and of several the lowest cross-entropy;
    with `fit_all` that part is trained on, and the last step is kept. The part that judges is not looked at.
    """

    measure, label, unit = "cross_entropy", "nats/recording", "frame"

    def __init__(self, config, corpus: EventCorpus, model, ranks: Ranks):
        self.config, self.corpus, e, t = config, corpus, config.events, config.train
        if config.budget != BudgetConfig() or config.teacher != TeacherConfig() or t.restart:
            raise ConfigError("events", "no [budget], [teacher] and train.restart", "one", "drop it")
        if config.data != DataConfig():
            raise ConfigError("events", "no [data], which is of text", "one", "drop it")
        ranks.require_one("events")
        require_fitting(model.config, corpus.train)
        self.part = corpus.train + corpus.held_out if e.fit_all and e.folds > 1 else corpus.train
        self.batch, self.epoch, self.like = min(t.batch, len(self.part)), -1, next(model.parameters()).dtype

    def rehearse(self, model):
        frames, labels = self._batch(0)
        model.wake(frames)
        self._loss(model, frames[:2], labels[:2])

    def begin(self, model):
        model.wake(self._batch(0)[0])

    def loss(self, model, step, micro=0):
        self.step = step
        return self._loss(model, *self._batch(step))

    def look(self, model):
        return judge_frames(model, self.corpus.held_out, self.config.events, self.config.train.evaluate_batch)

    def figure(self, look):
        return look.accuracy

    def rank(self, look):
        return [-self.step] if self.config.events.fit_all else [-look.accuracy, look.cross_entropy]

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(frames [B, T, C, H, W], labels [B]), a pure function of the step; each recording once an epoch, but for
        those left over."""
        seed, n = self.config.train.seed, len(self.part) // self.batch
        epoch, index = divmod(step, n)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng((seed, epoch)).permutation(len(self.part))
        part = self.part[self.order[index * self.batch : (index + 1) * self.batch]]
        counts = shifted(part.frames, self.config.events.shift, np.random.default_rng((seed, step, 1)))
        pixels = as_pixels(counts, self.config.settings, self.config.events)
        device = self.config.train.device
        return moved(pixels.to(self.like), device), moved(torch.from_numpy(part.labels), device)

    def _loss(self, model, frames: Tensor, labels: Tensor) -> Loss:
        logits, _, runs = model.run(frames)
        loss = F.cross_entropy(logits.mean(1), labels)
        return Loss(loss + model.penalty(runs), loss, runs, frames.shape[0] * frames.shape[1])


def require_fitting(settings, frames: Frames) -> None:
    """Refuse a model that reads other frames, or has fewer classes; says what it should have."""
    size, classes = frames.source.shape[3:], int(frames.labels.max()) + 1
    if tuple(settings.size) != size:
        raise ConfigError("model.size", f"{list(size)}, the frames'", f"{list(settings.size)}", "set it")
    if settings.channels > (1 if settings.frames == TERNARY else 2):
        wanted = "1, since TERNARY frames tell polarities apart" if settings.frames == TERNARY else "1 or 2"
        raise ConfigError("model.channels", wanted, f"{settings.channels}", "set it")
    if settings.classes < classes:
        raise ConfigError("model.classes", f"the recordings' {classes} or more", f"{settings.classes}", "set it")


def as_pixels(counts_BT2HW: np.ndarray, settings, events: EventsConfig) -> Tensor:
    """Numbers of events by polarity -> what a model reads, float32 [B, T, C, H, W].

    One channel holds the sum over polarities, or of TERNARY frames the sign of their difference; BINARY is whether
    there were any, and other kinds are divided by `events.scale`.
    """
    counts = torch.from_numpy(counts_BT2HW.astype(np.float32))
    if settings.frames == TERNARY:
        return (counts[:, :, 1:] - counts[:, :, :1]).sign()
    if settings.channels == 1:
        counts = counts.sum(2, keepdim=True)
    return counts.clamp(max=1) if settings.frames == BINARY else counts / events.scale


def shifted(counts: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Each recording moved by up to `most` pixels along each axis; what leaves the frame is lost, 0 comes in."""
    if not most:
        return counts
    height, width = counts.shape[-2:]
    padded = np.pad(counts, [(0, 0)] * 3 + [(most, most)] * 2)
    corners = rng.integers(0, 2 * most + 1, (len(counts), 2))
    return np.stack([each[..., y : y + height, x : x + width] for each, (y, x) in zip(padded, corners, strict=True)])


@dataclass(frozen=True)
class EventVerdict:
    """One pass over labelled recordings.

    accuracy       fraction whose likeliest class is the label
    cross_entropy  mean of -ln p(label), nats
    recordings     their number
    rates          mean firing of each event-based layer
    dead           units that never fired, a layer
    saturated      units that fired in more than 99 % of the frames, a layer
    """

    accuracy: float
    cross_entropy: float
    recordings: int
    rates: tuple[float, ...]
    dead: tuple[int, ...]
    saturated: tuple[int, ...]


@torch.no_grad()
def judge_frames(model, part: Frames, events: EventsConfig, batch: int) -> EventVerdict:
    """Classify every recording of a part."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    right, nats, firing = 0, 0.0, Firing()
    try:
        for start in range(0, len(part), batch):
            some = part[start : start + batch]
            pixels = as_pixels(some.frames, model.config, events).to(next(model.parameters()))
            labels = torch.from_numpy(some.labels).to(device)
            logits, _, runs = model.run(pixels)
            mean = logits.double().mean(1)
            right += int((mean.argmax(1) == labels).sum())
            nats += F.cross_entropy(mean, labels, reduction="sum").item()
            firing.add(model.rates(runs), len(labels))
    finally:
        model.train(was_training)
    return EventVerdict(
        accuracy=right / len(part),
        cross_entropy=nats / len(part),
        recordings=len(part),
        **firing.figures(),
    )
