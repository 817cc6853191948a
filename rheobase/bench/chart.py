"""A picture of a benchmark: bars of every case, and a token's time against activity."""

from pathlib import Path


def draw(record: dict, path: Path) -> None:
    """Write the picture of a record of `bench` as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = [case for case in record["cases"] if "active" not in case]
    decode = sorted((case for case in record["cases"] if "active" in case), key=lambda case: case["active"])
    n = len(bars) + bool(decode)
    heights = [1 + 0.32 * len(case["rows"]) for case in bars] + [4.2] * bool(decode)
    figure, axes = plt.subplots(
        n, 1, figsize=(8, sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis, case in zip(axes[:, 0], bars, strict=False):
        _bars(axis, case)
    if decode:
        _activity(axes[-1, 0], decode)
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
        f"{row['ms']:.3g} ms" + (f"  x {row['ratio']:.1f}" if i else "") for i, row in enumerate(case["rows"].values())
    ]
    axis.bar_label(bars, labels, padding=4, fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    least = min([*times, case.get("limit_ms", times[0])])
    axis.set_xlim(least / 2, 6 * max(times))
    if "limit_ms" in case:
        axis.axvline(case["limit_ms"], color="#0f172a", linestyle="--", linewidth=1, label="limit of memory")
        axis.legend(fontsize=8, loc="lower right", frameon=False)
    axis.set_title(f"{case['case']}  ({case['size']})", fontsize=10, loc="left")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _activity(axis, cases: list[dict]) -> None:
    """Milliseconds a token against the share of units that fire."""
    active = [100 * case["active"] for case in cases]
    tokens_ms = [{name: 1e3 / row["tokens_per_s"] for name, row in case["rows"].items()} for case in cases]
    for name in tokens_ms[0]:
        style = "-o" if name.startswith("events") else "--"
        axis.plot(active, [ms[name] for ms in tokens_ms], style, label=name, markersize=4)
    axis.set(xlabel="units that fire at a token, %", ylabel="ms a token", yscale="log")
    axis.set_xlim(0, 1.05 * max(active))
    axis.set_title(f"decode  ({cases[0]['size']})", fontsize=10, loc="left")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
