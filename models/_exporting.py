"""A language model as a program of `torch.export`, which runs without this package."""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rheobase.models._norms import StaticNorm
from rheobase.models._pretrained import LanguageModel
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.ops.choice import VARIABLE, wanted


class _Flat(nn.Module):
    """logits, *state = flat(tokens, *state), the state being one tensor a part."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        self.model.kernels = "auto"
        self.sizes = [len(layer) for layer in model.state_shapes(0)]
        for norm in self.model.modules():
            if isinstance(norm, StaticNorm):
                norm.settled = norm.gone

    def forward(self, tokens: Tensor, *state: Tensor):
        parts = iter(state)
        layers = [[next(parts) for _ in range(size)] for size in self.sizes]
        logits, state = self.model(tokens, self.model.as_state(layers))
        return logits, *(part for layer in state for part in layer)


def export_program(model: LanguageModel, steps: int = 1) -> ExportedProgram:
    """The evaluation of a model as a graph of torch's own operators: logits, *state = program(tokens, *state).

    tokens [B, steps] int64 and logits [B, steps, V]; B is free, the number of steps is not, since a recurrence becomes
    as many copies of a step. `flat_state` gives the first state. Results are those of the kernels "reference", to the
    bit where torch runs the same operators on both sides.

    returns a torch.export.ExportedProgram;  `program.module()` is called
    raises  ConfigError: steps below 1, or another form of the kernels is wanted by RHEOBASE_KERNELS
    """
    if steps < 1:
        raise ConfigError("export_program steps", "at least 1", str(steps), "raise it")
    if wanted() not in ("auto", "reference"):
        raise ConfigError(VARIABLE, "auto or reference, which alone is of torch's operators", wanted(), "unset it")
    device = next(model.parameters()).device
    tokens = torch.zeros(2, steps, dtype=torch.int64, device=device)  # 2: a size of 1 would be taken for fixed
    state = flat_state(model, tokens.shape[0])
    free = {0: Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights")  # torch's own LSTM and GRU
        return torch.export.export(_Flat(model), (tokens, *state), dynamic_shapes=(free, tuple(free for _ in state)))


@torch.no_grad()
def flat_state(model: LanguageModel, batch: int) -> tuple[Tensor, ...]:
    """The state before the first token of `batch` sequences: its tensors, each [batch, ...], layer by layer."""
    empty = torch.zeros(batch, 0, dtype=torch.int64, device=next(model.parameters()).device)
    return tuple(part.clone() for layer in model(empty)[1] for part in layer)  # one tensor given twice is one input
