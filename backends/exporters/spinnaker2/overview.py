"""What an image is, for a person and a program: its map, memory, keys, traffic, tick plan and estimate."""

from dataclasses import asdict, dataclass, replace

import numpy as np

from rheobase.backends.artifact import Artifact
from rheobase.backends.exporters.spinnaker2 import routing, work
from rheobase.backends.exporters.spinnaker2.chip import QUADS, USABLE, Place
from rheobase.backends.exporters.spinnaker2.estimate import LEVELS, UNKNOWN, Estimate, Level, estimate, show
from rheobase.backends.exporters.spinnaker2.image import Image
from rheobase.backends.exporters.spinnaker2.partition import PE_BYTES
from rheobase.backends.exporters.spinnaker2.plan import TICK_MS, fired_of, stage_of
from rheobase.backends.trace import artifact_trace

ACTIVITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
Pes = list[tuple[str, Image]]


@dataclass(frozen=True)
class Overview:
    """An opened image: its elements, where they lie, which units sent at the recorded tokens, the tick plan, and the
    levels of the chip, published or measured."""

    dram: Image | None
    pes: Pes
    at: dict[str, Place]
    fired: work.Fired
    plan: dict
    levels: tuple[Level, ...] = LEVELS

    @property
    def stages(self) -> dict[str, Pes]:
        """The elements of each stage, by its name."""
        found: dict[str, Pes] = {}
        for where, image in self.pes:
            found.setdefault(stage_of(image), []).append((where, image))
        return found

    @property
    def chips(self) -> list[tuple[int, int]]:
        """The chips in use."""
        return sorted({place.chip for place in self.at.values()})


def open_overview(artifact: Artifact, dram: Image | None, pes: Pes, levels: tuple[Level, ...]) -> Overview:
    """Gather it from an artefact and its images; raises FormatError, or KeyError of a manifest that lacks something."""
    manifest, trace = artifact.manifest, artifact_trace(artifact)
    fired = fired_of(pes, trace.signals, manifest["probes"], trace.tokens)
    at = routing.read_places(artifact.read(routing.PLACEMENTS), pes)
    return Overview(dram, pes, at, fired, {**manifest["tick_plan"]}, levels)


def bytes_of(image: Image) -> int:
    """All of an element's image."""
    return sum(image.sizes().values())


def traffic(view: Overview) -> dict[str, float]:
    """Events a token, by stream, and the links between quads that they cross."""
    sent = {f"stream {stream}": float(row.sum(1).mean()) for stream, row in view.fired.items() if row.ndim == 2}
    spread = []
    for stream in routing.streams(view.dram, view.pes):
        row = view.fired.get(stream.key >> 24)
        share = 1.0 if row is None or row.ndim == 1 else float(row.mean())
        spread.append(replace(stream, packets=stream.packets * share))
    return sent | {"links": routing.links_crossed(spread, view.at)}


def estimates(view: Overview) -> list[Estimate]:
    """A token generated and one prefilled, at each level, at the system tick or what the busiest recorded one needs."""
    cycles = sum(pe["mean"] for pe in view.plan["pes"].values())
    found = []
    for level, clock in zip(view.levels, view.plan["clocks"], strict=True):
        tick = max(1e3 * TICK_MS, clock["tick_us"]["busiest"])
        for ticks in (view.plan["ticks_a_token"], view.plan["ticks_prefilled"]):
            given = {"elements": len(view.pes), "chips": len(view.chips)}
            found.append(estimate(level, **given, cycles=cycles, tick_us=tick, ticks=ticks))
    return found


def what_ifs(view: Overview) -> dict[str, list[Estimate]]:
    """A generated token at each of ACTIVITIES: at each level, at the system tick where it is enough, and at the
    shortest tick that the mean load of the fullest element allows."""
    found: dict[str, list[Estimate]] = {}
    for activity in ACTIVITIES:
        fired = {s: row.mean(0, keepdims=True) if s == 0 else row for s, row in view.fired.items()}
        fired |= {s: np.full((1, row.shape[1]), activity) for s, row in fired.items() if s and row.ndim == 2}
        cycles = [float(work.instructions(i, work.recorded(i, fired)).mean()) for _, i in view.pes]
        for level in view.levels:
            need = max(cycles) / level.mhz
            for name, tick in (("tick of 1 ms, or longer", max(1e3 * TICK_MS, need)), ("shortest tick", need)):
                made = estimate(
                    level,
                    elements=len(view.pes),
                    chips=len(view.chips),
                    cycles=sum(cycles),
                    tick_us=tick,
                    ticks=view.plan["ticks_a_token"],
                )
                found.setdefault(f"{level.name}, {name}", []).append(made)
    return found


