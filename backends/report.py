"""One self-contained HTML page about a trained model: what it learnt, what it did, what that costs, where it runs.

The charts are inline SVG in percentages, so that text keeps its size on a phone; the page loads nothing and runs
nothing. T steps, D units.
"""

import itertools
import math
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from rheobase.backends.artifact import Report
from rheobase.backends.counting.bill import TERMS, Bill
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.events import Events
from rheobase.spiking.files import write_atomic
from rheobase.spiking.tally import Tally

TEMPLATE = "report.html.j2"
RASTER_STEPS = 96
SATURATED = 0.99
SHADES = 4
LABEL_PX = 17
ROWS_UNFOLDED = 16
UNITS_NAMED = 48
REGIONS = {
    "input weights": ("weight_a",),
    "recurrent weights": ("weight_q",),
    "tables": ("sigmoid", "tanh"),
    "biases, shifts, thresholds": ("bias_a", "bias_q", "shift_a", "shift_q", "thr"),
    "state and accumulators": ("cell", "accumulators"),
    "routing keys and event queue": ("keys", "out_fifo"),
    "header": ("header",),
}


@dataclass(frozen=True, kw_only=True)
class ReportModel:
    """One trained model; the first of a report is the one it is about, the others stand beside it.

    name        what to call it, such as "EGRU"
    parameters  how many it has
    log         records of training: {"step", "bits_per_byte", "rates", ...} and {"step", "valid", ...}
    evaluation  on the test part: bits_per_byte, perplexity, tokens, rates, dead, saturated (the last three a layer)
    tally       what some tokens of the test part took
    bills       that tally on each target
    """

    name: str
    parameters: int
    log: Sequence[Mapping]
    evaluation: Mapping
    tally: Tally
    bills: tuple[Bill, ...]


@dataclass(frozen=True, kw_only=True)
class ReportImage:
    """An exported SpiNNaker 2 image of the first model.

    manifest        of the artefact
    partition       its partition.json
    verified        what `verify` found, or None if it was not asked
    float_bits      bits a byte of the model in floating point, over `integer_tokens` bytes
    integer_bits    bits a byte of the image over the same bytes
    """

    manifest: Mapping
    partition: Mapping
    verified: Report | None
    float_bits: float | None
    integer_bits: float | None
    integer_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that a report shows; whatever is missing is left out of the page.

    machine  one line: processor, threads, versions of Python and torch
    models   the one the report is about, then those to compare it with
    events   "node.port" -> Events of a stretch of text, of which stream 0 is shown: the first 96 steps as a
             raster, all of them in the distribution of rates
    text     the bytes of that stretch
    sample   what the model wrote after `prompt`
    """

    title: str
    command: str
    machine: str
    date: str
    models: tuple[ReportModel, ...]
    events: Mapping[str, Events]
    text: bytes
    image: ReportImage | None
    sample: str
    prompt: str


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the page, whole or not at all.

    raises  ConfigError: no model to report on
    """
    if not data.models:
        raise ConfigError("report", "at least one model", "none", "name a finished run")
    write_atomic(path, render(data).encode("utf-8", "replace"))


def render(data: ReportData) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": number, "pct": percent, "plain": plain}
    first = data.models[0]
    names = [name.rpartition(".")[0] or name for name in data.events]
    rates = tuple(first.evaluation.get("rates") or ())
    layers = names if len(names) == len(rates) else [f"layer {i}" for i in range(len(rates))]
    return environment.get_template(TEMPLATE).render(
        data=data,
        first=first,
        others=data.models[1:],
        rate=sum(rates) / len(rates) if rates else None,
        layers=_layers(first.evaluation, layers, data.events),
        curves=_learning(data.models),
        firing=_firing(first, layers),
        rasters=[_raster(n, e, data.text) for n, e in zip(names, data.events.values(), strict=True) if e.n_steps],
        spreads=[_spread(n, e) for n, e in zip(names, data.events.values(), strict=True) if e.n_steps],
        operations=_operations(data.models),
        counted=_counted(data.models),
        energy=[_energy(bill, data.models) for bill in first.bills],
        image=_image(data.image) if data.image else None,
        version=_version(),
        rows_unfolded=ROWS_UNFOLDED,
    )


