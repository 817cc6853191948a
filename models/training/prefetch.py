"""Batches that are read ahead while a step computes."""

from concurrent.futures import ThreadPoolExecutor

from rheobase.spiking.errors import ConfigError

AHEAD = 2
"""batches a thread"""
MOST = 1024
"""threads"""


class Prefetched:
    """The batches of `batches`, a pure function of the step, of which threads read the next ones.

    They are the same for any number of threads. An error comes up at the step whose batch has it. The threads end with
    the last reference to this object.
    """

    def __init__(self, batches, workers: int):
        self._batches, self._ahead = batches, AHEAD * workers
        self._pool = ThreadPoolExecutor(workers, "batches")
        self._step, self._before, self._now, self._coming = None, {}, {}, {}

    def __call__(self, step: int, part: slice = slice(None)):
        """What `batches(step, part)` gives; of the next steps, the parts of this one and of the one before are read."""
        if step != self._step:
            self._step, self._before, self._now = step, self._now, {}
            for key in [key for key in self._coming if not step <= key[0] <= step + self._ahead]:
                self._coming.pop(key).cancel()
        rows = part.start, part.stop
        self._now[rows] = part
        self._begin(step, rows, part)
        for later in range(step + 1, step + 1 + self._ahead):
            for other, its in (self._before | self._now).items():
                self._begin(later, other, its)
        return self._coming.pop((step, *rows)).result()

    def _begin(self, step: int, rows: tuple, part: slice) -> None:
        if (step, *rows) not in self._coming:
            self._coming[step, *rows] = self._pool.submit(self._batches, step, part)


def prefetched(batches, workers: int):
    """The batches themselves if there are no workers; raises ConfigError where there are fewer or too many."""
    if not 0 <= workers <= MOST:
        raise ConfigError("data.workers", f"from 0 to {MOST}", str(workers), "mend the config")
    return Prefetched(batches, workers) if workers else batches
