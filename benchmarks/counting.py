"""Time of counting a SpikeGPT against that of a plain forward pass, in both placements of its neurons.

    OMP_NUM_THREADS=1 python benchmarks/counting.py [--repeats 9]

6 layers of width 256, [4, 128] tokens, native kernels, float32, one thread. The two take turns, and medians are
printed: of the CPU's time, which others on the machine disturb little, and of the clock's.
"""

import argparse
import time

import numpy as np
import torch

from rheobase.backends import count
from rheobase.models import SpikeGPT, SpikeGPTConfig
from rheobase.spiking.ops.choice import taken

PLACEMENTS = ("reference", "spike_fed")


def medians(runs, repeats: int) -> np.ndarray:
    """Median seconds of each of the runs: [run] x [CPU, clock]; a first round warms up."""
    times = np.empty((repeats + 1, len(runs), 2))
    for row in times:
        for i, run in enumerate(runs):
            began = time.process_time(), time.perf_counter()
            run()
            row[i] = time.process_time() - began[0], time.perf_counter() - began[1]
    return np.median(times[1:], 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"kernels: LIF {taken('lif')}, WKV {taken('wkv')}")
    print(f"{'':<12}forward CPU ms   count CPU ms   ratio   forward clock ms   count clock ms   ratio")
    tokens = torch.randint(256, (4, 128))
    for placement in PLACEMENTS:
        model = SpikeGPT(SpikeGPTConfig(embedding=256, depth=6, placement=placement)).eval()
        model.wake(tokens)

        @torch.no_grad()
        def forward(model=model):
            model(tokens)

        (cpu, clock), (cpu_n, clock_n) = 1e3 * medians([forward, lambda m=model: count(m, tokens)], repeats)
        row = f"{cpu:14.1f}{cpu_n:15.1f}{cpu_n / cpu:8.2f}{clock:19.1f}{clock_n:17.1f}{clock_n / clock:8.2f}"
        print(f"{placement:<12}{row}", flush=True)


if __name__ == "__main__":
    main()
