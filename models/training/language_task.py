"""The task of a language model: to predict each next token of a text, with the state carried from step to step."""

import math

import torch
from torch import Tensor

from rheobase.models._moving import moved
from rheobase.models._pretrained import LanguageModel
from rheobase.models.training.corpus import Corpus
from rheobase.models.training.data import Batches, require_below
from rheobase.models.training.distributed import Ranks
from rheobase.models.training.evaluate import evaluate_part
from rheobase.models.training.objective import Objective, warm_start
from rheobase.models.training.prefetch import prefetched
from rheobase.models.training.run import require_tokens_of
from rheobase.models.training.task import Loss, Task
from rheobase.spiking.errors import ConfigError


class LanguageTask(Task):
    """Batches of a text, the state between them, and the objective.

    Each micro-batch of a rank has rows of its own, and a state of its own for them; a checkpoint holds the state of the
    global batch, row by row.
    """

    def __init__(self, config, corpus: Corpus, model, ranks: Ranks):
        t, self.config, self.splits = config.train, config, corpus.splits
        self.unit, self.measure = corpus.tokenizer.unit, corpus.tokenizer.measure
        self.label = f"bits/{self.unit}"
        order, vocabulary = config.data.order, config.settings.vocabulary
        train, unit = self.splits.train, self.unit
        if t.restart and type(model).restart is LanguageModel.restart:
            raise ConfigError("train.restart", "an EGRU, whose c it zeroes", config.model, "drop it")
        if vocabulary < corpus.tokenizer.vocabulary:
            for name, part in self.splits.parts.items():
                require_below(vocabulary, part, f"the {name} part of the text")
        self.batches = Batches(train, t.batch, t.context, order, t.seed, vocabulary=vocabulary, unit=unit)
        self.ahead = prefetched(self.batches, config.data.workers)
        for source in (config.teacher.start, config.teacher.model):
            if source:
                require_tokens_of(source, corpus.tokenizer)
        self.objective = Objective(config.budget, config.teacher, model, t.device)
        self.ranks, self.rows, self.states = ranks, ranks.rows(t.batch), {}

    def rehearse(self, model):
        device = self.config.train.device
        tokens, targets, fresh = self.batches(0)
        tokens, targets = tokens[:1, :2].to(device), targets[:1, :2].to(device)
        if self.config.teacher.start:
            warm_start(model, self.config.teacher.start)
        logits, state, runs = model.run(tokens)
        require_true(model, runs)
        model.run(tokens, state)
        self.objective(model, (tokens, targets, fresh), logits, runs, 0.0)

    def compile(self, model):
        if not model.needs_whole_means:  # of which a penalty asks the other ranks
            self.objective.compile()

    def begin(self, model):
        start = self.config.teacher.start
        if start and warm_start(model, start):
            return
        model.wake(self.batches(0)[0].to(self.config.train.device), trained=bool(start))

    def loss(self, model, step, micro=0):
        t, state = self.config.train, self.states.get(micro)
        batch = self.ahead(step, self.rows[micro])
        tokens, targets, fresh = (moved(x, t.device) if torch.is_tensor(x) else x for x in batch)
        if state is not None:
            state = None if fresh else model.restart(state) if t.restart else state
        logits, state, runs = model.run(tokens, state)
        batch = (tokens, targets, fresh)
        loss, whole = self.objective(model, batch, logits, runs, step / t.steps, micro)
        self.states[micro] = tuple(type(s)(*map(_held, s)) for s in state)
        return Loss(whole, loss / math.log(2), runs, tokens.numel())

    def look(self, model):
        return evaluate_part(model, self.splits, "valid", self.config.train)

    def figure(self, look):
        return look.bits_per_token

    def carried(self):
        return {"state": self._gather(self.states), "objective": self.objective.carried(self._gather)}

    def carry(self, saved, model):
        self.objective.carry(saved["objective"], self._cut)
        self.states = self._cut(saved["state"], model)

    def _gather(self, states: dict) -> tuple:
        """One state of the whole batch."""
        layers = zip(*(states[micro] for micro in range(len(self.rows))), strict=True)
        return tuple(tuple(self.ranks.gather(torch.cat(p)) for p in zip(*layer, strict=True)) for layer in layers)

    def _cut(self, saved, model) -> dict:
        """The states of this rank's micro-batches, of that of the whole batch."""
        device = self.config.train.device
        layers = [[[part[rows].to(device) for part in layer] for layer in saved] for rows in self.rows]
        return dict(enumerate(map(model.as_state, layers)))


def _held(part: Tensor) -> Tensor:
    """A tensor of a state between two steps: of float32 at least, if of real numbers."""
    least = torch.float32 if part.is_floating_point() else part.dtype
    return part.detach().to(torch.promote_types(part.dtype, least)).contiguous()


def require_true(model, runs) -> None:
    """Refuse a model whose file says other than what the model is, before it is trained and then cannot be resumed,
    opened or judged; raises ConfigError.

    runs    the third result of its `run`
    """
    where, kind = f"models/{model.name}.py Model", type(model)
    if kind.as_state is LanguageModel.as_state and not hasattr(kind, "state_type"):
        raise ConfigError(f"{where}.state_type", "the type of a layer's state", "none", "name it")
    rates, layers = len(model.rates(runs)), len(model.event_layers)
    if rates != layers:
        raise ConfigError(f"{where}.rates", f"as many as its {layers} event_layers", str(rates), "mend one of them")
    held, least = sum(t.numel() for t in model.state_dict().values()), kind.least_numbers(model.config)
    if least > held:
        raise ConfigError(f"{where}.least_numbers", f"at most the model's own {held:,}", f"{least:,}", "lower it")
