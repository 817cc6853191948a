"""The task of a classifier: to find each sentence's label, from nothing or from a language model's weights."""

import numpy as np
import torch.nn.functional as F

from rheobase.models import load_model
from rheobase.models._moving import moved
from rheobase.models.classifier import places, real_tokens
from rheobase.models.training.classify import LabelledCorpus, SentenceBatches, judge
from rheobase.models.training.data import DataConfig, require_below
from rheobase.models.training.distributed import Ranks
from rheobase.models.training.objective import BudgetConfig, TeacherConfig
from rheobase.models.training.run import require_tokens_of
from rheobase.models.training.task import Loss, Task
from rheobase.spiking.errors import ConfigError

OWN = ("tokenizer", "tokenizer_sha256", "unknown")
"""settings of [data] that mean something for sentences"""


class SentenceTask(Task):
    """Batches of labelled sentences, and the cross-entropy of their labels.

        loss = -ln p(label) + language (mean over the sentences' tokens of -ln p(next token))

    The second term, in nats a token, is off by default; it keeps what the language model knew. Source: Radford,
    Narasimhan, Salimans, Sutskever, "Improving language understanding by generative pre-training", 2018, equation 5.

    The step that is kept has the highest accuracy on the part held out, and of several the lowest cross-entropy;
    with `fit_all` that part is trained on, and the last step is kept. The dev part is not looked at. The loss is of
    the network's own logits; a path of counted words, where there is one, joins in what is judged.
    """

    measure, label = "cross_entropy", "nats/sentence"

    def __init__(self, config, corpus: LabelledCorpus, model, ranks: Ranks):
        t, self.config, self.corpus, self.unit = config.train, config, corpus, corpus.tokenizer.unit
        if config.budget != BudgetConfig() or config.teacher != TeacherConfig(start=config.teacher.start):
            raise ConfigError("sentences", "no [budget], and of [teacher] `start` alone", "more", "drop it")
        if config.data != DataConfig(**{key: getattr(config.data, key) for key in OWN}) or t.restart:
            wanted = "of [data] `tokenizer` and `unknown` alone, and no train.restart"
            raise ConfigError("sentences", wanted, "more", "drop it")
        ranks.require_one("sentences")
        for rows in (corpus.train, corpus.held_out, corpus.dev):
            require_below(config.settings.vocabulary, np.concatenate(rows.tokens), "the sentences")
        self.batches = SentenceBatches(corpus.train + corpus.held_out if self._all else corpus.train, t.batch, t.seed)

    @property
    def _all(self) -> bool:
        return self.config.sentences.fit_all

    def rehearse(self, model):
        if self.config.teacher.start:
            self._start(model)
        tokens, lengths, labels = self._batch(0)
        self._loss(model, tokens[:2], lengths[:2], labels[:2])

    def begin(self, model):
        """A trunk takes over a language model's weights, or is new and woken; the sentences' words are counted."""
        if self.config.teacher.start:
            self._start(model)
        else:
            tokens, lengths, _ = self._batch(0)
            model.wake(tokens, lengths)
        if model.counted is not None:
            rows = self.batches.rows
            tokens, lengths, labels = rows.batch(np.arange(len(rows)))
            model.counted.count(tokens, real_tokens(tokens, lengths), labels)

    def _start(self, model) -> None:
        start = self.config.teacher.start
        require_tokens_of(start, self.corpus.tokenizer)
        source = load_model(start)
        require_settings_of(source, model.trunk, start)
        model.trunk.load_state_dict(source.state_dict())
        model.trunk.settle()

    def loss(self, model, step, micro=0):
        self.step = step
        return self._loss(model, *self._batch(step))

    def look(self, model):
        return judge(model, self.corpus.held_out, self.config.train.evaluate_batch)

    def figure(self, look):
        return look.accuracy

    def rank(self, look):
        return [-self.step] if self._all else [-look.accuracy, look.cross_entropy]

    def _batch(self, step: int):
        """(tokens, lengths, labels), the lengths on the CPU, where they are asked for."""
        tokens, lengths, labels = self.batches(step)
        device = self.config.train.device
        return moved(tokens, device), lengths, moved(labels, device)

    def _loss(self, model, tokens, lengths, labels) -> Loss:
        logits, runs, h = model.read(tokens, lengths)
        loss = F.cross_entropy(logits, labels)
        whole = loss + model.penalty(runs)
        at = moved(places(real_tokens(tokens, lengths)[:, 1:]), tokens.device)
        if self.config.sentences.language and len(at):
            following = model.trunk.decode(h[:, :-1].flatten(0, 1)[at])
            whole = whole + self.config.sentences.language * F.cross_entropy(following, tokens[:, 1:].flatten()[at])
        return Loss(whole, loss, runs, int(lengths.sum()))


def require_settings_of(source, model, where: str) -> None:
    """Refuse a trained model whose weights would compute something else in this one; names the setting."""
    theirs, ours = ({"name": each.name, **vars(each.config)} for each in (source, model))
    for setting, value in theirs.items():
        if setting not in model.training_settings and ours[setting] != value:
            wanted, remedy = f"{value!r}, as {where} has it", "copy its settings or name another run"
            raise ConfigError(f"model.{setting}", wanted, repr(ours[setting]), remedy)
