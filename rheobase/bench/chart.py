"""A picture of a benchmark: bars of every case, and a token's time against activity."""

from pathlib import Path


def draw(record: dict, path: Path) -> None:
    """Write the picture of a record of `bench` as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = [case for case in record["cases"] if "active" not in case]
    decode = sorted((case for case in record["cases"] if "active" in case), key=lambda case: case["active"])
    heights = [1 + 0.32 * len(case["rows"]) for case in bars] + [4.2] * bool(decode)
    figure = plt.figure(figsize=(9, max(1, sum(heights))), layout="constrained")
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0] if heights else []
    for row, case in zip(rows, bars, strict=False):
        _bars(row.subplots(), case)
    if decode:
        _activity(rows[-1], decode)
    figure.suptitle(f"{record['machine']}, {record['threads']} thread(s)", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _bars(axis, case: dict) -> None:
    """Milliseconds of each way on a logarithmic axis, ours on top, and the limit as a line."""
    names = list(case["rows"])
    times = [row["ms"] for row in case["rows"].values()]
    colours = ["#c2410c"] + ["#94a3b8"] * (len(names) - 1)
    bars = axis.barh(names, times, color=colours, height=0.7)
    labels = [
        f"{_short(row['ms'])} ms" + (f"  x {_short(row['ratio'])}" if i else "")
        for i, row in enumerate(case["rows"].values())
    ]
    axis.bar_label(bars, labels, padding=4, fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    least = min([*times, case.get("limit_ms", times[0])])
    axis.set_xlim(least / 2, 6 * max(times))
    axis.xaxis.set_minor_formatter("")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("ms", fontsize=8)
    if "limit_ms" in case:
        axis.axvline(case["limit_ms"], color="#0f172a", linestyle="--", linewidth=1)
        axis.annotate(
            "memory's limit",
            (case["limit_ms"], 1),
            xycoords=axis.get_xaxis_transform(),
            fontsize=7,
            ha="center",
            va="bottom",
        )
    axis.set_title(f"{case['case']}  ({case['size']})", fontsize=10, loc="left", pad=14)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _activity(figure, cases: list[dict]) -> None:
    """Milliseconds a token against the share of units that fire: all ways, and those by events from 0 on."""
    active = [100 * case["active"] for case in cases]
    names = [name for name in cases[0]["rows"] if all(name in case["rows"] for case in cases)]
    colours = dict(zip(names, ["#c2410c", "#1d4ed8", "#fdba74", "#93c5fd", "#475569"], strict=False))
    left, right = figure.subplots(1, 2)
    for axis, shown in ((left, names), (right, [name for name in names if name.startswith("events")])):
        for name in shown:
            ms = [1e3 / case["rows"][name]["tokens_per_s"] for case in cases]
            style = "-o" if name.startswith("events") else "--"
            axis.plot(active, ms, style, label=name, color=colours[name], markersize=4)
        axis.set_xlabel("units that fire at a token, %", fontsize=8)
        axis.set_ylabel("ms a token", fontsize=8)
        axis.set_xlim(0, 1.05 * max(active))
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    left.set_yscale("log")
    right.set_ylim(0)
    figure.suptitle(f"decode  ({cases[0]['size']})", fontsize=10, x=0.01, ha="left")
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3, frameon=False)


def _short(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"
