"""Operation counters beside an exact count by hand: ours, NeuroBench, SpikingJelly, and snnTorch's neurons under ours.

    OMP_NUM_THREADS=1 python benchmarks/counters.py

The first table is of a two-layer network of LIF neurons, 20 -> 30 -> 10, on 4 sequences of 16 steps. Each tool builds
it of its own neurons, with the same weights and the same equation. The second table is of single operators. A tool that
is not installed is named; what a tool raises is printed.
"""

import argparse
from importlib import metadata

import counter_peers as peers
import numpy as np
import torch
import torch.nn.functional as F
from counter_peers import TAU, THETA, Layers, cell, linear
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import rheobase
from rheobase.backends import count
from rheobase.spiking import LIF, Counts
from rheobase.spiking.adapters import make_neuron
from rheobase.spiking.tally import BINARY, DENSE, GRADED, TERNARY

BATCH, STEPS, SIZES = 4, 16, (20, 30, 10)
FIGURES = (
    *("spikes", "ACs", "MACs", "bias additions", "membrane updates", "leaks", "thresholds", "resets"),
    "neuron additions",
)


def inputs() -> dict[str, tuple[Layers, Tensor, str]]:
    """Name of an input -> (weight and bias of each layer, x [B, T, D], what x was declared to be)."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    layers = [(randn(n_out, n_in), None) for n_in, n_out in zip(SIZES, SIZES[1:], strict=False)]
    biased = [(weight, randn(len(weight))) for weight, _ in layers]
    analogue = randn(BATCH, STEPS, SIZES[0])
    ones = (analogue > 0.7).float()
    return {
        "binary": (layers, ones, BINARY),
        "binary, biases": (biased, ones, BINARY),
        "analogue": (layers, analogue, DENSE),
        "ternary": (layers, ones - (analogue < -0.7).float(), TERNARY),
        "graded, 0 or 2": (layers, 2 * ones, GRADED),
        "all zero": (layers, 0 * ones, BINARY),
    }


def by_hand(layers: Layers, x: Tensor, kind: str) -> dict[str, int]:
    """The exact figures, in NumPy, on the neuron's equation as `rheobase.spiking.ops.lif` writes it:

        h = v + (x - v) / tau    s = [h - theta >= 0]    v = h - s h

    a neuron and step: one leak (the division), one threshold (the comparison), one reset (the product with s), four
    additions, one membrane update. An event costs its fan-out, an analogue value too, whether zero or not.
    """
    total = dict.fromkeys(FIGURES, 0)
    membranes = [np.zeros((len(x), len(weight))) for weight, _ in layers]
    for step in range(x.shape[1]):
        z, declared = x[:, step].double().numpy(), kind
        for i, (weight, bias) in enumerate(layers):
            fan_out = len(weight)
            rows = z.size if declared == DENSE else int(np.count_nonzero(z))
            total["ACs" if declared in (BINARY, TERNARY) else "MACs"] += rows * fan_out
            current = z @ weight.double().numpy().T
            if bias is not None:
                current = current + bias.double().numpy()
                total["bias additions"] += current.size
            h = membranes[i] + (current - membranes[i]) / TAU
            z, declared = (h >= THETA).astype(float), BINARY
            membranes[i] = np.where(z == 1, 0, h)
            total["spikes"] += int(np.count_nonzero(z))
            for figure in ("membrane updates", "leaks", "thresholds", "resets"):
                total[figure] += h.size
            total["neuron additions"] += 4 * h.size
    return total


class Network(nn.Module):
    """Linear layers and cells of ours in turn, [B, T, D] -> [B, T, D]."""

    def __init__(self, layers: Layers, make_cell):
        super().__init__()
        self.linears = nn.ModuleList(linear(*layer) for layer in layers)
        self.cells = nn.ModuleList(make_cell(len(weight)) for weight, _ in layers)

    def forward(self, x_BTD):
        for layer, neurons in zip(self.linears, self.cells, strict=True):
            x_BTD, _ = neurons(layer(x_BTD))
        return x_BTD


def _ours(network: Network, x: Tensor, kind: str) -> dict[str, int]:
    tally = count(network, x, kind=kind)
    if tally.uncounted:
        raise RuntimeError(f"not counted: {', '.join(tally.uncounted)}")
    linears, cells = (
        sum((c for name, c in tally.operators.items() if name.startswith(part)), Counts())
        for part in ("linear", "cell")
    )
    return {
        "spikes": cells.events,
        "ACs": linears.acs,
        "MACs": linears.macs,
        "bias additions": linears.adds,
        "membrane updates": cells.state_updates,
        "leaks": cells.transcendentals.get("division", 0),
        "thresholds": cells.comparisons,
        "resets": cells.products,
        "neuron additions": cells.adds,
    }


def ours(layers: Layers, x: Tensor, kind: str) -> dict[str, int]:
    return _ours(Network(layers, lambda units: LIF(units, tau=TAU, theta=THETA)), x, kind)


def snntorch(layers: Layers, x: Tensor, kind: str) -> dict[str, int]:
    """snnTorch has no counter: its neurons under ours. Its equation spends other additions, products, comparisons."""
    settings = {"beta": 1 - 1 / TAU, "threshold": TAU * THETA, "reset_mechanism": "zero", "reset_delay": False}
    network = Network(layers, lambda units: make_neuron("snntorch:Leaky", units, **settings))
    figures = _ours(network, x, kind)
    return {name: figures[name] for name in FIGURES[:5]}


class MatMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight


class Operator(nn.Module):
    """f(x, weight), with a weight of 8 x 6."""

    def __init__(self, f):
        super().__init__()
        self.f, self.weight = f, nn.Parameter(torch.randn(8, 6))

    def forward(self, x):
        return self.f(x, self.weight)


def operators() -> dict[str, tuple[nn.Module, Tensor, str]]:
    """Name -> (a module, its input, what there is to count)."""
    x, heads, rows = torch.randn(4, 8), torch.randn(1, 2, 4, 8), torch.arange(10) % 8
    sparse = torch.zeros(6, 8).index_put((rows[:5], rows[:5]), torch.ones(())).to_sparse()
    return {
        "nn.Linear": (nn.Linear(8, 6), x, "192 MACs, 24 additions"),
        "F.linear": (Operator(lambda x, w: F.linear(x, w.t())), x, "192 MACs"),
        "@": (Operator(lambda x, w: x @ w), x, "192 MACs"),
        "einsum": (Operator(lambda x, w: torch.einsum("bi,io->bo", x, w)), x, "192 MACs"),
        "autograd.Function": (Operator(MatMul.apply), x, "192 MACs"),
        "sparse.mm": (Operator(lambda x, w: torch.sparse.mm(sparse, x.t())), x, "20 MACs"),
        "gather and add": (Operator(lambda x, w: w[x].sum(0)), rows, "54 additions, 10 rows, 240 bytes"),
        "attention (SDPA)": (
            Operator(lambda x, w: F.scaled_dot_product_attention(x, x, x)),
            heads,
            "512 MACs, 32 products, 56 additions, 24 comparisons, 32 exp, 32 division",
        ),
        "LayerNorm": (nn.LayerNorm(8), x, "104 products, 124 additions, 4 rsqrt, 256 bytes"),
        "embedding": (nn.Embedding(8, 6), rows, "10 rows, 240 bytes"),
        "nn.GRU": (
            nn.GRU(8, 6, batch_first=True),
            torch.randn(2, 3, 8),
            "1,512 MACs, 72 products, 396 additions, 72 sigmoid, 36 tanh",
        ),
        "exp": (Operator(lambda x, w: x.exp()), x, "32 exp"),
        "softmax": (Operator(lambda x, w: x.softmax(-1)), x, "60 additions, 28 comparisons, 32 exp, 32 division"),
        "cumsum": (Operator(lambda x, w: x.cumsum(-1)), x, "28 additions"),
        "elementwise mul": (Operator(lambda x, w: x * x), x, "32 products"),
    }


def ours_operator(module: nn.Module, x: Tensor) -> str:
    tally = count(module, x)
    total = tally.total
    figures = {"MACs": total.macs, "ACs": total.acs, "products": total.products, "additions": total.adds}
    figures |= {"comparisons": total.comparisons, **total.transcendentals}
    if not total.macs:
        figures |= {"rows": total.rows, "bytes": total.weight_bytes}
    return cell(figures, tally.uncounted)


def torch_operator(module: nn.Module, x: Tensor) -> str:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return cell({"FLOPs": counter.get_total_flops()})


PEERS = {
    "NeuroBench": (peers.neurobench, peers.neurobench_operator),
    "SpikingJelly": (peers.spikingjelly, peers.spikingjelly_operator),
    "snnTorch": (snntorch, None),
}


def version(name: str) -> str | None:
    """The version of an installed distribution, else None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def attempt(run, *args):
    """run(*args), or "error: ..." of whatever it raised: a peer that crashes is shown, and is no zero."""
    try:
        return run(*args)
    except Exception as error:
        return f"error: {type(error).__name__}: {error}".replace("\n", " ")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def beside(figure: int | None, truth: int) -> str:
    if figure is None:
        return "-"
    return f"{figure:,}" if figure == truth else f"{figure:,} ({figure - truth:+,})"


