"""Training on several processes: measured on this machine, and computed for many GPUs.

    python benchmarks/scaling.py                       the tables of docs/scaling.md on paper
    python benchmarks/scaling.py --measure [--ranks 2] [--steps 60]

Measured: a SpikeGPT, 4 blocks of 256, on one process and on several over gloo, one thread each, the same global batch
of 16 x 128 bytes; tokens a second from log.jsonl, the first 20 steps left out. On paper: the formulas below, with the
constants beside them, none of which was measured here.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rheobase.models.training.run import Run
from rheobase.spiking.config import to_toml


@dataclass(frozen=True)
class GPU:
    """What a GPU can do; the defaults are an H100 SXM in machines of 8."""

    peak: float = 989e12
    """dense bfloat16 products, operations/s (NVIDIA H100 data sheet, SXM, without sparsity; high confidence)"""
    memory: float = 80e9
    """bytes (the same; high)"""
    bandwidth: float = 3.35e12
    """of its memory, bytes/s (the same; high)"""
    network: float = 50e9
    """bytes/s of one GPU to other machines, one way: 400 Gb/s each (NVIDIA DGX H100 data sheet; high)"""
    inside: float = 450e9
    """the same between the 8 of a machine (NVLink, 900 GB/s both ways, NVIDIA H100 data sheet; high)"""
    share: float = 0.3
    """of the peak that products reach in training (assumed from published transformers, 0.3 to 0.5; low)"""
    wire: float = 0.7
    """of the network that collectives reach (assumed; low)"""


def parameters(depth: int, width: int, vocabulary: int) -> int:
    """13 L D^2 + 2 V D: of a SpikeGPT, norms and mixes left out."""
    return 13 * depth * width**2 + 2 * vocabulary * width


@dataclass(frozen=True)
class Plan:
    """A training of a SpikeGPT on paper: L blocks of width D, V tokens, W GPUs, T tokens a row, b rows a GPU."""

    depth: int = 32
    width: int = 4096
    vocabulary: int = 50277
    gpus: int = 1000
    context: int = 1024
    rows: int = 4
    gpu: GPU = GPU()

    @property
    def n(self) -> int:
        """N, the number of parameters."""
        return parameters(self.depth, self.width, self.vocabulary)

    @property
    def tokens(self) -> int:
        """Of one step on one GPU."""
        return self.rows * self.context

    def memory(self) -> dict[str, float]:
        """Bytes on a GPU with sharding = "fsdp" and recompute = true, weights and AdamW in float32."""
        stage = 13 * self.width**2
        return {
            "16 N / W: weights, gradients, two moments": 16 * self.n / self.gpus,
            "two gathered stages and a stage's gradient, 12 x 13 D^2": 12 * stage,
            "embedding and head, gathered, with gradients, 8 x 2 V D": 16 * self.vocabulary * self.width,
            "inputs of the blocks, 4 b T D L": 4 * self.tokens * self.width * self.depth,
            "one block inside, about 30 values of 4 bytes x b T D": 120 * self.tokens * self.width,
            "logits and their gradient, 12 b T V": 12 * self.tokens * self.vocabulary,
        }

    def compute(self) -> float:
        """Seconds of a step's products, 8 N a token with recomputation (6 N without), and of LIF and WKV, 80 bytes a
        value of [b, T, D] and block (`rheobase bench`: two LIF at 20 and WKV at 40 bytes)."""
        products = 8 * (self.n - self.vocabulary * self.width) * self.tokens / (self.gpu.peak * self.gpu.share)
        return products + 80 * self.tokens * self.width * self.depth / self.gpu.bandwidth

    def exchange(self, sharding: str) -> float:
        """Seconds on the network: an all-reduce of gradients moves 8 N (W - 1) / W bytes through each GPU ("none"),
        two all-gathers and a reduce-scatter of float32 12 N (W - 1) / W ("fsdp")."""
        moved = {"none": 8, "fsdp": 12}[sharding] * self.n * (self.gpus - 1) / self.gpus
        return moved / ((self.gpu.inside if self.gpus <= 8 else self.gpu.network) * self.gpu.wire)

    def step(self) -> float:
        """Seconds of a step, where all of the exchange is hidden behind the products that it can be."""
        return max(self.compute(), self.exchange("fsdp"))

    def hours(self, tokens: float) -> float:
        """GPU-hours of a training on so many tokens."""
        return tokens / self.tokens * self.step() / 3600


def on_paper() -> None:
    """Print the tables."""
    print(f"216M: 13 L D^2 + 2 V D = {parameters(18, 768, 50277):,} of 215,399,424 parameters")
    plan = Plan()
    print(f"7B: 32 blocks of 4096, N = {plan.n / 1e9:.2f}e9, 20 N = {20 * plan.n / 1e9:.0f}e9 tokens")
    for name, value in plan.memory().items():
        print(f"  {value / 1e9:8.2f} GB  {name}")
    print(f"  {sum(plan.memory().values()) / 1e9:8.2f} GB  together, on each of {plan.gpus} GPUs")
    print("  GPUs  rows  compute s   DDP s  FSDP s     GB  efficiency   GPU-hours")
    for gpus in (8, 64, 1000):
        for rows in (4, 16):
            p = Plan(gpus=gpus, rows=rows)
            row = f"{p.compute():11.2f}{p.exchange('none'):8.2f}{p.exchange('fsdp'):8.2f}"
            row += f"{sum(p.memory().values()) / 1e9:7.0f}{p.compute() / p.step():12.2f}{p.hours(20 * p.n):12,.0f}"
            print(f"{gpus:6}{rows:6}{row}")


def measured(ranks: int, steps: int) -> None:
    """Print tokens a second on one process and on several."""
    print(f"load averages before: {', '.join(f'{x:.1f}' for x in os.getloadavg())}; {os.cpu_count()} cores")
    often = {"evaluate_every": steps, "checkpoint_every": steps, "warmup": 10, "threads": 1}
    model = {"name": "spikegpt", "embedding": 256, "depth": 4, "dropout": 0.0}
    table = {"model": model, "train": {"steps": steps, "batch": 16, "context": 128, **often}}
    speeds = []
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(to_toml(table))
        for n in (1, ranks):
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
            out = Path(folder) / str(n)
            command = [sys.executable, *launch, "-m", "rheobase", "train", str(config), "--out", str(out)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
            rows = [r for r in Run.open(out).log() if "tokens_per_s" in r][1:]
            speeds.append(mean(r["tokens_per_s"] for r in rows))
            share, used = (mean(r[k] for r in rows) for k in ("cpu_share", "utilisation"))
            print(f"{n} ranks: {speeds[-1]:,.0f} tokens/s, CPU share of rank 0 {share:.2f}, utilisation {used:.3f}")
    print(f"{ranks} ranks over one: {speeds[1] / speeds[0]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    if args.measure:
        measured(args.ranks, args.steps)
    else:
        on_paper()
