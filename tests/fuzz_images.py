"""Damaged SpiNNaker 2 artefacts without end, each from its number, and a program that lets `verify` read many of them.

    python tests/fuzz_images.py FOLDER FIRST COUNT

FOLDER holds `bases`, artefacts to damage; it gets `images`, every damaged PE's file as (u32 length, bytes), `case`, the
number of the case at work, and `found.json`, a table of what happened. The first untyped error, opened file outside of
the directory, disagreement of NumPy and C, or case of more than LONGEST_S ends the program with a traceback.
"""

import collections
import faulthandler
import itertools
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from rheobase import backends
from rheobase.backends import export, verify
from rheobase.backends.artifact import MANIFEST, SEAL, _seal
from rheobase.backends.exporters.spinnaker2 import TRACE, host
from rheobase.backends.exporters.spinnaker2.image import ENTRY, FIELDS, N_FIELDS, PREFIX, REGIONS, Image, unpack
from rheobase.backends.exporters.spinnaker2.machine import ELEMENTS
from rheobase.models import EGRULM, EGRULMConfig, SpikeGPT, SpikeGPTConfig
from rheobase.spiking.errors import FormatError, RheobaseError
from rheobase.spiking.files import sha256
from rheobase.spiking.graph import EventGraph

LONGEST_S, UNSEALED, ROOM = 10, 100, 512 << 20
"""seconds a case may take; one case in so many keeps its old hashes; bytes that all cases together may take"""
NUMBERS = [0, 1, 2, 3, 15, 16, 17, 31, 32, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 65537]
NUMBERS += [2**16 * 3, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64,
    10**4000,
    0.5,
    float("inf"),
    float("nan"),
    "",
    "x",
    "/",
    ".",
]
VALUES += ["../x", "a" * 5000, "é\ud800\0\n", [], {}, [[]], {"": {}}, [None], "spinnaker2", MANIFEST]


def make_bases(folder: Path) -> None:
    """Tiny artefacts: an EGRU and a SpikeGPT, weights dense and sparse, an EGRU's embedding and head also on PEs."""
    tokens = np.array([[0, 3, 6, 3]])
    egru = EGRULM(EGRULMConfig(vocabulary=7, embedding=6, layers=(6, 6), thr_mean=0.02)).lower()
    gpt = SpikeGPT(SpikeGPTConfig(vocabulary=7, embedding=6, depth=1, placement="spike_fed")).lower()
    models = (("egru", egru, True), ("egru", egru, False), ("gpt", gpt, True))
    for (model, graph, dram), share in itertools.product(models, (1, 0.2)):
        rng = np.random.default_rng(1)
        weights = {n: a.shape for n, a in graph.arrays.items() if a.ndim == 2}
        kept = {n: rng.normal(size=s) * (rng.random(s) < share) for n, s in weights.items()}
        pruned = EventGraph(graph.nodes, graph.edges, {**graph.arrays, **kept}, graph.outputs)
        name = f"{model}-{'dense' if share == 1 else 'sparse'}-{'dram' if dram else 'pes'}"
        export(pruned, "spinnaker2", folder / name, calibration=tokens, dram=dram, allow_lossy=True)


def _number(r: random.Random, near: int) -> int:
    return r.choice([r.choice(NUMBERS), near + r.choice([-16, -1, 1, 16]), near * 2, r.getrandbits(32)]) % 2**32


def _bytes(r: random.Random, data: bytearray) -> None:
    """Some bytes anywhere."""
    for _ in range(r.choice([1, 1, 2, 8])):
        if data:
            data[r.randrange(len(data))] = r.choice([0, 1, 127, 128, 255, r.getrandbits(8)])


def _length(r: random.Random, data: bytearray) -> None:
    at = r.randrange(len(data) + 1)
    if r.random() < 0.7:
        del data[at : at + r.choice([1, 4, 16, len(data)])]
    else:
        data[at:at] = bytes(r.choice([1, 4, 16, 5000]))


