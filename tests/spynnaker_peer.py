"""sPyNNaker maps a network onto a virtual chip of SpiNNaker 2. A process of its own: its state is global.

    python spynnaker_peer.py NETWORK OUT

NETWORK is JSON: "units" of each population, which is one core's, and whom it "hears". OUT gets the cores that were
used, the keys and the routing table, as it computed them. The folder that this runs in is its home.
"""

import json
import sys
from pathlib import Path

import pyNN.spiNNaker as sim
from spynnaker.pyNN.data import SpynnakerDataView
from spynnaker.pyNN.extra_models import IFCurDelta


def main(network: str, out: str) -> None:
    given = json.loads(Path(network).read_text())
    sim.setup(timestep=1.0)
    made = {
        name: sim.Population(n, IFCurDelta() if given["hears"][name] else sim.SpikeSourceArray([[1.0]] * n), label=name)
        for name, n in given["units"].items()
    }
    for name, heard in given["hears"].items():
        for source in heard:
            sim.Projection(made[source], made[name], sim.AllToAllConnector(), sim.StaticSynapse(weight=1.0))
    sim.run(2)
    view, keys = SpynnakerDataView, SpynnakerDataView.get_routing_infos()
    cores, sent = [], []
    for place in view.iterate_placemements():
        vertex = place.vertex
        app = vertex.app_vertex
        cores.append(
            {"of": app.label if app else None, "label": vertex.label, "x": place.x, "y": place.y, "p": place.p}
        )
        for part in keys.get_partitions_from(vertex):
            own = keys.get_info_from(vertex, part).key_and_mask
            sent.append({"of": app.label, "key": own.key, "mask": own.mask, "units": vertex.vertex_slice.n_atoms})
    entries = [
        {
            "x": t.x,
            "y": t.y,
            "key": e.key,
            "mask": e.mask,
            "cores": sorted(e.processor_ids),
            "links": sorted(e.link_ids),
        }
        for t in view.get_uncompressed()
        for e in t.multicast_routing_entries
    ]
    sim.end()
    Path(out).write_text(json.dumps({"cores": cores, "keys": sent, "entries": entries}))


if __name__ == "__main__":
    main(*sys.argv[1:])
