"""One self-contained HTML page about a trained model: what it learnt, did and costs, and where it runs.

The charts are inline SVG in percentages, so that text keeps its size on a phone; the page loads nothing and
runs nothing. T steps, D units.
"""

import itertools
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from rheobase.backends.artifact import Report
from rheobase.backends.counting.bill import Bill, counted, price
from rheobase.backends.counting.table import BYTES, WORK
from rheobase.backends.counting.target import TERMS, Interval, Target
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.events import Events
from rheobase.spiking.files import write_atomic
from rheobase.spiking.tally import Counts, Tally

TEMPLATE = "report.html.j2"
RASTER_STEPS = 96
SATURATED = 0.99
SHADES = 4
LABEL_PX = 17
LOG_TICKS = (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8, 10)
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
ROWS_UNFOLDED = 16
RASTERS_UNFOLDED = 3
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
LAYER = re.compile(r".*?\.\d+(?=\.|$)|.*")
"""The path of a layer within an operator's: up to its first number, or all of it."""


@dataclass(frozen=True, kw_only=True)
class ReportModel:
    """One trained model; the first of a report is the one it is about, the others stand beside it.

    name        what to call it, such as "EGRU"
    parameters  how many it has
    log         records of training: {"step", the report's measure, "rates", ...} and {"step", "valid", ...}
    evaluation  on the test part: the measure, perplexity, tokens; and, a layer, rates, dead, saturated
    layers      names of the layers whose rates `evaluation` holds
    tally       what some tokens of the test part took
    bills       that tally on each target; those of `ReportData.billed` are shown line by line, all of them in sum
    """

    name: str
    parameters: int
    log: Sequence[Mapping]
    evaluation: Mapping
    layers: Sequence[str]
    tally: Tally
    bills: tuple[Bill, ...]


@dataclass(frozen=True, kw_only=True)
class ReportImage:
    """An exported SpiNNaker 2 image of the first model.

    manifest        of the artefact
    partition       its partition.json
    verified        what `verify` found, or None if it was not asked
    float_bits      bits a token of the model in floating point, over `integer_tokens` tokens
    integer_bits    bits a token of the image over the same
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
    text     that stretch, a string a token; the raster shows the first character of each
    sample   what the model wrote after `prompt`
    unit     what a token is called
    billed   names of the targets to show line by line
    measure  the field of logs and evaluations that holds bits a `unit`
    """

    title: str
    command: str
    machine: str
    date: str
    models: tuple[ReportModel, ...]
    events: Mapping[str, Events]
    text: Sequence[str]
    image: ReportImage | None
    sample: str
    prompt: str
    unit: str
    measure: str
    billed: Sequence[str]


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
    environment.filters |= {"n": number, "pct": percent, "plain": plain, "span": span}
    first = data.models[0]
    stretches = [(name.rpartition(".")[0] or name, e) for name, e in data.events.items() if e.n_steps]
    layers = _layers(first, stretches)
    rates = [layer["rate"] for layer in layers]
    return environment.get_template(TEMPLATE).render(
        data=data,
        first=first,
        rate=sum(rates) / len(rates) if rates else None,
        layers=layers,
        learning=_learning(data.models, data.measure),
        firing=_firing(first, layers, data.measure),
        rasters=[_raster(name, events, data.text) for name, events in stretches],
        spreads=[_spread(name, events) for name, events in stretches],
        unfolded=RASTERS_UNFOLDED,
        stacks=[_stack(data.models, *kinds) for kinds in (("Operations", WORK), ("Bytes", BYTES))],
        counted=_counted(data.models),
        ranges=_ranges(first.bills),
        energy=[
            (bill, _beside(bill, data.models), _layer_bills(bill.target, data.models))
            for bill in first.bills
            if bill.target.name in data.billed
        ],
        terms=TERMS,
        image=_image(data.image) if data.image else None,
        version=_version(),
    )


def number(x: float | None) -> str:
    """A count or a measure: with thousands separators or three significant digits, or "unknown"."""
    if x is None or not math.isfinite(x):
        return "unknown"
    if x == int(x) or abs(x) >= 100:
        return f"{x:,.0f}"
    mantissa, exponent = f"{x:.2e}".split("e")
    if int(exponent) < -3:
        return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"
    return f"{float(mantissa + 'e' + exponent):.{2 - int(exponent)}f}"


def span(x: Interval) -> str:
    """From low to high, or that the sources give one figure."""
    return f"{number(x.low)} to {number(x.high)}" if x.low < x.high else "one figure"


def percent(x: float) -> str:
    """A share, in per cent."""
    return f"{100 * x:.1f}\u00a0%"


