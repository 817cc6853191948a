"""Fewer and shorter weights: pruning by magnitude and rounding to int8, both while a model is trained."""

import contextlib
from dataclasses import dataclass

import torch

from rheobase.models.training.sharding import whole
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.quantisation import LARGEST, best_exponents, rounded, scaled


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Which part of the weights of products becomes 0, and when; biases, thresholds and norms never do."""

    sparsity: float = 0.0
    """part that is 0 in the end; at 0, nothing is pruned"""
    start: float = 0.2
    """part of the training after which weights are taken away"""
    end: float = 0.7
    """part of the training after which no more are, and those left are trained on"""
    every: int = 20
    """updates between two choices of what is taken away"""
    scope: str = "global"
    """"global": the smallest weights of all matrices together;  "layer": the same part of each"""
    head: bool = False
    """the head is pruned too, and with it the embedding where they share a table"""


@dataclass(frozen=True, kw_only=True)
class QuantiseConfig:
    """What the weights of products, the head's too, are rounded to while they are trained."""

    weights: int = 0
    """bits: 8, with a power of two a target, as images of chips hold them, or 0 for no rounding"""
    start: float = 0.5
    """part of the training after which the model computes with rounded weights"""


@dataclass(frozen=True)
class Sparsity:
    """How many weights of products are 0, the head's left out unless it is pruned."""

    zeros: int
    weights: int
    layers: dict[str, float]
    """share of zeros of each matrix"""


def _between(config: PruneConfig, steps: int) -> tuple[int, int]:
    """The steps at which pruning begins, and at which it is done."""
    return int(config.start * steps), int(config.end * steps)


def sparsity_after(step: int, config: PruneConfig, steps: int) -> float:
    """s_f (1 - (1 - (t - t0) / (t1 - t0))^3) between the steps t0 and t1; 0 before, s_f after.

    Source: Zhu, Gupta, "To prune, or not to prune", arXiv 1710.01878, equation 1, from no sparsity.
    """
    first, last = _between(config, steps)
    if step >= last:
        return config.sparsity
    left = 1 - max(step - first, 0) / (last - first)
    return config.sparsity * (1 - left**3)


