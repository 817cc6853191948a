"""Damaged files without end, each from its number, through every reader of `reader_seeds.py`.

    python tests/fuzz_readers.py FOLDER FIRST COUNT [--reader NAME ...]

FOLDER gets `seeds`, the sound files; `case`, the damaged ones of the case at work; and `found.json`, what happened, by
reader. The law: a file loads, or a RheobaseError of one line says why not, within LONGEST_S and ROOM bytes. A breach
is written down with its number, and the status is 1; a hang ends the program with a traceback.
"""

import argparse
import collections
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from fuzz_images import NUMBERS, _text
from reader_seeds import READERS

from rheobase.backends.exporters import Report
from rheobase.spiking.errors import RheobaseError

LONGEST_S, ROOM = 120, 512 << 20
"""seconds a case may take on a machine with other work; bytes that all cases together may take in this process"""
UNSEALED = 10
"""one case in so many keeps its old hashes"""


def _flips(r, data):
    """Some bits, or bytes at their ends."""
    for _ in range(r.choice([1, 1, 2, 8, 40])):
        at = r.randrange(len(data))
        data[at] = r.choice([data[at] ^ 1 << r.randrange(8), 0, 1, 127, 128, 255])


def _cut(r, data):
    """The end is missing, or something in the middle."""
    at = r.randrange(len(data))
    del data[at : r.choice([len(data), at + 1, at + 4, at + 16, at + 512])]


def _insert(r, data):
    """Bytes that were not there."""
    at = r.randrange(len(data) + 1)
    data[at:at] = r.choice([bytes(r.choice([1, 4, 16, 5000])), r.randbytes(r.choice([1, 4, 64])), b"[" * 3000])


def _length(r, data):
    """A number of 2, 4 or 8 bytes, of either order, that says more or less than before."""
    form = r.choice(["<H", "<I", "<I", "<Q", ">H", ">I", ">Q"])
    size = struct.calcsize(form)
    if len(data) >= size:
        near = min(len(data), r.choice([64, 512, 4096, len(data)]))
        at = r.randrange(max(near - size, 0) + 1)
        old = struct.unpack_from(form, data, at)[0]
        new = r.choice([*NUMBERS, 2**63, 2**64 - 1, old + 1, old - 1, old * 2, old << 20, r.getrandbits(64)])
        struct.pack_into(form, data, at, new % 256**size)


def _splice(r, data):
    """A piece of the file somewhere else in it, in place of what is there or beside it."""
    a, b, n = r.randrange(len(data)), r.randrange(len(data)), r.choice([1, 2, 4, 8, 16, 100, 1000])
    data[a : a + r.choice([0, n])] = data[b : b + n]


def _digits(r, data):
    """A number in text."""
    places = [i for i, byte in enumerate(data[: 1 << 16]) if 48 <= byte <= 57]
    if places:
        at = r.choice(places)
        data[at : at + r.choice([1, 1, 3])] = r.choice([b"0", b"9", b"-1", b"1e999", b"nan", b"9" * 30, b"9" * 5000])


BYTES = (_flips, _flips, _cut, _insert, _length, _length, _splice, _digits)


def _safetensors(r, data: bytes) -> bytes:
    """Another header, whose length is right."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = _text(r, data[8:end])
    return len(header).to_bytes(8, "little") + header + data[end:]


def damaged(r: random.Random, name: str, data: bytes) -> bytes:
    """A file with some damage, a kind that fits its name more often than not."""
    try:
        if name.endswith(".json") and r.random() < 0.7:
            return _text(r, data)
        if name.endswith(".safetensors") and r.random() < 0.5:
            return _safetensors(r, data)
    except (ValueError, RecursionError):  # damaged twice
        pass
    changed = bytearray(data)
    for _ in range(r.choice([1, 1, 1, 2, 4])):
        if changed:
            r.choice(BYTES)(r, changed)
    return bytes(changed)


def damage(number: int, reader: str, seeds: Path, folder: Path) -> None:
    """Write the files of a case."""
    r = random.Random(f"{reader} {number}")
    shutil.copytree(seeds / reader, folder)
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in r.sample(paths, min(len(paths), r.choice([1, 1, 2]))):
        path.write_bytes(damaged(r, path.name, path.read_bytes()))
    if number % UNSEALED:
        try:
            READERS[reader].seal(folder)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
            return  # what names the hashes is damaged itself


def outcome(reader: str, folder: Path) -> str:
    """What became of a case: "read", or the name of the stated error."""
    try:
        result = READERS[reader].read(folder)
    except RheobaseError as error:
        assert "\n" not in str(error) and len(str(error)) < 20_000, str(error)[:500]
        return type(error).__name__
    if isinstance(result, Report):
        assert result.ok or (result.problem and "\n" not in result.problem), result
        return "read" if result.ok else "reported"
    return "read"


def main(folder: Path, first: int, count: int, readers: list[str]) -> int:
    """Make the seeds where they are missing, damage, read, and write down what happened; the number of breaches."""
    os.environ["RHEOBASE_CACHE"] = str(folder / "cache")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    for reader in readers:
        if not (seeds := folder / "seeds" / reader).exists():
            seeds.mkdir(parents=True)
            READERS[reader].make(seeds)
        assert outcome(reader, seeds) == "read", reader
    warnings.simplefilter("error")
    faulthandler.register(signal.SIGALRM, chain=True)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, resource.RLIM_INFINITY))
    found, breaches, case = {}, [], folder / "case"
    for reader in readers:
        table, slowest = collections.Counter(), 0.0
        for number in range(first, first + count):
            shutil.rmtree(case, ignore_errors=True)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            damage(number, reader, folder / "seeds", case)
            (folder / "at").write_text(f"{reader} {number}")
            signal.alarm(LONGEST_S)
            began = time.perf_counter()
            try:
                table[outcome(reader, case)] += 1
            except BaseException as error:  # a panic of Rust's is no Exception
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                table["BREACH"] += 1
                breaches.append(f"{reader} {number}: {traceback.format_exc()[-1500:]}")
                print(breaches[-1], file=sys.stderr, flush=True)
            signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - began)
        found[reader] = {**dict(sorted(table.items())), "slowest_s": round(slowest, 2)}
        print(reader, found[reader], flush=True)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    (folder / "found.json").write_text(json.dumps(found, indent=1))
    return len(breaches)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--reader", nargs="*", choices=READERS)
    args = parser.parse_args()
    sys.exit(bool(main(args.folder.resolve(), args.first, args.count, args.reader or list(READERS))))
