"""SpikeGPT in the form of its original code: RWKV blocks whose outputs pass through LIF neurons into the residual.

The token axis is the neurons' time axis: one step a token. B batch, T steps, V vocabulary, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rheobase.models._pretrained import LanguageModel, check_settings, fit_tensors, read_state_dict
from rheobase.models._rwkv import BLOCKS, NEURON, wake_block
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
    placement: str = "reference"
    """"reference": neurons after the mixes, as the original's code;  "spike_fed": before every linear layer"""
    ffn_pre: bool = False
    """block 0 mixes channels where the others mix time (the original's RWKV-ffnPre)"""
    binary_embedding: bool = True
    """the embedding's values become spikes, [value >= 0]"""
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


PUBLISHED = {
    "46m": SpikeGPTConfig(vocabulary=5458, embedding=512, depth=12),
    "216m": SpikeGPTConfig(vocabulary=50277, embedding=768, depth=18),
}
"""The published sizes: 46,553,088 parameters for enwik8 by character, and 215,399,424 for OpenWebText2."""


class SpikeGPT(LanguageModel):
    """The language model of Zhu, Zhao, Li, Eshraghian, "SpikeGPT", arXiv 2302.13939, as its code computes it.

        logits, state = model(tokens, state=None)     tokens [B, T] int64 -> logits [B, T, V]

    In the reference placement every linear layer reads dense values: the spikes only enter the residual sum. In the
    spike-fed one (`_rwkv.SpikeFedBlock`) every linear layer but the head reads spikes. Parameter names are the
    original's. Where it differs: the state, membranes included, is carried, so that a sequence may be cut
    anywhere; the original's step form rescales across the thresholds and so computes another function.
    """

    Config = SpikeGPTConfig
    name = "spikegpt"
    citations = (
        "@article{zhu2023spikegpt, title={SpikeGPT: Generative pre-trained language model with spiking neural "
        "networks}, author={Zhu, Rui-Jie and Zhao, Qihang and Li, Guoqi and Eshraghian, Jason K.}, "
        "journal={arXiv:2302.13939}, year={2023}}",
    )

    def __init__(self, config: SpikeGPTConfig):
        super().__init__()
        check_settings("spikegpt", config)
        if min(config.vocabulary, config.embedding, config.depth) < 1:
            raise ConfigError("spikegpt", "vocabulary, embedding and depth of at least 1", f"{config}", "raise them")
        if config.placement not in BLOCKS:
            known = " or ".join(map(repr, BLOCKS))
            raise ConfigError("spikegpt placement", known, repr(config.placement), "name one of them")
        if config.init not in ("live", "original"):
            raise ConfigError("spikegpt init", "'live' or 'original'", repr(config.init), "name one of them")
        if config.ffn_pre and config.placement != "reference":
            raise ConfigError("spikegpt ffn_pre", 'placement = "reference"', repr(config.placement), "drop one of them")
        self.config = config
        self.state_type = BLOCKS[config.placement].state_type
        self.emb = nn.Embedding(config.vocabulary, config.embedding)
        self.blocks = nn.ModuleList(BLOCKS[config.placement](config, i) for i in range(config.depth))
        self.ln_out = nn.LayerNorm(config.embedding)
        self.head = nn.Linear(config.embedding, config.vocabulary, bias=False)

    def initial_state(self, batch: int) -> tuple:
        """The state before the first token."""
        like = {"dtype": self.head.weight.dtype, "device": self.head.weight.device}
        parts = [[torch.zeros(shape, **like) for shape in shapes] for shapes in self.state_shapes(batch)]
        return tuple(self.state_type(*block[:-1], torch.full_like(block[-1], -1e38)) for block in parts)

    def run(self, tokens, state=None):
        self.check(tokens, state)
        x = self._embed(tokens)
        states, spikes = [], []
        for block, block_state in zip(self.blocks, state or self.initial_state(tokens.shape[0]), strict=True):
            x, block_state, fired = block(x, block_state)
            states.append(block_state)
            spikes += fired
        logits = self.head(self.ln_out(x))
        return logits, tuple(states), (logits, spikes)

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        return mark(ATan(self.config.alpha).spike(x, ">="), BINARY) if self.config.binary_embedding else x

    @torch.no_grad()
    def wake(self, tokens):
        """With init = "live", scale weights block by block until every neuron layer fires at `init_rate` on tokens."""
        if self.config.init != "live" or tokens.numel() == 0:
            return
        training = self.training
        self.eval()
        x = self._embed(tokens)
        for block, state in zip(self.blocks, self.initial_state(tokens.shape[0]), strict=True):
            wake_block(block, x, state, self.config.init_rate)
            x = block(x, state)[0]
        self.train(training)

    def penalty(self, runs):
        """L2Wrap: 0.5e-4 x mean over positions of the squared largest logit. It is part of the loss that is
        differentiated, so that it scales with it; the original adds its gradient whatever comes in."""
        return L2WRAP * runs[0].max(-1).values.square().mean() if self.config.l2wrap else 0.0

    def rates(self, runs):
        return [s.detach().mean((0, 1)) for s in runs[1]]

    def state_shapes(self, batch):
        return [block.state_shapes(batch, self.config.embedding) for block in self.blocks]

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

        fed = c.placement == "spike_fed"

        def neuron(name, x, width=d):
            return add(name, LIFCell(**NEURON), x=(x, DENSE, width))

        def read(name, port, x):
            """The linear layer `port` of a mix, fed by the mixed values or by their spikes."""
            x = mixed(f"{name}.time_mix_{port[0]}", x)
            spikes = neuron(f"{name}.lif_{port[0]}", x) if fed else x
            return linear(f"{name}.{port}", spikes, BINARY if fed else DENSE)

        def gated(name, x, y):
            gate = add(f"{name}.gate", Sigmoid(), x=(read(name, "receptance", x), DENSE, d))
            return add(f"{name}.product", Multiply(), a=(gate, DENSE, d), b=(y, DENSE, d))

        def time_mix(name, x):
            k, v = read(name, "key", x), read(name, "value", x)
            arrays = {role: f"{name}.{role}" for role in WKVCell.roles}
            y = add(f"{name}.wkv", WKVCell(), arrays=arrays, k=(k, DENSE, d), v=(v, DENSE, d))
            y = gated(name, x, y)
            y = neuron(f"{name}.lif_o", y) if fed else y
            return linear(f"{name}.output", y, BINARY if fed else DENSE)

        def channel_mix(name, x):
            k = read(name, "key", x)
            if fed:
                k = neuron(f"{name}.lif_h", k, 4 * d)
            else:
                k = add(f"{name}.relu", SquaredRelu(), x=(k, DENSE, 4 * d))
            return gated(name, x, linear(f"{name}.value", k, BINARY if fed else GRADED, 4 * d))

        def residual(name, x, y):
            y = y if fed else neuron(name, y)
            return add(f"{name}.add", Add(), a=(x, DENSE, d), b=(y, DENSE if fed else BINARY, d))

        table = {"table": "emb.weight"}
        x, kind = add("emb", Embedding(), arrays=table, token=("tokens.out", BINARY, c.vocabulary)), DENSE
        if c.binary_embedding:
            x, kind = add("emb.spike", Spike(), x=(x, DENSE, d)), BINARY
        x = norm("blocks.0.ln0", x, kind)
        for i, block in enumerate(self.blocks):
            name = f"blocks.{i}"
            a = norm(f"{name}.ln1", x)
            x = residual(
                f"{name}.lif1", x, channel_mix(f"{name}.ffnPre", a) if block.pre else time_mix(f"{name}.att", a)
            )
            x = residual(f"{name}.lif2", x, channel_mix(f"{name}.ffn", norm(f"{name}.ln2", x)))
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
        where, tensors = read_state_dict(path_or_state_dict)
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