class Compression:
    """Prunes and rounds the weights of a model's products, in step with a training of so many `steps`.

    A weight that is pruned stays 0, even where `steps` is raised later. Of n weights, floor(sparsity n + 1/2) are: of
    all together, or of each matrix. Where weights are rounded, the model computes with the rounded ones; the gradient
    there is taken for that of the weights themselves (straight-through: Bengio, Léonard, Courville, arXiv 1308.3432),
    and for 0 where a weight is clipped. The exponents are chosen anew at each step.

    raises  ConfigError: settings out of range
    """

    def __init__(self, prune: PruneConfig, quantise: QuantiseConfig, model, steps: int):
        _check(prune, quantise)
        self.prune, self.quantise, self.steps = prune, quantise, steps
        self.first, self.last = _between(prune, steps)
        self.rounds_from = int(quantise.start * steps)
        self.heads, self.transposed = model.heads, model.products()
        self.weights = {name: model.get_parameter(name) for name in self.transposed}
        self.prunable = {n: w for n, w in self.weights.items() if prune.head or n not in self.heads}
        prunes = self.prunable if prune.sparsity else {}
        self.pruned = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in prunes.items()}

    def begin(self, step: int) -> None:
        """At the start of a step: take weights away, if it is time to."""
        due = (step - self.first) % self.prune.every == 0 or step == self.last
        if self.pruned and due and self.first <= step <= self.last:
            share = sparsity_after(step, self.prune, self.steps)
            names = list(self.pruned)
            for scope in [names] if self.prune.scope == "global" else [[name] for name in names]:
                self._choose(scope, share)
            self.project_()

    @torch.no_grad()
    def _choose(self, names: list[str], share: float) -> None:
        """Of the matrices named, take away the share that is smallest; what is gone counts as less than any."""
        sizes = torch.cat([self.weights[name].abs().masked_fill(self.pruned[name], -1.0).flatten() for name in names])
        chosen = torch.zeros_like(sizes, dtype=torch.bool)
        n = max(int(share * len(sizes) + 0.5), int((sizes < 0).sum()))
        chosen[sizes.topk(n, largest=False).indices] = True
        for name, part in zip(names, chosen.split([self.weights[name].numel() for name in names]), strict=True):
            self.pruned[name] = part.view_as(self.weights[name])

    @torch.no_grad()
    def project_(self) -> None:
        """Bring the weights that were taken away back to 0, after each step of the optimiser."""
        for name, gone in self.pruned.items():
            self.weights[name].masked_fill_(gone, 0.0)

    @contextlib.contextmanager
    def applied(self, step: int):
        """Inside, in a step, weights are what the model computes with; gradients found there are then passed on."""
        kept = self._round() if self.quantise.weights and step >= self.rounds_from else {}
        try:
            yield
        finally:
            self._restore(kept)

    @torch.no_grad()
    def _round(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Round all weights in place; returns of each matrix what it was, and where it was clipped."""
        kept = {}
        for name, weight in self.weights.items():
            columns = weight.T if self.transposed[name] else weight
            power = columns.new_ones(len(columns))
            exponent = best_exponents(columns, power, clip=name not in self.heads)
            kept[name] = weight.clone(), scaled(columns, exponent).abs() > LARGEST + 0.5
            columns.copy_(rounded(columns, exponent))
        return kept

    @torch.no_grad()
    def _restore(self, kept: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        for name, (before, clipped) in kept.items():
            self.weights[name].copy_(before)
            self._pass_on(name, clipped.T if self.transposed[name] else clipped)
        for name, gone in self.pruned.items():
            self._pass_on(name, gone)

    def _pass_on(self, name: str, nowhere: torch.Tensor) -> None:
        """Leave a matrix the gradient that was found, but where it counts for nothing."""
        if self.weights[name].grad is not None:
            self.weights[name].grad.masked_fill_(nowhere, 0.0)

    def complete(self, step: int) -> bool:
        """Whether the weights after so many steps are all that the configuration asks for."""
        pruned = not self.prune.sparsity or step > self.last
        return pruned and (not self.quantise.weights or step > self.rounds_from)

    def sparsity(self) -> Sparsity:
        """What is 0 now."""
        zeros = {name: int(whole((weight == 0).sum())) for name, weight in self.prunable.items()}
        layers = {name: n / self.weights[name].numel() for name, n in zeros.items()}
        return Sparsity(sum(zeros.values()), sum(w.numel() for w in self.prunable.values()), layers)

    def carried(self) -> dict:
        """What a checkpoint must hold to go on."""
        return self.pruned

    def carry(self, saved: dict) -> None:
        """Go on from what `carried` gave."""
        self.pruned = {name: gone.to(self.weights[name].device) for name, gone in saved.items()}


def _check(prune: PruneConfig, quantise: QuantiseConfig) -> None:
    if not 0 <= prune.sparsity < 1:
        raise ConfigError("prune.sparsity", "at least 0 and below 1", str(prune.sparsity), "mend it")
    if not 0 <= prune.start <= prune.end < 1:
        got = f"{prune.start} and {prune.end}"
        raise ConfigError("prune.start, prune.end", "rising parts of 1, both below it", got, "mend them")
    if prune.every < 1:
        raise ConfigError("prune.every", "at least 1", str(prune.every), "raise it")
    if prune.scope not in ("global", "layer"):
        raise ConfigError("prune.scope", "'global' or 'layer'", repr(prune.scope), "name one of them")
    if quantise.weights not in (0, 8):
        raise ConfigError("quantise.weights", "8 bits, or 0", str(quantise.weights), "name one of them")
    if not 0 <= quantise.start < 1:
        raise ConfigError("quantise.start", "at least 0 and below 1", str(quantise.start), "mend it")
