"""SpikeGPT: RWKV blocks with LIF neurons, as its original's code has them, or before every linear layer.

The token axis is the neurons' time axis: one step a token. B batch, T steps, V vocabulary, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rheobase.models import _rwkv_graph
from rheobase.models._norms import NORMS, StaticNorm
from rheobase.models._pretrained import LanguageModel, check_settings, fit_tensors, read_state_dict, require_finite
from rheobase.models._rwkv import BLOCKS, wake
from rheobase.models._rwkv_neurons import events, fire, make_neuron, rest
from rheobase.spiking.errors import ConfigError, FormatError, UnsupportedError
from rheobase.spiking.graph import EventGraph
from rheobase.spiking.neurons import Cell
from rheobase.spiking.surrogates import ATan
from rheobase.spiking.tally import BINARY, mark

L2WRAP = 0.5e-4
CHOICES = {"placement": BLOCKS, "norm": NORMS, "init": ("live", "original"), "head": ("dense", "spiking")}


@dataclass(frozen=True, kw_only=True)
class SpikeGPTConfig:
    """Sizes and settings of a SpikeGPT."""

    vocabulary: int = 256
    """number of token ids; 256 for bytes"""
    embedding: int = 128
    """width D of the residual stream"""
    depth: int = 4
    """number of blocks"""
    placement: str = "reference"
    """"reference": neurons after the mixes, as the original's code;  "spike_fed": before every linear layer;
    "continuous": no neurons, RWKV-4"""
    norm: str = "layer"
    """"layer": LayerNorm;  "static": LayerNorm that training turns into constants, folded away when lowered
    (spike_fed only)"""
    norm_from: float = 0.2
    """part of the training after which static norms begin to lose their statistics"""
    norm_until: float = 0.6
    """part of the training after which nothing is left of them"""
    head: str = "dense"
    """"dense": the head reads real values;  "spiking": it reads the spikes of neurons (spike_fed only)"""
    neuron: str = "lif"
    """SpikeGPT's LIF, another library's neuron, "norse:LIFBox", "snntorch:Leaky" (`spiking.adapters`), or one of
    your own by the name of its file in `spiking/neurons`"""
    neuron_settings: tuple[str, ...] = ()
    """settings of another neuron than "lif", such as "beta=0.5" """
    tau: float = 2.0
    """time constant of each neuron in tokens, at its start where it is learnt; at 1 a neuron remembers nothing"""
    theta: float = 1.0
    """threshold of each neuron, at its start where it is learnt"""
    ternary: bool = False
    """neurons also fire -1, below minus their threshold"""
    graded: bool = False
    """a spike carries the membrane that made it, so that the products that read it multiply"""
    learn: tuple[str, ...] = ()
    """what each neuron learns, one value a unit: "tau", "theta" """
    ffn_pre: bool = False
    """block 0 mixes channels where the others mix time (the original's RWKV-ffnPre)"""
    binary_embedding: bool = True
    """the embedding's values become spikes, [value >= 0]"""
    embedding_range: float = 0.0
    """the embedding starts uniform in plus or minus this, from N(0, 1) if it is 0; where words are rare it should be
    small, so that a norm's gain lets the few updates of each count for more than its start"""
    dropout: float = 0.03
    """dropout of the whole residual stream after each block"""
    l2wrap: bool = True
    """a penalty of 0.5e-4 x the mean square of each position's largest logit"""
    init: str = "live"
    """"live": weights are scaled on the first batch so that every neuron layer fires at `init_rate`;  "original": as
    the original's code starts, where hardly any neuron fires"""
    init_rate: float = 0.15
    """mean firing of each layer at the start"""
    alpha: float = 2.0
    """steepness of the arctangent surrogate"""


ORIGINAL = ("placement", "norm", "head", "neuron", "tau", "theta", "ternary", "graded", "learn")
"""settings that the original's file does not hold, and so has only one value of"""

PUBLISHED = {
    "46m": SpikeGPTConfig(vocabulary=5458, embedding=512, depth=12),
    "216m": SpikeGPTConfig(vocabulary=50277, embedding=768, depth=18),
}
"""The published sizes: 46,553,088 parameters for enwik8 by character, and 215,399,424 for OpenWebText2."""


class HeadState(NamedTuple):
    """What a spiking head carries from token to token, [B, D]; of several membranes a unit as in `BlockState`."""

    v: Tensor


class Activity(NamedTuple):
    """What a run did, for penalties and counts."""

    logits: Tensor | None
    """[B, T, V], where the head was run"""
    spikes: list[Tensor]
    """of each neuron layer, [B, T, units], whatever they carry"""


class SpikeGPT(LanguageModel):
    """The language model of Zhu, Zhao, Li, Eshraghian, "SpikeGPT", arXiv 2302.13939, as its code computes it.

        logits, state = model(tokens, state=None)     tokens [B, T] int64 -> logits [B, T, V]

    In the reference placement every linear layer reads dense values: the spikes only enter the residual sum. In the
    spike-fed one (`_rwkv.SpikeFedBlock`) every linear layer but the head reads spikes, and the head too if asked.
    Parameter names are the original's. Where it differs: the state, membranes included, is carried, so that a
    sequence may be cut anywhere; the original's step form rescales across the thresholds and so computes another
    function. A new one hardly fires until `wake(tokens)` has scaled its weights on some text, as training does first.

    raises  ConfigError: settings that are none, or do not go together;  ShapeError, in a call: tokens not [B, T]
            integers below V, or a state of another batch size or model
    """

    Config = SpikeGPTConfig
    name = "spikegpt"
    heads = ("head.weight",)
    training_settings = frozenset(
        ("norm_from", "norm_until", "embedding_range", "dropout", "l2wrap", "init", "init_rate", "alpha")
    )
    citations = (
        "@article{zhu2023spikegpt, title={SpikeGPT: Generative pre-trained language model with spiking neural "
        "networks}, author={Zhu, Rui-Jie and Zhao, Qihang and Li, Guoqi and Eshraghian, Jason K.}, "
        "journal={arXiv:2302.13939}, year={2023}}",
    )

    def __init__(self, config: SpikeGPTConfig):
        super().__init__()
        check_settings(self.name, config)
        for field, known in CHOICES.items():
            value = getattr(config, field)
            if value not in known:
                names = " or ".join(map(repr, known))
                raise ConfigError(f"{self.name} {field}", names, repr(value), "name one of them")
        needs = {
            "ffn_pre": ("reference", config.ffn_pre),
            "norm": ("spike_fed", config.norm != "layer"),
            "head": ("spike_fed", config.head != "dense"),
        }
        for field, (placement, set_) in needs.items():
            if set_ and config.placement != placement:
                where, wanted = f"{self.name} {field}", f'placement = "{placement}"'
                raise ConfigError(where, wanted, repr(config.placement), "drop one of them")
        if not 0 < config.init_rate < 1:
            raise ConfigError(f"{self.name} init_rate", "above 0 and below 1", str(config.init_rate), "mend it")
        plain = SpikeGPTConfig()
        changed = [n for n in ("tau", "theta", "ternary", "graded", "learn") if getattr(config, n) != getattr(plain, n)]
        if config.placement == "continuous" and (changed or config.neuron != "lif"):
            where = f"{self.name} {', '.join(changed) or 'neuron'}"
            raise ConfigError(where, "a placement with neurons", repr(config.placement), "drop them")
        if config.neuron == "lif" and config.neuron_settings:
            where, got = f"{self.name} neuron_settings", f"{list(config.neuron_settings)}"
            raise ConfigError(where, "none for lif, whose settings are SpikeGPT's", got, "use ternary or learn")
        if config.neuron != "lif" and changed:
            where, got = f"{self.name} {', '.join(changed)}", repr(config.neuron)
            raise ConfigError(where, 'neuron = "lif"', got, "drop them, or use neuron_settings")
        if not 0 <= config.norm_from < config.norm_until <= 1:
            got = f"{config.norm_from}, {config.norm_until}"
            raise ConfigError(f"{self.name} norm_from, norm_until", "rising parts of 1", got, "mend them")
        self.config = config
        self.emb = nn.Embedding(config.vocabulary, config.embedding)
        if config.embedding_range:
            nn.init.uniform_(self.emb.weight, -config.embedding_range, config.embedding_range)
        self.blocks = nn.ModuleList(BLOCKS[config.placement](config, i) for i in range(config.depth))
        self.ln_out = NORMS[config.norm](config.embedding)
        self.lif_out = make_neuron(config, config.embedding) if config.head == "spiking" else None
        self.head = nn.Linear(config.embedding, config.vocabulary, bias=False)

    def initial_state(self, batch: int) -> tuple:
        """The state before the first token: one of its type a block, and the head's where it spikes."""
        blocks = tuple(block.initial_state(batch) for block in self.blocks)
        if self.lif_out is None:
            return blocks
        weight = self.head.weight
        return (*blocks, HeadState(rest(self.lif_out, batch, dtype=weight.dtype, device=weight.device)))

    def run(self, tokens, state=None):
        h, state, activity = self.hidden(tokens, state)
        logits = self.decode(h)
        return logits, state, activity._replace(logits=logits)

    def hidden(self, tokens, state=None):
        state = self.check(tokens, state)
        state = state or self.initial_state(tokens.shape[0])
        x = self.embed(tokens)
        states, spikes = [], []
        for block, block_state in zip(self.blocks, state, strict=False):
            x, block_state, fired = block(x, block_state)
            states.append(block_state)
            spikes += fired
        x = self.ln_out(x)
        if self.lif_out is not None:
            if tokens.shape[1]:
                x, sent, v = fire(self.lif_out, x, state[-1].v)
                states.append(HeadState(v))
            else:
                sent = x
                states.append(state[-1])
            spikes.append(sent)
        return x, tuple(states), Activity(None, spikes)

    def decode(self, h_BTE):
        return self.head(h_BTE)

    def embed(self, tokens: Tensor) -> Tensor:
        """Vectors of token ids, as spikes where the embedding is binary; before any norm."""
        x = self.emb(tokens)
        return mark(ATan(self.config.alpha).spike(x, ">="), BINARY) if self.config.binary_embedding else x

    @torch.no_grad()
    def wake(self, tokens, trained=False):
        """With init = "live", scale weights block by block until every neuron layer fires at `init_rate` on tokens."""
        if self.config.init != "live" or tokens.numel() == 0:
            return
        training = self.training
        self.eval()
        x, state, rate = self.embed(tokens), self.initial_state(tokens.shape[0]), self.config.init_rate
        for i, (block, block_state) in enumerate(zip(self.blocks, state, strict=False)):
            names = [f"blocks.{i}.{name}" for name in block.neurons]
            wake(block.gains(), partial(block.spikes, x, block_state), names, rate, trained)
            x = block(x, block_state)[0]
        if self.lif_out is not None:
            wake([(self.ln_out.weight, (0,))], partial(self._head_spikes, x, state[-1]), ["lif_out"], rate, trained)
        self.train(training)

    @torch.no_grad()
    def settle(self):
        """Scale the embedding back to the size that `embedding_range` gave it, so that an update turns a word's vector
        as far as at the start. The norm behind it makes up for that (but for its epsilon), where there is one."""
        c = self.config
        if c.embedding_range and not c.binary_embedding and c.norm == "layer":
            self.emb.weight *= c.embedding_range / 3**0.5 / self.emb.weight.square().mean().sqrt()

    def _head_spikes(self, x: Tensor, state: HeadState) -> tuple[Tensor]:
        return fire(self.lif_out, self.ln_out(x), state.v)[1:2]

    def advance(self, done):
        for norm in self.modules():
            if isinstance(norm, StaticNorm):
                c = self.config
                norm.remove(min(max((done - c.norm_from) / (c.norm_until - c.norm_from), 0.0), 1.0))

    def segments(self):
        return list(self.blocks)

    @property
    def needs_whole_means(self):
        return self.config.norm == "static"

    def project_(self):
        for cell in self.modules():
            if isinstance(cell, Cell):
                cell.project_()

    @property
    def complete(self):
        return self.config.norm == "layer" or self.ln_out.gone

    def penalty(self, runs):
        """L2Wrap: 0.5e-4 x mean over positions of the squared largest logit. It is part of the loss that is
        differentiated, so that it scales with it; the original adds its gradient whatever comes in. Without
        logits there is nothing to hold back."""
        if not self.config.l2wrap or runs.logits is None or not runs.logits.numel():
            return 0.0
        return L2WRAP * runs.logits.max(-1).values.square().mean()

    @property
    def event_layers(self):
        names = [f"blocks.{i}.{name}" for i, block in enumerate(self.blocks) for name in block.neurons]
        return (*names, "lif_out") if self.lif_out is not None else tuple(names)

    def rates(self, runs):
        binary = self.config.neuron == "lif"  # another's output may be graded
        return [(s if binary else events(s)).abs().mean((0, 1)) for s in runs.spikes]

    def operations(self, runs):
        if self.config.placement != "spike_fed":
            where, got = f"{self.name} budget", repr(self.config.placement)
            raise ConfigError(where, 'placement = "spike_fed"', got, "no other has products that spikes can spare")
        fan_outs = [n for block in self.blocks for n in block.fan_outs()]
        if self.lif_out is not None:
            fan_outs.append(self.config.vocabulary)
        fixed = 0 if self.lif_out is not None else self.config.embedding * self.config.vocabulary
        return fixed + sum(n * rates.sum() for n, rates in zip(fan_outs, self.rates(runs), strict=True))

    def state_shapes(self, batch):
        return [tuple((batch, *part.shape[1:]) for part in layer) for layer in self.initial_state(0)]

    def as_state(self, parts):
        kinds = [type(layer) for layer in self.initial_state(0)]
        return tuple(kind(*layer) for kind, layer in zip(kinds, parts, strict=True))

    @classmethod
    def least_numbers(cls, config):
        return 2 * config.vocabulary * config.embedding + 13 * config.depth * config.embedding**2

    def lower(self) -> EventGraph:
        """The whole model as an EventGraph; its norms folded away where they are static (`_rwkv_graph.lower`)."""
        return _rwkv_graph.lower(self)

    @classmethod
    def from_reference(
        cls, path_or_state_dict: str | Path | Mapping[str, Tensor], *, binary_embedding: bool, say=None
    ) -> "SpikeGPT":
        """Read a checkpoint of the original (weights only); sizes and ffnPre are read off the tensors.

        binary_embedding  whether the embedding's values become spikes: the file does not say
        say               called with a line about what was mapped
        returns           the model in evaluation mode
        raises            FormatError: a key is missing, unknown or of the wrong shape, or the file holds more, or a
                          tensor is not of finite real numbers
        """
        where, tensors = read_state_dict(path_or_state_dict)
        cls.check_reference(tensors, where)
        require_finite(tensors, where)
        table = tensors.get("emb.weight")
        if table is None or table.dim() != 2:
            raise FormatError(where, "the key 'emb.weight' [V, D]", "none", "give a SpikeGPT state_dict")
        blocks = {key.split(".")[1] for key in tensors if key.startswith("blocks.")}
        if blocks != {str(i) for i in range(len(blocks))} or not blocks:
            raise FormatError(where, "blocks numbered from 0", f"{sorted(blocks)}", "give a SpikeGPT state_dict")
        config = cls.Config(
            vocabulary=table.shape[0],
            embedding=table.shape[1],
            depth=len(blocks),
            ffn_pre=any(key.startswith("blocks.0.ffnPre.") for key in tensors),
            binary_embedding=binary_embedding,
        )
        least, held = cls.least_numbers(config), sum(t.numel() for t in tensors.values())
        if least > held:
            raise FormatError(where, f"{least:,} numbers or more for its sizes", f"{held:,}", "fetch the file anew")
        model = cls(config)
        fit_tensors(model, tensors, where)
        if say:
            first = "ffnPre and ffn" if config.ffn_pre else "att and ffn"
            say(
                f"{len(tensors)} tensors, {model.n_parameters:,} numbers, each under its own name: vocabulary "
                f"{config.vocabulary}, width {config.embedding}, {config.depth} blocks, {first} in the first"
            )
        return model.eval()

    @classmethod
    def check_reference(cls, tensors: dict[str, Tensor], where: object) -> None:
        """Raise FormatError where `from_reference` shall not read a checkpoint, for what a class alone knows of."""

    def to_reference(self) -> dict[str, Tensor]:
        """The state-dict that the original reads, on the CPU; `torch.save` writes it.

        raises  UnsupportedError: the model computes what the original would not from these weights
        """
        plain = self.Config(ffn_pre=self.config.ffn_pre)
        for setting in ORIGINAL:
            wanted, got = getattr(plain, setting), getattr(self.config, setting)
            if got != wanted:
                remedy = "the original has no such form; use save_pretrained"
                raise UnsupportedError(f"{self.name} {setting}", f"{wanted!r}, as in the original", repr(got), remedy)
        return {key: tensor.detach().cpu().clone() for key, tensor in self.state_dict().items()}


Config, Model = SpikeGPTConfig, SpikeGPT
