"""The gradient of one step, micro-batch by micro-batch, and what of it cannot be had so."""

import contextlib
import warnings
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rheobase.models.training.distributed import Ranks, synchronised
from rheobase.models.training.run import RunConfig, TrainConfig
from rheobase.models.training.task import Loss, Task
from rheobase.spiking.errors import ConfigError


class MicroBatch(nn.Module):
    """A micro-batch's loss as a module, whose parameters DDP then knows.

    recompute  whether each stage of the model keeps its inputs alone, and runs again for its gradient
    compiled   whether each stage and the loss are compiled
    """

    def __init__(self, task: Task, model, recompute: bool, compiled: bool = False):
        super().__init__()
        self.task, self.model = task, model
        if compiled:
            compile_stages(model)
            task.compile(model)
        for stage in model.segments() if recompute else ():
            stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)

    def forward(self, step: int, micro: int) -> Loss:
        return self.task.loss(self.model, step, micro)


def compile_stages(model) -> None:
    """Compile each stage of a model as one graph, for training; stages that are built alike share what is compiled.

    In evaluation they run as they are: batches of other sizes would be compiled anew.
    """
    # torch looks at the gradient of what a stage is given, and warns of it
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    limits, stages = torch._dynamo.config, model.segments()
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(stages))  # each may have sizes of its own
    limits.optimize_ddp = False  # inside DDP it would cut a stage at each of DDP's buckets, and fuse less
    for stage in stages:
        stage.forward = partial(_run, stage, stage.forward, torch.compile(stage.forward, fullgraph=True, dynamic=False))


def _run(stage: nn.Module, plain, compiled, *args, **options):
    return (compiled if stage.training else plain)(*args, **options)


@contextlib.contextmanager
def compiling():
    """Inside, what torch cannot compile raises ConfigError, in a line."""
    try:
        yield
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
        got = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise ConfigError("train.compile", "stages that torch.compile takes here", got, "leave it out") from error


def require_able(config: RunConfig, model) -> None:
    """Refuse what would not train as one process does with the whole batch; raises ConfigError."""
    t, b = config.train, config.budget
    if t.accumulate > 1 and (model.needs_whole_means or b.ops_per_token is not None or b.rates):
        wanted = "no [budget], rate_weight or static norms, which need the whole batch's means at once"
        raise ConfigError("train.accumulate", wanted, f"{t.accumulate}", "use more ranks, or drop one of them")
    if (t.recompute or t.compile or t.sharding == "fsdp") and not model.segments():
        where = "train.recompute" if t.recompute else "train.compile" if t.compile else "train.sharding"
        raise ConfigError(where, "a language model of blocks or layers", model.name, "leave it out")
    counts = any(hasattr(module, "pooled") for stage in model.segments() for module in stage.modules())
    if (t.recompute or t.compile) and counts:
        where = "train.recompute" if t.recompute else "train.compile"
        raise ConfigError(where, 'model.norm = "layer"', "norms that count each run", "drop one of them")
    if t.compile and any(isinstance(module, nn.RNNBase) for module in model.modules()):
        raise ConfigError("train.compile", "layers that torch compiles", f"torch's own of {model.name}", "leave it out")
    if t.compile and t.sharding == "fsdp":
        raise ConfigError("train.compile", 'train.sharding = "none"', "'fsdp'", "drop one of them")
    if t.sharding == "fsdp" and (config.prune.sparsity or config.quantise.weights):
        wanted = "no [prune] and [quantise], which choose among whole matrices"
        raise ConfigError("train.sharding", wanted, "'fsdp'", 'set it to "none"')


def gradient(whole: nn.Module, model, ranks: Ranks, step: int, t: TrainConfig, rated: bool):
    """The mean gradient of a step's micro-batches, over all ranks, left in the parameters.

    whole    a MicroBatch, as `Ranks.wrap` gives it
    rated    whether mean rates are wanted
    returns  (the mean of what the losses show, of each layer's rate, both of this rank; all ranks' tokens)
    """
    n, tokens, shown, rates = t.accumulate, 0, 0.0, []
    kind = torch.device(ranks.device).type
    for micro in range(n):
        ranks.seed(t.seed, step, micro)
        with synchronised(whole, model, micro == n - 1), compiling() if t.compile else contextlib.nullcontext():
            with torch.autocast(kind, torch.bfloat16, enabled=t.precision == "bf16"):
                loss: Loss = whole(step, micro)
            (loss.whole / n).backward()
        shown = shown + loss.shown.detach() / n
        tokens += loss.tokens * ranks.world
        if rated:
            found: list[Tensor] = [r.detach().mean() / n for r in model.rates(loss.runs)]
            rates = [a + b for a, b in zip(rates, found, strict=True)] if rates else found
    return shown, rates, tokens