def _field(r: random.Random, data: bytearray) -> None:
    """A field of the header, or version and kind."""
    at = 8 + 4 * r.randrange(-1, N_FIELDS)
    if at < 8:
        struct.pack_into("<HH", data, 4, r.choice([1, 1, 1, 0, 2, 65535]), r.choice([0, 1, 2, 3, 4, 65535]))
    else:
        struct.pack_into("<I", data, at, _number(r, *struct.unpack_from("<I", data, at)))


def _entry(r: random.Random, data: bytearray) -> None:
    """A region's number, offset or size; or two entries change places."""
    n = len(REGIONS[data[6] % len(REGIONS)])
    at, other = (PREFIX.size + ENTRY.size * r.randrange(n) for _ in range(2))
    if r.random() < 0.3:
        data[at + 4 : at + 12], data[other + 4 : other + 12] = data[other + 4 : other + 12], data[at + 4 : at + 12]
    elif r.random() < 0.5:
        data[at + 4 : at + 8] = data[other + 4 : other + 8]
    else:
        at += 4 * r.randrange(3)
        struct.pack_into("<I", data, at, _number(r, *struct.unpack_from("<I", data, at)))


def _content(r: random.Random, data: bytearray) -> None:
    """Numbers of a region, at random, at their ends, or copied from elsewhere in it."""
    image = unpack(bytes(data), "base")
    name = r.choice([n for n, a in image.regions.items() if a.size])
    array = image.regions[name].copy()
    info = np.iinfo(array.dtype)
    for _ in range(r.choice([1, 1, 3, array.size])):
        at = r.randrange(array.size)
        ends = [info.min, info.max, 0, 1, int(array[r.randrange(array.size)]), r.randint(info.min, info.max)]
        array[at] = r.choice([*ends, max(info.min, min(info.max, int(array[at]) + r.choice([-1, 1])))])
    data[:] = Image(image.kind, image.fields, {**image.regions, name: array}).pack()


