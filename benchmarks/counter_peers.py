"""NeuroBench and SpikingJelly, as `counters.py` runs them: on a network of LIF neurons and on a single module.

Both are imported where they are used. Figures are totals over the whole input.
"""

import io
from contextlib import redirect_stderr, redirect_stdout

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

TAU, THETA = 2.0, 1.0
Layers = list[tuple[Tensor, Tensor | None]]
"""Weight and bias of each layer."""


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(*weight.T.shape, bias=bias is not None)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


def chain(layers: Layers, neurons: list[nn.Module]) -> nn.Sequential:
    """Linear layers and a peer's neurons in turn: 0 and 2, 1 and 3."""
    return nn.Sequential(*(m for layer, neuron in zip(layers, neurons, strict=True) for m in (linear(*layer), neuron)))


def watch(neurons) -> list[Tensor]:
    """A list to which each of these modules appends the spikes that it sends."""
    sent = []
    for neuron in neurons:
        neuron.register_forward_hook(lambda _, __, out: sent.append(out[0] if isinstance(out, tuple) else out))
    return sent


def spikes_of(sent: list[Tensor]) -> int:
    return sum(int(torch.count_nonzero(s)) for s in sent)


def cell(figures: dict[str, int], listed=()) -> str:
    parts = [f"{n:,} {name}" for name, n in figures.items() if n]
    if listed:
        parts.append(f"listed: {', '.join(listed)}")
    return ", ".join(parts) or "0"


def run_neurobench(model, x: Tensor, metrics: list) -> dict:
    """One batch through NeuroBench's benchmark; what it prints of a failed metric, it would return as 0.0."""
    from neurobench.benchmarks import Benchmark

    data = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()):
        results = Benchmark(model, data, [], [], [[], metrics]).run()
    if failures := [line for line in said.getvalue().splitlines() if line.startswith("Error")]:
        raise RuntimeError("; ".join(failures))
    return results


def neurobench(layers: Layers, x: Tensor, kind: str) -> dict[str, int]:
    from neurobench.metrics.workload import MembraneUpdates, SynapticOperations
    from neurobench.models import SNNTorchModel
    from snntorch import Leaky

    settings = {"threshold": TAU * THETA, "reset_mechanism": "zero", "reset_delay": False, "init_hidden": True}
    neurons = [Leaky(1 - 1 / TAU, **settings, output=layer is layers[-1]) for layer in layers]
    sent = watch(neurons)
    results = run_neurobench(SNNTorchModel(chain(layers, neurons)), x, [SynapticOperations, MembraneUpdates])
    operations = results["SynapticOperations"]
    return {
        "spikes": spikes_of(sent),
        "ACs": round(operations["Effective_ACs"] * len(x)),
        "MACs": round(operations["Effective_MACs"] * len(x)),
        "membrane updates": round(results["MembraneUpdates"] * len(x)),
    }


def neurobench_operator(module: nn.Module, x: Tensor) -> str:
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel

    result = run_neurobench(TorchModel(nn.Sequential(module)), x, [SynapticOperations])["SynapticOperations"]
    return cell({name: round(result[f"Effective_{name}"] * len(x)) for name in ("MACs", "ACs")})


def count_spikingjelly(module: nn.Module, x: Tensor, names: list[str]) -> tuple[dict, list[str]]:
    """Counters of SpikingJelly by name after one pass, and the operators that its widest one has no rule for."""
    from spikingjelly.activation_based import op_counter

    counters = {name: getattr(op_counter, f"{name}Counter")() for name in names}
    with torch.no_grad(), op_counter.DispatchCounterMode(list(counters.values())) as mode:
        module.eval()(x)
    return counters, sorted(mode.get_unsupported(counters["Flop"]))


def spikingjelly(layers: Layers, x: Tensor, kind: str) -> dict[str, int]:
    """Leaks and thresholds are the divisions and comparisons of FlopCounter; a membrane update is one comparison of
    NeuronStateCounter, which gives bytes of state but no number of updates."""
    from spikingjelly.activation_based.neuron import LIFNode

    neurons = [LIFNode(tau=TAU, v_threshold=THETA, v_reset=0.0, step_mode="m") for _ in layers]
    sent = watch(neurons)
    names = ["SynOp", "MAC", "AC", "Flop", "NeuronState"]
    counters, _ = count_spikingjelly(chain(layers, neurons), x.transpose(0, 1).contiguous(), names)

    def total(counter: str, modules: str, *operators) -> int:
        scopes = (counters[counter].records[f"Sequential.{i}"] for i in modules)
        return sum(n for scope in scopes for op, n in scope.items() if not operators or op in operators)

    return {
        "spikes": spikes_of(sent),
        "ACs": total("SynOp", "02"),
        "MACs": total("MAC", "0123"),
        "bias additions": total("AC", "02") - total("SynOp", "02"),
        "membrane updates": counters["NeuronState"].metric_records["Global"]["state_comps"],
        "leaks": total("Flop", "13", torch.ops.aten.div.Tensor),
        "thresholds": total("Flop", "13", torch.ops.aten.ge.Scalar),
    }


def spikingjelly_operator(module: nn.Module, x: Tensor) -> str:
    names = ["MAC", "AC", "Flop", "MemoryAccess"]
    counters, unknown = count_spikingjelly(module, x, names)
    units = ("MACs", "additions", "FLOPs", "bytes")
    return cell({unit: counters[name].get_total() for unit, name in zip(units, names, strict=True)}, unknown)
