"""SpikeGPT in the form of its original code: RWKV blocks whose outputs pass through LIF neurons into the residual.

The token axis is the neurons' time axis: one step a token. B batch, T steps, V vocabulary, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rheobase.models._pretrained import LanguageModel, fit_tensors, read_torch_file
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.graph import (
    Add,
    Edge,
    Embedding,
    EventGraph,
    LayerNorm,
    LIFCell,
    Linear,
    Mix,
    Multiply,
    Node,
    Op,
    Sigmoid,
    Spike,
    SquaredRelu,
    Tokens,
    WKVCell,
)
from rheobase.spiking.ops import WKVState, lif, wkv
from rheobase.spiking.surrogates import ATan
from rheobase.spiking.tally import BINARY, DENSE, GRADED, mark

L2WRAP = 0.5e-4


@dataclass(frozen=True, kw_only=True)
class SpikeGPTConfig:
    """Sizes and settings of a SpikeGPT."""

    vocabulary: int = 256
    """number of token ids; 256 for bytes"""
    embedding: int = 128
    """width D of the residual stream"""
    depth: int = 4
    """number of blocks"""
    ffn_pre: bool = False
    """block 0 mixes channels where the others mix time (the original's RWKV-ffnPre)"""
    binary_embedding: bool = True
    """the embedding's values become spikes, [value >= 0]"""
    dropout: float = 0.03
    """dropout of the whole residual stream after each block"""
    l2wrap: bool = True
    """a penalty of 0.5e-4 x the mean square of each position's largest logit"""
    alpha: float = 2.0
    """steepness of the arctangent surrogate"""


PUBLISHED = {
    "46m": SpikeGPTConfig(vocabulary=5458, embedding=512, depth=12),
    "216m": SpikeGPTConfig(vocabulary=50277, embedding=768, depth=18),
}
"""The published sizes: 46,553,088 parameters for enwik8 by character, and 215,399,424 for OpenWebText2."""


class BlockState(NamedTuple):
    """What a block carries from token to token, each [B, D]; p, q and o are [B, 0] in a block without WKV."""

    shift1: Tensor
    """input of the first mix at the last token"""
    shift2: Tensor
    """input of the second mix at the last token"""
    v1: Tensor
    """membrane of the first LIF"""
    v2: Tensor
    """membrane of the second LIF"""
    p: Tensor
    q: Tensor
    o: Tensor
    """state of WKV"""


def token_shift(x_BTD: Tensor, last_BD: Tensor) -> Tensor:
    """The sequence one token later, `last_BD` first."""
    return torch.cat([last_BD[:, None], x_BTD], 1)[:, :-1]


def mix(x_BTD: Tensor, before_BTD: Tensor, share_11D: Tensor) -> Tensor:
    """x share + before (1 - share)."""
    return x_BTD * share_11D + before_BTD * (1 - share_11D)


class TimeMix(nn.Module):
    """W_o (sigmoid(W_r x_r) wkv(W_k x_k, W_v x_v)), each x a mix of this token and the one before."""

    def __init__(self, d: int, layer: int, depth: int):
        super().__init__()
        ratio, rest = layer / max(depth - 1, 1), 1 - layer / depth
        h = torch.arange(d)
        self.time_decay = nn.Parameter(-5 + 8 * (h / max(d - 1, 1)) ** (0.7 + 1.3 * ratio))
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * ((h + 1) % 3 - 1).float())
        share = (h / d)[None, None]
        self.time_mix_k = nn.Parameter(share**rest)
        self.time_mix_v = nn.Parameter(share**rest + 0.3 * ratio)
        self.time_mix_r = nn.Parameter(share ** (0.5 * rest))
        self.key, self.value, self.receptance, self.output = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor, last: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
        before = token_shift(x, last)
        k = self.key(mix(x, before, self.time_mix_k))
        v = self.value(mix(x, before, self.time_mix_v))
        r = torch.sigmoid(self.receptance(mix(x, before, self.time_mix_r)))
        y, state = wkv(self.time_decay, self.time_first, k, v, state)
        return self.output(r * y), state


class ChannelMix(nn.Module):
    """sigmoid(W_r x_r) (W_v relu(W_k x_k)^2), each x a mix of this token and the one before."""

    def __init__(self, d: int, layer: int, depth: int):
        super().__init__()
        share = (torch.arange(d) / d)[None, None] ** (1 - layer / depth)
        self.time_mix_k, self.time_mix_r = nn.Parameter(share), nn.Parameter(share.clone())
        self.key = nn.Linear(d, 4 * d, bias=False)
        self.receptance = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor, last: Tensor) -> Tensor:
        before = token_shift(x, last)
        k = mark(torch.relu(self.key(mix(x, before, self.time_mix_k))) ** 2, GRADED)
        r = torch.sigmoid(self.receptance(mix(x, before, self.time_mix_r)))
        return r * self.value(k)


