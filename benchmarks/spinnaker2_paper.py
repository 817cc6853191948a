"""The published SpiNNaker 2 language model (arXiv 2312.09084), its weights random, placed and planned by us.

python benchmarks/spinnaker2_paper.py [--tokens 64]

First the firmware's C on the host, an event's rows joined over elements, one thread, processor time, the best of five
runs: with a head of 10,000 words, and the stack alone (with one of 16); thresholds set the activity. Then elements, the
fullest of them, cycles, ticks and the estimate at some activities beside the published figures, and the same network
with embedding and head on elements, pruned to 10 %; there, each unit sends at each token with the probability that is
named. Last, the elements that spike-fed SpikeGPTs of random weights take.
"""

import argparse
import time

import numpy as np
import torch

from rheobase.backends.exporters.spinnaker2 import routing
from rheobase.backends.exporters.spinnaker2.chip import of_number
from rheobase.backends.exporters.spinnaker2.estimate import CHIP, LEVELS, UNKNOWN, estimate, show
from rheobase.backends.exporters.spinnaker2.host import Host
from rheobase.backends.exporters.spinnaker2.image import TOKEN
from rheobase.backends.exporters.spinnaker2.partition import PES, build
from rheobase.backends.exporters.spinnaker2.plan import tick_plan, ticks_prefilled
from rheobase.backends.exporters.spinnaker2.quantise import quantise
from rheobase.models import EGRULM, EGRULMConfig, SpikeGPT, SpikeGPTConfig

WIDTHS, EMBEDDING, VOCABULARY, KEPT, TABLE_KEPT = (1350, 1350, 750), 750, 10_000, 0.05, 0.1
WATTS, SECONDS, JOULES, ELEMENTS, KILOBYTES = 0.39, 0.17025, 0.0653, 150, 88.3
"""published; what an inference is, a token or a sequence, is not said"""
SEQUENCE = 70
"""tokens of a segment in the published evaluation, at batch 1"""
THRESHOLDS = {1.0: (0.09, 0.04), TABLE_KEPT: (0.026, 0.008)}
"""share of the embedding kept -> with these weights about 10 % and 20 % of the units send"""
ACTIVITIES = (0.1, 0.203, 1.0)
"""0.203 of EGRU-1350 on PTB, published; 1.0 is every unit"""


def network(table_kept: float = 1.0, vocabulary: int = VOCABULARY, thr: float | None = None) -> EGRULM:
    """The network with random weights of which a share is kept, and one threshold if given."""
    torch.manual_seed(0)
    model = EGRULM(EGRULMConfig(embedding=EMBEDDING, layers=WIDTHS, vocabulary=vocabulary))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("thr") and thr is not None:
                p.fill_(thr)
            elif "embed" in name:
                p.normal_(0, 0.5)
                p[torch.rand_like(p) >= table_kept] = 0
            elif p.dim() == 2:
                p[torch.rand_like(p) >= KEPT] = 0
                p *= KEPT**-0.5
    return model


def host_speed(thr: float, table_kept: float) -> None:
    """Print tokens a second of the host's C with a whole head and with almost none."""
    rates = []
    for vocabulary in (VOCABULARY, 16):
        tokens = np.random.default_rng(0).integers(0, vocabulary, 500)
        integer, _ = quantise(network(table_kept, vocabulary, thr).lower(), tokens[None, :32])
        partition = build(integer)
        machine = Host(partition.dram, [(p.name, p.image) for p in partition.placed], joined=True)
        seconds = []
        for _ in range(5):
            machine.events, began = 0, time.process_time()
            machine.run(tokens)
            seconds.append(time.process_time() - began)
        rates.append(len(tokens) / min(seconds))
        if vocabulary == VOCABULARY:
            active = machine.events / len(tokens) / sum(WIDTHS)
    print(
        f"  {100 * active:4.1f} % active, embedding {100 * table_kept:3.0f} % dense: {rates[0]:,.0f} tokens a second "
        f"with a head of {VOCABULARY:,} words, {rates[1]:,.0f} the stack alone"
    )