def _resized(r: random.Random, data: bytearray) -> None:
    """Fields and regions that change their sizes together, so that only what they say can be wrong."""
    image = unpack(bytes(data), "base")
    fields, regions = dict(image.fields), dict(image.regions)
    for name in r.sample(sorted(regions), r.choice([1, 2, 3])):
        array = regions[name]
        n = r.choice([0, 1, array.size // 2, array.size + 1, array.size * 2, 64])
        regions[name] = np.resize(array, n) if array.size else np.full(n, r.choice([0, 1, 127]), array.dtype)
    if "listens" in fields and r.random() < 0.5:
        fields["listens"] = regions["keys"].size // 4
        regions["keys"] = regions["keys"][: 4 * fields["listens"]]
    if r.random() < 0.5:
        fields[r.choice(FIELDS[image.kind])] = r.choice([0, 1, 2, 12, 18, 64, 2**16, 2**32 - 1])
    data[:] = Image(image.kind, fields, regions).pack()


def _ordered(r: random.Random, data: bytearray) -> None:
    """Other zero gaps, row starts and keys, which the sizes cannot tell from sound ones."""
    image = unpack(bytes(data), "base")
    regions = {name: array.copy() for name, array in image.regions.items()}
    names = [n for n in regions if n.startswith(("rows", "gaps", "keys", "slices")) and regions[n].size]
    if names:
        array = regions[r.choice(names)]
        array[r.randrange(array.size)] = r.choice([0, 1, 2, 5, 6, array.max(), array[r.randrange(array.size)]])
    data[:] = Image(image.kind, image.fields, regions).pack()


IMAGE = (_bytes, _length, _field, _entry, _content, _content, _resized, _resized, _ordered, _ordered)


def _json(r: random.Random, table):
    """Another value somewhere in a table, or one less, or one more."""
    at, places = table, []
    while isinstance(at, dict | list) and at:
        k = r.choice(sorted(at)) if isinstance(at, dict) else r.randrange(len(at))
        places.append((at, k))
        at = at[k]
    if places:
        holder, k = r.choice(places)
        if r.random() < 0.2:
            del holder[k]
        elif r.random() < 0.1 and isinstance(holder, list):
            holder.append(holder[k])
        else:
            holder[k] = r.choice(VALUES)
    return table


def _text(r: random.Random, text: bytes) -> bytes:
    if r.random() < 0.05:
        return r.choice([b"[" * 100_000, b"", b"null", b"5", b'{"files": 3}', b"\xff\xfe", text + text])
    if r.random() < 0.15:
        data = bytearray(text)
        r.choice([_bytes, _length])(r, data)
        return bytes(data)
    return json.dumps(_json(r, json.loads(text))).encode()


def _trace(r: random.Random, data: bytes) -> bytes:
    """The trace's bytes, or its header, whose length is then put right, or its metadata."""
    end = 8 + int.from_bytes(data[:8], "little")
    way = r.randrange(4)
    if way == 0:
        changed = bytearray(data)
        r.choice([_bytes, _length])(r, changed)
        return bytes(changed)
    if way == 1:
        changed = bytearray(data)
        at = r.randrange(end, len(data))
        changed[at : at + 8] = r.choice([bytes(8), b"\xff" * 8, b"\x07" + bytes(7), b"\xff" * 7 + b"\x7f"])
        return bytes(changed[: len(data)])
    header = json.loads(data[8:end])
    if way == 2:
        header["__metadata__"]["trace"] = _text(r, header["__metadata__"]["trace"].encode()).decode(errors="replace")
        text = json.dumps(header).encode()
    else:
        name = r.choice([n for n in header if n != "__metadata__"])
        header[name]["dtype"] = r.choice(
            ["I64", "I16", "I8", "F32", "F64", "BF16", "BOOL", "U8", "F8_E4M3", "C64", "x"]
        )
        header[name]["shape"] = r.choice(
            [[], [1], [4, 1], [1, 4, 6], [2**32, 2**32], [0, 2**62, 8], header[name]["shape"]]
        )
        text = _text(r, json.dumps(header).encode()) if r.random() < 0.5 else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


def _entries(r: random.Random, folder: Path) -> None:
    """Files that are added, gone, links, pipes, folders."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    path, outside = r.choice(paths), folder.parent / "outside"
    way = r.randrange(7)
    if way == 0:
        (folder / r.choice(["x", "pe/x", "é\n", ".hidden", "pe/" + "a" * 250])).write_bytes(b"x")
        return
    if way == 1:
        deep = folder / r.choice(["deep", "pe/deep"])
        deep.joinpath(*["d"] * r.choice([0, 1, 300])).mkdir(parents=True)
        return
    if way == 2 and (folder / "pe").is_dir():
        shutil.rmtree(folder / "pe")
        (folder / "pe").symlink_to(r.choice([outside.parent, folder, Path("/etc")]))
        return
    data = path.read_bytes()
    path.unlink()
    if way == 3:
        (outside / "copy").write_bytes(data)
        path.symlink_to(r.choice([outside / "copy", Path("/etc/passwd"), path, Path("/dev/zero")]))
    elif way == 4:
        os.mkfifo(path)
    elif way == 5:
        path.mkdir()


def damage(number: int, files: dict[str, bytes], folder: Path) -> list[bytes]:
    """Write the artefact of a case, and return the PEs' files that were damaged."""
    r = random.Random(number)
    files, changed = dict(files), set()
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        name = r.choice(sorted(n for n in files if n.endswith(".bin") or n == TRACE) + ["partition.json"])
        if name in changed:
            continue
        if name == TRACE:
            files[name] = _trace(r, files[name])
        elif name == "partition.json":
            files[name] = _text(r, files[name])
        else:
            data = bytearray(files[name])
            r.choice(IMAGE)(r, data)
            files[name] = bytes(data)
        changed.add(name)
    manifest = json.loads(files[MANIFEST])
    if number % UNSEALED:
        for name in files.keys() & manifest["files"].keys():
            manifest["files"][name] = {"bytes": len(files[name]), "sha256": sha256(files[name])}
    files[MANIFEST] = json.dumps(manifest, indent=1).encode() + b"\n"
    if r.random() < 0.1:
        files[MANIFEST] = _text(r, files[MANIFEST])
    if number % UNSEALED:
        files[SEAL] = _seal(files[MANIFEST])
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if r.random() < 0.03:
        _entries(r, folder)
    return [files[name] for name in changed if name.endswith(".bin")]


def taken_by_numpy(data: bytes) -> bool:
    """Whether the NumPy machine takes a PE's file."""
    try:
        image = unpack(data, "pe")
        if image.kind not in ELEMENTS:
            return False
        ELEMENTS[image.kind](image, "pe")
    except FormatError:
        return False
    return True


def taken_by_c(data: bytes) -> bool:
    """Whether the firmware, compiled for the host, takes it."""
    try:
        host.check(data, "pe")
    except FormatError:
        return False
    return True


class Inside:
    """An audit hook: the first path opened or listed while it watches, outside of a folder and of our own code."""

    code = str(Path(backends.__file__).parent)

    def __init__(self, folder: Path):
        self.folder, self.watching, self.outside = os.path.realpath(folder), False, None
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if (
            self.watching
            and event in ("open", "os.listdir", "os.scandir")
            and isinstance(arguments[0], str | bytes | Path)
        ):
            path = os.path.realpath(os.fsdecode(arguments[0])) + os.sep
            if not path.startswith((self.folder + os.sep, self.code + os.sep)):
                self.outside = self.outside or path


def main(folder: Path, first: int, count: int) -> None:
    """Damage, verify, and write down what happened."""
    bases = [
        {str(p.relative_to(base)): p.read_bytes() for p in sorted(base.rglob("*")) if p.is_file()}
        for base in sorted((folder / "bases").iterdir())
    ]
    for base in (folder / "bases").iterdir():
        assert verify(base).ok
    case, outside = folder / "artefact", folder / "outside"
    outside.mkdir(exist_ok=True)
    warnings.simplefilter("error")
    faulthandler.register(signal.SIGALRM, chain=True)
    # what the imports took, and the room: a forged size runs into this
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, used + ROOM))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, slowest, inside = collections.Counter(), (0.0, -1), Inside(case)
    with open(folder / "images", "wb") as images, open(folder / "case", "w") as at:
        for number in range(first, first + count):
            at.seek(0)
            at.write(f"{number:<12}")
            at.flush()
            case.mkdir()
            damaged = damage(number, bases[number % len(bases)], case)
            signal.alarm(LONGEST_S)
            began, inside.watching = time.perf_counter(), True
            try:
                report = verify(case)
                kind = "ok" if report.ok else "replayed, differs" if report.compared else "refused"
                assert report.ok or (report.problem and "\n" not in report.problem), report
                notes = " ".join(report.notes)
            except RheobaseError as error:
                kind, notes = type(error).__name__, ""
            inside.watching = False
            slowest = max(slowest, (time.perf_counter() - began, number))
            found[kind] += 1
            found["C replayed, the same"] += " 0 differ" in notes
            found["C replayed, differs"] += bool(notes) and " 0 differ" not in notes
            assert inside.outside is None, f"case {number} opened {inside.outside}"
            for data in damaged:
                images.write(struct.pack("<I", len(data)) + data)
                numpy, c = taken_by_numpy(data), taken_by_c(data)
                assert numpy == c, f"case {number}: NumPy takes it: {numpy}, C: {c}"
                found["images"] += 1
                found["images taken"] += numpy
            signal.alarm(0)
            shutil.rmtree(case)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    table = {**found, "slowest_s": round(slowest[0], 3), "slowest": slowest[1], "peak_growth_mb": grown // 1024}
    (folder / "found.json").write_text(json.dumps(table))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
