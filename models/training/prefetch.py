"""Batches that are read ahead while a step computes."""

from concurrent.futures import Future, ThreadPoolExecutor

from rheobase.spiking.errors import ConfigError

AHEAD = 2
"""batches a thread"""


class Prefetched:
    """The batches of `batches`, a pure function of the step, of which threads read the next ones.

    They are the same for any number of threads. An error comes up at the step whose batch has it. The threads end with
    the last reference to this object.
    """

    def __init__(self, batches, workers: int):
        self._batches, self._ahead = batches, AHEAD * workers
        self._pool = ThreadPoolExecutor(workers, "batches")
        self._part, self._coming = slice(None), {}

    def __call__(self, step: int, part: slice = slice(None)):
        """What `batches(step, part)` gives."""
        if step not in self._coming or part != self._part:
            for future in self._coming.values():
                future.cancel()
            self._part, self._coming = part, {step: self._begin(step, part)}
        for later in range(step + 1, step + 1 + self._ahead):
            if later not in self._coming:
                self._coming[later] = self._begin(later, part)
        return self._coming.pop(step).result()

    def _begin(self, step: int, part: slice) -> Future:
        return self._pool.submit(self._batches, step, part)


def prefetched(batches, workers: int):
    """The batches themselves if there are no workers; raises ConfigError where there are fewer."""
    if workers < 0:
        raise ConfigError("data.workers", "0 or more", str(workers), "mend the config")
    return Prefetched(batches, workers) if workers else batches
