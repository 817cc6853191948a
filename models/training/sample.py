"""Tokens out of a trained model: how the next one is chosen, and the loop that asks for it.

B rows (a prompt and a seed each), V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rheobase.spiking.errors import ConfigError, RheobaseError, ShapeError

PREFILL = 1024
"""tokens of a prompt that are computed at once, so that memory does not grow with the prompt"""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How the next token is chosen; what is off leaves the logits untouched bit for bit.

    raises  ConfigError: a number outside its range
    """

    temperature: float = 0.8
    """divides the logits, before any filter; 0 takes the likeliest token"""
    top_k: int = 0
    """keep this many of the likeliest tokens; 0 is off"""
    top_p: float = 1.0
    """keep the fewest likeliest tokens that together have at least this probability; 1 is off"""
    typical: float = 1.0
    """keep the fewest most typical tokens that together have at least this probability; 1 is off"""
    repetition_penalty: float = 1.0
    """makes tokens of the prompt and the text so far less likely; 1 is off"""

    def __post_init__(self):
        share = "above 0 and at most 1"
        ranges = {
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, share),
            "typical": (0 < self.typical <= 1, share),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
        }
        for name, (fits, wanted) in ranges.items():
            if not fits:
                raise ConfigError(name, wanted, str(getattr(self, name)), "mend it")


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make the tokens that a row has seen less likely.

        x_i / penalty where seen and x_i > 0        x_i penalty where seen and x_i <= 0        x_i elsewhere

    Source: Keskar et al., "CTRL", arXiv 1909.05858, section 4.1. Where it differs: the paper divides whatever the
    sign, which would make a token of negative logit likelier; transformers multiplies those, as here.
    """
    lower = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, lower, logits_BV)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """The k largest logits of each row; the others become -inf. Of equal ones the lower token comes first."""
    order = logits_BV.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.arange(logits_BV.shape[-1]).expand_as(order) < k
    return _keep(logits_BV, order, kept)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose probabilities sum to at least p; the others become -inf.

    Source: nucleus sampling, Holtzman et al., ICLR 2020.
    """
    order = logits_BV.sort(dim=-1, descending=True, stable=True).indices
    return _keep_mass(logits_BV, order, p)


def keep_typical(logits_BV: Tensor, mass: float) -> Tensor:
    """The tokens whose surprise is nearest to the entropy, until their probabilities sum to at least `mass`.

        order by |-log p_i - H|, H = -sum_i p_i log p_i

    Source: locally typical sampling, Meister, Pimentel, Wiher, Cotterell, TACL 11, 2023. The likeliest token may go.
    """
    log_p = logits_BV.log_softmax(-1)
    entropy = torch.special.entr(log_p.exp()).sum(-1, keepdim=True)
    order = (-log_p - entropy).abs().sort(dim=-1, stable=True).indices
    return _keep_mass(logits_BV, order, mass)


def _keep_mass(logits_BV: Tensor, order_BV: Tensor, mass: float) -> Tensor:
    """The first tokens of an order, up to and with the one that brings their sum to `mass`."""
    sums = logits_BV.softmax(-1).gather(-1, order_BV).cumsum(-1)
    before = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], -1)
    return _keep(logits_BV, order_BV, before < mass)


def _keep(logits_BV: Tensor, order_BV: Tensor, kept_BV: Tensor) -> Tensor:
    """-inf wherever `kept`, which stands in the given order, is False."""
    mask = torch.zeros_like(kept_BV).scatter(-1, order_BV, kept_BV)
    return logits_BV.masked_fill(~mask, -math.inf)


def filter_logits(logits_BV: Tensor, config: SampleConfig, seen_BV: Tensor | None = None) -> Tensor:
    """The logits to draw from: penalty, temperature, top-k, top-p, typical, in this order.

    seen_BV  the tokens that each row has seen (bool); none if not given
    returns  logits [B, V], -inf for what is left out; each filter works on what the one before has left
    """
    c, x = config, logits_BV
    if c.repetition_penalty != 1 and seen_BV is not None:
        x = penalise(x, seen_BV, c.repetition_penalty)
    if c.temperature == 0:
        return keep_top_k(x, 1)
    if c.temperature != 1:
        x = (x - x.amax(-1, keepdim=True)) / c.temperature  # the shift keeps the largest finite
    if c.top_k:
        x = keep_top_k(x, c.top_k)
    if c.top_p < 1:
        x = keep_top_p(x, c.top_p)
    if c.typical < 1:
        x = keep_typical(x, c.typical)
    return x


def draw(logits_BV: Tensor, u_B: Tensor) -> Tensor:
    """The token i with p_0 + ... + p_{i-1} <= u < p_0 + ... + p_i, so that uniform u in [0, 1) draw i with p_i.

    returns  tokens [B] int64
    """
    sums = logits_BV.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(sums / sums[:, -1:], u_B[:, None], right=True)[:, 0]


