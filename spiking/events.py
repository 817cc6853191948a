"""Sparse events: which unit sent which value at which step."""

from dataclasses import dataclass

import numpy as np

from rheobase.spiking.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Events:
    """Events of B streams over T steps and D units, sorted by step, then stream, then unit.

    stream, step, unit   integer arrays, one entry an event
    value                what was sent, never 0 (1 for a binary spike)
    n_streams, n_steps, n_units   the dense shape [B, T, D]
    dt_s                 duration of a step in seconds, or None where time has no unit

    raises  ShapeError: arrays of unequal length, an index out of range or no whole number, a zero value, or not sorted
    """

    stream: np.ndarray
    step: np.ndarray
    unit: np.ndarray
    value: np.ndarray
    n_streams: int
    n_steps: int
    n_units: int
    dt_s: float | None = None

    def __post_init__(self):
        for name in ("stream", "step", "unit"):
            given = np.asarray(getattr(self, name))
            with np.errstate(invalid="ignore"):  # what becomes of NaN differs from machine to machine
                index = given.astype(np.int64)
            if (index != given).any():
                got = str(given[index != given][0])
                raise ShapeError(f"Events.{name}", "whole numbers", got, "give the indices of steps and units")
            object.__setattr__(self, name, index)
        object.__setattr__(self, "value", np.asarray(self.value))
        shapes = {a.shape for a in (self.stream, self.step, self.unit, self.value)}
        if len(shapes) != 1 or len(self.value.shape) != 1:
            raise ShapeError("Events", "flat arrays of one length", str(sorted(shapes)), "give each event all fields")
        for name, size in (("stream", self.n_streams), ("step", self.n_steps), ("unit", self.n_units)):
            index = getattr(self, name)
            if index.size and (index.min() < 0 or index.max() >= size):
                raise ShapeError(
                    f"Events.{name}",
                    f"0 to {size - 1}",
                    f"{index.min()} to {index.max()}",
                    "mend the index or size",
                )
        if (self.value == 0).any():
            raise ShapeError("Events.value", "non-zero values", "a zero", "leave silent units out")
        rise = np.diff(self._order())
        if (rise == 0).any():
            raise ShapeError("Events", "one event a unit a step", "two of one unit", "add their values up")
        if (rise < 0).any():
            raise ShapeError("Events", "rising (step, stream, unit)", "another order", "use Events.from_unsorted")

    def _order(self) -> np.ndarray:
        return (self.step * self.n_streams + self.stream) * self.n_units + self.unit

    def __len__(self) -> int:
        return len(self.value)

    @classmethod
    def from_unsorted(cls, stream, step, unit, value, n_streams, n_steps, n_units, dt_s=None) -> "Events":
        """Events in any order; two events of one unit at one step are an error."""
        order = np.lexsort((unit, stream, step))
        sorted_arrays = (np.asarray(a)[order] for a in (stream, step, unit, value))
        return cls(*sorted_arrays, n_streams, n_steps, n_units, dt_s)

    @classmethod
    def from_dense(cls, x_BTD, dt_s: float | None = None) -> "Events":
        """The non-zero elements of an array or tensor [B, T, D]."""
        x = x_BTD.detach() if hasattr(x_BTD, "detach") else np.asarray(x_BTD)
        if not isinstance(x, np.ndarray) and x.device.type == "cpu":
            x = (x.float() if x.dtype.is_floating_point and x.element_size() < 4 else x).numpy()
        if x.ndim != 3:
            raise ShapeError("Events.from_dense", "[B, T, D]", str(tuple(x.shape)), "add the missing axis")
        by_step = x.swapaxes(0, 1).reshape(-1)
        if isinstance(x, np.ndarray):
            sent = np.flatnonzero(by_step != 0)  # several times quicker than np.nonzero where they are few
            value = by_step[sent]
        else:  # where the tensor is, so that a GPU sends events alone
            sent = by_step.nonzero()[:, 0]
            value = by_step[sent].cpu()
            value = value.float() if value.dtype.is_floating_point and value.element_size() < 4 else value
            sent, value = sent.cpu().numpy(), value.numpy()
        batch, steps, units = x.shape
        step, stream, unit = np.unravel_index(sent, (steps, batch, units))
        return cls(stream, step, unit, value, batch, steps, units, dt_s)

    def to_dense(self) -> np.ndarray:
        """The array [B, T, D], of the type of `value`."""
        x = np.zeros((self.n_streams, self.n_steps, self.n_units), self.value.dtype)
        x[self.stream, self.step, self.unit] = self.value
        return x

    @property
    def rate(self) -> float:
        """Events a unit a step, between 0 and 1; not a number where there are no steps."""
        cells = self.n_streams * self.n_steps * self.n_units
        return len(self) / cells if cells else float("nan")