def grid(view: Overview, chip: tuple[int, int]) -> list[str]:
    """A chip as text: a letter an element, its stage's; a dot where none is used; quads of four."""
    letters = {where: chr(ord("a") + i % 26) for i, own in enumerate(view.stages.values()) for where, _ in own}
    used = {(p.quad, p.in_quad): letters[where] for where, p in view.at.items() if where in letters and p.chip == chip}
    xs, ys = sorted({x for x, _ in QUADS}), sorted({y for _, y in QUADS}, reverse=True)
    return [
        " ".join("".join(used.get(((x, y), i), ".") for i in range(4)) if (x, y) in QUADS else "    " for x in xs)
        for y in ys
    ]


def text(view: Overview) -> str:
    """The overview as lines."""
    fullest = max(view.pes, key=lambda pe: bytes_of(pe[1]))
    lines = [
        f"{len(view.pes)} elements on {len(view.chips)} chip(s) of {USABLE}; the fullest, {fullest[0]}, holds "
        f"{bytes_of(fullest[1]):,} of {PE_BYTES:,} bytes:",
        "  " + ", ".join(f"{name} {size:,}" for name, size in sorted(fullest[1].sizes().items(), key=lambda s: -s[1])),
        f"\n  {'stage':<14}{'elements':>9}{'units':>8}{'fullest':>9}  {'first key':<12}{'worst':>11}{'busiest':>10}"
        f"{'typical':>10}  cycles a tick",
    ]
    rows = {row["stage"]: row for row in view.plan.get("stages", ())}
    keys = {stream.source: stream.key for stream in reversed(routing.streams(view.dram, view.pes))}
    for i, (name, own) in enumerate(view.stages.items()):
        units, full = sum(image.fields["units"] for _, image in own), max(bytes_of(image) for _, image in own)
        cycles = "".join(f"{rows[name][c]:>{w},}" for c, w in (("worst", 11), ("busiest", 10), ("typical", 10)) if rows)
        lines.append(
            f"{chr(ord('a') + i % 26)} {name:<14}{len(own):>9}{units:>8,}{100 * full / PE_BYTES:>7.0f} %  "
            f"{keys[own[0][0]]:#010x}  {cycles}"
        )
    for chip in view.chips:
        lines += [f"\n  chip {chip[0]}, {chip[1]}", *(f"  {row}" for row in grid(view, chip))]
    moved = traffic(view)
    lines.append("\nevents a token: " + ", ".join(f"{name} {n:,.1f}" for name, n in moved.items()))
    return "\n".join([*lines, *_plan_lines(view)])


def _plan_lines(view: Overview) -> list[str]:
    plan = view.plan
    if "clocks" not in plan:
        return [f"tick plan: unknown: {plan['unknown']}"]
    lines = [
        f"tick plan ({plan['confidence']}): {plan['ticks_a_token']} ticks a token generated, "
        f"{plan['ticks_prefilled']} prefilled",
        f"  {'':<10}{'typical':>11}{'busiest':>11}{'worst':>11}   slack at 1 ms, busiest and worst; generated a second",
    ]
    for clock in plan["clocks"]:
        us, slack, rate = (clock[name] for name in ("tick_us", "slack_at_tick", "generated_per_s"))
        times = "".join(f"{us[name]:>8,.0f} us" for name in ("typical", "busiest", "worst"))
        tick_ms = max(TICK_MS, us["busiest"] / 1e3)
        lines.append(
            f"  {clock['mhz']} MHz   {times}   {100 * slack['busiest']:.0f} %, {100 * slack['worst']:.0f} %; "
            f"{rate['at_tick']:,.0f} at {tick_ms:.3g} ms, {rate['at_worst']:,.0f} at the worst tick"
        )
    lines += ["estimate: a token generated and one prefilled", show(estimates(view))]
    lines += [f"  unknown, and in no figure: {line}" for line in UNKNOWN]
    measured = [level.name for level in view.levels if level.measured]
    return lines + [f"  but those at {name} have as much of them as the meter covered" for name in measured]


def table(view: Overview) -> dict:
    """The overview as a table."""
    elements = [
        {"file": where, "stage": stage_of(image), **asdict(view.at[where]), "bytes": bytes_of(image)}
        for where, image in view.pes
    ]
    numbers = (
        []
        if "clocks" not in view.plan
        else [
            {"level": e.level.name, "tick_us": e.tick_us, "seconds": e.seconds, "watts": e.watts, "joules": e.joules}
            | {"low": e.span.low, "high": e.span.high, "measured": e.level.measured}
            for e in estimates(view)
        ]
    )
    constants = {level.name: {name: asdict(q) for name, q in level.constants.items()} for level in view.levels}
    found = {"elements": elements, "traffic": traffic(view), "estimates": numbers, "unknown": list(UNKNOWN)}
    return {**found, "constants": constants}
