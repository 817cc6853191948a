"""The processes that train one model together, as torchrun starts them; a process of its own is a world of 1.

The global batch of B rows is cut into W K parts of one size, W ranks of K micro-batches: part r K + k is micro-batch k
of rank r. Every figure that is a mean over rows is then the mean of the parts'.
"""

import atexit
import contextlib
import gc
import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rheobase.models.training.sharding import shard
from rheobase.spiking.devices import is_here
from rheobase.spiking.errors import ConfigError, RheobaseError


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    """of this process: with several GPUs, the one that is its own"""
    accumulate: int = 1
    """micro-batches a step"""

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def parts(self) -> int:
        """Into how many parts the global batch is cut."""
        return self.world * self.accumulate

    def rows(self, batch: int) -> list[slice]:
        """Which rows of a global batch each micro-batch of this rank has; raises ConfigError where they do not fit."""
        if batch % self.parts:
            got, cut = f"{batch}", f"{self.world} ranks x {self.accumulate} micro-batches"
            raise ConfigError("train.batch", f"a multiple of {self.parts}, {cut}", got, "change one of them")
        first, size = self.rank * self.accumulate, batch // self.parts
        return [slice(part * size, (part + 1) * size) for part in range(first, first + self.accumulate)]

    def require_one(self, what: str) -> None:
        """Refuse a batch in several parts, for what is not a mean over parts of one size; raises ConfigError."""
        if self.parts > 1:
            got = f"{self.world} ranks x {self.accumulate} micro-batches"
            raise ConfigError(
                what,
                "one rank, and train.accumulate = 1",
                got,
                "set train.accumulate = 1 and start one process, without torchrun",
            )

    def seed(self, seed: int, step: int, micro: int) -> None:
        """Make what is drawn in a micro-batch a function of (seed, step, part), whichever rank it falls to.

        A batch in one part is left to the generator that the checkpoint carries.
        """
        if self.parts > 1:
            of = (seed, step, self.rank * self.accumulate + micro)
            torch.manual_seed(int(np.random.SeedSequence(of).generate_state(1, np.uint64)[0]))

    def mean(self, x: Tensor) -> Tensor:
        """The mean over ranks of what each has; its gradient is right where parameters' are averaged over ranks."""
        return x if self.world == 1 else _Mean.apply(x, self.world)

    def gather(self, x_BD: Tensor) -> Tensor:
        """The rows of all ranks, in the order of the global batch."""
        if self.world == 1:
            return x_BD
        parts = [torch.empty_like(x_BD) for _ in range(self.world)]
        dist.all_gather(parts, x_BD.contiguous())
        return torch.cat(parts)

    def share(self, value):
        """What rank 0 has, at every rank."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, device=torch.device(self.device))
        return box[0]

    def require_same(self, what: str, value) -> None:
        """Refuse ranks that were given different things, at every rank; raises ConfigError."""
        found = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)
        if other := next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None):
            raise ConfigError(f"rank {other}", f"the {what} of rank 0", "another", "give every rank the same files")

    def wrap(self, step: nn.Module, model, sharding: str) -> nn.Module:
        """The module that a micro-batch calls; its backward pass leaves the mean gradient over ranks at each of them.

        step      whose forward is the loss of `model` on a micro-batch
        sharding  "none": every rank holds the whole model (DDP);  "fsdp": a share of each tensor (FSDP2)
        """
        for module in model.modules():
            if hasattr(module, "pooled"):
                module.pooled = self.mean
        if self.world == 1:
            return step
        if sharding == "fsdp":
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)
            shard(model, self.device, self.world)
            return step
        return DistributedDataParallel(step)


def synchronised(whole: nn.Module, model, now: bool):
    """A context for a micro-batch: whether its backward pass ends with the exchange of gradients."""
    if isinstance(whole, DistributedDataParallel) and not now:
        return whole.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(now)
    return contextlib.nullcontext()


@contextlib.contextmanager
def joined(device: str, accumulate: int):
    """Inside, this process is one of those that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), or alone without it.

    raises  ConfigError: no such device here;  RheobaseError: another rank has ended
    """
    if not is_here(device):
        raise ConfigError("train.device", "a device of this machine", repr(device), 'set train.device = "cpu"')
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(device=device, accumulate=accumulate)
        return
    gpu = device.startswith("cuda")
    if gpu:
        local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= found:
            raise ConfigError("torchrun", f"a GPU a rank, {found} here", f"local rank {local}", "start fewer ranks")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield Ranks(dist.get_rank(), world, device, accumulate)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        remedy = "see what another said, and go on with --resume"
        raise RheobaseError(
            "torchrun", "every rank to go on", str(error).splitlines()[0].rstrip("."), remedy
        ) from error
    if ours:  # after an error the others may wait for this one: its end is what stops them
        dist.destroy_process_group()
        # a sharded model, a cycle of references, holds the group's threads, which abort a process that ends with them
        atexit.register(gc.collect)


class _Mean(torch.autograd.Function):
    """y = mean over ranks of x. With a loss f(y) that all ranks compute alike and gradients of parameters that are
    averaged over ranks afterwards, mean over r of f'(y) dx_r is df(y): the gradient passes as it is."""

    @staticmethod
    def forward(ctx, x, world):
        total = x.detach().clone()
        dist.all_reduce(total)
        return total / world

    @staticmethod
    def backward(ctx, g):
        return g, None
