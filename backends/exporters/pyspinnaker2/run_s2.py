"""Run the network of this folder by py-spinnaker2, and compare its spikes with expected_spikes.npz.

    python run_s2.py                  by py-spinnaker2's Brian2 backend
    python run_s2.py 192.168.1.25     on a chip at that address

It needs py-spinnaker2 and numpy, and nothing else. The status is 1 where a spike differs.
"""

import json
import sys
from pathlib import Path

import numpy as np


def build(folder):
    """(network, populations by name, ticks) of a folder."""
    from spinnaker2 import snn

    said = json.loads((folder / "conversion.json").read_text())
    spikes = json.loads((folder / "spike_list.json").read_text())
    populations, net = {}, snn.Network("rheobase")
    for name, size in said["sources"].items():
        lists = {int(line): ticks for line, ticks in spikes[name].items()}
        populations[name] = snn.Population(size=size, neuron_model="spike_list", params=lists, name=name)
    for name, p in said["populations"].items():
        params = {key: np.array(p[key]) for key in ("threshold", "alpha_decay", "i_offset")}
        populations[name] = snn.Population(
            size=p["size"],
            neuron_model="lif_no_delay",
            params=params | {"reset": p["reset"]},
            name=name,
            record=said["config"]["output_record"],
        )
    net.add(*populations.values())
    delay = said["config"]["conn_delay"]
    with np.load(folder / "weights.npz", allow_pickle=False) as weights:
        for i, q in enumerate(said["projections"]):
            weight = weights[str(i)]
            connections = [[int(a), int(b), int(weight[a, b]), delay] for a, b in np.argwhere(weight)]
            net.add(snn.Projection(pre=populations[q["pre"]], post=populations[q["post"]], connections=connections))
    return net, {name: populations[name] for name in said["populations"]}, said["ticks"]


def main(folder, address=None):
    """Run and compare; how many spikes differ."""
    net, populations, ticks = build(folder)
    if address:
        from spinnaker2 import hardware

        machine = hardware.SpiNNaker2Chip(eth_ip=address)
    else:
        from spinnaker2 import brian2_sim

        machine = brian2_sim.Brian2Backend()
    machine.run(net, ticks)
    different = 0
    with np.load(folder / "expected_spikes.npz", allow_pickle=False) as expected:
        for name, population in populations.items():
            got = {(int(unit), int(tick)) for unit, times in population.get_spikes().items() for tick in times}
            units, times = expected[f"{name}/units"], expected[f"{name}/ticks"]
            wanted = set(zip(units.tolist(), times.tolist(), strict=True))
            wrong = sorted(got ^ wanted, key=lambda spike: spike[::-1])
            different += len(wrong)
            first = f"; first: unit {wrong[0][0]}, tick {wrong[0][1]}" if wrong else ""
            print(f"{name}: {len(wanted)} spikes expected, {len(got)} sent, {len(wrong)} differ{first}")
    return different


if __name__ == "__main__":
    sys.exit(1 if main(Path(__file__).parent, *sys.argv[1:]) else 0)
