"""A picture of an image: its elements on the chips, filled by what they hold, and energy a token against activity."""

from pathlib import Path

from rheobase.backends.exporters.spinnaker2.chip import IN_QUAD, QUADS, USABLE
from rheobase.backends.exporters.spinnaker2.overview import ACTIVITIES, Overview, bytes_of, what_ifs
from rheobase.backends.exporters.spinnaker2.partition import PE_BYTES
from rheobase.backends.exporters.spinnaker2.plan import stage_of
from rheobase.spiking.errors import ConfigError
from rheobase.spiking.files import open_atomic

COLOURS = ("#0f766e", "#c2410c", "#1d4ed8", "#a16207", "#7e22ce", "#be123c", "#4d7c0f", "#0369a1")
SIDE, GAP = 0.42, 0.46


def draw(view: Overview, path: str | Path) -> None:
    """Write the picture as a PNG; raises ConfigError where the path is named as something else."""
    from matplotlib.figure import Figure

    if Path(path).suffix.lower() != ".png":
        raise ConfigError("picture of an image", "a name that ends in .png", str(path), "give such an --out")
    chips = view.chips
    planned = "clocks" in view.plan
    figure = Figure(figsize=(6.4 * len(chips) + 6.2 * planned, 6.2), layout="constrained")
    axes = figure.subplots(1, len(chips) + planned, squeeze=False)[0]
    for axis, chip in zip(axes, chips, strict=False):
        _chip(axis, view, chip)
    if planned:
        _energy(axes[-1], view)
    with open_atomic(path) as file:
        figure.savefig(file, dpi=130, format="png")


def _chip(axis, view: Overview, chip: tuple[int, int]) -> None:
    """Quads at their places, each of four elements, two by two; the fill of one is the share of its memory in use."""
    from matplotlib.patches import Patch, Rectangle

    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(view.stages)}
    images = {where: image for where, image in view.pes if view.at[where].chip == chip}
    held = {(view.at[where].quad, view.at[where].in_quad): image for where, image in images.items()}
    for x, y in QUADS:
        for i in range(IN_QUAD):
            corner = (x + GAP * (i % 2), y + GAP * (i // 2))
            image = held.get(((x, y), i))
            colour = colours[stage_of(image)] if image else "#cbd5e1"
            if image:
                axis.add_patch(Rectangle(corner, SIDE, SIDE, color=colour, alpha=0.18, linewidth=0))
                full = SIDE * bytes_of(image) / PE_BYTES
                axis.add_patch(Rectangle(corner, SIDE, full, color=colour, linewidth=0))
            axis.add_patch(Rectangle(corner, SIDE, SIDE, fill=False, edgecolor=colour, linewidth=0.8))
    xs, ys = sorted({x for x, _ in QUADS}), sorted({y for _, y in QUADS})
    axis.set_xlim(xs[0] - 0.15, xs[-1] + 1.05)
    axis.set_ylim(ys[0] - 0.15, ys[-1] + 1.05)
    axis.set_xticks([x + 0.44 for x in xs], [str(x) for x in xs])
    axis.set_yticks([y + 0.44 for y in ys], [str(y) for y in ys])
    axis.set_aspect("equal")
    axis.tick_params(length=0, labelsize=8)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("quad, x", fontsize=8)
    axis.set_ylabel("quad, y", fontsize=8)
    full = max(map(bytes_of, images.values()), default=0) / PE_BYTES
    axis.set_title(
        f"chip {chip[0]}, {chip[1]}: {len(images)} of {USABLE} elements, the fullest {100 * full:.0f} % of its memory",
        fontsize=10,
        loc="left",
        pad=14,
    )
    here = {name: sum(where in images for where, _ in own) for name, own in view.stages.items()}
    legend = [Patch(color=colours[name], label=f"{name}: {count}") for name, count in here.items() if count]
    axis.legend(handles=legend, fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=5)


def _energy(axis, view: Overview) -> None:
    """Millijoules of a generated token against the share of units that send."""
    colours = dict(zip((level.name for level in view.levels), ("#1d4ed8", "#c2410c"), strict=True))
    percent = [100 * activity for activity in ACTIVITIES]
    for name, found in what_ifs(view).items():
        colour, line = colours[found[0].level.name], "--" if name.endswith("shortest tick") else "-"
        axis.plot(percent, [1e3 * e.joules for e in found], line, color=colour, marker="o", markersize=3, label=name)
    units = [row for stream, row in view.fired.items() if stream and row.ndim == 2]
    recorded = 100 * sum(row.sum() for row in units) / sum(row.size for row in units)
    axis.axvline(recorded, color="#0f172a", linestyle=":", linewidth=1)
    axis.annotate("recorded", (recorded, 1), xycoords=axis.get_xaxis_transform(), fontsize=7, ha="center", va="bottom")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_xlabel("units that send at a token, %", fontsize=8)
    axis.set_ylabel("mJ a token generated; network on chip and DRAM unknown, not in it", fontsize=8)
    axis.set_title("estimate, from emulated instructions: a lower bound", fontsize=10, loc="left", pad=14)
    axis.tick_params(labelsize=8, which="both")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