def plain(text: str) -> str:
    """Text with every control character but tab and newline replaced, so that any bytes can be shown."""
    shown = (c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") for c in text)
    return "".join(c if ok else "\ufffd" for c, ok in zip(text, shown, strict=True))


def _version() -> str | None:
    try:
        return metadata.version("rheobase")
    except metadata.PackageNotFoundError:
        return None


def _ticks(low: float, high: float) -> list[float]:
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(s * size for s in (1, 2, 2.5, 5, 10) if (high - low) / (s * size) <= 5)
    return [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]


def _plot(series: list[dict], height: int, show, end, log: bool = False) -> dict | None:
    """Geometry of a line chart, None without a point; `show` writes a tick, `end` the last value of a line.

    What is not finite is left out, and on a logarithmic scale what is not above 0.

    series  dicts of cls, points [(x, y)], dots (bool), label (None: nothing at the line's end)
    """
    series = [s | {"points": [p for p in s["points"] if math.isfinite(p[1]) and (p[1] > 0 or not log)]} for s in series]
    series = [s for s in series if s["points"]]
    if not series:
        return None
    points = [p for s in series for p in s["points"]]
    right, high = max(max(x for x, _ in points), 1), max(y for _, y in points) * 1.02 or 1.0
    low, scale = (min(y for _, y in points) * 0.95, math.log) if log else (0.0, float)

    def down(y):
        return 100 * (scale(high) - scale(y)) / (scale(high) - scale(low))

    lines = []
    for s in series:
        placed = [(100 * x / right, down(y)) for x, y in s["points"]]
        line = " ".join(f"{10 * x:.1f},{10 * y:.1f}" for x, y in placed)
        label = s["label"] and f"{s['label']} {end(s['points'][-1][1])}"
        dots = placed if s["dots"] or len(placed) == 1 else []
        lines.append({"cls": s["cls"], "line": line, "dots": dots, "label": label, "y": placed[-1][1]})
    above = -math.inf
    for line in sorted((line for line in lines if line["label"]), key=lambda line: line["y"]):
        line["y"] = above = max(line["y"], above + 100 * LABEL_PX / height)
    y_ticks = [t for t in LOG_TICKS if low <= t <= high] if log else _ticks(low, high)
    return {
        "height": height,
        "margin": 14 + 8 * max((len(line["label"]) for line in lines if line["label"]), default=0),
        "lines": lines,
        "x": [(100 * t / right, number(t)) for t in _ticks(0, right)],
        "y": [(down(t), show(t)) for t in y_ticks],
    }


def _learning(models, measure) -> dict | None:
    light, strong = [], []
    for i, m in enumerate(models):
        train = [(r["step"], r[measure]) for r in m.log if measure in r]
        valid = [(r["step"], r["valid"]) for r in m.log if "valid" in r]
        light.append({"cls": f"m{min(i, 2)} light", "points": train, "dots": False, "label": None})
        strong.append({"cls": f"m{min(i, 2)}", "points": valid, "dots": True, "label": m.name})
    return _plot(light + strong, 320, lambda y: f"{y:g}", lambda y: f"{y:.2f}", log=True)


def _firing(model, layers, measure) -> dict | None:
    series = []
    for i, layer in enumerate(layers):
        train = [r for r in model.log if measure in r and len(r.get("rates", ())) > i]
        points = [(r["step"], r["rates"][i]) for r in train]
        series.append({"cls": f"m0 l{min(i, 3)}", "points": points, "dots": False, "label": layer["name"]})
    return _plot(series, 230, lambda y: f"{100 * y:.3g} %", percent)


def _layers(model: ReportModel, stretches) -> list[dict]:
    """A row a layer of what the test part showed; sizes are those of the events of that name."""
    units = {name: events.n_units for name, events in stretches}
    rows = []
    for i, rate in enumerate(model.evaluation.get("rates") or ()):
        ends = {key: model.evaluation[key][i] if model.evaluation.get(key) else None for key in ("dead", "saturated")}
        rows.append({"name": model.layers[i], "units": units.get(model.layers[i]), "rate": rate, **ends})
    return rows


def _raster(name: str, events: Events, text: Sequence[str]) -> dict:
    """Stream 0: one path a shade, units from most to least active; the share active; the characters."""
    steps, units = min(events.n_steps, RASTER_STEPS), events.n_units
    shown = (events.stream == 0) & (events.step < steps)
    size = np.abs(events.value[shown].astype(float))
    shade_TD = np.zeros((steps, units), int)
    if size.size:
        shades = np.ceil(size * (SHADES / size.max())).clip(1, SHADES)
        shade_TD[events.step[shown], events.unit[shown]] = shades if size.min() < size.max() else SHADES
    fired_TD = shade_TD > 0
    paths = defaultdict(list)
    for row, unit in enumerate(np.argsort(-fired_TD.sum(0), kind="stable")):
        at = 0
        for shade, run in itertools.groupby(shade_TD[:, unit].tolist()):
            length = len(list(run))
            if shade:
                paths[shade].append(f"M{at} {row}.5h{length}")
            at += length
    active = fired_TD.mean(1)
    top = max(float(active.max()), 1e-9)
    return {
        "name": name,
        "steps": steps,
        "units": units,
        "silent": int((~fired_TD.any(0)).sum()),
        "mean": float(active.mean()),
        "top": top,
        "height": min(units * max(1, min(8, 480 // units)), 640) if size.size else 48,
        "paths": [(shade / SHADES, "".join(paths[shade])) for shade in sorted(paths)],
        "area": "".join(f"V{100 - 100 * a / top:.1f}H{t + 1}" for t, a in enumerate(active)),
        "characters": [(100 * (t + 0.5) / steps, *_character(c)) for t, c in enumerate(text[:steps])],
    }


def _character(token: str) -> tuple[str, bool]:
    """How a token's first character is written on an axis, and whether that only stands for it."""
    first = (token.strip(" ") or token)[:1]
    if first.isprintable() and first not in ("", " ", "\ufffd"):
        return first, False
    return {"\n": "↵", " ": "·", "\t": "⇥"}.get(first, "▫"), True


def _spread(name: str, events: Events) -> dict:
    """How many units of stream 0 never fire, fire in steps of 5 %, fire at more than 99 % of the steps."""
    rates = np.bincount(events.unit[events.stream == 0], minlength=events.n_units) / events.n_steps
    silent, full = rates == 0, rates > SATURATED
    inner = 1 + np.minimum(rates * 20, 19).astype(int)
    counts = np.bincount(np.where(silent, 0, np.where(full, 21, inner)), minlength=22).tolist()
    return {
        "name": name,
        "units": events.n_units,
        "steps": events.n_steps,
        "counts": counts,
        "median": float(np.median(rates)),
        "ends": [("Silent", *_units(silent)), ("Above 99 %", *_units(full))],
    }


def _units(mask: np.ndarray) -> tuple[int, str]:
    """How many units, and their numbers with runs drawn together."""
    numbers, runs = np.flatnonzero(mask).tolist(), []
    for _, group in itertools.groupby(enumerate(numbers[:UNITS_NAMED]), lambda pair: pair[1] - pair[0]):
        run = [unit for _, unit in group]
        runs.append(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)))
    more = f" and {len(numbers) - UNITS_NAMED:,} more" if len(numbers) > UNITS_NAMED else ""
    return len(numbers), ", ".join(runs) + more


def _counted(models) -> list[tuple[str, list[float]]]:
    """A row a kind of work, a column a model, a token; kinds that no model has are left out."""
    totals = [(counted(m.tally.total), max(m.tally.tokens, 1)) for m in models]
    kinds = dict.fromkeys(kind for total, _ in totals for kind in total)
    rows = [(TERMS.get(kind, kind), [total.get(kind, 0) / per for total, per in totals]) for kind in kinds]
    return [row for row in rows if any(row[1])]


def _in_layers(model: ReportModel) -> list[tuple[str, Counts]]:
    """What each layer took."""
    layers: dict[str, Counts] = {}
    for name, counts in model.tally.operators.items():
        layer = LAYER.match(name)[0]
        layers[layer] = layers.get(layer, Counts()) + counts
    return list(layers.items())


def _layer_bills(target: Target, models) -> list[tuple[str, list[tuple[str, Bill]]]]:
    """The bill of each layer of each model; layers that did nothing are left out."""
    found = []
    for m in models:
        uncounted = () if m.tally.dense_macs else m.tally.uncounted  # where no product is counted, none is known
        bills = [(layer, price(Tally(m.tally.tokens, {layer: c}, uncounted), target)) for layer, c in _in_layers(m)]
        found.append((m.name, [(layer, bill) for layer, bill in bills if bill.lines]))
    return found


def _stack(models, title: str, kinds: Mapping[str, Callable[[Counts], int]]) -> dict:
    """A stacked bar a layer and model, in per cent of the largest: how many of each kind, a token."""
    bars, used = [], set()
    for model in models:
        per = max(model.tally.tokens, 1)
        bars.append([(layer, [read(c) / per for read in kinds.values()]) for layer, c in _in_layers(model)])
    most = max((sum(sizes) for rows in bars for _, sizes in rows), default=0) or 1
    groups = []
    for model, rows in zip(models, bars, strict=True):
        shown = []
        for layer, sizes in rows:
            starts = itertools.accumulate(sizes, initial=0)
            parts = [
                (f"r{i}", 100 * at / most, 100 * size / most, kind, size)
                for i, (kind, at, size) in enumerate(zip(kinds, starts, sizes, strict=False))
                if size
            ]
            used |= {kind for _, _, _, kind, _ in parts}
            if parts:
                shown.append({"layer": layer, "parts": parts, "total": sum(sizes)})
        groups.append((model.name, shown))
    legend = [(f"r{i}", kind) for i, kind in enumerate(kinds) if kind in used]
    return {"title": title, "groups": groups, "legend": legend}


def _ranges(bills: Sequence[Bill]) -> dict | None:
    """Intervals in nJ a token on a logarithmic axis, a row a target with a price for its products."""
    rows = []
    for bill in bills:
        if bill.formula_joules is not None and bill.formula_joules.low > 0:
            sums = (("all", bill.priced_joules), ("products", bill.formula_joules))
            rows.append((bill.target.title, [(cls, x * (1e9 / max(bill.tokens, 1))) for cls, x in sums]))
    if not rows:
        return None
    ends = [math.log10(end) for _, marks in rows for _, x in marks for end in (x.low, x.high)]
    first, last = math.floor(min(ends)), max(math.ceil(max(ends)), math.floor(min(ends)) + 1)

    def across(joules: float) -> float:
        return 100 * (math.log10(joules) - first) / (last - first)

    return {
        "rows": [
            (title, [(cls, across(x.low), across(x.central), across(x.high), x) for cls, x in marks])
            for title, marks in rows
        ],
        "ticks": [(across(10.0**e), number(10.0**e)) for e in range(first, last + 1)],
    }


def _beside(bill: Bill, models) -> dict:
    """What must stand beside a bill: columns of models, rows of (Interval a token or None, terms unknown)."""
    others = [(m.name, b) for m in models[1:] for b in m.bills if b.target.name == bill.target.name]
    bills = [bill, *(b for _, b in others)]

    def each(joules: Interval | None, b: Bill):
        return joules and joules * (1e9 / max(b.tokens, 1))

    formula = [(each(b.formula_joules, b), 0) for b in bills]
    priced = [(each(b.priced_joules, b), len(b.unpriced)) for b in bills]
    traffic = [(Interval(x, x, x), 0) for x in (b.traffic_bytes / max(b.tokens, 1) for b in bills)]
    rows = {"formula": formula, "priced": priced, "traffic": traffic}
    names = [models[0].name, *(name for name, _ in others)]
    if bill.dense_joules is not None and bill.dense_joules != bill.formula_joules:
        names.insert(1, f"{models[0].name}, all dense")
        formula.insert(1, (each(bill.dense_joules, bill), 0))
        priced.insert(1, (None, 0))
        traffic.insert(1, (None, 0))
    tops = {key: max((x.high for x, _ in row if x), default=0) for key, row in rows.items()}
    return {"names": names, "rows": rows, "tops": tops}


def _image(image: ReportImage) -> dict:
    """Totals, one stacked bar a PE in per cent of its limit, what lies elsewhere, and the regions' sums."""
    limit, groups = image.partition["pe_bytes"], [*REGIONS, "other"]
    group_of = {region: group for group, regions in REGIONS.items() for region in regions}
    pes, sums = [], defaultdict(int)
    for entry in image.partition["pes"]:
        sizes, at, parts = defaultdict(int), 0, []
        for region, size in entry["regions"].items():
            sizes[group_of.get(region, "other")] += size
        for i, group in enumerate(groups):
            if sizes[group]:
                parts.append((f"r{i}", 100 * at / limit, 100 * sizes[group] / limit, group, sizes[group]))
                at += sizes[group]
                sums[group] += sizes[group]
        pes.append({**entry, "parts": parts, "free": limit - entry["bytes"]})
    files = {name: f["bytes"] for name, f in image.manifest["files"].items() if name.endswith(".bin")}
    places = defaultdict(list)
    for node, place in image.manifest["coverage"].items():
        places[place].append(node)
    measured = image.integer_bits is not None and image.float_bits and image.integer_tokens
    return {
        "limit": limit,
        "pes": pes,
        "many": len(pes) > ROWS_UNFOLDED,
        "bytes": sum(files.values()),
        "elsewhere": [(p, places[p], files.get(f"{p}.bin")) for p in ("host", "dram") if p in places],
        "legend": [(f"r{i}", group, sums[group]) for i, group in enumerate(groups) if sums[group]],
        "loss": image.integer_bits / image.float_bits - 1 if measured else None,
    }
