"""What a processing element does at a tick, term by term, and the instructions that it takes.

Terms: tick 1, unit units updated, sent events sent, halving steps of searches for a key, and events heard and weights
that they add, apart for products that are dense and sparse (see `image`). A section also counts the instructions of its
program, units by op, sources of its norms, registers by unit and lengths of its vectors.

The price of each term in instructions is in `firmware/cycles.toml`, a table a kind of element, fitted by
benchmarks/firmware_cycles.py to what the firmware takes in QEMU. A section's branches depend on its data: the ticks of
a trained SpikeGPT's sections are met within 15 %, those of other elements as `firmware/cycles.toml` says.
"""

import functools
import tomllib
from collections.abc import Mapping

import numpy as np

from rheobase.backends.exporters.spinnaker2.firmware import FOLDER
from rheobase.backends.exporters.spinnaker2.image import EGRU, EMBEDDING, HEAD, KINDS, PROGRAM, REGIONS, Image
from rheobase.backends.exporters.spinnaker2.products import DENSE
from rheobase.backends.exporters.spinnaker2.program import OPS
from rheobase.backends.exporters.spinnaker2.routing import program_of, sent_by

HEARD = ("halving", "dense_event", "dense_weight", "sparse_event", "sparse_weight")
TERMS = {
    EGRU: ("tick", "unit", "sent", *HEARD),
    HEAD: ("tick", "unit", *HEARD),
    EMBEDDING: ("tick", "dense_weight", "sparse_weight"),
    PROGRAM: ("tick", "sent", *HEARD, "vector_event", "instruction", *OPS, "norm_source", "register", "vector"),
}
Fired = Mapping[int, np.ndarray]
"""stream -> whether each of its units sent, [T, units]; image.TOKEN -> the tokens [T]"""


@functools.cache
def cycles() -> Mapping:
    """The table of `firmware/cycles.toml`: its source, its confidence, and a table of prices for each kind."""
    return tomllib.loads((FOLDER / "cycles.toml").read_text())


def instructions(image: Image, work: Mapping[str, np.ndarray]) -> np.ndarray:
    """sum over terms of price x count, as `work` counts them: a number, or [T]."""
    prices = cycles()[KINDS[image.kind]]
    return sum(prices[term] * np.asarray(count, np.float64) for term, count in work.items())


def worst(image: Image) -> dict[str, int]:
    """The most that can happen at a tick: every source sends, each event of another slice than the last, every unit."""
    if image.kind == EMBEDDING:
        form, kept = _kept(image, "", image.fields["width"])
        return {"tick": 1, f"{form}_weight": int(kept.max(initial=0))}
    counts = dict.fromkeys(TERMS[image.kind], 0) | _always(image)
    events = 0
    for form, _, kept in _heard(image):
        events += len(kept)
        counts[f"{form}_event"] += len(kept)
        if form != "vector":
            counts[f"{form}_weight"] += int(kept.sum())
    if "sent" in counts:
        counts["sent"] = image.fields["units"] * len(sent_by(image))
    return counts | {"halving": events * halvings(image)}


def recorded(image: Image, fired: Fired) -> dict[str, np.ndarray]:
    """What happened at each of T recorded ticks, [T] a term; events come slice after slice."""
    if image.kind == EMBEDDING:
        form, kept = _kept(image, "", image.fields["width"])
        (tokens,) = (row for stream, row in fired.items() if row.ndim == 1)
        row = tokens - image.fields["unit_lo"]
        here = (row >= 0) & (row < len(kept))
        return {"tick": np.ones(len(row)), f"{form}_weight": np.where(here, kept[np.where(here, row, 0)], 0)}
    steps = len(next(iter(fired.values())))
    counts = {term: np.zeros(steps) for term in TERMS[image.kind]}
    for form, (stream, rows), kept in _heard(image):
        sent = fired[stream][:, rows]
        counts[f"{form}_event"] += sent.sum(1)
        if form != "vector":
            counts[f"{form}_weight"] += sent @ kept
    lo, units = image.fields["unit_lo"], image.fields["units"]
    if "sent" in counts:
        counts["sent"] = sum(fired[stream][:, lo : lo + units].sum(1) for stream in sent_by(image))
    counts["halving"] += image.fields["listens"] * halvings(image)
    return counts | {term: np.full(steps, count) for term, count in _always(image).items()}


def halvings(image: Image) -> int:
    """The most steps that the search for a key takes."""
    return int(image.fields["listens"]).bit_length()


def _always(image: Image) -> dict[str, int]:
    """The terms that every tick has."""
    f = image.fields
    if image.kind != PROGRAM:
        return {"tick": 1, "unit": f["units"]}
    lengths = image.regions["vectors"].reshape(-1, 2)[:, 0].astype(int)
    counts = dict.fromkeys((*OPS, "norm_source"), 0)
    for row in program_of(image):
        counts[OPS[row.op]] += f["units"]
        if OPS[row.op] == "norm":
            counts["norm_source"] += int(lengths[row.port - f["products"]])
    made = {"tick": 1, "instruction": f["instructions"], "register": f["registers"] * f["units"]}
    return counts | made | {"vector": int(lengths.sum())}


def _heard(image: Image) -> list[tuple[str, tuple[int, np.ndarray], np.ndarray]]:
    """For each stream and port: its form, (the stream, its rows [N]), and the weights kept of each [N]."""
    rows: dict[tuple[int, int], set[int]] = {}
    for base, first, count, port in image.regions["keys"].reshape(-1, 4).tolist():
        rows.setdefault((base >> 24, port), set()).update(range(first, first + count))
    found = []
    for (stream, port), own in rows.items():
        form, kept = _port(image, port)
        at = np.array(sorted(own), np.int64)
        found.append((form, (stream, at), kept[at]))
    return found


def _port(image: Image, port: int) -> tuple[str, np.ndarray]:
    """Dense, sparse or a vector, and how many weights each row of it adds [R]."""
    if image.kind != PROGRAM:
        ends = [name.removeprefix("rows") for name in REGIONS[image.kind] if name.startswith("rows")]
        return _kept(image, ends[port], image.regions[f"bias{ends[port]}"].size)
    f, r = image.fields, image.regions
    if port >= f["products"]:
        return "vector", np.zeros(int(r["vectors"].reshape(-1, 2)[port - f["products"], 0]), np.int64)
    rows, at, _, _, kept = r["products"].reshape(-1, 5)[port].tolist()
    if kept == DENSE:
        return "dense", np.full(rows, f["units"])
    return "sparse", np.diff(r["rows"][at : at + rows + 1].astype(np.int64))


def _kept(image: Image, end: str, width: int) -> tuple[str, np.ndarray]:
    """Dense or sparse, and how many weights each row of a product adds [R]."""
    starts, weight = image.regions[f"rows{end}"], image.regions[f"weight{end}"]
    if len(starts):
        return "sparse", np.diff(starts.astype(np.int64))
    return "dense", np.full(weight.size // max(width, 1), width)
