"""FSDP2: every rank holds a share of each tensor, and gathers a stage's when it computes; and the whole of a model for
a checkpoint, which any number of ranks can read. torch's module for it takes a second to import, so that it is where it
is used; a DTensor alone has `full_tensor`."""

import warnings

import torch
from torch import nn


def shard(model, device: str, world: int) -> None:
    """Share a model's parameters out, stage by stage, and the rest together; `run` is what gathers that rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # states are views of what a stage gave; nothing here changes one in place, of which torch warns
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.partition(":")[0], (world,))
    for stage in model.segments():
        fully_shard(stage, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "run")


def whole(state, keep: bool = True):
    """A tensor, or a state_dict of a model or an optimiser, with every tensor that is shared out whole, on the CPU.

    All ranks must ask together; one that does not `keep` it gets None for each such tensor, and holds one at a time.
    """
    if isinstance(state, dict):
        return {key: whole(part, keep) for key, part in state.items()}
    if not hasattr(state, "full_tensor"):
        return state
    full = state.full_tensor()
    return full.cpu() if keep else None


def load(model: nn.Module, optimiser: torch.optim.Optimizer, model_state: dict, optimiser_state: dict) -> None:
    """Take over the states that `whole` gave, each rank its share; raises as torch's `load_state_dict` does."""
    own = model.state_dict()
    model.load_state_dict({name: _share(x, own.get(name)) for name, x in model_state.items()})
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    slots = {
        index: {name: _share(x, parameters[index]) if x.dim() else x for name, x in slot.items()}
        for index, slot in optimiser_state["state"].items()
    }
    optimiser.load_state_dict({**optimiser_state, "state": slots})


def _share(x: torch.Tensor, like) -> torch.Tensor:
    if not hasattr(like, "full_tensor"):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
