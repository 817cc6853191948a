"""A sweep as a picture: quality against operations a token, and the rows that no other beats."""

from pathlib import Path
from statistics import mean

from rheobase.sweeping import Row, front, spread

FRONT, OTHER, INK = "#c2410c", "#94a3b8", "#0f172a"
LISTED, LONGEST = 40, 46
"""most rows and letters of the list beside the points"""
AROUND = [(7, 5), (7, -11), (-13, 5), (-13, -11), (0, 11), (0, -17), (16, -3), (-22, -3)]
"""where a point's number may stand, in points of the page, the first that is free"""


def draw(rows: list[Row], measure: str, higher: bool, path: Path) -> None:
    """Write a PNG of ranked rows: each a number at its means, with bars from the least to the most of its seeds.

    higher  whether more of the measure is better; then it is drawn in percent
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    scale, digits = (100, 1) if higher else (1, 3)
    best = front(rows, higher)
    shown = [(i, row) for i, row in enumerate(rows, 1) if row.figures and row.operations]
    listed = [(i, row) for i, row in shown if row in best or i <= LISTED]
    size = (12, max(5.0, 1.6 + 0.21 * len(listed)))
    figure, (axis, beside) = plt.subplots(1, 2, figsize=size, width_ratios=(3, 2.4), layout="constrained")
    spent = [mean(row.operations) for _, row in shown]
    if max(spent) > 5 * min(spent):
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter("")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    xs, ys = [mean(row.operations) for row in best], [scale * mean(row.figures) for row in best]
    axis.step([*xs, max(spent)], [*ys, ys[-1]], where="post", color=FRONT, linewidth=1.2, zorder=1)
    points = []
    for _, row in shown:
        x, y, colour = mean(row.operations), scale * mean(row.figures), FRONT if row in best else OTHER
        axis.hlines(y, min(row.operations), max(row.operations), color=colour, linewidth=1, zorder=2)
        axis.vlines(x, scale * min(row.figures), scale * max(row.figures), color=colour, linewidth=1, zorder=2)
        axis.plot(x, y, "o", color=colour, markersize=5, zorder=3)
        points.append((x, y))
    axis.set_xlabel("accumulations and multiply-accumulates a token, validation part", fontsize=9)
    axis.set_ylabel(f"{measure}, validation part" + (", %" if higher else ""), fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="#e2e8f0", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    _list(beside, listed, best, measure, scale, digits)
    figure.canvas.draw()
    _number(axis, [i for i, _ in shown], points, [row in best for _, row in shown])
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _number(axis, numbers: list[int], points: list[tuple[float, float]], best: list[bool]) -> None:
    """Write each point's number where it covers no point and no other number, those of the front first."""
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in axis.transData.transform(points)]
    dots = axis.figure.dpi / 72
    for k in sorted(range(len(points)), key=lambda k: not best[k]):
        x, y = axis.transData.transform(points[k])
        wide = 6 * len(str(numbers[k])) * dots
        boxes = [(x + a * dots, y + b * dots, x + a * dots + wide, y + (b + 8) * dots) for a, b in AROUND]
        free = (
            n
            for n, (left, low, right, high) in enumerate(boxes)
            if all(left > r or right < le or low > h or high < lo for le, lo, r, h in taken)
        )
        n = next(free, 0)
        taken.append(boxes[n])
        style = {"fontsize": 8, "color": FRONT if best[k] else INK, "weight": "bold" if best[k] else "normal"}
        axis.annotate(str(numbers[k]), points[k], AROUND[n], textcoords="offset points", **style)


def _list(axis, listed: list[tuple[int, Row]], best: list[Row], measure: str, scale: int, digits: int) -> None:
    """The rows by number, with their figures; those of the front in its colour."""
    axis.axis("off")
    axis.set_ylim(len(listed) + 0.5, -0.7)
    axis.set_xlim(0, 1)
    columns = ((0.04, "right"), (0.06, "left"), (0.86, "right"), (1.0, "right"))
    lines = [("", "settings", measure, "operations", INK, "bold")]
    for i, row in listed:
        name = row.label if len(row.label) <= LONGEST else row.label[: LONGEST - 1] + "…"
        style = (FRONT, "bold") if row in best else (INK, "normal")
        quality = spread([scale * v for v in row.figures], digits)
        lines.append((str(i), name, quality, f"{mean(row.operations):,.0f}", *style))
    for y, (*cells, colour, weight) in enumerate(lines):
        for (x, side), cell in zip(columns, cells, strict=True):
            axis.text(x, y, cell, ha=side, va="center", fontsize=7.5, color=colour, weight=weight)
