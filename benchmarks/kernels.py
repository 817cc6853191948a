"""Time of LIF and WKV in C against their references in torch, and of a SpikeGPT training step by either.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py [--repeats 9]

Float32 on one thread. The two take turns, and medians are printed: of the CPU's time, which others on the machine
disturb little, and of the clock's.
"""

import argparse
import os
import time

import numpy as np
import torch

from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.spiking.ops import lif, wkv
from rheobase.spiking.ops.choice import VARIABLE

KERNELS = ("reference", "native")
BATCH, STEPS, WIDTH = 8, 1024, 512


def medians(run, repeats: int) -> np.ndarray:
    """Median seconds of run() by kernels: [reference, native] x [CPU, clock]."""
    times = np.empty((repeats + 1, len(KERNELS), 2))
    for row in times:
        for i, kernels in enumerate(KERNELS):
            os.environ[VARIABLE] = kernels
            began = time.process_time(), time.perf_counter()
            run()
            row[i] = time.process_time() - began[0], time.perf_counter() - began[1]
    return np.median(times[1:], 0)


def op_runs() -> dict:
    """Name -> a run of an op, forward alone or with the backward pass."""
    k, v, g = torch.randn(3, BATCH, STEPS, WIDTH)
    w, u = torch.randn(2, WIDTH)
    ops = {"LIF": (lambda x: lif(x)[0], [v]), "WKV": (lambda *x: wkv(*x)[0], [w, u, k, v])}

    def forward(op, inputs):
        with torch.no_grad():
            op(*inputs)

    def both(op, inputs):
        leaves = [x.requires_grad_() for x in inputs]
        torch.autograd.grad(op(*leaves), leaves, g)

    passes = {"forward": forward, "forward + backward": both}
    return {f"{n} {p}": (lambda o=o, f=f: f(*o)) for n, o in ops.items() for p, f in passes.items()}


def training_step():
    """A step of a spike-fed SpikeGPT: embedding 256, depth 4, 16 sequences of 128 bytes."""
    model = SpikeGPT(SpikeGPTConfig(embedding=256, depth=4, placement="spike_fed"))
    tokens = torch.randint(256, (16, 129))
    model.wake(tokens[:, :-1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        logits, _ = model(tokens[:, :-1])
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimiser.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{'':<28}reference CPU ms   C CPU ms   ratio   reference clock ms   C clock ms   ratio")
    for name, run in {**op_runs(), "SpikeGPT training step": training_step()}.items():
        (cpu, clock), (cpu_c, clock_c) = 1e3 * medians(run, repeats)
        print(
            f"{name:<28}{cpu:16.1f}{cpu_c:11.1f}{cpu / cpu_c:8.1f}{clock:21.1f}{clock_c:13.1f}{clock / clock_c:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
