"""Time of the event simulator at 5 % and at 100 % activity: one EGRU layer as wide as its embedding, one stream.

    OMP_NUM_THREADS=1 python benchmarks/event_simulator.py [--units 224 768 1350] [--tokens 60 1000] [--repeats 9]

A threshold no cell reaches silences a unit, one far below every cell makes it fire at each step. The two are timed in
turn, and medians are printed. The dense product of the embedding is the same in both.
"""

import argparse
import time

import numpy as np
import torch

from rheobase.backends import simulate
from rheobase.models import EGRULM, EGRULMConfig
from rheobase.spiking.graph import EventGraph

NEVER, ALWAYS = 3.0, -3.0


def at_activity(graph: EventGraph, active: float) -> EventGraph:
    """The graph with that share of its EGRU layer's units firing at every step, the others silent."""
    thr = np.full_like(graph.arrays["layers.0.thr"], NEVER)
    thr[: round(active * thr.size)] = ALWAYS
    return EventGraph(graph.nodes, graph.edges, {**graph.arrays, "layers.0.thr": thr}, graph.outputs)


def medians(graphs: list[EventGraph], tokens: np.ndarray, repeats: int) -> list[float]:
    """Median seconds of `simulate` for each graph, the graphs taking turns."""
    times = np.empty((repeats, len(graphs)))
    for row in times:
        for i, graph in enumerate(graphs):
            began = time.perf_counter()
            simulate(graph, tokens)
            row[i] = time.perf_counter() - began
    return np.median(times, 0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--units", type=int, nargs="+", default=[224, 768, 1350])
    parser.add_argument("--tokens", type=int, nargs="+", default=[60, 1000])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print("units  tokens  dtype      5 % ms   100 % ms   ratio")
    for units in options.units:
        torch.manual_seed(1)
        model = EGRULM(EGRULMConfig(embedding=units, layers=(units,))).eval()
        for dtype in (torch.float64, torch.float32):
            graph = model.to(dtype).lower()
            graphs = [at_activity(graph, active) for active in (0.05, 1.0)]
            for steps in options.tokens:
                tokens = np.random.default_rng(1).integers(0, 256, (1, steps))
                few, all_ = medians(graphs, tokens, options.repeats)
                name = str(dtype).removeprefix("torch.")
                print(
                    f"{units:5}  {steps:6}  {name}  {1e3 * few:8.2f}  {1e3 * all_:9.2f}   {few / all_:.3f}", flush=True
                )


if __name__ == "__main__":
    main()