def run(title: str, model: EGRULM, tokens: np.ndarray, *, dram: bool, table_kept: float = 1.0) -> None:
    """Place, plan and estimate one network, and print what was found."""
    began = time.monotonic()
    integer, _ = quantise(model.lower(), tokens[:, :32])
    partition = build(integer, dram=dram)
    seconds = time.monotonic() - began
    pes = [(f"{p.name}/{p.number}", p.image) for p in partition.placed]
    sizes = [sum(image.sizes().values()) for _, image in pes]
    print(f"\n{title}\n  {len(pes)} elements, the fullest {max(sizes):,} bytes, {sum(sizes):,} in all; {seconds:.0f} s")
    print(f"  published: {ELEMENTS} of {KILOBYTES} kB, fp32 weights; ours are int8 with a byte for the target of each")
    streams, ours = routing.streams(partition.dram, pes), routing.places(pes)
    by_number = {"host": ours["host"]} | {where: of_number((0, 0), 1 + i) for i, (where, _) in enumerate(pes)}
    links = [routing.links_crossed(streams, at) for at in (ours, by_number)]
    print(
        f"  if all send, events cross {links[0]:,} links between quads, "
        f"{100 * (1 - links[0] / links[1]):.0f} % fewer than with elements in the order of their numbers"
    )
    rng = np.random.default_rng(0)
    for activity in ACTIVITIES:
        fired = {i + 1: rng.random((tokens.size, units)) < activity for i, units in enumerate(WIDTHS)}
        fired |= {0: rng.random((tokens.size, EMBEDDING)) < table_kept, TOKEN: tokens.reshape(-1)}
        plan = tick_plan(pes, fired)
        cycles = sum(pe["mean"] for pe in plan["pes"].values())
        ticks, prefilled = plan["ticks_a_token"], plan["ticks_prefilled"]
        print(f"\n  activity {100 * activity:.1f} %: {cycles:,} cycles a token; of a tick, worst, busiest, typical:")
        for row in plan["stages"]:
            print("    {stage:<12}{pes:>4} elements {worst:>12,}{busiest:>12,}{typical:>12,}".format(**row))
        found = []
        for level, clock in zip(LEVELS, plan["clocks"], strict=True):
            given = {"elements": len(pes), "cycles": cycles, "tick_us": max(1000.0, clock["tick_us"]["busiest"])}
            found += [estimate(level, ticks=n, **given) for n in (ticks, prefilled)]
        print(f"    a token generated ({ticks} ticks) or prefilled ({prefilled}), at 1 ms or as the busiest needs")
        print("    " + show(found).replace("\n", "\n    "))


def spikegpt(depth: int, width: int, vocabulary: int, chips: int) -> str:
    """The elements that a SpikeGPT takes."""
    torch.manual_seed(0)
    shape = {"depth": depth, "embedding": width, "vocabulary": vocabulary}
    model = SpikeGPT(SpikeGPTConfig(placement="spike_fed", binary_embedding=False, **shape))
    integer, _ = quantise(model.lower(), np.random.default_rng(0).integers(0, vocabulary, (1, 16)))
    _, pes = build(integer, chips=chips).images
    fullest = max(sum(image.sizes().values()) for _, image in pes)
    return (
        f"SpikeGPT, {depth} blocks of {width}: {len(pes)} elements of {chips} x {PES}, the fullest {fullest:,} bytes, "
        f"{ticks_prefilled(pes)} ticks a token prefilled"
    )


def published() -> str:
    """What the published power says of the level and of how busy the elements were."""
    lines = [f"published: {WATTS} W, {1e3 * SECONDS} ms, {1e3 * JOULES} mJ an inference; if of {SEQUENCE} tokens, "]
    lines[0] += f"{1e3 * SECONDS / SEQUENCE:.2f} ms and {1e3 * JOULES / SEQUENCE:.2f} mJ each"
    for level in LEVELS:
        asleep = CHIP.interval.central + ELEMENTS * level.asleep.interval.central
        busy = (WATTS - asleep) / (ELEMENTS * level.mhz * 1e6 * level.cycle.interval.central)
        says = f"leaves {100 * busy:.0f} % of their cycles" if busy > 0 else "is more than was measured"
        lines.append(f"  {ELEMENTS} elements asleep at {level.name}: {asleep:.3f} W with the chip, which {says}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, args.tokens))
    print("the firmware's C on the host, one thread, 95 % pruned")
    for table_kept, thresholds in THRESHOLDS.items():
        for thr in thresholds:
            host_speed(thr, table_kept)
    print("\n" + published())
    run("95 % pruned, embedding and head in DRAM", network(), tokens, dram=True)
    title = "the same on elements alone, embedding and head pruned to 10 %"
    run(title, network(TABLE_KEPT), tokens, dram=False, table_kept=TABLE_KEPT)
    print("\nunknown, and in no figure: " + "; ".join(UNKNOWN) + "\n")
    print(spikegpt(4, 128, 256, 1))
    print(spikegpt(12, 512, 5458, 4))


if __name__ == "__main__":
    main()
