"""The instructions of the firmware's kernels in QEMU: fits a price for each term of a tick, for firmware/cycles.toml.

python benchmarks/firmware_cycles.py [--out backends/exporters/spinnaker2/firmware/cycles.toml]

Elements of many sizes and densities, and sections with random programs, run on an emulated Cortex-M4F with random
events; the instructions of each tick, told by SysTick in steps of 40, are fitted by least squares to what `work` says
that the element did.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import firmware, products, routing, work
from rheobase.backends.exporters.spinnaker2.arithmetic_rwkv import power_table
from rheobase.backends.exporters.spinnaker2.image import EMBEDDING, HEAD, KINDS, PROGRAM, TOKEN, Image, key
from rheobase.backends.exporters.spinnaker2.partition import head_image
from rheobase.backends.exporters.spinnaker2.program import OPS, instruction

TICKS, ROWS = 60, 120
SIZES, DENSITIES = (4, 16, 40), (1.0, 0.2, 0.05)
SETTINGS = {
    "slice": {"port": 2},
    "norm": {"port": 2, "s0": 10, "s1": 1},
    "mix": {"s0": 14},
    "sigmoid": {"s0": 4},
    "squared_relu": {"s0": 12},
    "multiply": {"s0": 12},
    "add": {"s0": 8, "s1": 8, "s2": 8},
    "wkv": {"s0": 8, "s1": 9},
}
"""columns of a section's instructions that their ops need"""
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


def section(rng, units: int, density: float, ops: list[str]) -> Image:
    """One section with two products of ROWS sources and a vector, and a program of these ops."""
    length, registers = int(rng.choice((40, ROWS))), int(rng.integers(10, 30))
    packed = [products.pack(weights(rng, ROWS, units, density)) for _ in range(2)]
    table, at = [], dict.fromkeys(packed[0], 0)
    for part in packed:
        table.append([ROWS, *at.values(), len(part["gaps"]) if len(part["rows"]) else products.DENSE])
        at = {name: at[name] + len(part[name]) for name in at}
    rows = []
    for number, op in enumerate(ops):
        a, b, out = rng.integers(0, 6, 3).tolist()
        columns = {"out": out, "a": a, "b": 6 if op == "lif" else b, "c": 7, "d": 8, **SETTINGS.get(op, {})}
        rows.append(instruction(op, **columns | ({"s0": 10 + number} if op == "send" else {})))
    regions = {name: np.concatenate([part[name] for part in packed]) for name in at}
    regions |= {"products": table, "vectors": [[length, 0]], "gathered": np.zeros(length), "program": rows}
    regions |= {"bias": np.zeros((2, units)), "shift": np.full((2, units), 6), "accumulators": np.zeros((2, units))}
    regions |= {"factors": rng.integers(1, 2**14, (5, units)), "registers": np.zeros((registers, units))}
    regions |= {
        "initial": rng.integers(-(2**12), 2**12, registers),
        "sigmoid": ints.sigmoid_table(),
        "power": power_table(),
    }
    regions["keys"] = [[key(0, 0), 0, ROWS, 0], [key(1, 0), 0, ROWS, 1], [key(2, 0), 0, length, 2]]
    fields = {"layer": 0, "slice": 0, "unit_lo": 0, "units": units, "products": 2, "vectors": 1, "registers": registers}
    fields |= {"factors": 5, "instructions": len(rows), "listens": 3}
    return Image.of(PROGRAM, fields, {name: np.asarray(array) for name, array in regions.items()})


def heard(image: Image, rng) -> tuple[np.ndarray, np.ndarray]:
    """Random events and ticks, and the steps of searches for a key at each tick."""
    if image.kind == EMBEDDING:
        rows = [np.array([(key(TOKEN, 0), t)], firmware.RECORD) for t in rng.integers(0, image.fields["units"], TICKS)]
        return np.concatenate([part for row in rows for part in (row, firmware.TICK)]), np.zeros(TICKS)
    records, steps, cursor = [], np.zeros(TICKS), 0
    keys = image.regions["keys"].reshape(-1, 4).astype(np.int64)
    for tick in range(TICKS):
        fires = [np.flatnonzero(rng.random(count) < rng.random()) for count in keys[:, 2]]
        slices, units = np.repeat(np.arange(len(keys)), [len(f) for f in fires]), np.concatenate(fires)
        if tick % 2:
            mixed = rng.permutation(len(slices))
            slices, units = slices[mixed], units[mixed]
        steps[tick] = (np.diff(slices, prepend=cursor) != 0).sum() * work.halvings(image)
        cursor = slices[-1] if len(slices) else cursor
        events = np.empty(len(slices), firmware.RECORD)
        events["key"], events["payload"] = keys[slices, 0] + units, rng.integers(-(2**14), 2**14, len(slices))
        records += [events, firmware.TICK]
    return np.concatenate(records), steps


def what_happened(image: Image, records: np.ndarray, sent: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
    """The terms of each tick, [TICKS]."""
    ends = np.flatnonzero(records["key"] == firmware.TICK["key"][0])
    if image.kind == EMBEDDING:
        return work.recorded(image, {TOKEN: records["payload"][ends - 1]})
    keys = image.regions["keys"].reshape(-1, 4).tolist()
    bases = {base: first for base, first, *_ in keys}
    ends_ = {stream: max(k[1] + k[2] for k in keys if k[0] >> 24 == stream) for stream in {k[0] >> 24 for k in keys}}
    fired = {stream: np.zeros((TICKS, rows)) for stream, rows in ends_.items()}
    fired |= {stream: np.zeros((TICKS, 1)) for stream in routing.sent_by(image) if stream not in fired}
    for tick, events in enumerate(np.split(records, ends)[:-1]):
        for k in events["key"][events["key"] != firmware.TICK["key"][0]].tolist():
            fired[k >> 24][tick, bases[k & 0xFFFF0000] + (k & 0xFFFF)] = 1
    done = work.recorded(image, fired) | {"halving": steps}
    return done | ({"sent": sent} if "sent" in done else {})


def fit(kind: int, elf: Path, seed: int = 0) -> tuple[dict[str, float], float, float]:
    """Prices by term, and the mean and the largest error of a tick as shares of what it took."""
    rng = np.random.default_rng(seed)
    rows, took = [], []
    if kind == PROGRAM:
        lists = [rng.choice(OPS, rng.integers(1, 16)).tolist() for _ in range(60)]
        images = [section(rng, int(rng.choice(SIZES)), rng.choice(DENSITIES), ops) for ops in lists]
    else:
        sizes = itertools.product(SIZES, DENSITIES, (1, 6))
        images = [element(kind, rng, units, density, slices) for units, density, slices in sizes]
    for image in images:
        records, steps = heard(image, rng)
        run = firmware.emulate(elf, image.pack(), records, where=KINDS[kind])
        done = what_happened(image, records, np.diff(run.ends, prepend=0), steps)
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
