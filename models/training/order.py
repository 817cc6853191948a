"""A shuffled order of any length that takes no memory: each place is worked out from its number when it is asked for.

A Feistel network permutes the numbers of `bits` bits, 4 or the fewest that n - 1 has (Luby and Rackoff, SIAM J. Comput.
17, 1988); a result of n or more goes through it again until one is within, which permutes 0 ... n - 1 (cycle walking:
Black and Rogaway, CT-RSA 2002). Its round function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014),
its keys SHAKE-256 of the seed and the epoch.
"""

import hashlib

import numpy as np

ROUNDS = 8
_FEWEST_BITS = 4


class Shuffled:
    """An endless sequence of epochs, each of which visits 0 ... n - 1 once, in an order of its own.

    Sample s is number s % n of epoch s // n: a pure function of (n, seed, s).
    """

    def __init__(self, n: int, seed: int):
        self.n, self.seed = n, seed
        bits = max((n - 1).bit_length(), _FEWEST_BITS)
        self._shift = np.uint64(bits // 2)
        self._low, self._high = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The places, below n, of some sample numbers [k] int64."""
        epochs, indices = np.divmod(np.asarray(samples, np.int64), self.n)
        places = np.empty_like(indices)
        for epoch in np.unique(epochs):
            of_it = epochs == epoch
            places[of_it] = self._permuted(indices[of_it], int(epoch))
        return places

    def _permuted(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        keys = np.frombuffer(hashlib.shake_256(f"{self.seed} {epoch}".encode()).digest(8 * ROUNDS), "<u8")
        x = self._network(indices.astype(np.uint64), keys)
        while (beyond := x >= self.n).any():
            x[beyond] = self._network(x[beyond], keys)
        return x.astype(np.int64)

    def _network(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        low, high = x & self._low, x >> self._shift
        for i, key in enumerate(keys):
            if i % 2:
                low ^= _mixed(high + key) & self._low
            else:
                high ^= _mixed(low + key) & self._high
        return high << self._shift | low


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)
