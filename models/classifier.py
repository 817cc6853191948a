"""Classification of sentences: a language model's features, their mean over the sentence, and one linear layer.

B sentences, T tokens of the longest, E features, C classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rheobase.models._counted_words import CountedWords
from rheobase.models._moving import moved
from rheobase.models._pretrained import LanguageModel, Pretrained
from rheobase.spiking import registry
from rheobase.spiking.config import from_table, to_table
from rheobase.spiking.errors import ConfigError, ShapeError

COUNTS_WEIGHT = 0.5
"""of the counted words' scores, which are too sure: a word lies in three of what is counted, itself and two pairs, as
if it were seen anew each time; chosen on three tenths of SST-2's training sentences"""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A trunk, by the name and the settings of a language model, and the number of classes."""

    trunk: str = "spikegpt"
    """the language model's file name"""
    settings: Any
    """the table of its settings"""
    classes: int = 2
    """number of labels"""
    dropout: float = 0.0
    """dropout of the mean features"""
    counted: int = 0
    """how many words and pairs of words speak for a class by their counts too (`CountedWords`)"""


class Classifier(Pretrained):
    """A sentence's class from a language model that reads it from its first token to its last.

        logits = model(tokens, lengths=None)     tokens [B, T] int64, lengths [B] -> logits [B, C]
        logits = W mean_t h_t + b     t over the sentence's own tokens, h_t [E] what the language model's head reads

    With `counted` words and pairs a direct path from words to classes joins the network's: logits + 0.5 score, by
    `CountedWords`, whose counts are taken from the training sentences. The network learns without it.

    A batch is padded on the right. The language model is causal, so that what lies after a sentence's end reaches
    neither its events nor, by the mean's mask, its logits; it is counted in no rate.

    Differs: SpikeGPT's own scripts for language understanding have no mask, so that padding takes part.

    raises  ConfigError: a setting out of its range, or no such trunk;  ShapeError, in a call: tokens not [B, T]
            integers below V, or lengths not [B] from 1 to T
    """

    Config = ClassifierConfig
    name = "classifier"

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        if config.classes < 2:
            raise ConfigError("classifier classes", "at least 2", str(config.classes), "raise it")
        if not 0 <= config.dropout < 1:
            raise ConfigError("classifier dropout", "at least 0 and below 1", str(config.dropout), "mend it")
        if config.counted < 0:
            raise ConfigError("classifier counted", "at least 0", str(config.counted), "raise it")
        self.config = config
        self.trunk = trunk_type(config.trunk)(trunk_settings(config))
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(self.trunk.width, config.classes)
        size = (config.counted, self.trunk.config.vocabulary, config.classes)
        self.counted = CountedWords(*size) if config.counted else None

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """tokens [B, T] int64, of which row b has lengths[b], all T if not given -> logits [B, C].

        raises  ShapeError: tokens not [B, T] integers below V, or lengths not [B] from 1 to T
        """
        return self.run(tokens, lengths)[0]

    def run(self, tokens: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """As `forward`, with what the trunk's layers did at the sentences' own tokens, as one row of them."""
        if lengths is None:
            lengths = torch.full(tokens.shape[:1], tokens.shape[-1])
        logits, runs, _ = self.read(tokens, lengths)
        if self.counted is not None:
            mask = moved(real_tokens(tokens, lengths), tokens.device)
            logits = logits + COUNTS_WEIGHT * self.counted(tokens, mask).to(logits)
        return logits, runs

    def read(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Any, Tensor]:
        """The network's own logits, what the trunk's layers did at the sentences' own tokens, and the trunk's features
        [B, T, E], what lies behind a sentence's end included."""
        real = real_tokens(tokens, lengths)
        mask, at = (moved(x, tokens.device) for x in (real, places(real)))
        h, _, runs = self.trunk.hidden(tokens)
        mean = torch.where(mask[..., None], h, 0).sum(1) / mask.sum(1, keepdim=True).to(h)
        return self.output(self.dropout(mean)), keep(runs, at), h

    def wake(self, tokens: Tensor, lengths: Tensor) -> None:
        """Prepare a new trunk on the first batch's own tokens, laid end to end in as many rows."""
        real = tokens[real_tokens(tokens, lengths).to(tokens.device)]
        self.trunk.wake(real[: len(real) // len(tokens) * len(tokens)].view(len(tokens), -1))

    def penalty(self, runs) -> Tensor | float:
        """What the trunk adds to the loss for its layers' activity."""
        return self.trunk.penalty(runs)

    @property
    def event_layers(self) -> tuple[str, ...]:
        """Module paths of the layers of `rates`, in the trunk."""
        return self.trunk.event_layers

    def rates(self, runs) -> list[Tensor]:
        """Mean firing of each unit of each event-based layer at the sentences' own tokens."""
        return self.trunk.rates(runs)

    def project_(self) -> None:
        self.trunk.project_()

    def advance(self, done: float) -> None:
        """As the trunk's, unless a language model's training has brought it to its end before."""
        if not self.trunk.complete:
            self.trunk.advance(done)

    @property
    def heads(self) -> tuple[str, ...]:
        return ("output.weight", *(f"trunk.{name}" for name in self.trunk.heads))

    def products(self):
        return {f"trunk.{name}": stored for name, stored in self.trunk.products().items()} | {"output.weight": True}

    @property
    def complete(self) -> bool:
        return self.trunk.complete

    @classmethod
    def least_numbers(cls, config):
        counted = config.counted * (1 + config.classes)
        return trunk_type(config.trunk).least_numbers(trunk_settings(config)) + config.classes + counted

    @classmethod
    def on(cls, trunk: LanguageModel, *, classes: int, dropout: float = 0.0) -> "Classifier":
        """A classifier whose trunk starts with the weights of this language model, and whose head is new."""
        settings = to_table(trunk.config)
        model = cls(ClassifierConfig(trunk=trunk.name, settings=settings, classes=classes, dropout=dropout))
        model.trunk.load_state_dict(trunk.state_dict())
        return model


def trunk_type(name: str) -> type[LanguageModel]:
    """The language model of that name; raises ConfigError where there is none."""
    model = getattr(registry.get("rheobase.models", name), "Model", None)
    if model is None or not issubclass(model, LanguageModel):
        raise ConfigError("classifier trunk", "a language model", repr(name), 'name one, such as "spikegpt"')
    return model


def trunk_settings(config: ClassifierConfig):
    """The trunk's settings as its own record."""
    return from_table(trunk_type(config.trunk).Config, config.settings, "classifier settings")


def real_tokens(tokens: Tensor, lengths: Tensor) -> Tensor:
    """The mask [B, T] of the sentences' own tokens, on the device of the lengths: on the CPU a GPU is not waited for.

    raises  ShapeError: lengths that cannot be
    """
    ok = lengths.shape == tokens.shape[:1] and lengths.numel() > 0 and not lengths.is_floating_point()
    if tokens.dim() != 2 or not ok or lengths.min() < 1 or lengths.max() > tokens.shape[1]:
        got = f"tokens {tuple(tokens.shape)}, lengths {lengths.tolist()[:8]}"
        raise ShapeError("classifier lengths", "tokens [B, T] and B whole numbers from 1 to T", got, "mend them")
    return torch.arange(tokens.shape[1], device=lengths.device) < lengths[:, None]


def places(mask: Tensor) -> Tensor:
    """Where a mask [B, T] is True, of B T places: [N]."""
    return mask.flatten().nonzero()[:, 0]


def keep(runs, at: Tensor):
    """What layers did, [B, T, ...] each, at some `places` only, as one row [1, N, ...]."""
    if isinstance(runs, Tensor):
        return runs.flatten(0, 1)[at][None]
    if isinstance(runs, tuple) and hasattr(runs, "_fields"):
        return type(runs)(*(keep(part, at) for part in runs))
    return runs if runs is None else type(runs)(keep(part, at) for part in runs)


Config, Model = ClassifierConfig, Classifier
