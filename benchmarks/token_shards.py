"""Write a token file of 1 GB by `rheobase prepare` and read it through shuffled batches: peak memory, tokens a second.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/token_shards.py [--bytes 1000000000] [--jobs 1 2]

Memory is the sum over the command's whole process tree, looked at every 20 ms: `own` are pages that only it holds
(RssAnon and RssShmem of /proc), `files` are pages of files (RssFile: libraries, which processes share), that the system
takes back at need. The files lie in a temporary folder, which is deleted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

VOCABULARY, LINES, WORDS = 5000, 2000, 700
SECONDS = 20


def write_text(path: Path, n_bytes: int) -> None:
    """A document of 700 synthetic words a line, 2,000 different ones in random order; JSON Lines where so named."""
    rng = np.random.default_rng(0)
    letters = [bytes(rng.integers(97, 123, size, np.uint8)) for size in rng.integers(1, 10, VOCABULARY)]
    lines = [b" ".join(letters[i] for i in rng.integers(0, VOCABULARY, WORDS)) for _ in range(LINES)]
    head, tail = (b'{"text": "', b'"}\n') if path.suffix == ".jsonl" else (b"", b"\n")
    with open(path, "wb") as file:
        while file.tell() < n_bytes:
            file.writelines(head + lines[i] + tail for i in rng.integers(0, LINES, LINES))


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def memory(pids: list[int]) -> tuple[int, int]:
    """(own, files) bytes of some processes together."""
    own = files = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        kib = {
            name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "Rss" in name
        }
        own += 1024 * (kib.get("RssAnon", 0) + kib.get("RssShmem", 0))
        files += 1024 * kib.get("RssFile", 0)
    return own, files


def watched(*command: str) -> tuple[float, int, int, int]:
    """Run a command: (seconds, peak of own memory, peak of both together, most processes at once)."""
    began, seen = time.perf_counter(), []
    process = subprocess.Popen([sys.executable, "-m", "rheobase", *command], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        pids = tree(process.pid)
        own, files = memory(pids)
        seen.append((own, own + files, len(pids)))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(process.returncode)
    return seconds, *map(max, zip(*seen, strict=True))


def read(folder: Path, context: int, batch: int, workers: int) -> str:
    """The rate at which the batches of an epoch come, or those of its first seconds."""
    from rheobase.models.training.data import Batches
    from rheobase.models.training.prefetch import prefetched
    from rheobase.models.training.token_folder import open_tokens

    data = open_tokens(folder).shards
    batches = prefetched(Batches(data, batch, context, "shuffled", seed=0, vocabulary=65536), workers)
    steps = (len(data) - 1) // context // batch
    began, used, done = time.perf_counter(), time.process_time(), 0
    while done < steps and time.perf_counter() - began < SECONDS:
        batches(done)
        done += 1
    seconds, used, tokens = time.perf_counter() - began, time.process_time() - used, done * batch * context
    rates = f"{tokens / seconds / 1e6:>6.0f} M tokens/s, {tokens / used / 1e6:>6.0f} M a second of CPU"
    return f"batch {batch:>4} x context {context:<5} workers {workers}: {rates}, {tokens / len(data):.0%} of an epoch"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=1_000_000_000, help="of the token file")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        for batch, context, workers in ((32, 1024, 0), (32, 1024, 1), (32, 128, 0), (8, 64, 0)):
            print(read(args.read, context, batch, workers), flush=True)
        own, files = memory([os.getpid()])
        return print(f"the process that read: {own / 1e6:.0f} MB own, {files / 1e6:.0f} MB of files, torch with it")
    folder = Path(tempfile.mkdtemp())
    try:
        for name, tokenizer, n_bytes in (("t.jsonl", "words", args.bytes // 10), ("t.txt", "bytes", args.bytes)):
            write_text(folder / name, n_bytes)
            for jobs in args.jobs:
                out = folder / f"{tokenizer}{jobs}"
                options = ["--tokenizer", tokenizer, "--jobs", str(jobs)]
                seconds, own, both, processes = watched("prepare", str(folder / name), "--out", str(out), *options)
                index = json.loads((out / "index.json").read_text())
                size = sum(p.stat().st_size for p in out.glob("shard-*.bin"))
                print(
                    f"{name} {(folder / name).stat().st_size:,} bytes -> {index['tokens']:,} {tokenizer}, "
                    f"{index['dtype']}, {size:,} bytes; --jobs {jobs}: {seconds:.1f} s; peak of {processes} processes "
                    f"{own / 1e6:.0f} MB own, {both / 1e6:.0f} MB with files",
                    flush=True,
                )
                if jobs != args.jobs[0]:
                    shutil.rmtree(out)
            (folder / name).unlink()
        subprocess.run([sys.executable, __file__, "--read", str(folder / f"bytes{args.jobs[0]}")], check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
