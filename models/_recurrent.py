"""What the recurrent language models share: settings, embedding, tied decoder, lowering, checks, saving and loading.

B batch, T steps, V vocabulary, E embedding width, H units of a layer.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rheobase.spiking.config import from_table, to_table
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError
from rheobase.spiking.files import read_bytes, sha256, write_atomic
from rheobase.spiking.graph import Edge, Embedding, EventGraph, Linear, Node, Op, Relu, Tokens
from rheobase.spiking.tally import BINARY, DENSE, GRADED, mark


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Sizes and regularisers of a recurrent language model."""

    vocabulary: int = 256
    """number of token ids; 256 for bytes"""
    embedding: int = 192
    """width of the embedding, shared with the decoder"""
    layers: tuple[int, ...] = (192,)
    """units of each layer; the last is as wide as the embedding unless there is a projection"""
    projection: bool = False
    """a rectified linear layer from the last layer's width to the embedding's"""
    embedding_range: float = 0.1
    """the embedding starts uniform in plus or minus this"""
    dropconnect: float = 0.0
    """probability with which an element of a recurrent kernel is dropped in training"""
    dropout_embedding: float = 0.0
    """variational dropout after the embedding"""
    dropout_forward: float = 0.0
    """variational dropout between layers"""
    dropout_output: float = 0.0
    """variational dropout before the decoder"""


@dataclass(frozen=True)
class Lowering:
    """How a layer becomes two products and a cell.

    cell        the cell's op, with the inputs a and q
    arrays      its own arrays: role -> parameter name within the layer
    kernels     (weight, bias) of the product from below, and of the one from the layer's own output
    transposed  whether the weights are stored [out, in]
    gates       width of a pre-activation over the number of units
    port        the output that is sent on; its kind is the op's own word
    """

    cell: Op
    arrays: Mapping[str, str]
    kernels: tuple[tuple[str, str], tuple[str, str]]
    transposed: bool
    gates: int
    port: str


def variational_dropout(x_BTH: Tensor, p: float, training: bool) -> Tensor:
    """Dropout with one mask [B, 1, H] a sequence, shared over time (Gal and Ghahramani, NeurIPS 2016)."""
    if not training or p == 0:
        return x_BTH
    return x_BTH * F.dropout(x_BTH.new_ones(x_BTH.shape[0], 1, x_BTH.shape[2]), p)


class TiedDecoder(nn.Module):
    """logits = h embedding^T + bias: the embedding's table is the decoder's weight."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, h_BTE: Tensor, table_VE: Tensor) -> Tensor:
        return F.linear(h_BTE, table_VE, self.bias)


class GradedRelu(nn.Module):
    """max(x, 0), sent as graded events: one where x is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return mark(F.relu(x), GRADED)


