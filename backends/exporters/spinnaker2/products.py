"""A product's weights as an image holds them: dense, or row by row what is kept, whichever is smaller.

R rows (sources), W targets, K weights kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rheobase.spiking.errors import FormatError

FARTHEST = 255
MOST_KEPT = 65_535
DENSE = 0xFFFFFFFF
"""how a section says that a product is dense, where it would say how many weights are kept"""


def pack(weight_RW: np.ndarray) -> dict[str, np.ndarray]:
    """The regions rows, gaps and weight of int8 weights (see `image`)."""
    weight = np.ascontiguousarray(weight_RW, np.int8)
    dense = {"rows": np.zeros(0, "<u2"), "gaps": np.zeros(0, np.uint8), "weight": weight.reshape(-1)}
    row, target = np.nonzero(weight)
    if 2 * len(row) + 2 * (len(weight) + 1) >= weight.size:
        return dense
    first = np.concatenate([[True], row[1:] != row[:-1]])[: len(row)]
    gap = target - np.where(first, 0, np.roll(target, 1))
    fillers = np.maximum(gap - 1, 0) // FARTHEST
    # each weight after its fillers, which have gap 255 and weight 0
    at = np.cumsum(fillers + 1) - 1
    kept = len(row) + int(fillers.sum())
    gaps, values = np.full(kept, FARTHEST, np.uint8), np.zeros(kept, np.int8)
    gaps[at], values[at] = gap - FARTHEST * fillers, weight[row, target]
    starts = np.zeros(len(weight) + 1, np.int64)
    np.add.at(starts, row + 1, fillers + 1)
    if kept > MOST_KEPT or 2 * kept + 2 * (len(weight) + 1) >= weight.size:
        return dense
    return {"rows": np.cumsum(starts).astype("<u2"), "gaps": gaps, "weight": values}


@dataclass(frozen=True, eq=False)
class Load:
    """What the units of a product have to be packed, whole or in slices.

    kept   weights other than 0 of all units before each, [units + 1]
    whole  weights of a unit, 0 included
    rows   rows of any slice;  own: rows of a unit, 1 where units are the rows
    """

    kept: np.ndarray
    whole: int
    rows: int
    own: int

    @property
    def least(self) -> int:
        """No packing of all units takes fewer bytes."""
        return min(self.whole * (len(self.kept) - 1), 2 * int(self.kept[-1]))

    def bytes(self, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        """Bytes of the units lo to hi, but for the fillers of far gaps; the least that they take."""
        kept, dense = self.kept[hi] - self.kept[lo], self.whole * (hi - lo)
        sparse = 2 * kept + 2 * (self.rows + self.own * (hi - lo) + 1)
        return np.where(kept > MOST_KEPT, dense, np.minimum(dense, sparse))


def load_of(weight_RW: np.ndarray, units: int) -> Load:
    """Of weights to some units, gate by gate: W is units times gates."""
    kept = np.count_nonzero(weight_RW, 0).reshape(-1, units).sum(0)
    return Load(np.cumsum([0, *kept]), weight_RW.shape[0] * weight_RW.shape[1] // units, len(weight_RW), 0)


def load_of_rows(weight_RW: np.ndarray) -> Load:
    """Where each row is a unit."""
    return Load(np.cumsum([0, *np.count_nonzero(weight_RW, 1)]), weight_RW.shape[1], 0, 1)


@dataclass(frozen=True, eq=False)
class Product:
    """Weights [R, W] as they are stored: dense, or the targets and weights [K] kept, those of row r from starts[r]."""

    rows: int
    width: int
    weight: np.ndarray
    starts: np.ndarray | None = None
    targets: np.ndarray | None = None

    def row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Targets and weights of one row."""
        if self.starts is None:
            return np.arange(self.width), self.weight[row]
        kept = slice(self.starts[row], self.starts[row + 1])
        return self.targets[kept], self.weight[kept]

    def add(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The sum of values[i] weight[rows[i]], [W]; float64 holds it exactly, for it is proven to stay below 2^31."""
        values = values.astype(np.float64)
        if self.starts is None:
            return (values @ self.weight[rows]).astype(np.int64)
        counts = self.starts[rows + 1] - self.starts[rows]
        at = np.repeat(self.starts[rows] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        return np.bincount(self.targets[at], np.repeat(values, counts) * self.weight[at], self.width).astype(np.int64)


def unpack(where: str, regions: Mapping[str, np.ndarray], rows: int, width: int) -> Product:
    """The weights [R, W] of three regions; raises FormatError where they are not such weights."""
    starts, gaps = np.asarray(regions["rows"], np.int64), regions["gaps"]
    weight = np.asarray(regions["weight"], np.float64)
    if not len(starts) and not len(gaps):
        if weight.size != rows * width:
            raise FormatError(where, f"{rows * width} weights", f"{weight.size}", "export it anew")
        return Product(rows, width, weight.reshape(rows, width))
    if len(starts) != rows + 1 or starts[0] or starts[-1] != len(gaps) or len(gaps) != len(weight):
        raise FormatError(where, f"{rows} rows of as many gaps as weights", "others", "export it anew")
    counts = np.diff(starts)
    if counts.min(initial=0) < 0:
        raise FormatError(where, "rows one after the other", "others", "export it anew")
    first = np.repeat(starts[:-1], counts)
    run = np.concatenate([[0], np.cumsum(gaps, dtype=np.int64)])
    targets = run[1:] - run[first]
    if targets.max(initial=-1) >= width or np.any((gaps == 0) & (np.arange(len(gaps)) > first)):
        raise FormatError(where, f"ascending targets below {width}", "others", "export it anew")
    return Product(rows, width, weight, starts, targets)
