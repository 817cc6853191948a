"""What a processing element does at a tick, term by term, and the instructions that it takes.

Terms: tick 1, unit units updated, sent events sent, try keys compared in vain, and events heard and weights that they
add, apart for products that are dense and sparse (see `image`). An instruction price for each term and kind of element
is in `firmware/cycles.toml`, fitted by benchmarks/firmware_cycles.py to what the firmware takes in QEMU.
"""

import functools
import tomllib
from collections.abc import Mapping

import numpy as np

from rheobase.backends.exporters.spinnaker2.firmware import FOLDER
from rheobase.backends.exporters.spinnaker2.image import EGRU, EMBEDDING, HEAD, KINDS, REGIONS, Image

TERMS = {
    EGRU: ("tick", "unit", "sent", "try", "dense_event", "dense_weight", "sparse_event", "sparse_weight"),
    HEAD: ("tick", "unit", "try", "dense_event", "dense_weight", "sparse_event", "sparse_weight"),
    EMBEDDING: ("tick", "dense_weight", "sparse_weight"),
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
    """The most that can happen at a tick: every source sends, in an order that finds each key last, and every unit."""
    if image.kind == EMBEDDING:
        form, kept = _kept(image, "", image.fields["width"])
        return {"tick": 1, f"{form}_weight": int(kept.max(initial=0))}
    counts = dict.fromkeys(TERMS[image.kind], 0)
    for form, _, kept in _heard(image):
        counts[f"{form}_event"] += len(kept)
        counts[f"{form}_weight"] += int(kept.sum())
    events = counts["dense_event"] + counts["sparse_event"]
    units = image.fields["units"]
    done = {"tick": 1, "unit": units, "sent": units, "try": events * (image.fields["listens"] - 1)}
    return counts | {term: done[term] for term in counts.keys() & done.keys()}


def recorded(image: Image, fired: Fired) -> dict[str, np.ndarray]:
    """What happened at each of T recorded ticks, [T] a term; keys are found slice after slice."""
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
        counts[f"{form}_weight"] += sent @ kept
    lo, units = image.fields["unit_lo"], image.fields["units"]
    counts["tick"] += 1
    counts["unit"] += units
    counts["try"] += image.fields["listens"]
    if image.kind == EGRU:
        counts["sent"] += fired[image.fields["layer"] + 1][:, lo : lo + units].sum(1)
    return counts


def _heard(image: Image) -> list[tuple[str, tuple[int, np.ndarray], np.ndarray]]:
    """For each stream and product: dense or sparse, (the stream, its rows [N]), and the weights kept of each [N]."""
    ends = [name.removeprefix("rows") for name in REGIONS[image.kind] if name.startswith("rows")]
    rows: dict[tuple[int, int], set[int]] = {}
    for base, first, count, product in image.regions["keys"].reshape(-1, 4).tolist():
        rows.setdefault((base >> 24, product), set()).update(range(first, first + count))
    found = []
    for (stream, product), own in rows.items():
        form, kept = _kept(image, ends[product], image.regions[f"bias{ends[product]}"].size)
        at = np.array(sorted(own), np.int64)
        found.append((form, (stream, at), kept[at]))
    return found


def _kept(image: Image, end: str, width: int) -> tuple[str, np.ndarray]:
    """Dense or sparse, and how many weights each row of a product adds [R]."""
    starts, weight = image.regions[f"rows{end}"], image.regions[f"weight{end}"]
    if len(starts):
        return "sparse", np.diff(starts.astype(np.int64))
    return "dense", np.full(weight.size // max(width, 1), width)
