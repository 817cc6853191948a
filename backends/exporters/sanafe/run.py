"""Runs a network in SANA-FE, in a process of its own: it prints to standard output, and may take gigabytes.

    python -P run.py NETWORK STEPS OUT

OUT gets JSON: its energy in J by part and its time in s, as its Loihi has them, and what spiked at each step,
[group, unit].
"""

import json
import sys


def main(network: str, steps: str, out: str) -> None:
    import sanafe

    loihi = sanafe.load_loihi()
    chip = sanafe.SpikingChip(loihi)
    chip.load(sanafe.load_net(network, loihi))
    run = chip.sim(int(steps), spike_trace=True)
    spikes = [[(unit.group_name, unit.neuron_offset) for unit in step] for step in run["spike_trace"]]
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"energy": run["energy"], "sim_time": run["sim_time"], "spikes": spikes}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
