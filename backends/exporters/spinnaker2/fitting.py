"""How many processing elements the units of a stage take, and what would make a graph fit that does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rheobase.backends.exporters.spinnaker2.image import Image, padded
from rheobase.backends.exporters.spinnaker2.products import Load
from rheobase.backends.exporters.spinnaker2.quantise import IntegerEGRUCell
from rheobase.backends.exporters.spinnaker2.sections import Slices
from rheobase.backends.exporters.spinnaker2.smaller import matrices_of, narrowed, pruner, vocabularies_of, widths_of
from rheobase.spiking.graph import EventGraph

DEVIATIONS = 3
"""standard deviations of how many weights a PE gets by chance: at most the root of as many as it holds"""


def cut(units: int, n_pes: int) -> Slices:
    """Units over PEs, as even as can be."""
    bounds = [units * i // n_pes for i in range(n_pes + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


@dataclass(frozen=True, eq=False)
class Stage:
    """What is cut by its units over PEs: a layer, a section, an embedding or a head.

    make   slices -> their images
    loads  of its products
    """

    name: str
    units: int
    make: Callable[[Slices], list[Image]]
    loads: Sequence[Load]

    @property
    def sources(self) -> str:
        """How many weights a unit has of each product, all gates as one."""
        return " + ".join(str(load.rows or load.whole) for load in self.loads)

    @cached_property
    def _others(self) -> tuple[int, list[tuple[int, int]], tuple[int, int]]:
        """Bytes of an image but for its weights, read off images of a unit or two: those of the header; of each region,
        with one unit and with each more; of the keys, with one slice and with each more."""
        one = self.make([(0, 1)])[0]
        two, beside = (one, one) if self.units == 1 else (self.make([(0, 2)])[0], self.make([(0, 1), (1, 2)])[0])
        own = [r for r in one.regions if r != "keys" and not r.startswith(("rows", "gaps", "weight"))]
        regions = [(one.regions[r].nbytes, two.regions[r].nbytes - one.regions[r].nbytes) for r in own]
        keys = [i.regions["keys"].nbytes if "keys" in i.regions else 0 for i in (one, beside)]
        return one.sizes()["header"], regions, (keys[0], keys[1] - keys[0])

    def least_bytes(self, n_pes: int) -> int:
        """The largest of n images takes no fewer: the fillers of far gaps are left out, and the weights' padding."""
        header, regions, (keys, key) = self._others
        lo, hi = np.array(cut(self.units, n_pes)).T
        sizes = sum(padded(one + more * (hi - lo - 1)) for one, more in regions)
        sizes = sizes + sum(load.bytes(lo, hi) for load in self.loads)
        return header + padded(keys + key * (n_pes - 1)) + int(sizes.max())

    def least_pes(self, room: int, most: int) -> int:
        """No fewer PEs of some bytes hold its units; most + 1 where so many do not."""
        first = max(1, sum(load.least for load in self.loads) // room)
        return next((n for n in range(first, min(self.units, most) + 1) if self.least_bytes(n) <= room), most + 1)


def remedy(graph: EventGraph, fits: Callable, holds: Callable, room: int, dram: bool) -> str:
    """What would make a graph fit that does not, each way by itself, as seen with its own weights, pruned or fewer; ""
    where no pruning and no width would.

    A weight that is pruned is another after the rounding now and then, and other weights will be learnt in a narrower
    model: where they are stored sparse, chance decides how many lie on a PE, and room is left for it.

    fits   (graph, dram, bytes of a PE) -> whether it does, by the least that images take
    holds  (graph, dram) -> whether it does, by its images
    room   bytes of a PE
    """
    # up to half of its weights, and what chance may add to that, a matrix can be stored sparse
    density = min(np.count_nonzero(graph.arrays[name]) / graph.arrays[name].size for name in matrices_of(graph))
    sparse = density < 0.55
    by_chance = int(2 * DEVIATIONS * np.sqrt(room / 2)) if sparse else 0

    def largest(most: int, make: Callable[[int], EventGraph], spare: int) -> int:
        """The largest whole number up to `most` whose graph fits, with bytes to spare; 0 if none does."""
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(make(middle), dram, room - spare) else (low, middle)
        while low and not holds(make(low), dram):
            low -= max(1, low // 100)
        return low

    ways, widths = [], widths_of(graph)
    percent = largest(99, pruner(graph), room // 100)
    width = largest(max(widths) - 1, lambda width: narrowed(graph, width), by_chance)
    if percent:
        also = "" if dram else ", the embedding and the head too,"
        ways.append(f"prune each matrix{also} to the largest {percent} % of its weights")
    if width:
        ways.append(f"make {_narrower(graph, widths, width)}{', as sparse as now' if sparse else ''}")
    if not dram:
        words, told = vocabularies_of(graph)
        few = largest(words - 1, lambda words: narrowed(graph, vocabulary=words), by_chance) if words == told else 0
        if few:
            ways.append(f"take a vocabulary of {few} instead of {words}")
        if holds(graph, True):
            ways.append("leave embedding and head in DRAM")
    lacking = " and ".join(f"no {name}" for name, found in (("pruning", percent), ("width", width)) if not found)
    if not ways:
        return ""
    return ", or ".join(ways) + (f"; {lacking} alone would do" if lacking else "")


def _narrower(graph: EventGraph, widths: list[int], width: int) -> str:
    now = [max(1, w * width // max(widths)) for w in widths]
    same = len(set(now)) == len(set(widths)) == 1
    new, old = (str(ws[0]) if same else ", ".join(map(str, ws)) for ws in (now, widths))
    what = "embedding, and all else in proportion,"
    if layers := sum(isinstance(n.op, IntegerEGRUCell) for n in graph.nodes):
        what = "every layer" if len(widths) == layers else "embedding and every layer"
    return f"{what} {new} wide instead of {old}"
