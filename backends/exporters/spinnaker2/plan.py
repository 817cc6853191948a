"""The tick plan: how long a tick must be, and how many of them a token takes.

No barrier holds the elements together: all step at a tick of the clock, and each stage (the embedding, each layer, the
head) steps once a token, at the tick after the stage before it. L stages and the host make a token of L + 1 ticks when
each token depends on the last; a prompt, whose tokens are known, flows through the stages, a token every P ticks: what
a stage hears of the next token must not come before it has stepped, so that P is the most stages that an event passes.
That is 1 in a stack of layers, and 3 in a SpikeGPT, whose residual stream passes two stages by.
"""

from collections.abc import Mapping

import numpy as np

from rheobase.backends.exporters.spinnaker2 import work
from rheobase.backends.exporters.spinnaker2.estimate import LEVELS
from rheobase.backends.exporters.spinnaker2.image import EGRU, EMBEDDING, KINDS, PROGRAM, TOKEN, Image
from rheobase.backends.exporters.spinnaker2.routing import sent_by

TICK_MS = 1.0
"""the system tick of py-spinnaker2"""
HOST_TICKS = 1
"""the host takes the logits, chooses a token and sends it within a tick, at best; embedding and head in DRAM are its
work too"""


def stage_of(image: Image) -> str:
    """Its stage: embedding, a layer such as "egru 0", a section, or head."""
    return KINDS[image.kind] + (f" {image.fields['layer']}" if image.kind in (EGRU, PROGRAM) else "")


def names_of(pes: list[tuple[str, Image]], probes: Mapping[str, str]) -> dict[int, str]:
    """The signal that each stream sends; `probes` are the manifest's."""
    names = {0: probes["embedding"]}
    for _, image in pes:
        if image.kind in (EGRU, PROGRAM):
            layer = image.fields["layer"]
            names |= {stream: probes[f"{layer}.{port}"] for stream, port in sent_by(image).items()}
    return names


def fired_of(pes: list[tuple[str, Image]], signals, probes: Mapping[str, str], tokens) -> work.Fired:
    """Which units sent at each recorded token, by stream, from a trace's signals; `probes` are the manifest's."""
    sent = {stream: np.asarray(signals[name])[0] != 0 for stream, name in names_of(pes, probes).items()}
    return sent | {TOKEN: np.reshape(tokens, -1)} if any(i.kind == EMBEDDING for _, i in pes) else sent


def tick_plan(pes: list[tuple[str, Image]], fired: work.Fired) -> dict:
    """The plan as a table of the manifest: cycles of each element's ticks, the tick that they allow, and the rate.

    worst     every source sends, in the worst order, and every unit: what the fit gives for the most that can happen
    typical   the mean over the recorded tokens of the busiest element's instructions; busiest: the most of any token

    A kind of element whose instructions have not been fitted gives a plan that says so, and no numbers.
    """
    unknown = sorted({KINDS[i.kind] for _, i in pes} - work.cycles().keys())
    if unknown:
        return {"unknown": f"cycles of {', '.join(unknown)}: none are fitted in firmware/cycles.toml"}
    worst = {where: float(work.instructions(i, work.worst(i))) for where, i in pes}
    ticks = {where: work.instructions(i, work.recorded(i, fired)) for where, i in pes}
    stages: dict[str, list[str]] = {}
    for where, image in pes:
        stages.setdefault(stage_of(image), []).append(where)
    rows = []
    for phase, (stage, members) in enumerate(stages.items()):
        slowest = np.max([ticks[where] for where in members], 0)
        rows.append(
            {
                "stage": stage,
                "phase": phase,
                "pes": len(members),
                "worst": round(max(worst[where] for where in members)),
                "busiest": round(float(slowest.max())),
                "typical": round(float(slowest.mean())),
            }
        )
    a_token = len(rows) + HOST_TICKS
    cycles = {name: max(row[name] for row in rows) for name in ("worst", "busiest", "typical")}
    prefilled = ticks_prefilled(pes)
    return {
        "tick_ms": TICK_MS,
        "stages": rows,
        "ticks_a_token": a_token,
        "ticks_prefilled": prefilled,
        "cycles": cycles,
        "clocks": [clock(level.mhz, cycles, a_token, prefilled) for level in LEVELS],
        "pes": {w: {"worst": round(worst[w]), "mean": round(float(ticks[w].mean()))} for w, _ in pes},
        "source": work.cycles()["source"],
        "confidence": work.cycles()["confidence"],
        "unknown": "round trip to the host, links between quads, DRAM: no time is counted for them",
    }


def ticks_prefilled(pes: list[tuple[str, Image]]) -> int:
    """Ticks between two tokens of a prompt: the most stages from where an event is sent to where it is used."""
    phases = {stage: n for n, stage in enumerate(dict.fromkeys((i.kind, i.fields["layer"]) for _, i in pes))}
    sender = {0: 0 if any(i.kind == EMBEDDING for _, i in pes) else -1}
    for _, image in pes:
        if image.kind in (EGRU, PROGRAM):
            sender |= dict.fromkeys(sent_by(image), phases[image.kind, image.fields["layer"]])
    passed = [1]
    for _, image in pes:
        if image.kind != EMBEDDING:
            own = phases[image.kind, image.fields["layer"]]
            passed += [own - sender[base >> 24] for base in image.regions["keys"].reshape(-1, 4)[:, 0].tolist()]
    return max(passed)


def clock(mhz: int, cycles: dict[str, int], a_token: int, prefilled: int) -> dict:
    """At one clock: the tick that each count of cycles needs, slack at the system tick, and tokens a second.

    at_tick   at the system tick, or at what the busiest element needs where that is longer;  at_worst: at the worst
    """
    needs = {name: count / mhz for name, count in cycles.items()}
    longest = {"at_tick": max(1e3 * TICK_MS, needs["busiest"]), "at_worst": needs["worst"]}
    return {
        "mhz": mhz,
        "tick_us": {name: round(us, 2) for name, us in needs.items()},
        "slack_at_tick": {name: round(1 - us / (1e3 * TICK_MS), 4) for name, us in needs.items()},
        "generated_per_s": {name: round(1e6 / us / a_token, 1) for name, us in longest.items()},
        "prefilled_per_s": {name: round(1e6 / us / prefilled, 1) for name, us in longest.items()},
    }
