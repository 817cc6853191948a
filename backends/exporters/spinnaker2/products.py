"""A product's weights as an image holds them: dense, or row by row what is kept, whichever is smaller.

R rows (sources), W targets, K weights kept.
"""

from collections.abc import Mapping

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


def least_bytes(weight_RW: np.ndarray) -> int:
    """No packing of a product, whole or in slices, takes fewer bytes."""
    return min(weight_RW.size, 2 * int(np.count_nonzero(weight_RW)))


def unpack(where: str, regions: Mapping[str, np.ndarray], rows: int, width: int) -> np.ndarray:
    """The weights [R, W] of three regions; raises FormatError where they are not such weights."""
    starts, gaps, weight = (regions[name] for name in ("rows", "gaps", "weight"))
    if not len(starts) and not len(gaps):
        if weight.size != rows * width:
            raise FormatError(where, f"{rows * width} weights", f"{weight.size}", "export it anew")
        return weight.reshape(rows, width)
    if len(starts) != rows + 1 or starts[0] or starts[-1] != len(gaps) or len(gaps) != len(weight):
        raise FormatError(where, f"{rows} rows of as many gaps as weights", "others", "export it anew")
    counts = np.diff(starts.astype(np.int64))
    if counts.min(initial=0) < 0:
        raise FormatError(where, "rows one after the other", "others", "export it anew")
    row = np.repeat(np.arange(rows), counts)
    run = np.concatenate([[0], np.cumsum(gaps, dtype=np.int64)])
    target = run[1:] - run[starts[:-1].astype(np.int64)][row]
    if target.max(initial=-1) >= width:
        raise FormatError(where, f"targets below {width}", f"{target.max()}", "export it anew")
    out = np.zeros((rows, width), np.int64)
    np.add.at(out, (row, target), weight)
    return out