def table_of_inputs(tools: dict) -> str:
    """A row an input and tool: a figure's difference from the hand count stands behind it; "-" is no such figure."""
    lines = [row("input", "counter", *FIGURES), row(*["---"] * (2 + len(FIGURES)))]
    for name, case in inputs().items():
        truth = by_hand(*case)
        for tool, run in {"by hand": by_hand, **tools}.items():
            figures = attempt(run, *case)
            if isinstance(figures, str):
                lines.append(row(name, tool, figures, *[""] * (len(FIGURES) - 1)))
                continue
            lines.append(row(name, tool, *(beside(figures.get(f), truth[f]) for f in FIGURES)))
    return "\n".join(lines)


def table_of_operators(tools: dict) -> str:
    """A row an operator, a column a tool: what it gives; 0 is a silent zero."""
    lines = [row("operator", "there is", *tools), row(*["---"] * (2 + len(tools)))]
    for name, (module, x, there_is) in operators().items():
        lines.append(row(name, there_is, *(attempt(run, module, x) for run in tools.values())))
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    versions = {name: version(name.lower()) for name in PEERS}
    print(", ".join([f"rheobase {rheobase.__version__}", f"torch {torch.__version__}"]), end=", ")
    print(", ".join(f"{name} {number or 'not installed'}" for name, number in versions.items()), end="\n\n")
    installed = {name: PEERS[name] for name, number in versions.items() if number}
    networks = {"ours": ours} | {name: peer[0] for name, peer in installed.items()}
    if "snnTorch" in networks:
        networks[f"snnTorch (no counter in {versions['snnTorch']}: by ours)"] = networks.pop("snnTorch")
    print(table_of_inputs(networks), end="\n\n")
    single = {name: peer[1] for name, peer in installed.items() if peer[1]}
    print(table_of_operators({"ours": ours_operator, "torch FlopCounterMode": torch_operator, **single}))


if __name__ == "__main__":
    main()
