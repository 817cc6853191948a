"""Token shards: a folder of .bin files of little-endian uint16 ids, one stream in the order of their names."""

import hashlib
from pathlib import Path

import numpy as np

from rheobase.spiking.errors import FormatError, UnsupportedError

ENDS = 1 << 16


class Shards:
    """Several memory-mapped arrays that read as one: `len`, slices (as arrays), and `cut` (without reading)."""

    def __init__(self, arrays: list[np.ndarray], low: int = 0, high: int | None = None):
        self._arrays = [np.asarray(a) for a in arrays]  # a slice of a memmap takes longer
        self._starts = np.cumsum([0, *(len(a) for a in arrays)])
        self._low, self._high = low, int(self._starts[-1]) if high is None else high

    def __len__(self) -> int:
        return self._high - self._low

    def __getitem__(self, part: slice) -> np.ndarray:
        if not isinstance(part, slice):
            raise UnsupportedError("token shards", "a slice", repr(part), "take [i : i + 1]")
        low, high, step = part.indices(len(self))
        low, high = low + self._low, high + self._low
        first, last = np.searchsorted(self._starts, [low, high], side="right") - 1
        found = [
            array[max(low - start, 0) : high - start]
            for array, start in zip(self._arrays[first : last + 1], self._starts[first : last + 1], strict=False)
        ]
        return np.concatenate(found or [np.zeros(0, np.uint16)])[::step]

    def gather(self, starts: np.ndarray, width: int) -> np.ndarray:
        """`width` ids from each of some starts [k] on: [k, width] int64."""
        rows = np.empty((len(starts), width), np.int64)
        places = starts + self._low
        which = np.searchsorted(self._starts, places, side="right") - 1
        inside = places - self._starts[which]
        for row, array, low, start in zip(rows, which.tolist(), inside.tolist(), starts.tolist(), strict=True):
            ids = self._arrays[array][low : low + width]
            row[:] = ids if len(ids) == width else self[start : start + width]
        return rows

    def cut(self, low: int, high: int) -> "Shards":
        """The stretch from `low` to `high` as shards of their own."""
        return Shards(self._arrays, self._low + low, self._low + high)


def gather(data: np.ndarray | Shards, starts: np.ndarray, width: int) -> np.ndarray:
    """`width` ids from each of some starts [k] on: [k, width] int64."""
    return (data if isinstance(data, Shards) else Shards([data])).gather(starts, width)


def read_shards(folder: Path) -> tuple[Shards, str]:
    """The shards of a folder, and a digest of their names, sizes, and first and last 64 KiB.

    raises  FormatError: no .bin file, or one of an odd size
    """
    paths = sorted(folder.glob("*.bin"))
    if not paths:
        raise FormatError(folder, "a text file, or a folder of .bin files", "a folder without", "check data.text")
    digest = hashlib.sha256()
    arrays = []
    for path in paths:
        size = path.stat().st_size
        if size % 2 or not size:
            raise FormatError(path, "uint16 ids, 2 bytes each", f"{size} bytes", "fetch or write the shard anew")
        data = np.memmap(path, "<u2", "r")
        digest.update(f"{path.name} {size} ".encode())
        digest.update(data[: ENDS // 2].tobytes() + data[-ENDS // 2 :].tobytes())
        arrays.append(data)
    return Shards(arrays), digest.hexdigest()
