"""Time of LIF, WKV and EGRU in C against their references in torch, and of training steps by either.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py [--repeats 9]

Float32 on one thread. The two take turns, and medians are printed: of the CPU's time, which others on the machine
disturb little, and of the clock's. `rheobase bench` sets them beside other libraries.
"""

import argparse
import os
import time

import numpy as np
import torch

from rheobase.models import EGRULM, EGRULMConfig, LanguageModel, SpikeGPT, SpikeGPTConfig
from rheobase.spiking import EGRU
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
    x, g_y = torch.randn(2, 16, 128, WIDTH)
    egru = EGRU(WIDTH, WIDTH)
    ops = {
        "LIF": (lambda x: lif(x, whole=False)[0], [v], g),
        "WKV": (lambda *x: wkv(*x)[0], [w, u, k, v], g),
        "EGRU": (lambda x, *_: egru(x)[0], [x, *egru.parameters()], g_y),
    }

    def forward(op, inputs, _):
        with torch.no_grad():
            op(*inputs)

    def both(op, inputs, g):
        leaves = [x.requires_grad_() for x in inputs]
        torch.autograd.grad(op(*leaves), leaves, g)

    passes = {"forward": forward, "forward + backward": both}
    return {f"{n} {p}": (lambda o=o, f=f: f(*o)) for n, o in ops.items() for p, f in passes.items()}


def training_step(model: LanguageModel):
    """A step of a model on 16 sequences of 128 bytes."""
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
    models = {
        "SpikeGPT": SpikeGPT(SpikeGPTConfig(embedding=256, depth=4, placement="spike_fed")),
        "EGRU": EGRULM(EGRULMConfig(embedding=256, layers=(512, 256), thr_mean=0.1)),
    }
    steps = {f"{name} training step": training_step(model) for name, model in models.items()}
    print(f"{'':<28}reference CPU ms   C CPU ms   ratio   reference clock ms   C clock ms   ratio")
    for name, run in {**op_runs(), **steps}.items():
        (cpu, clock), (cpu_c, clock_c) = 1e3 * medians(run, repeats)
        print(
            f"{name:<28}{cpu:16.1f}{cpu_c:11.1f}{cpu / cpu_c:8.1f}{clock:21.1f}{clock_c:13.1f}{clock / clock_c:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
