"""What the formats in HDF5 share: seconds as whole microseconds."""

import numpy as np

from rheobase.spiking.errors import ConfigError, FormatError


def chosen(where: object, rows: int, what: str, sample: int | None) -> int:
    """The number of the row to be read: `sample`, or 0 where there is but one; `what` names many of them.

    raises  FormatError: there is none;  ConfigError: the choice is missing, or beyond them
    """
    if not rows:
        raise FormatError(where, "a recording", f"0 {what}", "fetch it anew")
    if sample is None and rows != 1:
        raise ConfigError(where, "one recording", f"{rows:,} {what}", f"choose one with --sample 0 to {rows - 1}")
    if not 0 <= (sample or 0) < rows:
        raise ConfigError("--sample", f"0 to {rows - 1}", str(sample), "choose another")
    return sample or 0


def without_loss(seconds: np.ndarray, where: object, lost: list[str]) -> np.ndarray:
    """Times in seconds as int64 microseconds; a time that is not whole is rounded, and that is recorded in `lost`."""
    with np.errstate(over="ignore"):  # an infinite time is refused
        us = seconds.astype(np.float64) * 1e6
    if not np.isfinite(us).all() or (np.abs(us) >= 2**62).any():
        raise FormatError(where, "finite times", "others", "the file is damaged")
    t = np.rint(us)
    off = np.abs(us - t).max(initial=0)
    if off > max(1e-3, 4 * np.finfo(np.float64).eps * np.abs(us).max(initial=0)):
        _say(lost, "times rounded to 1 us")
    if seconds.dtype.itemsize < 8:
        _say(lost, f"times as exact as {seconds.dtype} seconds are")
    return t.astype(np.int64)


def _say(lost: list[str], line: str) -> None:
    if line not in lost:
        lost.append(line)
