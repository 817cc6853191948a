"""Saving, loading and checking of models: what every model here shares, and what every language model does."""

import dataclasses
import functools
import inspect
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rheobase.models._packed import pack, unpack
from rheobase.models._sources import model_folder
from rheobase.spiking.config import from_table, to_table
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError, UnsupportedError
from rheobase.spiking.files import read_bytes, sha256, write_atomic
from rheobase.spiking.ops.choice import KERNELS

SIZES = ("vocabulary", "embedding", "depth", "channels", "features", "units")
"""settings that are at least 1"""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""types of a checkpoint's numbers"""


class Pretrained(nn.Module, PyTorchModelHubMixin):
    """A model that is saved as `model.safetensors` and `config.json`.

    A subclass is one file, whose `Model` has what `needs` lists.
    """

    needs: ClassVar[tuple[str, ...]] = ("Config", "name", "least_numbers")
    """what `Model` defines itself"""
    Config: ClassVar[type]
    """a frozen dataclass, kept as `self.config`"""
    name: ClassVar[str]
    """the name of its file, without .py"""
    citations: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[tuple[str, ...]] = ()
    """names of the weights that make outputs"""

    @classmethod
    def least_numbers(cls, config) -> int:
        """A lower bound of the numbers that a model of this configuration holds, to check before building it."""
        raise NotImplementedError(f"{cls.__name__} gives no bound")

    @classmethod
    def require_whole(cls, file: str) -> None:
        """Refuse the `Model` of models/FILE.py that lacks what it needs; raises ConfigError."""
        kind, static = next(k for k in cls.__mro__ if "needs" in vars(k)), inspect.getattr_static
        lacks = [n for n in cls.needs if static(cls, n, None) is static(kind, n, None)]
        if lacks:
            where, wanted = f"models/{file}.py Model", f"a class with {', '.join(cls.needs)}"
            raise ConfigError(where, wanted, f"one without {', '.join(lacks)}", "define what lacks")
        if cls.name != file:
            raise ConfigError(f"models/{file}.py Model.name", repr(file), repr(cls.name), "name it as its file")

    def lower(self):
        """The model as an EventGraph; raises UnsupportedError where it has no lowering."""
        raise UnsupportedError(self.name, "a model that lowers to a graph", "none", "use count, which needs no graph")

    def products(self) -> dict[str, bool]:
        """Names of the weights of matrix products, and of each whether it is stored [out, in]."""
        return {f"{name}.weight": True for name, module in self.named_modules() if isinstance(module, nn.Linear)}

    pooled = staticmethod(lambda mean: mean)
    """what a mean over a batch passes through before anything not linear in it; where several processes train on shares
    of a batch, the loop sets it to the mean over them"""

    @property
    def needs_whole_means(self) -> bool:
        """Whether training needs means over the whole batch at once (`pooled`), so that it cannot be done in turns."""
        return False

    def segments(self) -> list[nn.Module]:
        """The modules, one after the other, that hold most of the model: those whose activations may be computed again,
        and whose parameters may be gathered one stage at a time."""
        return []

    def advance(self, done: float) -> None:
        """Called at the start of a training and after each step with the part of it that is done, from 0 to 1."""

    @property
    def complete(self) -> bool:
        """Whether the model is what its configuration asks for, and so may be the best of its training."""
        return True

    def penalty(self, runs) -> Tensor | float:
        """What training adds to the cross-entropy; 0 where there is no regulariser."""
        return 0.0

    def rates(self, runs) -> list[Tensor]:
        """Mean firing of each unit of each event-based layer [H]; empty where no layer sends events."""
        return []

    @property
    def event_layers(self) -> tuple[str, ...]:
        """Module paths of the layers of `rates`."""
        return ()

    def project_(self) -> None:
        """Bring parameters back into their legal range, after each step of the optimiser."""

    @property
    def kernels(self) -> str:
        """The form of the kernels in which its layers run, or several: "auto" unless set. `model.kernels = "reference"`
        sets all; the environment variable RHEOBASE_KERNELS goes before it, and nothing of it is saved.

        raises  ConfigError: no such form, or a model without a layer that has several
        """
        return ", ".join(sorted({layer.kernels for layer in self._chosen()})) or "auto"

    @kernels.setter
    def kernels(self, choice: str) -> None:
        layers, where = self._chosen(), f"{self.name} kernels"
        if choice not in KERNELS:
            raise ConfigError(where, " or ".join(KERNELS), repr(choice), "name one of them")
        if choice != "auto" and not layers:
            raise ConfigError(where, "auto: its layers are torch's alone", repr(choice), "leave it")
        for layer in layers:
            layer.kernels = choice

    def _chosen(self) -> list[nn.Module]:
        return [m for m in self.modules() if not isinstance(m, Pretrained) and hasattr(m, "kernels")]

    @property
    def n_parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    def _save_pretrained(self, save_directory: Path) -> None:
        self._write(Path(save_directory), self.state_dict())

    def _write(self, folder: Path, tensors: dict[str, Tensor], **more) -> None:
        apart, seen = {}, set()
        for name, tensor in tensors.items():  # of tied weights each has its own copy in the file
            tensor = tensor.contiguous()
            apart[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
            seen.add(apart[name].untyped_storage().data_ptr())
        weights = save_tensors(apart)
        config = {"model": self.name, "config": to_table(self.config), "weights_sha256": sha256(weights), **more}
        write_atomic(folder / "model.safetensors", weights)
        write_atomic(folder / "config.json", json.dumps(config, indent=2).encode())

    def save_packed(self, folder: str | Path) -> None:
        """As `save_pretrained`, for a model whose weights were rounded in training: int8 with a power of two a target.

        `from_pretrained` reads the same bits from it.

        raises  FormatError: a weight of a product is not so rounded
        """
        self._write(Path(folder), pack(self.state_dict(), self.products()), packed=True)

    def save_pretrained(self, save_directory, *, push_to_hub: bool = False, repo_id: str | None = None, **options):
        """Write `model.safetensors` and `config.json`, each whole or not at all.

        push_to_hub  then send them to the Hugging Face hub, as `repo_id` or else under the folder's name
        options      of the mixin's `push_to_hub`
        raises       ConfigError: options, and nothing is sent
        """
        given = [name for name, value in {"repo_id": repo_id, **options}.items() if value is not None]
        if given and not push_to_hub:
            got, remedy = ", ".join(given), "set push_to_hub=True, or drop them"
            raise ConfigError("save_pretrained", "options only with push_to_hub=True", got, remedy)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self._save_pretrained(Path(save_directory))
        if push_to_hub:
            return self.push_to_hub(repo_id or Path(save_directory).resolve().name, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **hub_options) -> "Pretrained":
        """Read what `save_pretrained` wrote, from a folder, a shipped model, or by name from the Hugging Face hub.

        hub_options  of `huggingface_hub.snapshot_download`, such as revision="v1"; two files are fetched, no pickle
        returns      the model in evaluation mode
        raises       FormatError: a file is missing, damaged or of another model, or the hub does not give it
        """
        folder = model_folder(pretrained_model_name_or_path, **hub_options)
        where = folder / "config.json"
        text = read_bytes(where, "a model's configuration")
        try:
            header = json.loads(text)
            name, table, digest = header["model"], header["config"], str(header["weights_sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):
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
        if header.get("packed"):
            tensors = unpack(tensors, weights_path)
        config = from_table(cls.Config, table, str(where))
        least = cls.least_numbers(config)
        held = sum(t.numel() for t in tensors.values())
        if least > held:
            raise FormatError(where, f"sizes that fit {held:,} numbers", f"at least {least:,}", "fetch the model anew")
        model = cls(config)
        fit_tensors(model, tensors, weights_path)
        return model.eval()


class LanguageModel(Pretrained):
    """A language model, trained by `training.loop`.

    A subclass is one file, whose `Model` has what `needs` lists, `state_type`, and `lower` if it is to be simulated and
    exported; its `Config` has `vocabulary`, and `embedding` unless `width` says otherwise. A state is a tuple with a
    `state_type`, a NamedTuple of tensors whose first axis is the batch, for each layer.

    raises  ShapeError: tokens not [B, T] integers below V, or a state of another batch size or model
    """

    needs = (*Pretrained.needs, "hidden", "decode", "state_shapes")
    state_type: ClassVar[type]
    training_settings: ClassVar[frozenset[str]] = frozenset()
    """settings of its start and its training, which change nothing that a trained model computes"""

    def forward(self, tokens: Tensor, state=None) -> tuple[Tensor, tuple]:
        """tokens [B, T] int64 -> (logits [B, T, V], state); the state of an earlier call carries on."""
        logits, state, _ = self.run(tokens, state)
        return logits, state

    def run(self, tokens: Tensor, state=None) -> tuple[Tensor, tuple, Any]:
        """As `forward`, with what the layers did as a third result: None, or tensors [B, T, ...], in lists or
        NamedTuples where there are several, as the model's own `rates` and `penalty` read them."""
        h, state, runs = self.hidden(tokens, state)
        return self.decode(h), state, runs

    def hidden(self, tokens: Tensor, state=None) -> tuple[Tensor, tuple, Any]:
        """As `run`, with what the head reads, [B, T, E], instead of the logits."""
        raise NotImplementedError(f"{type(self).__name__} does not run")

    def decode(self, h_BTE: Tensor) -> Tensor:
        """The head: logits [B, T, V]."""
        raise NotImplementedError(f"{type(self).__name__} has no head")

    @property
    def width(self) -> int:
        """E, the number of features that the head reads."""
        return self.config.embedding

    def state_shapes(self, batch: int) -> list[tuple[tuple[int, ...], ...]]:
        """The shapes of each layer's state."""
        raise NotImplementedError(f"{type(self).__name__} has no state")

    def wake(self, tokens: Tensor, trained: bool = False) -> None:
        """Prepare a new model, or one with weights of a `trained` one, on the first batch of its text.

        Nothing to do unless a model says otherwise.
        """

    def settle(self) -> None:
        """Prepare a trained model to learn another task; nothing to do unless a model says otherwise."""

    def operations(self, runs) -> Tensor:
        """Accumulations and multiply-accumulates a token that the run took, with gradients to its events.

        raises  ConfigError: a model without products that events could spare
        """
        raise ConfigError(f"{self.name} budget", "a model that gives its operations", "none", "drop [budget]")

    def as_state(self, parts) -> tuple:
        """A state from its tensors, layer by layer, as a checkpoint holds them."""
        return tuple(self.state_type(*layer) for layer in parts)

    def restart(self, state: tuple) -> tuple:
        """The state as the reference carries it over a cut; the same state where there is no such rule."""
        return state

    def check(self, tokens: Tensor, state):
        """Refuse tokens out of range and states of another model or batch size; the state, of its own types."""
        where = f"{self.name} tokens"
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            got, remedy = f"{tokens.dtype} {tuple(tokens.shape)}", "reshape them, or call .long()"
            raise ShapeError(where, "integers [B, T], int64 or int32", got, remedy)
        hidden = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if tokens.numel() and type(tokens) is Tensor and tokens.device.type == "cpu" and not hidden:
            low, high = tokens.numpy().min(), tokens.numpy().max()
            if low < 0 or high >= self.config.vocabulary:
                wrong = int(low if low < 0 else high)
                raise ShapeError(
                    where, f"ids from 0 to {self.config.vocabulary - 1}", str(wrong), "check the tokenizer"
                )
        if state is not None:
            check_state(self.name, state, self.state_shapes(tokens.shape[0]))
            if any(type(layer) in (tuple, list) for layer in state):
                return self.as_state(state)
        return state


def check_settings(name: str, config) -> None:
    """Refuse sizes below 1, dropouts outside [0, 1), and other numbers that are negative or not finite."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) not in (int, float):
            continue
        least = 1 if field.name in SIZES else 0
        most = 1 if "drop" in field.name else math.inf
        if not least <= value < most:
            where = f"{name} {field.name}"
            raise ConfigError(where, f"at least {least} and below {most}", str(value), "mend it")


def check_state(name: str, state, wanted: list[tuple[tuple[int, ...], ...]]) -> None:
    """Refuse a state, layer by layer, whose shapes are not those wanted; None is a start from rest."""
    if state is None:
        return
    try:
        got = [tuple(tuple(part.shape) for part in layer) for layer in state]
    except (TypeError, AttributeError):
        got = f"{type(state).__name__}"
    if got != wanted:
        raise ShapeError(f"{name} state", f"{wanted}", f"{got}", "use a state of this model and batch size")


def fit_tensors(model: nn.Module, tensors: dict[str, Tensor], where: object) -> None:
    """Load tensors into a model, taking their widest type; every key and every shape must be the model's own."""
    own = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    got = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(own.keys() | got.keys()):
        if own.get(name) != got.get(name):
            wanted = f"shape {own[name]}" if name in own else "no such tensor"
            found = f"{got.get(name, 'none')}"
            raise FormatError(f"{where}: {name}", wanted, found, "use a checkpoint of this model")
    kinds = {name: p.is_floating_point() for name, p in model.state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != kinds[name] or tensor.is_complex():
            wanted = "a floating-point type" if kinds[name] else "whole numbers"
            raise FormatError(f"{where}: {name}", wanted, f"{tensor.dtype}", "use a checkpoint of this model")
    types = {tensors[name].dtype for name, p in model.named_parameters() if p.is_floating_point()}
    if types:
        model.to(functools.reduce(torch.promote_types, types))
    for name, buffer in model.named_buffers():
        if name in tensors:  # which may be of a wider type than the parameters
            buffer.data = buffer.data.to(torch.promote_types(buffer.dtype, tensors[name].dtype))
    model.load_state_dict(tensors)


def require_finite(tensors: dict[str, Tensor], where: object) -> None:
    """Raise FormatError for a tensor that holds an infinity or no number (NaN), or is of no type of finite numbers."""
    for name, tensor in tensors.items():
        if tensor.device.type == "meta" or tensor.is_floating_point() and tensor.dtype not in FLOATS:
            got = f"{tensor.dtype} on {tensor.device}"
            raise FormatError(f"{where}: {name}", "numbers of 16, 32 or 64 bits", got, "turn the tensors into such")
        if not tensor.is_quantized and not tensor.isfinite().all():
            raise FormatError(f"{where}: {name}", "finite numbers", "inf or nan", "use an undamaged checkpoint")


def read_torch_file(data: io.BytesIO, path: str | Path) -> Any:
    """Read the bytes of a torch file without running code from them; `path` is where they come from.

    raises  FormatError: it is damaged, or holds more than plain data
    """
    try:
        return torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:
        why = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error).strip() or type(error).__name__
        got, remedy = why.splitlines()[0][:120], "fetch the file anew, or save the state_dict alone"
        raise FormatError(path, "a torch checkpoint of plain tensors", got, remedy) from None


def read_state_dict(path_or_state_dict: str | Path | Mapping[str, Tensor]) -> tuple[object, dict[str, Tensor]]:
    """(Where they come from, for messages; a new table of tensors), from a torch file or a state_dict.

    raises  FormatError: the file is damaged, or holds anything but a table of tensors
    """
    if isinstance(path_or_state_dict, Mapping):
        where, tensors = "state_dict", dict(path_or_state_dict)
    else:
        where, data = path_or_state_dict, io.BytesIO(read_bytes(path_or_state_dict, "a torch checkpoint"))
        tensors = read_torch_file(data, where)
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise FormatError(where, "a table of tensors", type(tensors).__name__, "give the model's state_dict")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise FormatError(f"{where}: {name}", "a number of its own for each place", "fewer", "save it whole")
    return where, tensors