class Block(nn.Module):
    """x += LIF(TimeMix(LN1 x)); x += LIF(ChannelMix(LN2 x)); block 0 normalises its input first."""

    def __init__(self, config: SpikeGPTConfig, layer: int):
        super().__init__()
        d, depth = config.embedding, config.depth
        if layer == 0:
            self.ln0 = nn.LayerNorm(d)
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.pre = layer == 0 and config.ffn_pre
        if self.pre:
            self.ffnPre = ChannelMix(d, 0, depth)
        else:
            self.att = TimeMix(d, layer, depth)
        self.ffn = ChannelMix(d, layer, depth)
        self.first = layer == 0
        self.dropout = nn.Dropout(config.dropout)
        self.surrogate = ATan(config.alpha)

    def forward(self, x: Tensor, s: BlockState) -> tuple[Tensor, BlockState, tuple[Tensor, Tensor]]:
        if x.shape[1] == 0:
            return x, s, (x, x)
        neuron = {"tau": 2.0, "theta": 1.0, "v_reset": 0.0, "decay_input": True, "fire": ">="}
        if self.first:
            x = self.ln0(x)
        a, memory = self.ln1(x), WKVState(s.p, s.q, s.o)
        if self.pre:
            out = self.ffnPre(a, s.shift1)
        else:
            out, memory = self.att(a, s.shift1, memory)
        s1, v1 = lif(out, s.v1, surrogate=self.surrogate, **neuron)
        x = x + s1
        b = self.ln2(x)
        s2, v2 = lif(self.ffn(b, s.shift2), s.v2, surrogate=self.surrogate, **neuron)
        x = self.dropout(x + s2)
        return x, BlockState(a[:, -1], b[:, -1], v1[:, -1], v2[:, -1], *memory), (s1, s2)


