"""Convert a long synthetic recording between event formats, each pair in a process of its own, and print its peak.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/event_files.py [--events 100000000] [PAIR ...]

A PAIR is two suffixes such as .raw:.dat. Peak is the largest resident memory that the process ever had, interpreter
and libraries with it; the rate is of reading, checking, writing and of the sidecar's hash together.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rheobase.backends import events

SENSOR = (240, 180)
PAIRS = (".raw:.dat", ".dat:.raw", ".raw:.aedat4", ".aedat4:.es", ".es:.raw")


def synthetic(n: int, seed: int = 1):
    """Chunks of n events, about 12.5 a microsecond so that every format can hold the time, at random pixels."""
    rng, t = np.random.default_rng(seed), 0
    for start in range(0, n, events.CHUNK):
        size = min(events.CHUNK, n - start)
        chunk = np.empty(size, events.EVENT)
        chunk["t"] = t + np.cumsum(rng.random(size) < 0.08)
        chunk["x"], chunk["y"] = rng.integers(0, SENSOR[0], size), rng.integers(0, SENSOR[1], size)
        chunk["p"] = rng.integers(0, 2, size)
        t = int(chunk["t"][-1])
        yield chunk


def same(path: Path, n: int) -> bool:
    """Whether a file holds the synthetic events, one by one."""
    with events.open_events(path) as recording:
        wanted, read = synthetic(n), 0
        held = np.empty(0, events.EVENT)
        for chunk in recording.chunks:
            while len(held) < len(chunk):
                held = np.concatenate([held, next(wanted)])
            if not np.array_equal(held[: len(chunk)], chunk):
                return False
            held, read = held[len(chunk) :], read + len(chunk)
        return read == n


def one(pair: str, n: int, folder: Path) -> str:
    """Convert one pair, in this process: a line of the table."""
    source, out = (folder / f"recording{suffix}" for suffix in pair.split(":"))
    if not source.exists():
        events.write_events(source, events.Recording(synthetic(n), SENSOR))
    out = out.with_stem("converted")
    began = time.perf_counter()
    events.convert(source, out)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    equal = "equal" if same(out, n) else "DIFFERENT"
    return f"{pair:<14}{n:>13,} events {seconds:>8.1f} s {n / seconds / 1e6:>7.1f} M/s {peak:>7.0f} MB peak, {equal}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", default=PAIRS, metavar="PAIR")
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, help="where the files are made; one process converts one pair there")
    args = parser.parse_args()
    if args.folder:
        return print(one(args.pairs[0], args.events, args.folder), flush=True)
    for pair in args.pairs:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, pair, "--events", str(args.events), "--folder", folder]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
