"""What training minimises: cross-entropy, the model's own penalty, a budget of operations, and a teacher's word.

B batch, T steps, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rheobase.models import load_model, model_folder
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.files import read_bytes, sha256


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What a token may cost, as a penalty on what is measured in training."""

    ops_per_token: float | None = None
    """accumulations and multiply-accumulates a token, head included; no budget if not given"""
    rates: tuple[float, ...] = ()
    """largest mean rate of each event-based layer, or one number for all; no limit if not given"""
    strength: float = 1.0
    """weight of each penalty, in nats for a factor of e above what is allowed"""
    ramp: float = 0.5
    """part of the training over which the budget tightens, geometrically, from what the model spends at first"""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Help from a trained model."""

    start: str | None = None
    """a run whose weights of the same name and shape this model starts from; those of a model that does not fire,
    such as an RWKV-4 twin's, are scaled on the first batch as a new model's are"""
    model: str | None = None
    """a run whose predictions this model learns beside the text's own"""
    share: float = 0.5
    """of the teacher's predictions in the loss, the rest is the text's"""


def teacher_digest(config: TeacherConfig) -> str | None:
    """The SHA-256 of the files of the model that teaches, or None where none does; raises FormatError: they are gone.

    What a model starts from is in its first checkpoint, and not needed again.
    """
    if not config.model:
        return None
    files = [model_folder(config.model) / name for name in ("config.json", "model.safetensors")]
    return sha256("".join(sha256(read_bytes(file, "a teacher")) for file in files).encode())


class Budget:
    """strength (relu(log(operations / allowed)) + mean over layers of relu(log(rate / allowed rate))).

    The logarithm makes the pull independent of scale: each spike spared counts by its share of all that are left.
    """

    def __init__(self, config: BudgetConfig):
        allowed = (*config.rates, 1.0 if config.ops_per_token is None else config.ops_per_token)
        if not all(0 < number < float("inf") for number in allowed) or not 0 <= config.strength < float("inf"):
            raise ConfigError("budget", "numbers above 0", f"{config}", "mend them")
        if not 0 <= config.ramp <= 1:
            raise ConfigError("budget.ramp", "a part of 1", str(config.ramp), "mend it")
        self.config = config
        self.first: float | None = None

    def __call__(self, model, runs, done: float) -> Tensor | float:
        """The penalty on what a run did, when the part `done` of the training is over."""
        c, excess = self.config, 0.0
        if c.ops_per_token is not None:
            spent = model.pooled(model.operations(runs))
            self.first = self.first or max(spent.item(), c.ops_per_token)
            left = max(0.0, 1 - done / c.ramp) if c.ramp else 0.0
            allowed = c.ops_per_token * (self.first / c.ops_per_token) ** left
            excess = excess + torch.log((spent / allowed).clamp(min=1.0))
        if c.rates:
            rates = model.rates(runs)
            if not rates:
                raise ConfigError("budget.rates", "a model with event-based layers", "none", "drop budget.rates")
            limits = c.rates * len(rates) if len(c.rates) == 1 else c.rates
            if len(limits) != len(rates):
                raise ConfigError("budget.rates", f"{len(rates)} layers or one", f"{len(limits)}", "name each layer's")
            means = [model.pooled(r.mean()) for r in rates]
            over = [torch.log((mean / most).clamp(min=1.0)) for mean, most in zip(means, limits, strict=True)]
            excess = excess + sum(over) / len(over)
        return c.strength * excess


class Teacher:
    """Distillation: the loss becomes (1 - share) cross-entropy + share KL(teacher || student), per token.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531, at temperature 1. The teacher carries its own state,
    one a micro-batch.
    """

    def __init__(self, config: TeacherConfig, vocabulary: int, device: str):
        if not 0 <= config.share <= 1:
            raise ConfigError("teacher.share", "a part of 1", str(config.share), "mend it")
        self.share, self.model, self.states = config.share, load_model(config.model).to(device).eval(), {}
        got = getattr(self.model.config, "vocabulary", "no")
        if got != vocabulary:
            got = f"a model of {got} tokens"
            raise ConfigError("teacher.model", f"a model of {vocabulary} tokens", got, "name another run")

    def __call__(self, tokens: Tensor, logits: Tensor, loss: Tensor, fresh: bool, micro: int) -> Tensor:
        """The blended loss of a micro-batch, tokens [B, T] and the student's logits [B, T, V]."""
        with torch.no_grad():
            wanted, self.states[micro] = self.model(tokens, None if fresh else self.states.get(micro))
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_p, log_q = F.log_softmax(wanted.to(wide), -1), F.log_softmax(logits.to(wide), -1)
        apart = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return (1 - self.share) * loss + self.share * apart / tokens.numel()


def text_loss(model, logits: Tensor, targets: Tensor, runs) -> tuple[Tensor, Tensor | float]:
    """(Cross-entropy of targets [B, T] by logits [B, T, V], in float32 or wider; the model's own penalty).

    Compiled, it holds no logits in a wider type than they come in.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide).flatten(0, 1), targets.flatten()), model.penalty(runs)


class Objective:
    """The whole loss of a training; what it carries from step to step goes into checkpoints.

    loss = cross-entropy, blended with a teacher's word, + the model's penalty + the budget's
    """

    def __init__(self, budget: BudgetConfig, teacher: TeacherConfig, model, device: str):
        self.budget = Budget(budget)
        self.text_loss = text_loss
        self.teacher = Teacher(teacher, model.config.vocabulary, device) if teacher.model else None

    def compile(self) -> None:
        """Compile the text's loss."""
        self.text_loss = torch.compile(text_loss, fullgraph=True, dynamic=False)

    def __call__(self, model, batch, logits: Tensor, runs, done: float, micro: int = 0) -> tuple[Tensor, Tensor]:
        """(cross-entropy of the text, whole loss) of a micro-batch (tokens, targets, fresh), `done` of 1 over."""
        tokens, targets, fresh = batch
        text, penalty = self.text_loss(model, logits, targets, runs)
        loss = self.teacher(tokens, logits, text, fresh, micro) if self.teacher else text
        return text, loss + penalty + self.budget(model, runs, done)

    def carried(self, gather) -> dict:
        """What a checkpoint must hold to go on; `gather` makes one state of those of the micro-batches."""
        return {"budget": self.budget.first, "teacher": gather(self.teacher.states) if self.teacher else None}

    def carry(self, saved: dict, cut) -> None:
        """Go on from what `carried` gave; `cut` undoes `gather` for a model."""
        self.budget.first = saved["budget"]
        if saved["teacher"] is not None:
            self.teacher.states = cut(saved["teacher"], self.teacher.model)


@torch.no_grad()
def warm_start(model, path: str) -> bool:
    """Take over all weights of a trained model, and what else has the same name and shape.

    A neuron's own numbers and a norm's statistics may be in one of the two models alone.

    returns  whether they come from a model that fires
    raises   ConfigError: a weight is in one of them alone, or has another shape
    """
    source = load_model(path)
    ours, theirs = (
        {name: tuple(p.shape) for name, p in each.named_parameters() if p.dim() > 1} for each in (model, source)
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            wanted, got = (f"{shapes.get(name, 'no')} {name}" for shapes in (ours, theirs))
            raise ConfigError(f"teacher.start {path}", wanted, got, "name a run of a model of the same sizes")
    own, found = model.state_dict(), source.state_dict()
    fitting = {name: tensor for name, tensor in found.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict(own | fitting)
    return bool(source.event_layers)
