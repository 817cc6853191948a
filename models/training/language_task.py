"""The task of a language model: to predict each next token of a text, with the state carried from step to step."""

import math

import torch

from rheobase.models.training.corpus import Corpus
from rheobase.models.training.data import Batches
from rheobase.models.training.evaluate import evaluate_part
from rheobase.models.training.objective import Objective, warm_start
from rheobase.models.training.prefetch import prefetched
from rheobase.models.training.run import require_tokens_of
from rheobase.models.training.task import Loss, Task


class LanguageTask(Task):
    """Batches of a text, the state between them, and the objective."""

    def __init__(self, config, corpus: Corpus, model):
        t, self.config, self.splits = config.train, config, corpus.splits
        self.unit, self.measure = corpus.tokenizer.unit, corpus.tokenizer.measure
        self.label = f"bits/{self.unit}"
        order, vocabulary = config.data.order, config.settings.vocabulary
        train, unit = self.splits.train, self.unit
        batches = Batches(train, t.batch, t.context, order, t.seed, vocabulary=vocabulary, unit=unit)
        self.batches = prefetched(batches, config.data.workers)
        for source in (config.teacher.start, config.teacher.model):
            if source:
                require_tokens_of(source, corpus.tokenizer)
        self.objective = Objective(config.budget, config.teacher, model, t.device)
        self.state = None

    def rehearse(self, model):
        device = self.config.train.device
        tokens, targets, fresh = self.batches(0)
        tokens, targets = tokens[:1, :2].to(device), targets[:1, :2].to(device)
        if self.config.teacher.start:
            warm_start(model, self.config.teacher.start)
        logits, _, runs = model.run(tokens)
        self.objective(model, (tokens, targets, fresh), logits, runs, 0.0)

    def begin(self, model):
        start = self.config.teacher.start
        if start and warm_start(model, start):
            return
        model.wake(self.batches(0)[0].to(self.config.train.device), trained=bool(start))

    def loss(self, model, step):
        t = self.config.train
        tokens, targets, fresh = (x.to(t.device) if torch.is_tensor(x) else x for x in self.batches(step))
        if self.state is not None:
            self.state = None if fresh else model.restart(self.state) if t.restart else self.state
        logits, state, runs = model.run(tokens, self.state)
        loss, whole = self.objective(model, (tokens, targets, fresh), logits, runs, step / t.steps)
        self.state = tuple(type(s)(*(part.detach() for part in s)) for s in state)
        return Loss(whole, loss / math.log(2), runs, tokens.numel())

    def look(self, model):
        return evaluate_part(model, self.splits, "valid", self.config.train)

    def figure(self, look):
        return look.bits_per_token

    def carried(self):
        return {"state": tuple(tuple(layer) for layer in self.state), "objective": self.objective.carried()}

    def carry(self, saved, model):
        device = self.config.train.device
        self.objective.carry(saved["objective"], device)
        self.state = model.as_state([[part.to(device) for part in layer] for layer in saved["state"]])
