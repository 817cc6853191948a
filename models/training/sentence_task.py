"""The task of a classifier: to find each sentence's label, from nothing or from a language model's weights."""

import torch.nn.functional as F

from rheobase.models import load_model
from rheobase.models.training.classify import LabelledCorpus, SentenceBatches, judge
from rheobase.models.training.data import DataConfig
from rheobase.models.training.objective import BudgetConfig, TeacherConfig
from rheobase.models.training.run import require_tokens_of
from rheobase.models.training.task import Loss, Task
from rheobase.spiking.errors import ConfigError


class SentenceTask(Task):
    """Batches of labelled sentences, and the cross-entropy of their labels.

    The step that is kept has the highest accuracy on the part held out, and of several the lowest cross-entropy;
    the dev part is not looked at.
    """

    measure, label = "cross_entropy", "nats/sentence"

    def __init__(self, config, corpus: LabelledCorpus, model):
        t, self.config, self.corpus, self.unit = config.train, config, corpus, corpus.tokenizer.unit
        if config.budget != BudgetConfig() or config.teacher != TeacherConfig(start=config.teacher.start):
            raise ConfigError("sentences", "no [budget], and of [teacher] `start` alone", "more", "drop it")
        if config.data != DataConfig(tokenizer=config.data.tokenizer) or t.restart:
            raise ConfigError("sentences", "of [data] `tokenizer` alone, and no train.restart", "more", "drop it")
        self.batches = SentenceBatches(corpus.train, t.batch, t.seed)

    def rehearse(self, model):
        if self.config.teacher.start:
            self._start(model)
        tokens, lengths, labels = self._batch(0)
        self._loss(model, tokens[:2], lengths[:2], labels[:2])

    def begin(self, model):
        """A trunk takes over a language model's weights, or is new and woken."""
        if self.config.teacher.start:
            self._start(model)
        else:
            tokens, lengths, _ = self._batch(0)
            model.wake(tokens, lengths)

    def _start(self, model) -> None:
        start = self.config.teacher.start
        require_tokens_of(start, self.corpus.tokenizer)
        source = load_model(start)
        require_settings_of(source, model.trunk, start)
        model.trunk.load_state_dict(source.state_dict())
        model.trunk.settle()

    def loss(self, model, step):
        return self._loss(model, *self._batch(step))

    def look(self, model):
        return judge(model, self.corpus.held_out, self.config.train.evaluate_batch)

    def figure(self, look):
        return look.accuracy

    def rank(self, look):
        return [-look.accuracy, look.cross_entropy]

    def _batch(self, step: int):
        return tuple(x.to(self.config.train.device) for x in self.batches(step))

    def _loss(self, model, tokens, lengths, labels) -> Loss:
        logits, runs = model.run(tokens, lengths)
        loss = F.cross_entropy(logits, labels)
        return Loss(loss + model.penalty(runs), loss, runs, int(lengths.sum()))


def require_settings_of(source, model, where: str) -> None:
    """Refuse a trained model whose weights would compute something else in this one; names the setting."""
    theirs, ours = ({"name": each.name, **vars(each.config)} for each in (source, model))
    for setting, value in theirs.items():
        if setting not in model.training_settings and ours[setting] != value:
            wanted, remedy = f"{value!r}, as {where} has it", "copy its settings or name another run"
            raise ConfigError(f"model.{setting}", wanted, repr(ours[setting]), remedy)
