"""Where processing elements (PEs) lie on a SpiNNaker 2 chip, and how far events travel between them.

152 PEs in 38 quads of four; PE numbers run from 1, number 0 is the management core. PE 1 + 4 i + j is element j of the
i-th quad below. Source: the quad map of SpiNNMachine 1!7.4.1, `spinn_machine.version.version_spin2`, Apache-2.0.
148 of them are usable in py-spinnaker2 0.8.0; which four it leaves out is not published, and we leave out those of
the quad that comes last in our order.
"""

from collections.abc import Iterable
from dataclasses import dataclass

QUADS = (
    *((7, 6), (7, 5), (6, 6), (6, 5), (6, 4), (5, 4), (5, 6), (3, 6), (4, 6), (5, 5), (3, 5), (4, 5), (1, 6)),
    *((2, 6), (1, 5), (2, 5), (1, 4), (2, 4), (3, 4), (1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3)),
    *((5, 1), (3, 1), (4, 1), (5, 2), (3, 2), (4, 2), (7, 1), (6, 1), (7, 2), (6, 2), (6, 3), (5, 3)),
)
"""(x, y) of the quads on the network on chip, by PE number"""
IN_QUAD = 4
USABLE = 148
ORDER = tuple(sorted(range(len(QUADS)), key=lambda i: (QUADS[i][1], QUADS[i][0] * (1 if QUADS[i][1] % 2 else -1))))
"""quads row after row, every other row backwards: PEs that follow each other are neighbours"""


@dataclass(frozen=True)
class Place:
    """A PE: its chip (x, y), its number there, its quad (x, y) and its number in the quad."""

    chip: tuple[int, int]
    p: int
    quad: tuple[int, int]
    in_quad: int


HOST = Place((0, 0), 0, (0, 0), 0)
"""the management core of the first chip, which stands between the host and the PEs"""


def place(index: int) -> Place:
    """The place of the index-th PE of a network: quad after quad in `ORDER`, and chips in a row along x."""
    chip, on_chip = divmod(index, USABLE)
    quad, in_quad = divmod(on_chip, IN_QUAD)
    return of_number((chip, 0), 1 + IN_QUAD * ORDER[quad] + in_quad)


def of_number(chip: tuple[int, int], p: int) -> Place:
    """The place of PE `p`, 1 to 152, of a chip."""
    quad, in_quad = divmod(p - 1, IN_QUAD)
    return Place(chip, p, QUADS[quad], in_quad)


def hops(source: tuple[int, int], destinations: Iterable[tuple[int, int]]) -> int:
    """Links between quads that a multicast packet crosses: first along x, then along y, each link once."""
    columns: dict[int, list[int]] = {source[0]: [source[1]]}
    for x, y in destinations:
        columns.setdefault(x, [source[1]]).append(y)
    return max(columns) - min(columns) + sum(max(ys) - min(ys) for ys in columns.values())