class SpikeGPT(LanguageModel):
    """The language model of Zhu, Zhao, Li, Eshraghian, "SpikeGPT", arXiv 2302.13939, as its code computes it.

        logits, state = model(tokens, state=None)     tokens [B, T] int64 -> logits [B, T, V]

    In this form every linear layer reads dense values: the spikes only enter the residual sum. Parameter names are
    the original's. Where it differs: the state, membranes included, is carried, so that a sequence may be cut
    anywhere; the original's step form rescales across the thresholds and so computes another function.
    """

    Config = SpikeGPTConfig
    name = "spikegpt"
    state_type = BlockState
    citations = (
        "@article{zhu2023spikegpt, title={SpikeGPT: Generative pre-trained language model with spiking neural "
        "networks}, author={Zhu, Rui-Jie and Zhao, Qihang and Li, Guoqi and Eshraghian, Jason K.}, "
        "journal={arXiv:2302.13939}, year={2023}}",
    )

    def __init__(self, config: SpikeGPTConfig):
        super().__init__()
        if min(config.vocabulary, config.embedding, config.depth) < 1:
            raise ConfigError("spikegpt", "vocabulary, embedding and depth of at least 1", f"{config}", "raise them")
        self.config = config
        self.emb = nn.Embedding(config.vocabulary, config.embedding)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.ln_out = nn.LayerNorm(config.embedding)
        self.head = nn.Linear(config.embedding, config.vocabulary, bias=False)

    def initial_state(self, batch: int) -> tuple[BlockState, ...]:
        """The state before the first token."""
        like = {"dtype": self.head.weight.dtype, "device": self.head.weight.device}
        parts = [[torch.zeros(shape, **like) for shape in shapes] for shapes in self.state_shapes(batch)]
        return tuple(BlockState(*block[:-1], torch.full_like(block[-1], -1e38)) for block in parts)

    def run(self, tokens, state=None):
        self.check(tokens, state)
        x = self.emb(tokens)
        if self.config.binary_embedding:
            x = mark(ATan(self.config.alpha).spike(x, ">="), BINARY)
        states, spikes = [], []
        for block, block_state in zip(self.blocks, state or self.initial_state(tokens.shape[0]), strict=True):
            x, block_state, fired = block(x, block_state)
            states.append(block_state)
            spikes += fired
        logits = self.head(self.ln_out(x))
        return logits, tuple(states), (logits, spikes)

    def penalty(self, runs):
        """L2Wrap: 0.5e-4 x mean over positions of the squared largest logit. It is part of the loss that is
        differentiated, so that it scales with it; the original adds its gradient whatever comes in."""
        return L2WRAP * runs[0].max(-1).values.square().mean() if self.config.l2wrap else 0.0

    def rates(self, runs):
        return [s.detach().mean((0, 1)) for s in runs[1]]

    def state_shapes(self, batch):
        d = self.config.embedding
        pre = [self.config.ffn_pre and i == 0 for i in range(self.config.depth)]
        return [((batch, d),) * 4 + ((batch, 0 if without else d),) * 3 for without in pre]

    @classmethod
    def least_numbers(cls, config):
        return 2 * config.vocabulary * config.embedding + 13 * config.depth * config.embedding**2

    def lower(self) -> EventGraph:
        """The whole model as an EventGraph in evaluation semantics; BINARY edges only where spikes are sent."""
        c, d = self.config, self.config.embedding
        nodes, edges = [Node("tokens", Tokens(c.vocabulary))], []

        def add(name: str, op: Op, arrays=None, **inputs) -> str:
            """A node whose inputs are given as port = (source, kind, width[, delay]); its first output."""
            nodes.append(Node(name, op, arrays or {}))
            edges.extend(
                Edge(source, f"{name}.{port}", kind, (n,), *delay) for port, (source, kind, n, *delay) in inputs.items()
            )
            return f"{name}.{next(iter(op.outputs))}"

        def linear(name, x, kind=DENSE, width=d):
            return add(name, Linear(transposed=True), arrays={"weight": f"{name}.weight"}, x=(x, kind, width))

        def norm(name, x, kind=DENSE):
            arrays = {role: f"{name}.{role}" for role in ("weight", "bias")}
            return add(name, LayerNorm(self.ln_out.eps), arrays=arrays, x=(x, kind, d))

        def mixed(name, x):
            return add(name, Mix(), arrays={"share": name}, x=(x, DENSE, d), before=(x, DENSE, d, 1))

        def gate(name, x):
            read = linear(f"{name}.receptance", mixed(f"{name}.time_mix_r", x))
            return add(f"{name}.gate", Sigmoid(), x=(read, DENSE, d))

        def gated(name, x, y):
            return add(f"{name}.product", Multiply(), a=(gate(name, x), DENSE, d), b=(y, DENSE, d))

        def time_mix(name, x):
            k, v = (linear(f"{name}.{n}", mixed(f"{name}.time_mix_{n[0]}", x)) for n in ("key", "value"))
            arrays = {role: f"{name}.{role}" for role in WKVCell.roles}
            y = add(f"{name}.wkv", WKVCell(), arrays=arrays, k=(k, DENSE, d), v=(v, DENSE, d))
            return linear(f"{name}.output", gated(name, x, y))

        def channel_mix(name, x):
            k = linear(f"{name}.key", mixed(f"{name}.time_mix_k", x))
            k = add(f"{name}.relu", SquaredRelu(), x=(k, DENSE, 4 * d))
            return gated(name, x, linear(f"{name}.value", k, GRADED, 4 * d))

        def fired(name, x, y):
            s = add(name, LIFCell(), x=(y, DENSE, d))
            return add(f"{name}.add", Add(), a=(x, DENSE, d), b=(s, BINARY, d))

        table = {"table": "emb.weight"}
        x, kind = add("emb", Embedding(), arrays=table, token=("tokens.out", BINARY, c.vocabulary)), DENSE
        if c.binary_embedding:
            x, kind = add("emb.spike", Spike(), x=(x, DENSE, d)), BINARY
        x = norm("blocks.0.ln0", x, kind)
        for i, block in enumerate(self.blocks):
            name = f"blocks.{i}"
            a = norm(f"{name}.ln1", x)
            x = fired(f"{name}.lif1", x, channel_mix(f"{name}.ffnPre", a) if block.pre else time_mix(f"{name}.att", a))
            x = fired(f"{name}.lif2", x, channel_mix(f"{name}.ffn", norm(f"{name}.ln2", x)))
        linear("head", norm("ln_out", x))
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}
        return EventGraph(tuple(nodes), tuple(edges), arrays, {"logits": "head.out"})

    @classmethod
    def from_reference(
        cls, path_or_state_dict: str | Path | Mapping[str, Tensor], *, binary_embedding: bool
    ) -> "SpikeGPT":
        """Read a checkpoint of the original (weights only); sizes and ffnPre are read off the tensors.

        binary_embedding  whether the embedding's values become spikes: the file does not say
        returns           the model in evaluation mode
        raises            FormatError: a key is missing, unknown or of the wrong shape, or the file holds more
        """
        if isinstance(path_or_state_dict, Mapping):
            where, tensors = "state_dict", dict(path_or_state_dict)
        else:
            where, tensors = path_or_state_dict, read_torch_file(path_or_state_dict)
        if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
            raise FormatError(where, "a table of tensors", type(tensors).__name__, "give the model's state_dict")
        table = tensors.get("emb.weight")
        if table is None or table.dim() != 2:
            raise FormatError(where, "the key 'emb.weight' [V, D]", "none", "give a SpikeGPT state_dict")
        blocks = {key.split(".")[1] for key in tensors if key.startswith("blocks.")}
        if blocks != {str(i) for i in range(len(blocks))} or not blocks:
            raise FormatError(where, "blocks numbered from 0", f"{sorted(blocks)}", "give a SpikeGPT state_dict")
        config = SpikeGPTConfig(
            vocabulary=table.shape[0],
            embedding=table.shape[1],
            depth=len(blocks),
            ffn_pre=any(key.startswith("blocks.0.ffnPre.") for key in tensors),
            binary_embedding=binary_embedding,
        )
        model = cls(config)
        fit_tensors(model, tensors, where)
        return model.eval()

    def to_reference(self) -> dict[str, Tensor]:
        """The state-dict that the original reads, on the CPU; `torch.save` writes it."""
        return {key: tensor.detach().cpu().clone() for key, tensor in self.state_dict().items()}


Config, Model = SpikeGPTConfig, SpikeGPT