def number(x: float | None, digits: int = 3) -> str:
    """A count or a measure: thousands separated, small ones to `digits` significant digits, none as "unknown"."""
    if x is None or not math.isfinite(x):
        return "unknown"
    if isinstance(x, int | np.integer) or abs(x) >= 10 ** (digits - 1):
        return f"{x:,.0f}".replace("-", "−")
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    if x and int(exponent) < -3:
        small = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa} × 10{small}".replace("-", "−")
    return f"{x:.{digits}g}".replace("-", "−")


def percent(x: float) -> str:
    """A share, in per cent."""
    return f"{100 * x:.1f} %"


def plain(text: str) -> str:
    """Text with every control character but tab and newline replaced, so that any bytes can be shown."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)


def _version() -> str | None:
    try:
        return metadata.version("rheobase")
    except metadata.PackageNotFoundError:
        return None


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        fine = (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8, 10)
        return [t for t in fine if low <= t <= high]
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(s * size for s in (1, 2, 2.5, 5, 10) if (high - low) / (s * size) <= 5)
    return [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]


def _plot(series: list[dict], height: int, show, *, log=False) -> dict | None:
    """Geometry of a line chart: each series has cls, points [(x, y)], dots and, to be written at its end, a label."""
    points = [p for s in series for p in s["points"] if math.isfinite(p[1])]
    if not points:
        return None
    right = max(x for x, _ in points)
    low, high = (min(y for _, y in points) * 0.95 if log else 0.0), max(y for _, y in points) * 1.02
    scale = math.log if log else float
    span = scale(high) - scale(low) if high > low else 1.0

    def place(x, y):
        return 100 * x / max(right, 1), 100 * (1 - (scale(y) - scale(low)) / span)

    lines = []
    for s in series:
        placed = [place(x, y) for x, y in s["points"] if math.isfinite(y)]
        if placed:
            value = f"{s['label']} {show(s['points'][-1][1])}" if s.get("label") else None
            line = " ".join(f"{10 * x:.1f},{10 * y:.1f}" for x, y in placed)
            lines.append({"cls": s["cls"], "line": line, "dots": placed if s.get("dots") else [], "label": value})
            lines[-1] |= {"x": placed[-1][0], "y": placed[-1][1]}
    gap, above = 100 * LABEL_PX / height, -math.inf
    for line in sorted((x for x in lines if x["label"]), key=lambda x: x["y"]):
        line["label_y"] = above = max(line["y"], above + gap)
    y_ticks = [(place(0, t)[1], show(t)) for t in _ticks(low, high, log)]
    x_ticks = [(place(t, high)[0], number(t)) for t in _ticks(0, right, False)] if right else []
    return {"height": height, "lines": lines, "x": x_ticks, "y": y_ticks}


def _learning(models) -> dict | None:
    series = []
    for i, m in enumerate(models):
        train = [(r["step"], r["bits_per_byte"]) for r in m.log if "bits_per_byte" in r]
        series.append({"cls": f"m{min(i, 2)} light", "points": train})
    for i, m in enumerate(models):
        valid = [(r["step"], r["valid"]) for r in m.log if "valid" in r]
        series.append({"cls": f"m{min(i, 2)}", "points": valid, "dots": True, "label": m.name})
    return _plot(series, 320, lambda y: f"{y:.2f}".removesuffix("0"), log=True)


def _firing(model, layers) -> dict | None:
    series = []
    for i, name in enumerate(layers):
        points = [(r["step"], r["rates"][i]) for r in model.log if "bits_per_byte" in r and len(r["rates"]) > i]
        series.append({"cls": f"m0 l{min(i, 3)}", "points": points, "label": name})
    return _plot(series, 230, lambda y: f"{100 * y:.0f} %")


def _layers(evaluation, names, events) -> list[dict]:
    """A row a layer of what the test part showed."""
    sizes = [e.n_units for e in events.values()]
    columns = (evaluation.get(k) or [None] * len(names) for k in ("rates", "dead", "saturated"))
    sizes = sizes if len(sizes) == len(names) else [None] * len(names)
    rows = zip(names, sizes, *columns, strict=True)
    return [dict(zip(("name", "units", "rate", "dead", "saturated"), row, strict=True)) for row in rows]


def _raster(name: str, events: Events, text: bytes) -> dict:
    """Stream 0 as one path a shade, units from the most to the least active; the share that fires; the characters."""
    steps, units = min(events.n_steps, RASTER_STEPS), events.n_units
    shown = (events.stream == 0) & (events.step < steps)
    step, unit, size = events.step[shown], events.unit[shown], np.abs(events.value[shown].astype(float))
    shade_TD = np.zeros((steps, units), int)
    shade_TD[step, unit] = np.ceil(size * (SHADES / size.max())).clip(1, SHADES) if size.size else 0
    order = np.argsort(-(shade_TD > 0).sum(0), kind="stable")
    paths = defaultdict(list)
    for row, column in enumerate(shade_TD.T[order].tolist()):
        at = 0
        for shade, run in itertools.groupby(column):
            length = len(list(run))
            if shade:
                paths[shade].append(f"M{at} {row}.5h{length}")
            at += length
    active = (shade_TD > 0).mean(1)
    top = max(float(active.max(initial=0)), 1e-9)
    area = "".join(f"V{100 - 100 * a / top:.1f}H{t + 1}" for t, a in enumerate(active))
    silent = int((shade_TD == 0).all(0).sum())
    return {
        "name": name, "steps": steps, "units": units, "silent": silent, "top": top, "mean": float(active.mean()),
        "height": units * max(1, min(8, 480 // units)) if units <= 640 else 640,
        "graded": bool(size.size and size.min() < size.max()),
        "paths": [(shade / SHADES, "".join(paths[shade])) for shade in sorted(paths)],
        "area": f"M0 100{area}V100Z",
        "characters": [(100 * (t + 0.5) / steps, *_character(b)) for t, b in enumerate(text[:steps])],
    }  # fmt: skip


def _character(byte: int) -> tuple[str, bool]:
    """How a byte is written on an axis, and whether that stands for something else."""
    special = {10: "↵", 32: "␣", 9: "⇥"}
    return (chr(byte), False) if 33 <= byte <= 126 else (special.get(byte, "·"), True)


def _spread(name: str, events: Events) -> dict:
    """How many units of stream 0 fire how often: never, in steps of 5 %, and at more than 99 % of the steps."""
    rates = np.bincount(events.unit[events.stream == 0], minlength=events.n_units) / events.n_steps
    silent, full = rates == 0, rates > SATURATED
    slots = np.where(silent, 0, np.where(full, 21, 1 + np.minimum(rates * 20, 19).astype(int)))
    counts = np.bincount(slots, minlength=22).tolist()
    bars = [(100 * (i + 0.06) / 22, 100 * 0.88 / 22, 100 * c / max(counts), c, i in (0, 21))
            for i, c in enumerate(counts)]  # fmt: skip
    return {
        "name": name, "units": events.n_units, "steps": events.n_steps, "bars": bars, "largest": max(counts),
        "marks": [(100 * (1 + k * 5) / 22, f"{25 * k} %") for k in range(5)],
        "ends": [("Silent", _units(silent)), (f"Above {100 * SATURATED:.0f} %", _units(full))],
        "median": float(np.median(rates)),
    }  # fmt: skip


def _units(mask: np.ndarray) -> tuple[int, str]:
    """How many units, and their numbers with runs drawn together."""
    numbers, runs = np.flatnonzero(mask), []
    for _, group in itertools.groupby(enumerate(numbers[:UNITS_NAMED].tolist()), lambda p: p[1] - p[0]):
        run = [unit for _, unit in group]
        runs.append(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)))
    more = f" and {len(numbers) - UNITS_NAMED:,} more" if len(numbers) > UNITS_NAMED else ""
    return len(numbers), ", ".join(runs) + more


def _operations(models) -> dict:
    """Bars a token: of whole models, the first with its dense twin; and of each operator with products."""

    def bar(label, macs, acs, dense, per, cls):
        return {"label": label, "macs": macs / per, "acs": acs / per, "dense": dense / per, "cls": cls}

    groups, totals = [], []
    for i, m in enumerate(models):
        per, all_, cls = max(m.tally.tokens, 1), m.tally.total, f"m{min(i, 2)}"
        totals.append(bar(m.name, all_.macs, all_.acs, all_.dense_macs, per, cls))
        if i == 0 and all_.macs + all_.acs < all_.dense_macs:
            twin = bar(f"{m.name}, every operand dense", all_.dense_macs, 0, all_.dense_macs, per, "twin")
            totals.append(twin)
        rows = [bar(name, c.macs, c.acs, c.dense_macs, per, cls)
                for name, c in m.tally.operators.items() if c.dense_macs]  # fmt: skip
        groups.append({"name": m.name, "rows": rows, "uncounted": m.tally.uncounted, "tokens": m.tally.tokens})
    every = [row["dense"] for g in groups for row in g["rows"]]
    return {"totals": totals, "most": max((r["dense"] for r in totals), default=0) or 1,
            "groups": groups, "most_each": max(every, default=0) or 1}  # fmt: skip


def _counted(models) -> list[tuple[str, list[float]]]:
    """A row a kind of work, a column a model, a token; kinds that no model has are left out."""
    totals = [(m.tally.total, max(m.tally.tokens, 1)) for m in models]
    kinds = list(dict.fromkeys(k for total, _ in totals for k in total.transcendentals))
    rows = [(title, [getattr(t, term) / per for t, per in totals]) for term, title in TERMS.items()]
    rows += [(kind, [t.transcendentals.get(kind, 0) / per for t, per in totals]) for kind in kinds]
    return [row for row in rows if any(row[1])]


def _energy(bill: Bill, models) -> dict:
    """The lines of a bill a token, and the figures that must stand beside their sum."""
    nano = 1e9 / max(bill.tokens, 1)
    lines = [{"term": TERMS.get(x.term, x.term), "count": x.count / max(bill.tokens, 1), "quantity": x.quantity,
              "nj": None if x.joules is None else x.joules * nano} for x in bill.lines]  # fmt: skip
    unknown = [TERMS.get(t, t) for t in bill.unpriced]
    columns = [models[0].name, f"{models[0].name}, every operand dense"]
    rows = {
        "formula": [bill.formula_joules * nano, bill.dense_joules * nano],
        "priced": [bill.priced_joules * nano, None],
        "traffic": [bill.traffic_bytes / max(bill.tokens, 1), None],
    }
    unpriced = [len(unknown), None]
    for other in models[1:]:
        beside = next((b for b in other.bills if b.target.name == bill.target.name), None)
        if beside:
            per = max(beside.tokens, 1)
            columns.append(other.name)
            rows["formula"].append(beside.formula_joules * 1e9 / per)
            rows["priced"].append(beside.priced_joules * 1e9 / per)
            rows["traffic"].append(beside.traffic_bytes / per)
            unpriced.append(len(beside.unpriced))
    tops = {name: max((x for x in row if x is not None and math.isfinite(x)), default=0) or 1
            for name, row in rows.items()}  # fmt: skip
    return {"bill": bill, "lines": lines, "unknown": unknown, "columns": columns, "rows": rows, "tops": tops,
            "unpriced": unpriced, "priced_nj": bill.priced_joules * nano}  # fmt: skip


def _image(image: ReportImage) -> dict:
    """What the page says of an image: totals, one stacked bar a PE, placement, and the regions' legend."""
    limit, pes, sums = image.partition["pe_bytes"], [], defaultdict(int)
    group_of = {region: group for group, regions in REGIONS.items() for region in regions}
    for entry in image.partition["pes"]:
        sizes = defaultdict(int)
        for region, size in entry["regions"].items():
            sizes[group_of.get(region, "other")] += size
        at, parts = 0.0, []
        for i, group in enumerate((*REGIONS, "other")):
            if sizes[group]:
                parts.append((f"r{i}", 100 * at / limit, 100 * sizes[group] / limit, group, sizes[group]))
                at, sums[group] = at + sizes[group], sums[group] + sizes[group]
        pes.append({**entry, "parts": parts, "free": limit - entry["bytes"]})
    files = {name: f["bytes"] for name, f in image.manifest["files"].items() if name.endswith(".bin")}
    places = defaultdict(list)
    for node, place in image.manifest.get("coverage", {}).items():
        places[place].append(node)
    return {
        "limit": limit, "pes": pes, "bytes": sum(files.values()), "files": files, "places": places,
        "legend": [(f"r{i}", g, sums[g]) for i, g in enumerate((*REGIONS, "other")) if sums[g]],
        "loss": image.integer_bits / image.float_bits - 1 if image.integer_bits and image.float_bits else None,
    }  # fmt: skip
