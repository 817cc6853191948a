"""The instructions of the firmware's kernels in QEMU: fits a price for each term of a tick, for firmware/cycles.toml.

python benchmarks/firmware_cycles.py [--out backends/exporters/spinnaker2/firmware/cycles.toml]

Elements of many sizes and densities, with random weights and events, run on an emulated Cortex-M4F; the instructions of
each tick, told by SysTick in steps of 40, are fitted by least squares to what `work` says that the element did.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import firmware, products, work
from rheobase.backends.exporters.spinnaker2.image import EGRU, EMBEDDING, HEAD, KINDS, TOKEN, Image, key
from rheobase.backends.exporters.spinnaker2.partition import head_image

TICKS, ROWS = 60, 120
SIZES, DENSITIES = (4, 16, 40), (1.0, 0.2, 0.05)
COMMAND = "python benchmarks/firmware_cycles.py"


def weights(rng, rows: int, width: int, density: float) -> np.ndarray:
    """Random int8 weights [rows, width]."""
    return np.where(rng.random((rows, width)) < density, rng.integers(-127, 128, (rows, width)), 0)


def element(kind: int, rng, units: int, density: float, slices: int) -> Image:
    """One element with ROWS sources in some slices."""
    bounds = np.linspace(0, ROWS, slices + 1).astype(int)
    keys = [[key(0, s), lo, hi - lo, 0] for s, (lo, hi) in enumerate(zip(bounds, bounds[1:], strict=False))]
    fields = {"layer": 0, "slice": 0, "unit_lo": 0, "units": units}
    if kind == EMBEDDING:
        regions = {"exponent": rng.integers(0, 9, units)} | products.pack(weights(rng, units, ROWS, density))
        return Image.of(kind, fields | {"width": ROWS, "x_frac": 8}, regions)
    if kind == HEAD:
        shift, bias = rng.integers(4, 12, units), rng.integers(-(2**20), 2**20, units)
        return head_image(fields, weights(rng, ROWS, units, density), bias, shift, keys)
    keys.append([key(1, 0), 0, units, 1])
    regions = {"cell": np.zeros(units), "thr": rng.integers(0, ints.ONE, units), "accumulators": np.zeros(6 * units)}
    for port, rows in (("a", ROWS), ("q", units)):
        packed = products.pack(weights(rng, rows, 3 * units, density))
        regions |= {f"{name}_{port}": array for name, array in packed.items()}
        regions[f"shift_{port}"] = rng.integers(8, 12, 3 * units)
        regions[f"bias_{port}"] = rng.integers(-(2**22), 2**22, 3 * units)
    regions |= {"sigmoid": ints.sigmoid_table(), "tanh": ints.tanh_table(), "keys": np.array(keys)}
    fields |= {"inputs": ROWS, "layer_units": units, "listens": len(keys), "zoneout": 0}
    return Image.of(kind, fields, regions)


def heard(image: Image, rng) -> tuple[np.ndarray, np.ndarray]:
    """Random events and ticks, and how often a key is compared in vain at each tick."""
    if image.kind == EMBEDDING:
        rows = [np.array([(key(TOKEN, 0), t)], firmware.RECORD) for t in rng.integers(0, image.fields["units"], TICKS)]
        return np.concatenate([part for row in rows for part in (row, firmware.TICK)]), np.zeros(TICKS)
    records, tries, cursor = [], np.zeros(TICKS), 0
    keys = image.regions["keys"].reshape(-1, 4).astype(np.int64)
    for tick in range(TICKS):
        fires = [np.flatnonzero(rng.random(count) < rng.random()) for count in keys[:, 2]]
        slices, units = np.repeat(np.arange(len(keys)), [len(f) for f in fires]), np.concatenate(fires)
        if tick % 2:
            mixed = rng.permutation(len(slices))
            slices, units = slices[mixed], units[mixed]
        tries[tick] = (np.diff(slices, prepend=cursor) % len(keys)).sum()
        cursor = slices[-1] if len(slices) else cursor
        events = np.empty(len(slices), firmware.RECORD)
        events["key"], events["payload"] = keys[slices, 0] + units, rng.integers(-(2**14), 2**14, len(slices))
        records += [events, firmware.TICK]
    return np.concatenate(records), tries


def what_happened(image: Image, records: np.ndarray, sent: np.ndarray, tries: np.ndarray) -> dict[str, np.ndarray]:
    """The terms of each tick, [TICKS]."""
    ends = np.flatnonzero(records["key"] == firmware.TICK["key"][0])
    if image.kind == EMBEDDING:
        return work.recorded(image, {TOKEN: records["payload"][ends - 1]})
    fired = {0: np.zeros((TICKS, ROWS)), 1: np.zeros((TICKS, image.fields["units"]))}
    bases = {int(base): int(first) for base, first, *_ in image.regions["keys"].reshape(-1, 4)}
    for tick, events in enumerate(np.split(records, ends)[:-1]):
        for k in events["key"][events["key"] != firmware.TICK["key"][0]].tolist():
            fired[k >> 24][tick, bases[k & 0xFFFF0000] + (k & 0xFFFF)] = 1
    done = work.recorded(image, fired) | {"try": tries}
    return done | ({"sent": sent} if image.kind == EGRU else {})


def fit(kind: int, elf: Path, seed: int = 0) -> tuple[dict[str, float], float, float]:
    """Prices by term, and the mean and the largest error of a tick as shares of what it took."""
    rng = np.random.default_rng(seed)
    rows, took = [], []
    for units in SIZES:
        for density in DENSITIES:
            for slices in (1, 6):
                image = element(kind, rng, units, density, slices)
                records, tries = heard(image, rng)
                run = firmware.emulate(elf, image.pack(), records, where=KINDS[kind])
                done = what_happened(image, records, np.diff(run.ends, prepend=0), tries)
                rows.append(np.stack([done.get(t, np.zeros(TICKS)) for t in work.TERMS[kind]], 1))
                took.append(run.instructions)
    rows, took = np.concatenate(rows), np.concatenate(took).astype(float)
    prices, *_ = np.linalg.lstsq(rows, took, rcond=None)
    error = np.abs(rows @ prices - took) / took
    return dict(zip(work.TERMS[kind], prices.tolist(), strict=True)), float(error.mean()), float(error.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", help="write the TOML here; unless given it is printed")
    args = parser.parse_args()
    lines = [
        f'source = "{COMMAND}: the firmware in QEMU, Cortex-M4F, -O2, a least-squares fit over random elements"',
        'confidence = "emulated instructions, one cycle each: a lower bound on cycles"',
    ]
    with tempfile.TemporaryDirectory() as folder:
        elf = firmware.compile_elf(Path(folder) / "pe.elf")
        for kind in work.TERMS:
            prices, mean, most = fit(kind, elf)
            lines += ["", f"# a tick is met within {100 * mean:.1f} % on average, {100 * most:.0f} % at most"]
            lines += [f"[{KINDS[kind]}]", *(f"{term} = {price:.2f}" for term, price in prices.items())]
    text = "\n".join(lines) + "\n"
    if args.out:
        Path(args.out).write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