@torch.no_grad()
def prefill(model, prompt: Sequence[int]) -> tuple[Tensor, tuple]:
    """Run a prompt through the parallel form: (logits after its last token [1, V], the whole state, batch 1)."""
    state = None
    tokens = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    for piece in tokens.split(PREFILL, 1):
        logits, state = model(piece, state)
    return logits[:, -1], state


def join_states(states: Sequence[tuple]) -> tuple:
    """One state whose rows are copies of the given states, every part of every layer, membranes included."""
    return tuple(type(rows[0])(*map(torch.cat, zip(*rows, strict=True))) for rows in zip(*states, strict=True))


@torch.no_grad()
def stream(
    model,
    prompts: Sequence[Sequence[int]],
    length: int,
    config: SampleConfig,
    seeds: Sequence[int],
    vocabulary: int | None = None,
) -> Iterator[Tensor]:
    """Yield `length` times the next token of every row [B] int64, in constant memory and time a token.

    prompts     token ids, one prompt a row; equal ones are computed once, and each row starts from a copy of the state
    seeds       one a row: a row draws from its own generator, so that its text is a function of its prompt and seed,
                whatever the other rows are (up to the rounding of products, which may depend on the batch size)
    vocabulary  of the tokenizer: a model's ids from there on stand for nothing and are never drawn; all if not given
    raises      ConfigError: an empty prompt or a seed out of range;  ShapeError: not one seed a prompt;
                RheobaseError: logits that are not finite
    """
    if not prompts or not all(prompts):
        raise ConfigError("prompt", "at least one token", "none", "give a prompt")
    if len(prompts) != len(seeds):
        raise ShapeError("seeds", f"{len(prompts)}, one a prompt", str(len(seeds)), "give one seed a prompt")
    if not all(0 <= seed < 2**63 for seed in seeds):
        raise ConfigError("seed", "from 0 to below 2^63", str(list(seeds)), "choose another")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    was_training = model.training
    model.eval()
    try:
        started = {prompt: prefill(model, prompt) for prompt in dict.fromkeys(map(tuple, prompts))}
        first, states = zip(*(started[tuple(prompt)] for prompt in prompts), strict=True)
        last, state = torch.cat(first)[:, :vocabulary], join_states(states)
        seen = torch.zeros(last.shape, dtype=torch.bool)
        for row, prompt in zip(seen, prompts, strict=True):
            row[list(prompt)] = True
        for left in reversed(range(length)):
            here = last.cpu().double()  # one copy a token, in the narrower type
            if not here.isfinite().all():
                raise RheobaseError("sample", "finite logits", "others", "train the model with a lower learning rate")
            u = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
            tokens = draw(filter_logits(here, config, seen), u)
            seen[torch.arange(len(tokens)), tokens] = True
            yield tokens
            if left:
                logits, state = model(tokens[:, None].to(last.device), state)
                last = logits[:, -1, :vocabulary]
    finally:
        model.train(was_training)


def sample(
    model,
    prompts: Sequence[Sequence[int]],
    length: int,
    config: SampleConfig = SampleConfig(),
    seeds: Sequence[int] | None = None,
    vocabulary: int | None = None,
) -> Tensor:
    """The rows of `stream` as one tensor [B, length]; seeds 0, 1, ... if not given."""
    rows = list(stream(model, prompts, length, config, range(len(prompts)) if seeds is None else seeds, vocabulary))
    return torch.stack(rows, 1) if rows else torch.empty(len(prompts), 0, dtype=torch.int64)


class Writer:
    """Text of tokens as they come: what ends inside a character waits for the rest of it.

    Tokens are decoded behind those written last, since the text of a token may hang on the one before.

    tokenizer  decodes ids;  ids: those of the prompt
    text       all that is written so far
    """

    longest = 16
    """tokens that wait at most: what is no character by then is written as it is"""

    def __init__(self, tokenizer, ids: Sequence[int]):
        self.tokenizer, self.last, self.waiting, self.text, self.shown = tokenizer, [], [], "", 0
        self.add(*ids)

    def add(self, *tokens: int) -> None:
        """Go on with these tokens."""
        self.waiting += tokens
        if not self._decode(self.last + self.waiting).endswith("\ufffd") or len(self.waiting) > self.longest:
            self.flush()

    def flush(self) -> None:
        """Write what waits, whatever it is."""
        self.text += self._decode(self.last + self.waiting)[len(self._decode(self.last)) :]
        self.last, self.waiting = (self.waiting or self.last)[-self.longest :], []

    def fresh(self) -> str:
        """What came to the text since the last call."""
        new, self.shown = self.text[self.shown :], len(self.text)
        return new

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids).decode(errors="replace")