class RecurrentLM(nn.Module, PyTorchModelHubMixin):
    """Embedding, recurrent layers, an optional projection h = relu(W h + b), and a tied decoder with bias.

        logits, state = model(tokens, state=None)     tokens [B, T] int64 -> logits [B, T, V]

    A subclass is one file with `Config`, `Model`, `make_layers`, `run_layer`, `lowering` and `state_type`.

    raises  ShapeError: tokens not [B, T] integers below V, or a state of another batch size or model
    """

    Config: ClassVar[type]
    name: ClassVar[str]
    citations: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config):
        super().__init__()
        if not config.layers or min(config.layers) < 1:
            raise ConfigError(
                f"{self.name} layers", "at least one size, each at least 1", f"{config.layers}", "mend it"
            )
        if not config.projection and config.layers[-1] != config.embedding:
            raise ConfigError(
                f"{self.name} layers",
                f"a last layer of {config.embedding} units, as wide as the embedding that the decoder shares",
                str(config.layers[-1]),
                "make them equal or set projection = true",
            )
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        nn.init.uniform_(self.embedding.weight, -config.embedding_range, config.embedding_range)
        self.layers = nn.ModuleList(self.make_layers(config))
        self.projection = nn.Linear(config.layers[-1], config.embedding) if config.projection else None
        self.relu = GradedRelu() if config.projection else None
        self.decoder = TiedDecoder(config.vocabulary)

    def make_layers(self, config) -> list[nn.Module]:
        """The recurrent layers, first to last."""
        raise NotImplementedError(f"{type(self).__name__} makes no layers")

    def run_layer(self, index: int, x_BTH: Tensor, state) -> tuple[Tensor, Any, Any]:
        """One layer over a sequence: (output, state, whatever `penalty` and `rates` need of the run)."""
        raise NotImplementedError(f"{type(self).__name__} runs no layers")

    def lowering(self) -> Lowering:
        """How each layer lowers."""
        raise NotImplementedError(f"{type(self).__name__} does not lower")

    def forward(self, tokens: Tensor, state=None) -> tuple[Tensor, tuple]:
        logits, state, _ = self.run(tokens, state)
        return logits, state

    def run(self, tokens: Tensor, state=None) -> tuple[Tensor, tuple, list]:
        """As `forward`, with what each layer did as a third result."""
        self._check(tokens, state)
        c = self.config
        h = variational_dropout(self.embedding(tokens), c.dropout_embedding, self.training)
        states, runs = [], []
        for index in range(len(self.layers)):
            h, layer_state, layer_run = self.run_layer(index, h, None if state is None else state[index])
            states.append(layer_state)
            runs.append(layer_run)
            last = index == len(self.layers) - 1
            h = variational_dropout(h, c.dropout_output if last else c.dropout_forward, self.training)
        if self.projection is not None:
            h = self.relu(self.projection(h))
        return self.decoder(h, self.embedding.weight), tuple(states), runs

    def _check(self, tokens: Tensor, state) -> None:
        where = f"{self.name} tokens"
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ShapeError(where, "integers [B, T]", f"{tokens.dtype} {tuple(tokens.shape)}", "reshape them")
        if tokens.numel() and tokens.device.type == "cpu":
            low, high = tokens.numpy().min(), tokens.numpy().max()
            if low < 0 or high >= self.config.vocabulary:
                wrong = int(low if low < 0 else high)
                raise ShapeError(
                    where, f"ids from 0 to {self.config.vocabulary - 1}", str(wrong), "check the tokenizer"
                )
        if state is None:
            return
        wanted = [tuple((tokens.shape[0], n) for _ in self.state_type._fields) for n in self.config.layers]
        got = [tuple(tuple(part.shape) for part in layer) for layer in state]
        if got != wanted:
            raise ShapeError(f"{self.name} state", f"{wanted}", f"{got}", "use a state of this model and batch size")

    state_type: ClassVar[type]

    def penalty(self, runs: list) -> Tensor | float:
        """What training adds to the cross-entropy; 0 where there is no regulariser."""
        return 0.0

    def rates(self, runs: list) -> list[Tensor]:
        """Mean firing of each unit of each event-based layer [H]; empty where no layer sends events."""
        return []

    def restart(self, state: tuple) -> tuple:
        """The state as the reference carries it over a cut; the same state where there is no such rule."""
        return state

    def project_(self) -> None:
        """Bring parameters back into their legal range, after each step of the optimiser."""

    def lower(self) -> EventGraph:
        """The whole model as an EventGraph in evaluation semantics; array names are those of `state_dict()`."""
        c, how = self.config, self.lowering()
        nodes = [Node("tokens", Tokens(c.vocabulary)), Node("embedding", Embedding(), {"table": "embedding.weight"})]
        edges = [Edge("tokens.out", "embedding.token", BINARY, (c.vocabulary,))]
        below, kind, width = "embedding.out", DENSE, c.embedding
        sent = how.cell.outputs[how.port]
        for i, units in enumerate(c.layers):
            cell = f"layers.{i}"
            (kernel, _), (recurrent, _) = how.kernels
            for weight, bias in how.kernels:
                arrays_of = {"weight": f"{cell}.{weight}", "bias": f"{cell}.{bias}"}
                nodes.append(Node(f"{cell}.{weight}", Linear(how.transposed), arrays_of))
            nodes.append(Node(cell, how.cell, {role: f"{cell}.{name}" for role, name in how.arrays.items()}))
            edges += [
                Edge(below, f"{cell}.{kernel}.x", kind, (width,)),
                Edge(f"{cell}.{how.port}", f"{cell}.{recurrent}.x", sent, (units,), delay=1),
                Edge(f"{cell}.{kernel}.out", f"{cell}.a", DENSE, (how.gates * units,)),
                Edge(f"{cell}.{recurrent}.out", f"{cell}.q", DENSE, (how.gates * units,)),
            ]
            below, kind, width = f"{cell}.{how.port}", sent, units
        if c.projection:
            arrays_of = {"weight": "projection.weight", "bias": "projection.bias"}
            nodes += [Node("projection", Linear(transposed=True), arrays_of), Node("relu", Relu())]
            edges += [
                Edge(below, "projection.x", kind, (width,)),
                Edge("projection.out", "relu.x", DENSE, (c.embedding,)),
            ]
            below, kind = "relu.out", GRADED
        tied = {"weight": "embedding.weight", "bias": "decoder.bias"}
        nodes.append(Node("decoder", Linear(transposed=True), tied))
        edges.append(Edge(below, "decoder.x", kind, (c.embedding,)))
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}
        return EventGraph(tuple(nodes), tuple(edges), arrays, {"logits": "decoder.out"})

    @property
    def n_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = save_tensors({k: v.contiguous() for k, v in self.state_dict().items()})
        config = {"model": self.name, "config": to_table(self.config), "weights_sha256": sha256(weights)}
        write_atomic(Path(save_directory) / "model.safetensors", weights)
        write_atomic(Path(save_directory) / "config.json", json.dumps(config, indent=2).encode())

    def save_pretrained(self, save_directory, **options):
        """Write `model.safetensors` and `config.json`, each whole or not at all."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self._save_pretrained(Path(save_directory))
        if options.pop("push_to_hub", False):
            return self.push_to_hub(options.pop("repo_id"), **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **hub_options) -> "RecurrentLM":
        """Read what `save_pretrained` wrote, from a folder or by name from the Hugging Face hub.

        returns  the model in evaluation mode
        raises   FormatError: a file is missing, damaged or of another model
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            if folder.is_absolute() or str(folder).count("/") != 1:
                raise FormatError(folder, "a model's folder", "no folder", "check the path")
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), **hub_options))
        where = folder / "config.json"
        text = read_bytes(where, "a model's configuration")
        try:
            header = json.loads(text)
            name, table, digest = header["model"], header["config"], header["weights_sha256"]
        except (ValueError, KeyError, TypeError):
            raise FormatError(where, "JSON with model, config and weights_sha256", "other", "save it anew") from None
        if name != cls.name:
            raise FormatError(where, f"a {cls.name} model", repr(name), "load it with rheobase.load")
        weights_path = folder / "model.safetensors"
        weights = read_bytes(weights_path, "a model's weights")
        if sha256(weights) != digest:
            raise FormatError(weights_path, f"sha256 {digest[:12]}…", f"{sha256(weights)[:12]}…", "fetch the file anew")
        try:
            tensors = load_tensors(weights)
        except SafetensorError as error:
            raise FormatError(weights_path, "safetensors", str(error), "save the model anew") from None
        config = from_table(cls.Config, table, str(where))
        least = config.vocabulary * config.embedding + sum(n * n for n in config.layers)
        held = sum(t.numel() for t in tensors.values())
        if least > held:
            raise FormatError(where, f"sizes that fit {held:,} numbers", f"at least {least:,}", "fetch the model anew")
        model = cls(config)
        fit_tensors(model, tensors, weights_path)
        return model.eval()


def fit_tensors(model: nn.Module, tensors: dict[str, Tensor], where: object) -> None:
    """Load tensors into a model, taking their type; every key and every shape must be the model's own."""
    own = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    got = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(own.keys() | got.keys()):
        if own.get(name) != got.get(name):
            raise FormatError(
                f"{where}: {name}",
                f"shape {own.get(name)}",
                f"{got.get(name)}",
                "use a checkpoint of this model",
            )
    types = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(types) == 1:
        model.to(types.pop())
    model.load_state_dict(tensors)


def read_torch_file(path: str | Path | io.BytesIO) -> Any:
    """Read a torch file, or its bytes, without running code from it.

    raises  FormatError: it is damaged, or holds more than plain data
    """
    data = path if isinstance(path, io.BytesIO) else io.BytesIO(read_bytes(path, "a torch checkpoint"))
    try:
        return torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise FormatError(path, "a torch checkpoint of plain tensors", first, "fetch the file anew") from None
